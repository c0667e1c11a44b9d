"""The sheet every figure is drawn on: cells, each of one or more panels over one another, then legends and a note.

The geometry is worked out here, not by matplotlib's layout engines, so that nothing overlaps and nothing moves. All
lengths are in mm.
"""

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from analysis.figures.style import COLUMN, MM, PAGE, PAGE_HEIGHT, RC

MANY = 8  # more cells than this are drawn small, with axes in common
LEAST = 0.6  # of their height panels in one column have; where that does not fit, a page is taken
LINE = 3.2  # of text
RIGHT = 5.0  # margin: half of a six-digit tick label


class Panel(NamedTuple):
    """One quantity of every cell."""

    label: str  # of its y axis
    height: float


@dataclass
class Sheet:
    """What a figure draws on. `note` may be added to until the sheet is laid out."""

    figure: Figure
    axes: list[Axes]  # cell by cell, in a cell from top to bottom; all share their x axis
    columns: int
    small: bool
    note: str
    beside: set[Axes] = field(default_factory=set)  # those with y tick labels

    def of(self, panel: int, panels: int) -> list[Axes]:
        """The axes of one of a cell's panels, in every cell."""
        return self.axes[panel::panels]

    def share_y(self, axes: Sequence[Axes], apart: Sequence[int] = ()) -> None:
        """In small cells, label the y axis in the first column only, and in the cells `apart`."""
        for i, ax in enumerate(axes):
            if self.small and i % self.columns and i not in apart:
                ax.tick_params(labelleft=False)
                self.beside.discard(ax)


@contextmanager
def sheet(
    titles: Sequence[str], x_label: str, panels: Sequence[Panel], legends: Sequence[Sequence[Line2D]], note: str
) -> Iterator[Sheet]:
    """An empty sheet with a cell per title; below the cells each group of legend entries, then the note.

    Panels have their height if that fits a page, and less if there are many cells. The layout is finished on leaving,
    when tick labels are known.
    """
    cells, small = len(titles), len(titles) > MANY
    inner, gap = (3.0, 5.5) if small else (4.5, 10.0)
    tall = sum(panel.height for panel in panels)

    def room_of(columns: int) -> float:
        """For a cell's panels, where so many cells stand beside one another."""
        rows = math.ceil(cells / columns)
        return (PAGE_HEIGHT - (26.0 if small else 38.0)) / rows - gap - inner * (len(panels) - 1)

    columns = (4 if cells <= 32 else 5) if small else 1 if cells <= 4 else 2
    if columns == 1 and room_of(1) < LEAST * tall:
        columns = 2
    rows = math.ceil(cells / columns)
    room = min(room_of(columns), 30.0 if small else tall)
    heights = [max(panel.height * room / tall, 4.5) for panel in panels]
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1, 1))
        FigureCanvasAgg(figure)  # opens no window, and keeps one renderer to measure texts with
        axes: list[Axes] = []
        for cell in range(cells):
            for panel in panels:
                ax = figure.add_axes((0, 0, 1, 1), label=str(len(axes)), sharex=axes[0] if axes else None)
                ax.tick_params(labelbottom=cell + columns >= cells and panel is panels[-1])
                ax.set_xlabel(x_label, visible=False)  # for now; seaborn labels an axis that has no label
                ax.set_ylabel(panel.label, visible=False)
                axes.append(ax)
        sns.despine(fig=figure)
        layout = _Layout(figure, axes, columns, rows, heights, inner, gap, PAGE if columns > 1 else COLUMN)
        layout.place(left=15.0, between=4.0 if small else 17.0)
        drawn_on = Sheet(figure, axes, columns, small, note, {*axes})

        yield drawn_on

        first = [ax for i, ax in enumerate(axes) if i // len(panels) % columns == 0]
        others = [ax for ax in axes if ax not in first and ax in drawn_on.beside]
        ticks = _tick_labels_width(first if small else axes)
        left = math.ceil(ticks + 5.5)  # 1 mm to a label of 3 mm, and 1.5 mm to the edge
        between = max(4.0, _tick_labels_width(others) + 2.5) if small else left + 2.0
        layout.titles = layout.wrapped(titles, left, between)
        layout.legends = [[*entries] for entries in legends if entries]
        layout.note = textwrap.wrap(
            drawn_on.note, 132 if columns > 1 else 60, break_long_words=False, break_on_hyphens=False
        )
        layout.place(left, between)
        layout.finish([panel.label for panel in panels], x_label, ticks + 1.0, small)


@dataclass
class _Layout:
    figure: Figure
    axes: list[Axes]
    columns: int
    rows: int
    heights: list[float]  # of a cell's panels
    inner: float  # between them
    gap: float  # between rows of cells whose titles have one line
    width: float
    titles: list[str] = field(default_factory=list)
    legends: list[list[Line2D]] = field(default_factory=list)
    note: list[str] = field(default_factory=list)

    def place(self, left: float, between: float) -> None:
        """Size the figure, and put the panels where a left margin and a space between columns leave them."""
        panel_width = self._panel_width(left, between)
        lines = [0] * self.rows  # of titles, beyond the first
        for cell, title in enumerate(self.titles):
            lines[cell // self.columns] = max(lines[cell // self.columns], title.count("\n"))
        cell_height = sum(self.heights) + self.inner * (len(self.heights) - 1)
        bottom = self.below() + 10.5
        top = 6.0 if any(self.titles) else 2.5
        height = bottom + self.rows * cell_height + (self.rows - 1) * self.gap + sum(lines) * LINE + top
        self.figure.set_size_inches(self.width * MM, height * MM)
        for i, ax in enumerate(self.axes):
            (row, column), panel = divmod(i // len(self.heights), self.columns), i % len(self.heights)
            above = top + row * (cell_height + self.gap) + sum(lines[: row + 1]) * LINE
            above += sum(self.heights[: panel + 1]) + panel * self.inner
            x = left + column * (panel_width + between)
            size = (panel_width / self.width, self.heights[panel] / height)
            ax.set_position((x / self.width, (height - above) / height, *size))

    def below(self) -> float:
        """The height of legends and note."""
        return 3.1 * len(self.note) + 2.5 + sum(self._legend_height(entries) for entries in self.legends)

    def wrapped(self, titles: Sequence[str], left: float, between: float) -> list[str]:
        """Titles in lines no wider than a panel."""
        room = self._panel_width(left, between)
        return [
            wrap(title, room, lambda text: self._measured(text, mpl.rcParams["axes.titlesize"])) for title in titles
        ]

    def finish(self, y_labels: Sequence[str], x_label: str, label_at: float, small: bool) -> None:
        """Titles, axis labels (one of each for all small cells), legends, note."""
        width, height = (inches / MM for inches in self.figure.get_size_inches())
        for ax, title in zip(self.axes[:: len(self.heights)], self.titles, strict=True):
            ax.set_title(title, linespacing=1.15)
        above = self.below()
        if small:
            left = self.axes[0].get_position().x0 * width
            middle: dict[str, Any] = {"ha": "center", "va": "center", "size": mpl.rcParams["axes.labelsize"]}
            x, y_label = (left - label_at - 1.7) / width, ", below it ".join(y_labels)
            centre = (above + 10.5 + height) / 2
            self.figure.text(x, centre / height, y_label, rotation=90, **middle)
            self.figure.text((left + width - RIGHT) / 2 / width, (above + 3.3) / height, x_label, **middle)
        else:
            for i, ax in enumerate(self.axes):
                ax.yaxis.set_label_coords(-label_at / (ax.get_position().width * width), 0.5)
                ax.yaxis.label.set_visible(True)
                ax.xaxis.labelpad = 2
                last = i // len(self.heights) + self.columns >= len(self.axes) // len(self.heights)
                ax.xaxis.label.set_visible(last and (i + 1) % len(self.heights) == 0)
        for entries in self.legends:
            self.figure.legend(
                handles=entries,
                loc="upper left",
                bbox_to_anchor=(2 / width, above / height),
                ncols=self._legend_columns(entries),
                frameon=False,
                borderaxespad=0,
                borderpad=0,
                handlelength=2.4,
                columnspacing=1.5,
                labelspacing=0.35,
            )
            above -= self._legend_height(entries)
        note = "\n".join(self.note)
        self.figure.text(2 / width, 1.2 / height, note, size=7, color="0.3", va="bottom", linespacing=1.15)

    def _panel_width(self, left: float, between: float) -> float:
        return (self.width - left - RIGHT - (self.columns - 1) * between) / self.columns

    def _legend_columns(self, entries: Sequence[Line2D]) -> int:
        """Two on a column and four on a page, or as many as the longest entry leaves room for."""
        wanted = 4 if self.columns > 1 else 3 if len(entries) == 3 else 2
        widest = max(self._measured(str(entry.get_label()), mpl.rcParams["legend.fontsize"]) for entry in entries)
        em = float(mpl.rcParams["legend.fontsize"]) / 72 / MM
        return max(1, min(wanted, int((self.width - 4.0 + 1.5 * em) / (widest + (2.4 + 0.8 + 1.5) * em))))

    def _legend_height(self, entries: Sequence[Line2D]) -> float:
        return 3.5 * math.ceil(len(entries) / self._legend_columns(entries)) + 0.6

    def _measured(self, text: str, size: float) -> float:
        """How wide a text of this size in points is."""
        bare = Text(text=text, size=size)
        bare.set_figure(self.figure)
        return float(bare.get_window_extent().width / self.figure.dpi / MM)


def wrap(text: str, room: float, measured: Callable[[str], float]) -> str:
    """`text` in lines of at most `room`: broken after commas; a part too long for a line at spaces, a word anywhere."""
    return "\n".join(_lines(text, room, measured, [r"(?<=,) ", " ", ""]))


def _lines(text: str, room: float, measured: Callable[[str], float], separators: Sequence[str]) -> list[str]:
    if measured(text) <= room or not separators:
        return [text]
    parts = re.split(separators[0], text) if separators[0] else [*text]
    glue = " " if separators[0] else ""
    lines: list[str] = []
    for part in parts:
        joined = lines[-1] + glue + part if lines else part
        if lines and measured(joined) <= room:
            lines[-1] = joined
        else:
            lines += _lines(part, room, measured, separators[1:])
    return lines


def _tick_labels_width(axes: Sequence[Axes]) -> float:
    """How far the widest tick label reaches left of its y axis; as rendered, with the y labels hidden."""
    boxes = [(ax, ax.yaxis.get_tightbbox()) for ax in axes]
    return max(((ax.bbox.x0 - box.x0) / ax.figure.dpi / MM for ax, box in boxes if box is not None), default=0.0)
