"""`by_setting`'s tables as LaTeX, for the packages booktabs and longtable. Pure: rows in, text out."""

import math
from collections.abc import Mapping, Sequence

from analysis.by_setting import Cell, Row
from analysis.figures.looks import trained_name

LONG = 45  # rows; more do not fit a page
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "α": r"$\alpha$", "β": r"$\beta$", "χ": r"$\chi$",
}  # fmt: skip
NOTE = (
    "% Means over seeds; in brackets the 95 % percentile interval of a bootstrap over seeds, drawn from a fixed seed.\n"
    "% Bold: the best mean of a column that has a better end. n: runs in the mean.\n"
    "% Needs \\usepackage{booktabs}\n"
)


def table(headings: Mapping[str, str], rows: Sequence[Row], about: str) -> str:
    r"""A tabular (a longtable if it needs more than a page), to be read with \input. `about`: for a comment on top."""
    settings = any(row.curve.setting for row in rows)
    first = ["loss", r"$\beta$", *(["setting"] if settings else []), "$n$"]
    columns = "l" * (2 + settings) + "r" + "r" * len(headings)
    body = [_line(row, headings, settings) for row in rows]
    head = " & ".join([*first, *headings.values()]) + r" \\"
    if len(rows) > LONG:
        begin, end = rf"\begin{{longtable}}{{{columns}}}", r"\end{longtable}"
        top = [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        lines = [begin, *top, *body, end]
        needs = NOTE.replace("{booktabs}", "{booktabs,longtable}")
    else:
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        lines = [begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end]
        needs = NOTE
    return f"% {about}\n{needs}" + "\n".join(lines) + "\n"


def _line(row: Row, headings: Mapping[str, str], settings: bool) -> str:
    curve = row.curve
    first = [escaped(trained_name(curve.loss, curve.objective)), "" if math.isnan(curve.beta) else f"{curve.beta:g}"]
    if settings:
        first.append(escaped(curve.setting))
    return " & ".join([*first, str(row.seeds), *(_cell(row.cells.get(name)) for name in headings)]) + r" \\"


def _cell(cell: Cell | str | None) -> str:
    """Three figures; a mean that is not known is a dash."""
    if cell is None or (isinstance(cell, Cell) and math.isnan(cell.mean)):
        return "--"
    if isinstance(cell, str):
        return escaped(cell)
    mean = rf"{{\boldmath\bfseries {number(cell.mean)}}}" if cell.best else number(cell.mean)
    if math.isnan(cell.low):
        return mean
    return f"{mean} [{number(cell.low)}, {number(cell.high)}]"


def number(value: float) -> str:
    """Three figures; from 10^5 on, and below 10^-4, with a power of ten."""
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    digits, _, exponent = f"{value:.3g}".partition("e")
    if exponent and not 0 < int(exponent) < 5:
        return rf"${digits}\times10^{{{int(exponent)}}}$"
    text = f"{float(f'{value:.3g}'):.0f}" if exponent else digits
    return text.replace("-", "$-$")


def escaped(text: str) -> str:
    """Text in which no character means anything to LaTeX."""
    return "".join(SPECIAL.get(character, character) for character in text)
