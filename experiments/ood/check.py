"""What collapse costs: the hold of the reference (C6, `force`), being right about what was not seen (C19, `unseen`).

Two actions, where all is known in closed form; and a toy Llama on pairs with a known reward.
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import t

from analysis.figures import draw as d
from analysis.figures.looks import NAMES, of_losses
from analysis.figures.sheet import Panel, sheet
from experiments.ood import force, unseen
from experiments.study import Drawings, Frames, Sweeps, Verdict

COLUMNS = (*unseen.COLUMNS, "log_pi/*/*")
PANELS = {"accuracy": "accuracy", "chosen": "log-ratio (nats)", "reward": "gold reward", "kl": "KL (nats)"}


def measure(sweeps: Sweeps, fast: bool) -> Frames:
    """table: C6, a row a run. runs, evaluations: C19. pairing: what other pairs of the same responses change."""
    runs, evaluations = unseen.measure(sweeps["gold"])
    table = force.measure(sweeps)
    return {"table": table, "runs": runs, "evaluations": evaluations, "pairing": unseen.pairing()}


def check(frames: Frames) -> list[Verdict]:
    return [force.verdict(frames["table"]), unseen.verdict(frames["runs"], frames["pairing"])]


def figures(sweeps: Sweeps, frames: Frames) -> Drawings:
    return {"force": lambda: _force(frames["table"]), "unseen": lambda: _unseen(frames["evaluations"])}


def _force(table: pd.DataFrame) -> Figure:
    """What is left of the distance of two references, against beta."""
    found = force.tests(table)
    titles = {"certain": "certain labels", "uncertain": f"labels that agree in {force.AGREE:.0%}"}
    look = of_losses(unseen.PAIRED)
    keys = [
        Line2D([], [], color=look[loss].colour, marker=look[loss].marker, linestyle="", label=NAMES[loss], **d.MARKER)
        for loss in unseen.PAIRED
    ] + [
        Line2D([], [], color="0.4", linewidth=0.8, label="closed form"),
        Line2D([], [], color="black", linewidth=0.8, linestyle=(0, (4, 2.5)), label="forgotten below"),
    ]
    note = (
        "Two actions, references (0.5, 0.5) and (0.2, 0.8), SGD, lr 0.4, no randomness. Total variation of the two "
        "policies over that of the references. The closed form for 80 % is of the optimum, where DPO at β = 0.1 has "
        "not yet arrived."
    )
    with sheet([*titles.values()], "β (log scale)", [Panel("distance left", 34.0)], [keys], note) as on:
        on.axes[0].set_xscale("log")
        on.axes[0].xaxis.set_major_locator(FixedLocator(sorted(found["beta"].unique())))
        on.axes[0].xaxis.set_minor_locator(NullLocator())
        on.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        for ax, sweep in zip(on.axes, titles, strict=True):
            ax.set_yscale("log")
            ax.set_ylim(found["theory"].min() / 3, 3)
            ax.yaxis.set_minor_locator(NullLocator())
            ax.axhline(force.FORGOTTEN, color="black", linewidth=0.8, linestyle=(0, (4, 2.5)))
            for loss in unseen.PAIRED:
                own = found[(found["sweep"] == sweep) & (found["loss"] == loss)].sort_values("beta")
                ax.plot(own["beta"], own["theory"], color=look[loss].colour, linewidth=0.8)
                ax.plot(
                    own["beta"],
                    own["ratio"],
                    color=look[loss].colour,
                    marker=look[loss].marker,
                    linestyle="",
                    **d.MARKER,
                )
    return on.figure


def _unseen(evaluations: pd.DataFrame) -> Figure:
    """Means over seeds against update."""
    cells = [*dict.fromkeys(zip(evaluations["labels"], evaluations["beta"], strict=True))]
    look = of_losses(unseen.PAIRED)
    styles: dict[str, dict[str, Any]] = {
        loss: {"color": look[loss].colour, "marker": look[loss].marker, "linewidth": d.WIDTH} for loss in unseen.PAIRED
    }
    keys = [Line2D([], [], label=NAMES[loss], **style, **d.MARKER) for loss, style in styles.items()]
    seeds = evaluations["seed"].nunique()
    note = (
        f"Mean of {seeds} seeds, bands: 95\N{NO-BREAK SPACE}% interval (t). Accuracy of implied rewards and log-ratio "
        "of chosen responses: pairs of unseen prompts. Gold reward (less that of the reference) and KL: of "
        "64 answers."
    )
    panels = [Panel(label, 24.0) for label in PANELS.values()]
    titles = [f"{labels} labels, β = {beta:g}" for labels, beta in cells]
    with sheet(titles, "update", panels, [keys], note) as on:
        for nth, column in enumerate(PANELS):
            for ax, (labels, beta) in zip(on.of(nth, len(PANELS)), cells, strict=True):
                for i, loss in enumerate(unseen.PAIRED):
                    own = evaluations[
                        (evaluations["labels"] == labels)
                        & (evaluations["beta"] == beta)
                        & (evaluations["loss"] == loss)
                    ]
                    own = own[own["step"] > 0] if column == "accuracy" else own
                    by_step = own.groupby("step")[column].agg(["mean", "sem", "count"])
                    half = t.ppf(0.975, by_step["count"] - 1) * by_step["sem"]
                    ends = by_step["mean"] - half, by_step["mean"] + half
                    ax.plot(by_step.index, by_step["mean"], markevery=(i, 2), **styles[loss], **d.MARKER)
                    ax.fill_between(by_step.index, *ends, color=look[loss].colour, alpha=0.2, linewidth=0)
    return on.figure
