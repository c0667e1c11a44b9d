"""Which figures there are, and what each is drawn from. Nothing is imported before it is drawn."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from analysis.sweep import EVALUATED, Sweep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

OF_A_SWEEP = (
    "rejected_prob", "margin", "rewards", "curves", "phase", "final_margin", "collapse_map", "survival",
    "gradient_weight", "action_probs", "frontier", "kl_on_data", "held_out", "reward_histograms", "samples",
)  # fmt: skip
OF_THEORY = ("gradient_weight", "kl_estimators", "bradley_terry")  # these need no sweep
NAMES = tuple(dict.fromkeys((*OF_A_SWEEP, *OF_THEORY)))
FORMATS = ("pdf", "png", "svg")
METRICS = ("loss",)  # that `curves` shows if none is named
JUDGED = ("final_margin", "collapse_map", "survival")  # drawn from the verdicts too

Drawings = dict[str, "Callable[[], Figure]"]  # name of the file -> what draws it


def of_theory(names: Sequence[str]) -> Drawings:
    """Those of `names` that need no sweep."""
    return {name: _module(name).of_theory for name in names if name in OF_THEORY}


def of_a_sweep(
    sweep: Sweep,
    names: Sequence[str],
    metrics: Sequence[str],
    verdicts: "pd.DataFrame",
    evaluations: "pd.DataFrame",
    probes: "pd.DataFrame",
    samples: "pd.DataFrame",
) -> Drawings:
    """`names` from this sweep; `curves` is one drawing for each of `metrics`. The frames: `collapse.verdicts`, and
    `beside_history.evaluations`, `probes` and `samples` of the sweep.
    """
    drawings: Drawings = {}
    for name in names:
        draw = partial(_module(name).draw, sweep.runs) if name in OF_A_SWEEP else _module(name).of_theory
        if name == "curves":
            for metric in metrics:
                rows = evaluations if metric.startswith(EVALUATED) else sweep.history
                drawings[file_of(metric)] = partial(draw, rows, metric)
        elif name in JUDGED:
            drawings[name] = partial(draw, sweep.history, verdicts)
        elif name == "held_out":
            drawings[name] = partial(draw, evaluations)
        elif name == "reward_histograms":
            drawings[name] = partial(draw, probes)
        elif name == "samples":
            drawings[name] = partial(draw, samples)
        else:
            drawings[name] = partial(draw, sweep.history) if name in OF_A_SWEEP else draw
    return drawings


def file_of(metric: str) -> str:
    """`rewards/margins` -> curves_rewards_margins."""
    return f"curves_{metric.replace('/', '_')}"


def columns(names: Sequence[str], metrics: Sequence[str]) -> set[str]:
    """What figures read beyond the columns that tables and verdicts do."""
    found = {
        "action_probs": {"log_pi/*/*"}, "frontier": {"log_pi/*/*", "exact/kl", "gold_reward"},
        "kl_on_data": {"k1_on_data", "k2_on_data", "k3_on_data", "exact/kl"},
        "curves": {*metrics, "margin", "grad_norm"},
    }  # fmt: skip
    return {column for name in names for column in found.get(name, set())}


def _module(name: str) -> Any:
    return import_module(f"analysis.figures.{name}")
