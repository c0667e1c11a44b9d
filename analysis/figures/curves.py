"""Any metric of the history or of evaluations against step, a panel for each loss if they are many.

Where there is a closed form it is drawn too.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from analysis import theory
from analysis.figures import draw as d
from analysis.figures.margin import THEORY, first_rows, theory_over_seeds
from analysis.figures.sheet import Panel, sheet
from analysis.statistics import is_bounded
from analysis.sweep import EVALUATED

# Metric -> what the axis says; nats unless said. A name that is not here is shown as it is.
LABELS = {
    "loss": "loss", "margin": "margin h (nats)", "rewards/margins": "reward margin (logit)",
    "rewards/chosen": "reward of chosen (logit)", "rewards/rejected": "reward of rejected (logit)",
    "rewards/accuracies": "accuracy", "implied_preference": "implied preference σ(βh)",
    "logps/chosen": "log π(chosen) (nats)", "logps/rejected": "log π(rejected) (nats)",
    "log_ratios/chosen": "log-ratio a of chosen (nats)", "log_ratios/rejected": "log-ratio b of rejected (nats)",
    "kl_penalty": "KL penalty in the loss", "k1_on_data": "k1 on the data (nats a token)",
    "k2_on_data": "k2 on the data (nats a token)", "k3_on_data": "k3 on the data (nats a token)",
    "grad_norm": "gradient norm", "lr": "learning rate", "tokens": "response tokens seen", "pairs": "pairs seen",
    "nonfinite": "values not finite", "exact/kl": "KL(π, π_ref) (nats)", "exact/entropy": "entropy of π (nats)",
    "perplexity": "perplexity", "eval/kl_k1": "KL(π, π_ref) of answers, k1 (nats)",
    "eval/kl_k3": "KL(π, π_ref) of answers, k3 (nats)",
}  # fmt: skip


def draw(runs: pd.DataFrame, history: pd.DataFrame, metric: str = "loss") -> Figure:
    """`Sweep.runs`, `Sweep.history` and the name of one of its columns -> the figure.

    For an `eval/…` column: the rows of `beside_history.evaluations` in place of the history.
    """
    drawn = d.material(runs, history, metric, metric, evaluated=metric.startswith(EVALUATED))
    loss_each = drawn.many_losses()
    panels = drawn.panels(loss_each)
    frames = drawn.frames(metric)
    lines = _theory(drawn, metric)
    beside = {curve: [line] for curve, line in lines.items()}
    entries, betas = d.legend(drawn, panels, loss_each)
    keys = [Line2D([], [], **THEORY, label="theory, K from step 0")] if lines else []
    legends = [entries, keys + ([d.diverged_key()] if drawn.diverged else [])]
    said = " Theory: one pair under SGD, K = |∇h|² as at step\N{NO-BREAK SPACE}0 (approximate if K drifts)."
    note = (
        d.note_on_runs(drawn, _short(metric), "bootstrap" if is_bounded(metric) else "t")
        + betas
        + (said if lines else "")
    )
    label = _label(metric)
    x_label = "step (optimiser updates; log scale from 1)"
    with sheet([*panels], x_label, [Panel(label, 46.0)], legends, note) as on:
        d.share_y(on, on.axes, [*panels], drawn.wanted(panels.values(), frames, beside), signed=True)
        for ax, members in zip(on.axes, panels.values(), strict=True):
            drawn.draw(ax, members, frames, log_steps=True)
            for curve in members:
                if curve in lines:
                    ax.plot(np.arange(len(lines[curve])), lines[curve], zorder=4, **THEORY)
            ax.yaxis.set_major_formatter(FuncFormatter(d.plain))
        d.count_steps_in_tens(on.axes[0], last=int(history["step"].max()))
    return on.figure


def _theory(drawn: d.Material, metric: str) -> dict[Any, theory.Array]:
    """The closed forms of those curves that have one."""
    if metric not in theory.FROM_MARGIN or not {"margin", "grad_norm"} <= {*drawn.history.columns}:
        return {}
    starts = first_rows(drawn.history)
    found = {c: theory_over_seeds(drawn.runs, starts, drawn.parts[c][0] or c, metric)[0] for c in drawn.found}
    return {curve: line for curve, line in found.items() if line is not None}


def _label(metric: str) -> str:
    if metric.startswith(EVALUATED) and metric not in LABELS:
        return f"held-out {_label(metric.removeprefix(EVALUATED))}"
    return LABELS.get(metric, f"{metric} (nats)" if metric.startswith("log_pi/") else metric)


def _short(metric: str) -> str:
    return _label(metric).split(" (")[0]
