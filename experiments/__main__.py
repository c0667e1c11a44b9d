"""`python -m experiments ls|run|check|all`: studies, from the sweep to the verdict."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.study import ROOT, Size, Study, names, read

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
        out = (options.out or OUTPUT / ("experiments" + ("" if options.size == "full" else f"-{options.size}"))) / name
        try:
            failures += (_check if options.command == "check" else _run)(read(name), out.absolute(), options.size)
        except StudyFailed as failure:
            failures.append(str(failure))
    for line in failures:
        print(f"experiments: {line}", file=sys.stderr)
    return int(bool(failures))


def _run(study: Study, out: Path, size: Size) -> list[str]:
    """A full run's verdict is kept beside the study and its figures for docs/claims.md, which is made anew; another
    size's is compared with the one that was kept.
    """
    from experiments import claims, running
    from src.store import write_json

    content = running.run(study, out, size)
    for verdict in content["verdicts"]:
        print(f"{study.name}: {verdict['claim']} {verdict['outcome']}: {verdict['finding']}")
    print(f"{study.name}: {content['seconds']:g} s; {out / 'verdict.json'}, {out / 'figures'}")
    if size != "full":
        return running.changed(study, {verdict["claim"]: verdict["outcome"] for verdict in content["verdicts"]}, size)
    write_json(study.folder / "verdict.json", content)
    for name in content["figures"]:
        claims.keep_figure(study, name, out / "figures" / f"{name}.png")
    claims.write()
    return []


def _check(study: Study, out: Path, size: Size) -> list[str]:
    from experiments import running

    verdicts, _, _ = running.judge(study, out, size)
    for verdict in verdicts:
        print(f"{study.name}: {verdict.claim} {verdict.outcome}: {verdict.finding}")
    return running.changed(study, {verdict.claim: verdict.outcome for verdict in verdicts}, size)


def _line(study: Study) -> str:
    kept = {v["claim"]: v["outcome"] for v in (study.stored or {"verdicts": []})["verdicts"]}
    verdicts = ", ".join(f"{claim} {kept.get(claim, 'not run yet')}" for claim in study.claims)
    return f"{study.name} ({study.minutes[0]:g} min, fast {study.minutes[1]:g}): {study.question}\n    {verdicts}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="what studies there are, and their verdicts")
    for command, does in (
        ("run", "train what is missing, judge, draw; keep the verdict and write docs/claims.md (in full only)"),
        ("check", "judge again what was run; exit code 1 where a verdict is not the one that was kept"),
        ("all", "run every study"),
    ):
        sub = commands.add_parser(command, help=does)
        if command != "all":
            sub.add_argument("name", metavar="NAME")
        size = sub.add_mutually_exclusive_group()
        for name, does in (("fast", "fewer seeds, shorter runs"), ("gpu", "as a study has it for a GPU")):
            size.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=f"{does}; never kept")
        sub.add_argument("--out", metavar="DIR", type=Path, help="where studies write (outputs/experiments[-fast])")
        sub.set_defaults(size="full")
    return parser


if __name__ == "__main__":
    sys.exit(main())
