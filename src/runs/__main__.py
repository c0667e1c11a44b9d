"""The command line of `python -m src.runs`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from src.errors import BadInput
from src.runs.printing import about, as_json, console, table_of_runs, table_of_sweeps
from src.runs.reading import STATES, Run, Sweep, choose, counts, find, folders, one, read_sweep

RERUN_STATES = ("failed", "interrupted")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        print(f"runs: {message}", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1: not confirmed, or not all could be done; 2: bad input; `rerun` has that of the sweep."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.action(options)
    except BadInput as error:
        print(f"runs: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before training began; the launcher handles the rest
        return 130
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 0
    return code


def ls(options: argparse.Namespace) -> int:
    if options.sweeps:
        sweeps = [read_sweep(find(options.output, name)) for name in options.sweeps]
    else:
        sweeps = _every_sweep(options.output)
    runs = choose([run for sweep in sweeps for run in sweep.runs], [], _split(options.state), options.where)
    for problem in (problem for sweep in sweeps for problem in sweep.problems):
        _complain(problem)
    chosen = [(sweep, [run for run in runs if run.sweep == sweep.folder]) for sweep in sweeps]
    if options.json and options.sweeps:
        print(json.dumps([run.record() for run in runs], indent=2))
    elif options.json:
        told = [
            {"sweep": s.folder.name, "folder": str(s.folder), "runs": len(r), "states": counts(r)} for s, r in chosen
        ]
        print(json.dumps(told, indent=2))
    elif options.sweeps:
        console().print(table_of_runs(runs))
        print(_in_words(runs))
    elif sweeps:
        console().print(table_of_sweeps(chosen))
    else:
        print(f"no sweeps in {options.output}")
    return 0


def show(options: argparse.Namespace) -> int:
    sweep = read_sweep(find(options.output, options.sweep))
    run = one(sweep.runs, options.run)
    print(json.dumps(as_json(sweep, run), indent=2) if options.json else about(sweep, run))
    return 0


def rerun(options: argparse.Namespace) -> int:
    from src.runs import changing  # imports Hydra, for which a listing need not wait

    sweep, runs = _chosen(options, () if options.runs else RERUN_STATES)
    if not runs:
        print(f"{sweep.folder}: nothing to train again ({_in_words(sweep.runs)})")
        return 0
    return changing.rerun(sweep, runs, options.force, print)


def rm(options: argparse.Namespace) -> int:
    from src.runs import changing

    sweep, runs = _chosen(options, ())
    if not runs:
        print(f"{sweep.folder}: no such runs ({_in_words(sweep.runs)})")
        return 0
    changing.refuse_while_trained(runs)
    what = f"{_in_words(runs)} of {sweep.folder}"
    if not options.yes and not _confirmed(f"remove {what}? [y/N] "):
        print("nothing removed")
        return 1
    left = changing.remove(sweep, runs)
    for run in left:
        _complain(f"{run.path}: another process has begun to train it; left alone")
    print(f"removed {len(runs) - len(left)} of {what}" if left else f"removed {what}")
    return 1 if left else 0


def _every_sweep(output: Path) -> list[Sweep]:
    """Every sweep that can be read; the other folders are named."""
    sweeps = []
    for folder in folders(output):
        try:
            sweeps.append(read_sweep(folder))
        except BadInput as error:
            _complain(str(error))
    return sweeps


def _chosen(options: argparse.Namespace, states: Sequence[str]) -> tuple[Sweep, list[Run]]:
    """The sweep and those of its runs that are meant; `states` is the filter where none was given."""
    sweep = read_sweep(find(options.output, options.sweep))
    runs = choose(sweep.runs, options.runs, _split(options.state) or states, options.where)
    return sweep, runs


def _split(states: str) -> list[str]:
    return [state for state in states.split(",") if state]


def _in_words(runs: Sequence[Run]) -> str:
    said = ", ".join(f"{number} {state}" for state, number in counts(runs).items())
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}" + (f": {said}" if said else "")


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in {"y", "yes"}
    except EOFError:
        print()
        return False


def _complain(problem: str) -> None:
    print(f"runs: {' '.join(problem.split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m src.runs",
        description="List, show, train again and remove the runs on disk.",
        epilog="A SWEEP is a name below --output, or the path of a sweep's folder. A RUN is an id, the beginning of "
        f"one that fits no other run, or a label. States: {', '.join(STATES)}. A run that says running while no "
        "process holds its lock was killed, and counts as interrupted.",
    )
    commands = parser.add_subparsers(metavar="ls | show | rerun | rm", required=True)
    places, filters = _Parser(add_help=False), _Parser(add_help=False)
    places.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("outputs"), help="where sweeps are (default: outputs)"
    )
    filters.add_argument("--state", metavar="S[,S]", default="", help=f"only these: {', '.join(STATES)}")
    filters.add_argument(
        "--where", metavar="KEY=VALUE[,VALUE]", nargs="+", action="extend", default=[],
        help="only runs configured so: loss=dpo,ipo beta=0.1 optimizer.lr=1e-3 (keys of config.json, all must hold)",
    )  # fmt: skip

    def command(name: str, text: str, *parents: _Parser) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=text, parents=[places, *parents]
        )
        made.set_defaults(action=globals()[name])
        return made

    listing = command("ls", "list sweeps with how many runs are in each state; with SWEEP, its runs", filters)
    listing.add_argument("sweeps", metavar="SWEEP", nargs="*", help="sweeps whose runs are listed (default: count all)")
    listing.add_argument("--json", action="store_true", help="JSON instead of a table")

    showing = command("show", "everything about one run, with the command that trains it alone")
    showing.add_argument("sweep", metavar="SWEEP")
    showing.add_argument("run", metavar="RUN")
    showing.add_argument("--json", action="store_true", help="JSON instead of text")

    again = command(
        "rerun", f"train runs again in their place; without RUN or --state those {' and '.join(RERUN_STATES)}", filters
    )
    again.add_argument("--force", action="store_true", help="also those that have ended; removes their results first")
    removing = command("rm", "remove runs, and their entries in sweep.json; without RUN or filter all of them", filters)
    removing.add_argument("--yes", action="store_true", help="do not ask")
    for changing in (again, removing):
        changing.add_argument("sweep", metavar="SWEEP")
        changing.add_argument("runs", metavar="RUN", nargs="*")
    return parser


if __name__ == "__main__":
    sys.exit(main())
