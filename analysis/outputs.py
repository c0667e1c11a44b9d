"""Everything `python -m analysis` writes: figures, tables, references. Each file under a temporary name first."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis import beside_history, by_setting, collapse, latex, references, tables
from analysis.figures import catalogue, samples, style
from analysis.figures.draw import NothingToDraw
from analysis.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES_FILE = "samples.md"
MOST_SAMPLES = 2000  # rows of samples.md


@dataclass
class Written:
    """files: paths in the order they were written. left_out: a line each, why a figure was not drawn."""

    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problems: tuple[str, ...] = ()
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)


def of_a_sweep(
    sweep: Sweep, out: Path, names: Sequence[str], metrics: Sequence[str], formats: Sequence[str]
) -> Written:
    """The figures `names` and all tables, into the folder `out`."""
    found = collapse.features(sweep.runs, sweep.history)
    verdicts = collapse.judged(found)
    evaluations = beside_history.evaluations(sweep)
    probes = beside_history.probes(sweep) if "reward_histograms" in names else beside_history.Found(pd.DataFrame())
    answers = beside_history.samples(sweep)
    drawings = catalogue.of_a_sweep(sweep, names, metrics, verdicts, evaluations.rows, probes.rows, answers.rows)
    written = of_drawings(drawings, out, formats)
    written.table, written.verdicts = tables.final(sweep.runs, sweep.history), verdicts
    written.problems = (*evaluations.problems, *probes.problems, *answers.problems)
    sensitivity = collapse.sensitivity_of(found)
    texts = {
        "final.csv": tables.csv(written.table),
        "final.md": tables.markdown(written.table),
        "final.tex": latex.table(*by_setting.final(sweep.runs, sweep.history), f"{sweep.name}: final values"),
        "collapse.csv": tables.csv(verdicts.rename_axis("id").reset_index()),
        "collapse.tex": latex.table(*by_setting.collapses(sweep.runs, verdicts), f"{sweep.name}: collapse"),
        "sensitivity.csv": tables.csv(sensitivity),
        "sensitivity.md": tables.sensitivity(sensitivity, len(verdicts)),
        "losses.bib": references.bibtex(references.of_runs(sweep.runs)),
    }
    if answers.rows.empty:
        (out / SAMPLES_FILE).unlink(missing_ok=True)  # of an earlier sweep of this name
    else:
        texts[SAMPLES_FILE] = tables.samples(sweep.runs, samples.first_and_last(answers.rows), MOST_SAMPLES)
    written.files += [_write(out / file, text) for file, text in texts.items()]
    return written


def of_drawings(drawings: Mapping[str, "Callable[[], Figure]"], out: Path, formats: Sequence[str]) -> Written:
    """Draw and save. What cannot be drawn is said, and files of it that an earlier call left are removed."""
    written = Written()
    for name, draw in drawings.items():
        try:
            written.files += style.save(draw(), out / name, formats)
        except NothingToDraw as reason:
            for stale in style.files(out / name):
                stale.unlink(missing_ok=True)
            written.left_out.append(f"figure {name}: not written, {reason}")
    return written


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
