"""Which settings of a sweep vary, and what they are called on the page. Pure."""

from typing import Any

import pandas as pd

from analysis.sweep import settings

FIRST = ("loss.name", "beta", "lr", "optimizer.name", "scheduler.name", "model.name", "data.name", "objective", "seed")
NAMES = {"beta": "β", "loss.name": "loss"}


def varying(runs: pd.DataFrame) -> list[str]:
    """The columns of the configuration that tell runs apart, `loss.name` always among them and the seed last.

    A column that another of them determines says nothing of its own (`optimizer.momentum`, `loss.beta`), and is left
    out.
    """
    read = runs[runs["rows"] > 0]
    seed = ["seed"] if "seed" in read else []
    first = [column for column in FIRST if column in read and column != "seed"]
    rest = [column for column in settings(read) if column not in (*FIRST, "label")]
    found = ["loss.name"]
    for column in [*first[first.index("loss.name") + 1 :], *seed, *rest]:
        codes = _codes(read[column])
        if codes.nunique() > 1 and not any(codes.groupby(_codes(read[other])).nunique().max() == 1 for other in found):
            found.append(column)
    return [column for column in found if column != "seed"] + [column for column in found if column == "seed"]


def common(runs: pd.DataFrame) -> dict[str, str]:
    """Settings that are the same in all runs that have a history, by dotted key."""
    read = runs[runs["rows"] > 0]
    alike = [column for column in settings(read) if column != "label" and _codes(read[column]).nunique() == 1]
    values = {column: read[column].iloc[0] for column in alike}
    return {column: text(value) for column, value in values.items() if not _is_none(value)}


def shown(column: str) -> str:
    """`optimizer.name` -> optimizer."""
    return NAMES.get(column, column.removesuffix(".name"))


def text(value: Any) -> str:
    """As a person writes it: 0.1, true, adam; an em dash for what is not there."""
    if _is_none(value):
        return "—"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _codes(column: "pd.Series[Any]") -> "pd.Series[int]":
    codes, _ = pd.factorize(column.astype(object).map(repr))
    return pd.Series(codes, index=column.index)


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
