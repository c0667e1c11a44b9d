"""What every figure shares: sizes, fonts, where markers go, how far an axis reaches, the saving.

Figures are drawn at the size they are printed at, one column (85 mm) wide, the whole page if there are many panels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import catalogue

MM = 1 / 25.4  # inches
COLUMN, PAGE, PAGE_HEIGHT = 85.0, 178.0, 247.0  # mm
POINTS = 7.5  # of the text
PIXELS = 400  # columns of a panel 66 mm wide: a sixth of a millimetre each
RC: dict[Any, Any] = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper", font_scale=POINTS / sns.plotting_context("paper")["font.size"]),
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure looks the same on every machine
    "axes.titlelocation": "left",
    "axes.titlepad": 3,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "margincall",
    "figure.dpi": 300,  # labels are measured as they will be drawn
    "savefig.dpi": 300,
}

METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": "margincall"},
    "png": {"Software": "margincall"},
    "svg": {"Date": None, "Creator": "margincall"},
}


def sparse(along: npt.ArrayLike, position: int, of: int) -> list[int]:
    """Which points of curve `position` of `of` carry a marker: about six, spread evenly over where they lie `along` the
    axis (rising), and set off so that curves do not hide each other's.
    """
    where = np.asarray(along, dtype=float)
    wanted = where[0] + (where[-1] - where[0]) * (np.arange(6) + (position + 0.5) / max(of, 1)) / 6
    return sorted({int(i) for i in np.searchsorted(where, wanted).clip(max=len(where) - 1)})


def thinned(along: npt.ArrayLike, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Which of T points of a long record to draw: [T] where they lie along the axis (rising), [T] or [T, N] values.

    The axis is cut into `PIXELS` columns of equal width; of each the first and last point are drawn, and those at which
    one of the N values is least or largest, so that no peak is lost. For drawing only: statistics come before.
    """
    where = np.asarray(along, dtype=float)
    rows = np.asarray(values, dtype=float).reshape(len(where), -1)
    if len(where) <= 4 * PIXELS:
        return np.arange(len(where))
    column = ((where - where[0]) / (where[-1] - where[0]) * PIXELS).astype(np.int64).clip(max=PIXELS - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.append(starts[1:], len(where))
    kept = {*starts.tolist(), *(ends - 1).tolist()}
    for series in rows.T:
        for filled in (np.where(np.isfinite(series), series, np.inf), np.where(np.isfinite(series), -series, np.inf)):
            least = np.minimum.reduceat(filled, starts)
            at = np.flatnonzero(filled == np.repeat(least, ends - starts))
            kept.update(at[np.unique(column[at], return_index=True)[1]].tolist())
    return np.array(sorted(kept))


def frame_y(ax: Axes, values: Sequence[npt.ArrayLike]) -> None:
    """Limit the y axis to these values with 5 % to spare, so that one run that blew up does not flatten the others."""
    reach = _reach(values)
    if reach is not None:
        low, high = reach
        spare = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - spare, high + spare)


def frame_alike(axes: Sequence[Axes], values: Sequence[Sequence[npt.ArrayLike]]) -> list[int]:
    """Limit all panels to one y axis, except those (returned) that would more than double what most others need; each
    of them is limited to its own values. If that is more than a quarter of them, all are apart.
    """
    reaches = {i: reach for i, reach in enumerate(map(_reach, values)) if reach is not None}
    if not reaches:
        return []
    centre = float(np.median([(low + high) / 2 for low, high in reaches.values()]))
    order = sorted(reaches, key=lambda i: max(reaches[i][1] - centre, centre - reaches[i][0]))
    together: list[float] = []
    for position, i in enumerate(order):
        if 2 * position > len(order) and np.ptp([*together, *reaches[i]]) > 2 * np.ptp(together) > 0:
            break
        together += reaches[i]
    apart = sorted(order[len(together) // 2 :])
    if 4 * len(apart) > len(axes):
        apart = list(range(len(axes)))
    for i, ax in enumerate(axes):
        frame_y(ax, values[i] if i in apart else [together])
    return apart


def _reach(values: Sequence[npt.ArrayLike]) -> tuple[float, float] | None:
    parts = [np.ravel(np.asarray(v, dtype=float)) for v in values]
    finite = np.concatenate(parts) if parts else np.array([])
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def files(stem: Path, formats: Sequence[str] = catalogue.FORMATS) -> list[Path]:
    """`stem`.pdf, `stem`.png, …"""
    return [stem.with_name(f"{stem.name}.{ending}") for ending in formats]


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("pdf", "png")) -> list[Path]:
    """Write `stem`.pdf, `stem`.png, …, each under a temporary name first. The same figure gives the same bytes: no date
    goes into the files, and the names of things within an SVG are hashes with a fixed salt.
    """
    paths = files(stem, formats)
    with mpl.rc_context(RC):
        for path, ending in zip(paths, formats, strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            figure.savefig(temporary, format=ending, metadata=METADATA[ending])
            temporary.replace(path)
    return paths
