"""The papers of a sweep's losses, as BibTeX: a selection of references.bib, which names the losses of each paper."""

import re
from collections.abc import Collection, Iterable
from importlib.resources import files

import pandas as pd

NO_PAPER = frozenset({"sft", "mix"})  # maximum likelihood, and sums of other losses


def bibtex(losses: Collection[str]) -> str:
    """The entries of these losses, in the order of the file; those without one are named in a comment."""
    chosen = [text for text, names in entries() if names & {*losses}]
    known = {name for _, names in entries() for name in names}
    lacking = sorted({*losses} - known)
    head = [f"% No paper: {', '.join(lacking)}.\n"] if lacking else []
    head += ["% Needs \\usepackage{url}\n"] if any("\\url" in text for text in chosen) else []
    return "\n".join([*head, *chosen])


def entries() -> list[tuple[str, set[str]]]:
    """Each entry of references.bib and the losses it is about."""
    text = (files("analysis") / "references.bib").read_text(encoding="utf-8")
    found = re.findall(r"^@.*?^}\n", text, flags=re.MULTILINE | re.DOTALL)
    return [(entry, _losses(entry)) for entry in found]


def of_runs(runs: pd.DataFrame) -> list[str]:
    """The losses of these runs, those that `mix` adds up among them."""
    columns = ["loss.name", *(c for c in runs.columns if str(c).startswith("loss.terms.") and str(c).endswith(".name"))]
    return sorted({str(name) for column in columns if column in runs for name in runs[column].dropna()})


def _losses(entry: str) -> set[str]:
    keywords: Iterable[str] = re.findall(r"^  keywords = \{(.*)\},$", entry, flags=re.MULTILINE)
    return {name.strip() for line in keywords for name in line.split(",")}
