"""`python -m analysis SOURCE`: the figures and tables of one sweep; without SOURCE those that need none."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.figures import catalogue
from analysis.load import WANDB, load
from analysis.sweep import REWARD_MODEL, Sweep, SweepError, census, with_columns

if TYPE_CHECKING:
    import pandas as pd

    from analysis.statistics import Curve

COMMANDS = ("report", "watch", "dashboard")  # modules here that have a `main` of their own
WITHIN = 0.01  # how near, relatively, IPO's margin must come to its target to be called there


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written. 1: the sweep has no history to draw yet. 2: not a sweep, or refused by --strict; nothing written."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    if words and words[0] in COMMANDS:  # a directory of that name is still to be had, as ./report
        return int(import_module(f"analysis.{words[0]}").main(words[1:]))
    options = _parser().parse_args(arguments)
    try:
        formats = _chosen("--format", options.format, catalogue.FORMATS)
        metrics = [name for name in (options.metric or "").split(",") if name]
        names = _names(options.figures, metrics, of_a_sweep=options.source is not None)
    except Refused as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    if options.source is None:
        return _theory(names, options.out or Path("figures"), formats)
    shown = metrics or list(catalogue.METRICS)
    try:
        sweep = load(options.source, columns=_columns(names, shown), expected=options.expected)
        _check_metrics(sweep, metrics)
    except (SweepError, Refused) as error:
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
    if not _made(out):
        return 2

    from analysis import outputs

    written = outputs.of_a_sweep(sweep, out, names, shown, formats)
    for line in written.problems:
        print(f"analysis: {line}", file=sys.stderr)
    for line in (*map(str, written.files), *written.left_out):
        print(line)
    print(f"{sweep.name}: {census(sweep.runs)}")
    for line in summary(sweep, written.table, written.verdicts):
        print(line)
    return 0


def _theory(names: Sequence[str], out: Path, formats: Sequence[str]) -> int:
    """Without a sweep: the figures that need none."""
    if not _made(out):
        return 2

    from analysis import outputs

    for file in outputs.of_drawings(catalogue.of_theory(names), out, formats).files:
        print(file)
    return 0


class Refused(Exception):
    """What was asked for cannot be had: one line."""


def _names(asked: str | None, metrics: Sequence[str], of_a_sweep: bool) -> list[str]:
    """The figures to draw. A metric without a figure named means its curves."""
    allowed = catalogue.NAMES if of_a_sweep else catalogue.OF_THEORY
    if asked is None:
        default = catalogue.OF_A_SWEEP if of_a_sweep else catalogue.OF_THEORY
        names = ["curves"] if metrics else list(default)
    else:
        if not of_a_sweep and (needing := [name for name in asked.split(",") if name in catalogue.OF_A_SWEEP]):
            needing = [name for name in needing if name not in catalogue.OF_THEORY]
            if needing:
                raise Refused(f"--figures {','.join(needing)}: give a SOURCE; without one: {', '.join(allowed)}")
        names = _chosen("--figures", asked, allowed)
        names += ["curves"] if metrics and "curves" not in names else []
    if metrics and not of_a_sweep:
        raise Refused("--metric needs a SOURCE, whose history has the metric")
    return names


def _chosen(option: str, asked: str, allowed: Sequence[str]) -> list[str]:
    """Names separated by commas, each once. Raises Refused."""
    names = list(dict.fromkeys(name.strip() for name in asked.split(",")))
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise Refused(f"{option}: no {', '.join(map(repr, unknown))}; there are {', '.join(allowed)}")
    return names


def _check_metrics(sweep: Sweep, metrics: Sequence[str]) -> None:
    """Raises Refused if no run's history, nor its evaluations, has one of them."""
    there: frozenset[str] = frozenset().union(*sweep.runs["columns"])
    if not metrics or not there:
        return

    from analysis import beside_history

    known = (there | {*beside_history.evaluations(sweep).rows}) - {"run", "step"}
    if unknown := [name for name in metrics if name not in known]:
        names = ", ".join(sorted(known))
        raise Refused(f"--metric: no {', '.join(map(repr, unknown))} in the history of {sweep.name}; there are {names}")


def _made(out: Path) -> bool:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"analysis: --out {out}: cannot be used as a directory ({error.strerror})", file=sys.stderr)
        return False
    return True


def _columns(names: Sequence[str] = catalogue.OF_A_SWEEP, metrics: Sequence[str] = catalogue.METRICS) -> set[str]:
    """Every column that something here reads; a tabular policy may have a hundred more."""
    from analysis import by_setting, collapse, tables

    tabled = {*collapse.COLUMNS, *tables.LAST, *tables.LARGEST, *by_setting.FINAL}
    return tabled | catalogue.columns(names, metrics)


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
        description="Draw a sweep: figures (PDF and PNG), tables of final values, of verdicts on collapse and of how "
        "these hang on their thresholds (CSV, Markdown, LaTeX), and the papers of its losses (BibTeX). Runs that are "
        "missing, unreadable, unfinished, failed or diverged are named on stderr. Without SOURCE: the figures that "
        "need no sweep. `python -m analysis report|watch|dashboard --help` for more.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="a sweep's directory, which holds sweep.json; or a folder with W&B's offline files below it; or "
        "wandb://ENTITY/PROJECT[/SWEEP]",
    )
    parser.add_argument(
        "--figures",
        metavar="A,B",
        help=f"only these: {', '.join(catalogue.NAMES)} (default: all that are about the sweep; without SOURCE: "
        f"{', '.join(catalogue.OF_THEORY)})",
    )
    parser.add_argument(
        "--metric",
        metavar="A,B",
        help="columns of the history or of evaluations (eval/…) whose curves are drawn (default: loss)",
    )
    parser.add_argument(
        "--format", metavar="A,B", default="pdf,png", help=f"of {', '.join(catalogue.FORMATS)} (default: pdf,png)"
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
        help="where to write (default: figures in SOURCE, for wandb:// in a folder of the sweep's name, without SOURCE "
        "here)",
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
