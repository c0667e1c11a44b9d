"""The figures of `python -m analysis`, as images for the page."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analysis import beside_history
from analysis.figures import catalogue, style
from analysis.figures.draw import NothingToDraw
from analysis.sweep import Sweep

NAMES = tuple(name for name in catalogue.OF_A_SWEEP if name != "curves")
LARGEST_SVG = 400_000  # bytes; beyond it a picture of pixels is smaller and opens faster


@dataclass(frozen=True)
class Picture:
    """uri: the image, empty where there is nothing to draw, with the reason in `caption`. width: in mm, as printed."""

    name: str
    uri: str
    caption: str
    width: float = style.COLUMN


def draw(sweep: Sweep, verdicts: pd.DataFrame) -> list[Picture]:
    """Each figure as SVG, or as PNG where it has too much in it. The same sweep gives the same bytes.

    Learning curves are left out: the page has them to explore.
    """
    beside = (beside_history.evaluations(sweep), beside_history.probes(sweep), beside_history.samples(sweep))
    drawings = catalogue.of_a_sweep(sweep, NAMES, (), verdicts, *(found.rows for found in beside))
    return [_picture(name, drawing) for name, drawing in drawings.items()]


def columns() -> set[str]:
    """Of the histories, what the figures read beyond what tables and verdicts do."""
    return catalogue.columns(NAMES, ())


def _picture(name: str, drawing: Callable[[], Figure]) -> Picture:
    about = import_module(f"{catalogue.__package__}.{name}").__doc__ or name
    caption = " ".join(about.split("\n\n")[0].split())
    try:
        figure = drawing()
    except NothingToDraw as reason:
        return Picture(name, "", f"not drawn: {reason}")
    with mpl.rc_context({**style.RC, "svg.fonttype": "path"}):
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata=style.METADATA["svg"])
        width = float(figure.get_size_inches()[0] / style.MM)
        if len(svg.getvalue()) <= LARGEST_SVG:
            return Picture(name, _uri("svg+xml", svg.getvalue()), caption, width)
        figure.savefig(png, format="png", metadata=style.METADATA["png"])
    return Picture(name, _uri("png", png.getvalue()), caption, width)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
