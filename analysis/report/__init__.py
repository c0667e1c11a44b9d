"""`python -m analysis report SOURCE`: a sweep as one HTML page, which needs no network."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.load import WANDB, load
from analysis.sweep import Sweep, SweepError, census


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written. 1: the sweep has no history yet. 2: not a sweep, or nowhere to write; nothing written."""
    options = _parser().parse_args(arguments)
    from analysis.report import page

    try:
        sweep = load(options.source, columns=page.columns(), expected=options.expected)
    except SweepError as error:
        print(f"analysis report: {error}", file=sys.stderr)
        return 2
    for line in sweep.notices():
        print(f"analysis report: {line}", file=sys.stderr)
    if sweep.history.empty:
        print(f"analysis report: {sweep.source}: {census(sweep.runs)}; none has a row of history yet", file=sys.stderr)
        return 1
    out: Path = options.out or _beside(options.source, sweep)
    if out.is_dir() or not out.parent.is_dir():
        print(f"analysis report: --out {out}: give a file in a folder that exists", file=sys.stderr)
        return 2
    data = out.with_suffix(".csv")
    html, csv = page.build(sweep, data_file=data.name, out=out)
    try:
        for path, content in ((data, csv), (out, html)):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(path)
            print(path)
    except OSError as error:
        print(f"analysis report: --out {out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    print(f"{sweep.name}: {census(sweep.runs)}; {len(html) / 1e6:.1f} MB")
    return 0


def _beside(source: str, sweep: Sweep) -> Path:
    return Path(f"{sweep.name}.html") if source.startswith(WANDB) else Path(source) / "report.html"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis report",
        description="Write one HTML page about a sweep: a summary in words, learning curves to explore, a table of "
        "verdicts that sorts and filters, the figures, the command and where the runs came from. The page needs no "
        "network. Beside it goes a CSV with every final value and verdict in full precision.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a sweep's directory; or a folder with W&B's offline files below it; or wandb://ENTITY/PROJECT[/SWEEP]",
    )
    parser.add_argument(
        "--expected",
        metavar="SWEEP_JSON",
        type=Path,
        help="for W&B: the sweep.json that says which runs there should be",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="the page (default: report.html in SOURCE, or for wandb:// the sweep's name here)",
    )
    return parser
