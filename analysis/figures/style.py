"""What every figure shares: sizes, fonts, the sheet and its layout, the saving.

Figures are drawn at the size they are printed at, one column (85 mm) wide, two columns if there are many panels.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MM = 1 / 25.4  # inches
COLUMN, PAGE = 85.0, 178.0  # mm
POINTS = 7.5  # of the text
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
    "figure.dpi": 300,  # labels are measured as they will be drawn
    "savefig.dpi": 300,
}


@contextmanager
def sheet(
    titles: Sequence[str],
    x_label: str,
    y_label: str,
    legends: Sequence[Sequence[Line2D]],
    note: str,
    panel_height: float = 42.0,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure to draw on, one panel per title; below them each group of legend entries, then the note.

    Heights in mm. The geometry is worked out here, not by matplotlib's layout engines, so that nothing overlaps and
    nothing moves; the left margin is set on leaving, when the tick labels are known. Panels share their x axis.
    """
    wide = len(titles) > 4
    width, columns = (PAGE, 2) if wide else (COLUMN, 1)
    rows = math.ceil(len(titles) / columns)
    legend_columns = 4 if wide else 2
    note_lines = textwrap.wrap(note, 132 if wide else 60, break_long_words=False)
    legend_heights = [3.5 * math.ceil(len(entries) / legend_columns) + 0.6 for entries in legends if entries]
    note_height = 3.1 * len(note_lines) + 2.5
    bottom = note_height + sum(legend_heights) + 10.5
    top = 6.0 if any(titles) else 2.5
    gap = 10.0 if any(titles) else 6.0
    right = 5.0  # half of a six-digit tick label
    height = bottom + rows * panel_height + (rows - 1) * gap + top

    def place(left: float, label_at: float = 0.0) -> None:
        """Put the panels where a left margin in mm leaves them; y labels `label_at` mm from their axis."""
        between = left + 2.0
        panel_width = (width - left - right - (columns - 1) * between) / columns
        for i, ax in enumerate(axes):
            row, column = divmod(i, columns)
            x = left + column * (panel_width + between)
            y = bottom + (rows - 1 - row) * (panel_height + gap)
            ax.set_position((x / width, y / height, panel_width / width, panel_height / height))
            ax.yaxis.set_label_coords(-label_at / panel_width, 0.5)

    with mpl.rc_context(RC):
        figure = Figure(figsize=(width * MM, height * MM))
        FigureCanvasAgg(figure)  # opens no window, and keeps one renderer to measure texts with
        axes: list[Axes] = []
        for i, title in enumerate(titles):
            ax = figure.add_axes((0, 0, 1, 1), label=str(i), sharex=axes[0] if axes else None)
            ax.set_title(title)
            last = i + columns >= len(titles)
            ax.tick_params(labelbottom=last)
            ax.set_xlabel(x_label, labelpad=2, visible=last)
            ax.set_ylabel(y_label, visible=False)  # until its place is known; seaborn labels an axis that has no label
            axes.append(ax)
        sns.despine(fig=figure)
        above = note_height + sum(legend_heights)
        for entries, legend_height in zip((e for e in legends if e), legend_heights, strict=True):
            figure.legend(
                handles=list(entries),
                loc="upper left",
                bbox_to_anchor=(2 / width, above / height),
                ncols=legend_columns,
                frameon=False,
                borderaxespad=0,
                borderpad=0,
                handlelength=2.4,
                columnspacing=1.5,
                labelspacing=0.35,
            )
            above -= legend_height
        figure.text(2 / width, 1.2 / height, "\n".join(note_lines), size=7, color="0.3", va="bottom", linespacing=1.15)
        place(left=15.0)

        yield figure, axes

        ticks = _tick_labels_width(axes)
        for ax in axes:
            ax.yaxis.label.set_visible(True)
        place(left=math.ceil(ticks + 5.5), label_at=ticks + 1.0)  # 1 mm, a line of 3 mm, and 1.5 mm to the edge


def _tick_labels_width(axes: Sequence[Axes]) -> float:
    """How far, in mm, the widest tick label reaches left of its y axis; as rendered, with the y labels hidden."""
    boxes = [(ax, ax.yaxis.get_tightbbox()) for ax in axes]
    return max(((ax.bbox.x0 - box.x0) / ax.figure.dpi / MM for ax, box in boxes if box is not None), default=0.0)


def sparse(along: npt.ArrayLike, position: int, of: int) -> list[int]:
    """Which points of curve `position` of `of` carry a marker: about six, spread evenly over where they lie `along` the
    axis (rising), and set off so that curves do not hide each other's.
    """
    where = np.asarray(along, dtype=float)
    wanted = where[0] + (where[-1] - where[0]) * (np.arange(6) + (position + 0.5) / max(of, 1)) / 6
    return sorted({int(i) for i in np.searchsorted(where, wanted).clip(max=len(where) - 1)})


def frame_y(ax: Axes, values: Sequence[npt.ArrayLike]) -> None:
    """Limit the y axis to these values with 5 % to spare, so that one run that blew up does not flatten the others."""
    parts = [np.ravel(np.asarray(v, dtype=float)) for v in values]
    finite = np.concatenate(parts) if parts else np.array([])
    finite = finite[np.isfinite(finite)]
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        spare = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        ax.set_ylim(low - spare, high + spare)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.pdf and `stem`.png. The same figure gives the same bytes: no date goes into the files."""
    paths = [stem.with_name(f"{stem.name}.pdf"), stem.with_name(f"{stem.name}.png")]
    with mpl.rc_context(RC):
        figure.savefig(paths[0], metadata={"CreationDate": None, "Creator": "margincall"})
        figure.savefig(paths[1], metadata={"Software": "margincall"})
    return paths
