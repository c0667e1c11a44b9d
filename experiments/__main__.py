"""`python -m experiments ls|run|check|all`: studies, from the sweep to the verdict."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.study import ROOT, Study, names, read

OUTPUT = ROOT / "outputs"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done. 1: a study failed, or a verdict is not the one that was kept. 2: refused, nothing was made."""
    options = _parser().parse_args(arguments)
    if options.command == "ls":
        for name in names():
            print(_line(read(name)))
        return 0
    if options.command == "all":
        chosen = names()
    elif options.name in names():
        chosen = [options.name]
    else:
        print(f"experiments: no study {options.name!r}; there are {', '.join(names())}", file=sys.stderr)
        return 2

    from experiments.running import StudyFailed

    failures = []
    for name in chosen:
        out = (options.out or OUTPUT / ("experiments-fast" if options.fast else "experiments")) / name
        try:
            failures += (_check if options.command == "check" else _run)(read(name), out.absolute(), options.fast)
        except StudyFailed as failure:
            failures.append(str(failure))
    for line in failures:
        print(f"experiments: {line}", file=sys.stderr)
    return int(bool(failures))


def _run(study: Study, out: Path, fast: bool) -> list[str]:
    """A full run's verdict is kept beside the study, and docs/claims.md made anew; a fast one is compared with it."""
    from experiments import claims, running
    from src.store import write_json

    content = running.run(study, out, fast=fast)
    for verdict in content["verdicts"]:
        print(f"{study.name}: {verdict['claim']} {verdict['outcome']}: {verdict['finding']}")
    print(f"{study.name}: {content['seconds']:g} s; {out / 'verdict.json'}, {out / 'figures'}")
    if fast:
        return running.changed(study, {verdict["claim"]: verdict["outcome"] for verdict in content["verdicts"]})
    write_json(study.folder / "verdict.json", content)
    claims.write()
    return []


def _check(study: Study, out: Path, fast: bool) -> list[str]:
    from experiments import running

    verdicts, _, _ = running.judge(study, out, fast=fast)
    for verdict in verdicts:
        print(f"{study.name}: {verdict.claim} {verdict.outcome}: {verdict.finding}")
    return running.changed(study, {verdict.claim: verdict.outcome for verdict in verdicts})


def _line(study: Study) -> str:
    kept = {v["claim"]: v["outcome"] for v in (study.stored or {"verdicts": []})["verdicts"]}
    verdicts = ", ".join(f"{claim} {kept.get(claim, 'not run yet')}" for claim in study.claims)
    return f"{study.name} ({study.minutes[0]:g} min, fast {study.minutes[1]:g}): {study.question}\n    {verdicts}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="what studies there are, and their verdicts")
    for command, does in (
        ("run", "train what is missing, judge, draw; keep the verdict and write docs/claims.md (not with --fast)"),
        ("check", "judge again what was run; exit code 1 where a verdict is not the one that was kept"),
        ("all", "run every study"),
    ):
        sub = commands.add_parser(command, help=does)
        if command != "all":
            sub.add_argument("name", metavar="NAME")
        sub.add_argument("--fast", action="store_true", help="fewer seeds, shorter runs; never kept")
        sub.add_argument("--out", metavar="DIR", type=Path, help="where studies write (outputs/experiments[-fast])")
    return parser


if __name__ == "__main__":
    sys.exit(main())
