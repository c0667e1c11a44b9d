"""What the figures of a quantity against step share: which runs, curve, band, legend entry, cross where it diverged,
note.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter

from analysis.beside_history import with_evaluated_columns
from analysis.figures import looks, style, symlog
from analysis.figures.sheet import MANY, Sheet
from analysis.passes import rows_of_a_pass
from analysis.statistics import Curve, curves, over_seeds, set_apart
from analysis.sweep import REWARD_MODEL, census, with_columns

Looks = Mapping[tuple[str, float], looks.Look]
Frames = Mapping[Curve, pd.DataFrame]
Beside = Mapping[Curve, Sequence[Any]]
NONE: Beside = MappingProxyType({})
WIDTH = 1.6
SOLID: Any = "-"
MODEL_LINE: Any = (0, (3.2, 1.3))  # of a reward model
HOLLOW: dict[str, Any] = {"markersize": 4.0, "markerfacecolor": "white", "markeredgewidth": 0.9}
MARKER: dict[str, Any] = {"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4}
DIVERGED: dict[str, Any] = {"color": "0.2", "marker": "x", "markersize": 4.5, "linestyle": ""}
MOST_MARKED = 25  # so many evaluations carry a marker each; of more, some do
LOG_STEPS = SymmetricalLogTransform(base=10, linthresh=1, linscale=0.5)  # linear from 0 to 1, so that step 0 is there


TOGETHER = 4  # so many losses share a panel; more get one each
MOST_BETAS = 8  # of a loss in a panel; more lines, and more entries of a legend, cannot be told apart
MOST_PANELS = 45  # a page has room for: one for each loss, and some


class NothingToDraw(Exception):
    """No run has the columns of a figure: one line saying so."""


@dataclass(frozen=True)
class Material:
    """What there is to draw of some columns: the runs that have them, as curves."""

    runs: pd.DataFrame  # the sweep's, all of them
    history: pd.DataFrame
    found: list[Curve]
    look: Looks
    parts: Mapping[Curve, tuple[Curve | None, list[Curve]]]  # without its diverged runs, and those
    lacking: str  # how many runs are not in the figure because they have no such column; often empty
    evaluated: bool = False  # rows are evaluations: each is a point, and all are of the same pairs

    @property
    def diverged(self) -> bool:
        return any(blown for _, blown in self.parts.values())

    def panels(self, loss_each: bool) -> dict[str, list[Curve]]:
        """Title -> curves: a panel for each setting, and if `loss_each` for each loss."""
        panels: dict[str, list[Curve]] = {}
        for curve in self.found:
            loss = looks.loss_name(curve.loss) if loss_each else ""
            panels.setdefault(", ".join(part for part in (loss, curve.setting) if part), []).append(curve)
        return panels

    def many_losses(self) -> bool:
        return len({curve.loss for curve in self.found}) > TOGETHER

    def frames(self, column: str) -> Frames:
        """For every part of a curve: step, mean, low, high. Of a run that did not diverge, pass by pass."""
        rows = self.history.groupby("run", sort=False).indices  # looked up once: there may be thousands of runs
        history = self.history[["run", "step", column]]
        found = {}
        for steady, blown in self.parts.values():
            for part in (steady, *blown):
                if part:
                    own = history.take(np.concatenate([rows[run] for run in part.ids]))
                    whole = part in blown or self.evaluated
                    found[part] = over_seeds(own if whole else self._by_pass(own, part), part, column)
        return found

    def _by_pass(self, own: pd.DataFrame, part: Curve) -> pd.DataFrame:
        """The start, then the mean over each pass over the data, at its last step; as it is where a batch is all of
        them or there are not two passes. A batch's mean tells which pairs were drawn more than how the run is.
        """
        each = int(rows_of_a_pass(self.runs.loc[list(part.ids)]).max())
        if each == 1 or own["step"].max() + 1 < 2 * each:
            return own
        by_pass = own.groupby(["run", own["step"] // each], sort=False)
        means = by_pass.mean(numeric_only=True).assign(step=by_pass["step"].last(), size=by_pass.size())
        means = means[means["size"] == each].drop(columns="size").reset_index("run")
        return pd.concat([own[own["step"] == 0], means], ignore_index=True)

    @property
    def by_pass(self) -> str:
        """For the note: what a point is, if it is not one step."""
        if self.evaluated:
            return ""
        runs = self.runs.loc[[run for curve in self.found for run in curve.ids]]
        each = rows_of_a_pass(runs)
        passed = (each > 1) & (runs["rows"].to_numpy(dtype=float) >= 2 * each)
        return " A point is the mean over a pass over the data." if passed.any() else ""

    def wanted(self, panels: Iterable[Sequence[Curve]], frames: Frames, beside: Beside = NONE) -> list[list[Any]]:
        """The values each panel is to show: those of runs that did not diverge, and what is drawn `beside` them.

        Only where there are none in any of these panels, those of the runs that did.
        """
        calm, blown = [], []
        for members in panels:
            steady = [part for part in (self.parts[curve][0] for curve in members) if part]
            calm.append([_values(frames[part]) for part in steady])
            calm[-1] += [values for curve in members for values in beside.get(curve, ())]
            blown.append([_values(frames[run]) for curve in members for run in self.parts[curve][1]])
        return calm if any(calm) else blown

    def draw(
        self, ax: Axes, members: Sequence[Curve], frames: Frames, log_steps: bool = False, line: Any = None
    ) -> None:
        """Every part of these curves, onto a panel whose y axis is already limited. line: a style for all of them."""
        stops = self.runs["stopped_at"].astype(float)
        for nth, curve in enumerate(members):
            steady, blown = self.parts[curve]
            look = self.look[curve.loss, curve.beta]
            own = line or (MODEL_LINE if curve.objective == REWARD_MODEL else SOLID)
            if steady:
                draw_curve(ax, frames[steady], look, (nth, len(members)), log_steps, own, self.evaluated)
            for run in blown:
                draw_diverged(ax, frames[run], look, stops[run.ids[0]])


def material(
    runs: pd.DataFrame,
    history: pd.DataFrame,
    what: str,
    *columns: str,
    every_beta: bool = False,
    evaluated: bool = False,
) -> Material:
    """The runs that have these columns, in words `what`. Raises NothingToDraw if there are none.

    Of many betas some are drawn, evenly spaced in their order from the least to the largest, and of more panels than a
    page holds the first; `lacking` says so. With `every_beta` only the panels are limited.

    evaluated: `history` is the rows of `beside_history.evaluations`.
    """
    if evaluated:
        runs = with_evaluated_columns(runs, history)
    with_history, those = with_columns(runs), with_columns(runs, *columns)
    if those.empty:
        where = "evaluations" if evaluated else "history"
        raise NothingToDraw(f"no run has {' and '.join(columns)} in its {where}")
    everything, lacking = curves(those), len(with_history) - len(those)
    said = f"; {lacking} without {what}, not shown" if lacking else ""
    found = everything if every_beta else _some_betas(everything)
    if len(found) < len(everything):
        said += f"; {len(found)} of {len(everything)} curves drawn, evenly spaced in β"
    panels = list(dict.fromkeys((curve.loss, curve.setting) for curve in found))
    if len(panels) > MOST_PANELS:
        kept = {*panels[:MOST_PANELS]}
        found = [curve for curve in found if (curve.loss, curve.setting) in kept]
        said += f"; {MOST_PANELS} of {len(panels)} pairs of loss and setting drawn, the first in the sweep's order"
    look = looks.of_curves(curves(runs))  # of all, so that a curve looks the same in every figure
    return Material(runs, history, found, look, {curve: set_apart(runs, curve) for curve in found}, said, evaluated)


def _some_betas(found: Sequence[Curve]) -> list[Curve]:
    """Of each loss in each setting at most `MOST_BETAS` curves, the first and the last among them."""
    kept: set[Curve] = set()
    groups: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in found:
        groups.setdefault((curve.loss, curve.setting, curve.objective), []).append(curve)
    for members in groups.values():
        kept |= {members[i] for i in spread(len(members), MOST_BETAS)}
    return [curve for curve in found if curve in kept]


def spread(of: int, most: int) -> list[int]:
    """At most `most` of the positions 0 to `of` - 1, evenly spaced, the first and the last among them."""
    if of <= most:
        return list(range(of))
    return [round(i * (of - 1) / (most - 1)) for i in range(most)]


def name(curve: Curve) -> str:
    """Such as `DPO β = 0.1`."""
    return looks.loss_name(curve.loss) + ("" if math.isnan(curve.beta) else f" β = {curve.beta:g}")


def legend(drawn: Material, panels: Mapping[str, Sequence[Curve]], loss_each: bool) -> tuple[list[Line2D], str]:
    """One entry per loss and beta, whatever the number of panels; and what is left to the note.

    Where there are many panels and each says its loss, the entries are only of betas, if all losses have the same.
    """
    betas = {curve.loss: [*dict.fromkeys(c.beta for c in drawn.found if c.loss == curve.loss)] for curve in drawn.found}
    sets = {tuple(sorted(those)) for those in betas.values() if not any(map(math.isnan, those))}
    if loss_each and len(panels) > MANY and len(sets) <= 1:
        shared = sets.pop() if sets else ()
        if len(shared) < 2:
            return [], "".join(f" β = {beta:g} throughout." for beta in shared)
        shades = [looks.shade((0.25, 0.25, 0.25), i, len(shared)) for i in range(len(shared))]
        return [
            Line2D([], [], color=colour, linewidth=WIDTH, label=f"β = {beta:g}")
            for beta, colour in zip(shared, shades, strict=True)
        ], ""
    entries = {}
    for curve in drawn.found:
        colour, marker = drawn.look[curve.loss, curve.beta]
        label = name(curve)
        entries[label] = Line2D([], [], color=colour, marker=marker, linewidth=WIDTH, label=label, **MARKER)
    return list(entries.values()), ""


def diverged_key() -> Line2D:
    """The legend entry of the crosses."""
    return Line2D([], [], **DIVERGED, label="diverged here")


def draw_curve(
    ax: Axes,
    frame: pd.DataFrame,
    look: looks.Look,
    turn: tuple[int, int],
    log_steps: bool = False,
    line: Any = SOLID,
    points: bool = False,
) -> None:
    """`frame` has step, mean, low, high. `turn` (this curve, of how many) sets its markers off from the others'.

    The markers of a line that is not solid, such as a reward model's, are hollow, so that it shows even where it lies
    on a solid one. points: each row has a marker, if they are few. Of a long record the points are drawn that can be
    told apart (`style.thinned`).
    """
    colour, marker = look
    along = frame["step"].to_numpy(dtype=float)
    along = LOG_STEPS.transform(along) if log_steps else along
    some = style.thinned(along, frame[["mean", "low", "high"]])
    frame = frame.iloc[some]
    _line(ax, frame, color=colour, linewidth=WIDTH, zorder=3, linestyle=line)
    marked = frame if points and len(frame) <= MOST_MARKED else frame.iloc[style.sparse(along[some], *turn)]
    marks = MARKER if line == SOLID else HOLLOW | {"markeredgecolor": colour}
    ax.plot(marked["step"], marked["mean"], color=colour, marker=marker, linewidth=0, zorder=3.1, **marks)
    if frame["low"].notna().any():
        ax.fill_between(frame["step"], frame["low"], frame["high"], color=colour, alpha=0.3, linewidth=0, zorder=1.8)


def draw_diverged(ax: Axes, frame: pd.DataFrame, look: looks.Look, stopped_at: float) -> None:
    """A run that diverged: thin and behind the others, and a cross where it stopped.

    The axis is already limited to what the other runs need; where this one has left it, the cross sits on its edge.
    """
    low, high = ax.get_ylim()
    frame = frame.iloc[style.thinned(frame["step"], frame[["mean"]])]
    _line(ax, frame, color=look.colour, linewidth=0.6, alpha=0.5, zorder=1.9)
    finite = frame[np.isfinite(frame["mean"])]
    if not finite.empty:
        edge = 0.02 * (high - low)
        y = float(np.clip(finite["mean"].iloc[-1], low + edge, high - edge))
        x = finite["step"].iloc[-1] if math.isnan(stopped_at) else stopped_at
        ax.plot(x, y, zorder=5, clip_on=False, **DIVERGED)
    ax.set_ylim(low, high)


def share_y(
    sheet: Sheet, axes: Sequence[Axes], titles: Sequence[str], values: Sequence[Sequence[Any]], signed: bool = False
) -> None:
    """Limit all these panels to one y axis. One that needs far more has its own, and is noted.

    signed: where the values run through decades, the axis is linear from -1 to 1 and logarithmic beyond; not where it
    is but a few of many small cells that do.
    """
    together = [np.ravel(np.asarray(value, dtype=float)) for those in values for value in those]
    everything = np.concatenate(together) if together else np.array([])
    few = sheet.small and 4 * sum(_far(those, everything) for those in values) <= len(axes)
    if signed and symlog.is_wide(everything) and not few:
        for ax in axes:
            ax.set_yscale("symlog", **symlog.SCALE)
            ax.set_ylim(symlog.limit(ax.yaxis, everything[np.isfinite(everything)], sheet.small))
        sheet.share_y(axes)
        if "logarithmic beyond" not in sheet.note:
            sheet.note += " y axis: linear from −1 to 1, logarithmic beyond."
        return
    apart = style.frame_alike(axes, values)
    sheet.share_y(axes, apart)
    said = ""
    if len(apart) == len(axes):
        said = " Every panel has a y axis of its own."
    elif apart:
        names = "; ".join(unbroken(titles[i]) for i in apart)
        said = f" One y axis for all panels but {names}."
    if said not in sheet.note:
        sheet.note += said


def _far(those: Sequence[Any], everything: Any) -> bool:
    """Is one of these values a thousand times what most values of all panels are?"""
    typical = float(np.nanmedian(np.abs(everything)))
    return any(symlog.WIDE * typical < np.nanmax(np.abs(value), initial=0.0) for value in those)


def count_steps_in_tens(ax: Axes, last: int) -> None:
    """Make the step axis, which the panels of a sheet share, 0, 1, 10, 100, … (`LOG_STEPS`) up to the last step.

    Call it when all is drawn: seaborn takes points through the scale it finds and back, which costs their last digits.
    """
    ax.set_xscale("symlog", base=10, linthresh=1, linscale=0.5)
    start, end = LOG_STEPS.transform(np.array([0.0, max(last, 1)]))
    spare = 0.05 * (end - start)
    low, high = LOG_STEPS.inverted().transform(np.array([start - spare, end + spare]))
    ax.set_xlim(low, high)
    decades = [10**n for n in range(1 + int(math.log10(high)))]
    ax.xaxis.set_major_locator(FixedLocator([0, *decades]))
    ax.xaxis.set_minor_locator(FixedLocator([digit * decade for decade in decades for digit in range(2, 10)]))

    def label(step: float, _: int) -> str:
        """Every decade has one, or every second where the panel (by then laid out) is too narrow."""
        decade = ax.bbox.width / ax.figure.dpi / style.MM / (end - start + 2 * spare)
        if step > 1 and round(math.log10(step)) % 2 and decade < 6.0:
            return ""
        return f"{step:.0f}" if step < 1e4 else f"$10^{{{math.log10(step):.0f}}}$"

    ax.xaxis.set_major_formatter(FuncFormatter(label))


def _values(frame: pd.DataFrame) -> Any:
    return frame[["mean", "low", "high"]].to_numpy()


def _line(ax: Axes, frame: pd.DataFrame, **kwargs: Any) -> None:
    """The mean against step; what has no mean stays a gap (seaborn's lineplot would bridge it)."""
    if frame["mean"].notna().any():
        ax.plot(frame["step"], frame["mean"], **kwargs)


def note_on_runs(drawn: Material, quantity: str, kind: str = "t") -> str:
    """How many runs the figure shows, and what a line stands for: one run, or a mean over seeds and its interval."""
    counts = sorted({len(steady.ids) for steady, _ in drawn.parts.values() if steady is not None}) or [1]
    if counts[-1] == 1:
        note = "One seed per curve."
    else:
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        note = f"Line: mean of {quantity} over {n} seeds; band: its 95\N{NO-BREAK SPACE}% {kind} interval."
    if any(steady and blown for steady, blown in drawn.parts.values()):
        note += " Diverged runs are drawn singly, thin, and are not in the mean."
    return f"{census(drawn.runs)}{drawn.lacking}. {note}{drawn.by_pass}"


def unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def plain(value: float, position: int) -> str:
    """A tick's label."""
    return symlog.tick(value, position)
