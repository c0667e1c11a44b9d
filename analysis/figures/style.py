"""What every figure shares: sizes, fonts, one colour and marker per loss, the sheet, the saving.

Figures are drawn at the size they are printed at, one column (85 mm) wide, two columns if there are many panels.
"""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MM = 1 / 25.4  # inches
COLUMN, PAGE = 85.0, 178.0  # mm
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so a figure looks the same on every machine
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 3,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.0,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 300,
}

# Okabe and Ito's colours, safe for colour-blind readers. Each loss keeps its own in every figure, and its marker
# where colour is lost.
LOSSES = {"dpo": ("#D55E00", "o"), "ipo": ("#0072B2", "s")}
OTHERS = [(c, marker) for marker in "^vDPX<>" for c in ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")]


def look(loss: str) -> tuple[str, str]:
    """(colour, marker) of a loss: the same in every figure and session, since it follows from the name alone."""
    return LOSSES.get(loss) or OTHERS[zlib.crc32(loss.encode()) % len(OTHERS)]


def shade(colour: str, position: int, of: int) -> tuple[float, float, float]:
    """The colour mixed with white: the first (smallest beta) of `of` stays pure, the last is lightest."""
    white = 0.55 * position / max(of - 1, 1)
    red, green, blue = (c + (1 - c) * white for c in to_rgb(colour))
    return red, green, blue


def loss_name(loss: str) -> str:
    """`dpo` -> DPO for the losses known by their initials."""
    return loss.upper() if loss in LOSSES else loss


def sheet(
    titles: Sequence[str],
    x_label: str,
    y_label: str,
    legends: Sequence[Sequence[Line2D]],
    note: str,
    panel_height: float = 42.0,
) -> tuple[Figure, list[Axes]]:
    """An empty figure with one panel per title; below them each group of legend entries, then the note. Heights in mm.

    The geometry is worked out here, not by matplotlib's layout engines, so that nothing overlaps and nothing moves.
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
    height = bottom + rows * panel_height + (rows - 1) * gap + top
    figure = Figure(figsize=(width * MM, height * MM))
    left, between = 15.0, 17.0
    panel_width = (width - left - 3.0 - (columns - 1) * between) / columns
    axes = []
    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        x = left + column * (panel_width + between)
        y = bottom + (rows - 1 - row) * (panel_height + gap)
        ax = figure.add_axes((x / width, y / height, panel_width / width, panel_height / height))
        ax.set_title(title)
        ax.set_ylabel(y_label)
        ax.yaxis.set_label_coords(-11.0 / panel_width, 0.5)
        if i + columns >= len(titles):
            ax.set_xlabel(x_label, labelpad=2)
        else:
            ax.tick_params(labelbottom=False)
        axes.append(ax)
    above = note_height + sum(legend_heights)
    for entries, legend_height in zip((e for e in legends if e), legend_heights, strict=True):
        figure.legend(
            handles=list(entries),
            loc="upper left",
            bbox_to_anchor=(left / width, above / height),
            ncols=legend_columns,
            frameon=False,
            borderaxespad=0,
            borderpad=0,
            handlelength=2.4,
            columnspacing=1.5,
            labelspacing=0.35,
        )
        above -= legend_height
    figure.text(2 / width, 1.2 / height, "\n".join(note_lines), fontsize=7, color="0.3", va="bottom", linespacing=1.15)
    return figure, axes


def sparse(n: int, position: int, of: int) -> tuple[int, int]:
    """`markevery` for curve `position` of `of`: about six markers, set off so that curves do not hide each other's."""
    every = max(1, n // 6)
    return (every * (2 * position + 1)) // (2 * max(of, 1)), every


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
