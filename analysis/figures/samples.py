"""What the language model answers, at the first and at the last evaluation: a table of prompts, runs and answers."""

import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.figures import draw as d
from analysis.figures.style import MM, PAGE, PAGE_HEIGHT, RC
from analysis.sweep import census

COLUMNS = {"run": 2.0, "step": 40.0, "k1": 49.0, "k3": 61.0, "answer": 73.0}  # name -> left edge in mm
WIDTHS = {"run": 26, "answer": 76, "prompt": 130}  # characters a line
MOST_LINES = 4  # of an answer
LINE, SIZE = 2.8, 6.5  # mm, points


def draw(runs: pd.DataFrame, samples: pd.DataFrame) -> Figure:
    """`Sweep.runs` and the rows of `beside_history.samples` -> the figure: as many prompts as a page holds."""
    if samples.empty:
        raise d.NothingToDraw("no run has written down what its policy answers (samples.jsonl)")
    blocks = list(_blocks(runs, first_and_last(samples)))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(PAGE * MM, PAGE_HEIGHT * MM))
        FigureCanvasAgg(figure)
        texts, y, shown = _placed(blocks)
        note = (
            f"{census(runs)}. {shown} of {len(blocks)} prompts; all are in samples.md. k1, k3: summed over the answer's"
            " tokens, nats. … : cut here."
        )
        height = y + 7.0
        figure.set_size_inches(PAGE * MM, height * MM)
        for x, top, text, style in texts:
            figure.text(x / PAGE, 1 - top / height, text, va="top", linespacing=1.1, **style)
        figure.text(2 / PAGE, 1.5 / height, note, size=7, color="0.3", va="bottom")
    return figure


def first_and_last(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's first and last evaluation."""
    ends = samples.groupby("run")["step"].transform
    return samples[(samples["step"] == ends("min")) | (samples["step"] == ends("max"))]


def _blocks(runs: pd.DataFrame, samples: pd.DataFrame) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A prompt, and its answers by run and step."""
    labels = runs["label"]
    order = {run: i for i, run in enumerate(runs.index)}
    for _, own in samples.groupby(["pair", "prompt"], sort=True):
        rows = own.assign(order=own["run"].map(order)).sort_values(["order", "step"])
        cells = [
            {"run": str(labels[run]), "step": f"{step}", "k1": _number(k1), "k3": _number(k3), "answer": str(answer)}
            for run, step, k1, k3, answer in zip(
                rows["run"], rows["step"], rows["k1"], rows["k3"], rows["answer"], strict=True
            )
        ]
        yield str(own["prompt"].iloc[0]), cells


def _placed(blocks: list[tuple[str, list[dict[str, str]]]]) -> tuple[list[tuple[float, float, str, Any]], float, int]:
    """What to write where [mm from the left and from the top], where it ends, and how many blocks are begun."""
    head: dict[str, Any] = {"size": SIZE, "weight": "bold"}
    texts: list[tuple[float, float, str, Any]] = [(x, 2.0, name, head) for name, x in COLUMNS.items()]
    y, shown = 2.0 + 1.6 * LINE, 0
    for prompt, rows in blocks:
        lines = _lines(prompt, WIDTHS["prompt"], 3)
        first = LINE * max(len(_lines(rows[0]["answer"], WIDTHS["answer"], MOST_LINES)), 1)
        if shown and y + LINE * len(lines) + first > PAGE_HEIGHT - 12:
            break
        shown += 1
        texts.append((2.0, y, "\n".join(lines), {"size": SIZE, "style": "italic", "color": "0.25"}))
        y += LINE * (len(lines) + 0.4)
        for row in rows:
            wrapped = {name: _lines(row[name], WIDTHS.get(name, 99), MOST_LINES) for name in COLUMNS}
            tall = LINE * max(map(len, wrapped.values()))
            if y + tall > PAGE_HEIGHT - 8:
                return texts, y, shown
            texts += [(x, y, "\n".join(wrapped[name]), {"size": SIZE}) for name, x in COLUMNS.items()]
            y += tall + 0.5
        y += 0.8 * LINE
    return texts, y, shown


def _lines(text: str, width: int, most: int) -> list[str]:
    """Plain text: no dollar sign begins a formula."""
    one = " ".join(text.split()).replace("$", r"\$")
    return textwrap.wrap(one, width, max_lines=most, placeholder=" …") or ["—"]


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{float(value) + 0.0:.3g}".replace("-", "−")
