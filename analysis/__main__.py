"""`python -m analysis SOURCE`: the figures and the table of final values of one sweep."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.load import WANDB, load
from analysis.sweep import REWARD_MODEL, Sweep, SweepError, census, with_columns

if TYPE_CHECKING:
    from types import ModuleType

    import pandas as pd

    from analysis.statistics import Curve

WITHIN = 0.01  # how near, relatively, IPO's margin must come to its target to be called there


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written. 1: the sweep has no history to draw yet. 2: not a sweep, or refused by --strict; nothing written."""
    options = _parser().parse_args(arguments)
    try:
        sweep = load(options.source, columns=_columns(), expected=options.expected)
    except SweepError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    for line in sweep.notices():
        print(f"analysis: {line}", file=sys.stderr)
    defects = sweep.defects()
    if options.strict and defects:
        print(f"analysis: --strict: {len(defects)} defect(s), nothing written: {'; '.join(defects)}", file=sys.stderr)
        return 2
    if sweep.history.empty:
        print(f"analysis: {sweep.source}: {census(sweep.runs)}; none has a row of history yet", file=sys.stderr)
        return 1
    out: Path = options.out or _beside(options.source, sweep.name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"analysis: --out {out}: cannot be used as a directory ({error.strerror})", file=sys.stderr)
        return 2

    from analysis import collapse, tables
    from analysis.figures import style
    from analysis.figures.draw import NothingToDraw

    written, not_written = [], []
    for name, figure in _figures().items():
        try:
            written += style.save(figure.draw(sweep.runs, sweep.history), out / name)
        except NothingToDraw as reason:
            for stale in style.files(out / name):  # of an earlier sweep of this name
                stale.unlink(missing_ok=True)
            not_written.append(f"figure {name}: not written, {reason}")
    table = tables.final(sweep.runs, sweep.history)
    verdicts = collapse.verdicts(sweep.runs, sweep.history)
    texts = {
        "final.csv": tables.csv(table), "final.md": tables.markdown(table),
        "collapse.csv": tables.csv(verdicts.rename_axis("id").reset_index()),
    }  # fmt: skip
    for file, text in texts.items():
        (out / file).write_text(text, encoding="utf-8")
        written.append(out / file)
    for line in (*map(str, written), *not_written):
        print(line)
    print(f"{sweep.name}: {census(sweep.runs)}")
    for line in summary(sweep, table, verdicts):
        print(line)
    return 0


def _figures() -> "dict[str, ModuleType]":
    """Name of the file -> what draws it."""
    from analysis.figures import collapse_map, final_margin, margin, phase, rejected_prob, rewards, survival

    modules = (rejected_prob, margin, rewards, phase, final_margin, collapse_map, survival)
    return {module.__name__.rpartition(".")[2]: module for module in modules}


def _columns() -> set[str]:
    """Every column that something here reads; a tabular policy may have a hundred more."""
    from analysis import collapse, tables

    return {*collapse.COLUMNS, *tables.LAST, *tables.LARGEST}


def _beside(source: str, name: str) -> Path:
    """Where figures go if nothing is said."""
    return (Path(name) if source.startswith(WANDB) else Path(source)) / "figures"


def summary(sweep: Sweep, table: "pd.DataFrame", verdicts: "pd.DataFrame") -> list[str]:
    """One line per curve: its final margin and pi(rejected), for IPO whether it is within 1 % of its target, and what
    kind of collapse its runs came to, from which step (the median of them).

    A curve that lacks one of them is told by what it has: a reward model by its reward margin and its accuracy.
    """
    from analysis.figures.margin import first_rows, theory_over_seeds
    from analysis.statistics import curves

    lines, starts = [], first_rows(sweep.history)
    for curve in curves(sweep.runs):
        runs = sweep.runs.loc[list(curve.ids)]
        has_margin = len(with_columns(runs, "margin")) == len(runs)
        text = f"{_name(curve)}: {_finals(table.loc[list(curve.ids)], frozenset.intersection(*runs['columns']))}"
        text += _collapses(verdicts.loc[list(curve.ids)])
        why_not = theory_over_seeds(sweep.runs, starts, curve)[1] if has_margin else ""
        lines.append(text + (f" [no theory line: {why_not}]" if why_not else ""))
    return lines


def _collapses(verdicts: "pd.DataFrame") -> str:
    """Such as `; margin collapse from step 2062 (2 of 3 seeds)`; empty if no run collapsed."""
    text = ""
    for label, own in verdicts[verdicts["label"].fillna("none") != "none"].groupby("label"):
        seeds = f" ({len(own)} of {len(verdicts)} seeds)" if len(verdicts) > 1 else ""
        text += f"; {label} from step {own['onset'].median():g}{seeds}"
    return text


def _name(curve: "Curve") -> str:
    beta = "" if curve.beta != curve.beta else f" beta={curve.beta:g}"
    setting = f" {curve.setting}" if curve.setting else ""
    model = " reward model" if curve.objective == REWARD_MODEL else ""
    return f"{curve.loss}{beta}{model}{setting}"


def _finals(rows: "pd.DataFrame", columns: frozenset[str]) -> str:
    from analysis.tables import power_of_ten

    finished = rows[rows["state"] == "finished"]
    if finished.empty:
        return f"no finished run ({', '.join(sorted(set(rows['state'])))})"
    seeds = f", mean of {len(finished)} seeds" if len(finished) > 1 else ""
    margin, target = float(finished["margin"].mean()), float(finished["target margin"].iloc[0])
    parts = []
    if "margin" in columns:
        parts.append(f"margin {margin:.4g} nats")
    elif "rewards/margins" in columns:
        parts.append(f"reward margin {finished['rewards/margins'].mean():.4g}")
        parts.append(f"accuracy {finished['rewards/accuracies'].mean():.4g}")
    if "log_pi/rejected" in columns:
        parts.append(f"pi(rejected) {power_of_ten(float(finished['log_pi/rejected'].mean()))}")
    text = ", ".join(parts or [f"loss {finished['final loss'].mean():.4g}"]) + seeds
    if target == target:
        near = "within" if abs(margin / target - 1) <= WITHIN else "NOT within"
        text += f"; {near} 1 % of its target {target:g}"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Draw a sweep: pi(rejected), the margin and the rewards against step (PDF and PNG), and tables of "
        "final values (CSV and Markdown) and of verdicts on collapse (CSV). Runs that are missing, unreadable, "
        "unfinished, failed or diverged are named on stderr.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a sweep's directory, which holds sweep.json; or a folder with W&B's offline files below it; or "
        "wandb://ENTITY/PROJECT[/SWEEP]",
    )
    parser.add_argument(
        "--expected",
        metavar="SWEEP_JSON",
        type=Path,
        help="for W&B: the sweep.json that says which runs there should be",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where to write (default: figures in SOURCE, or for wandb:// in a folder of the sweep's name)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="write nothing and exit with 2 if a run is missing, unreadable or not ended, or a run directory is not "
        "listed in sweep.json; diverged and failed runs are results and pass",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
