"""Where a sweep came from: the command that made it, and the code, libraries and machines its runs name."""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.load import WANDB
from analysis.sweep import RunError, read_json


class Provenance(NamedTuple):
    """command: to be given again, empty where none is recorded. facts: name -> what the runs say of it, each with the
    number of runs that do. missing: how many runs say nothing.
    """

    command: str
    created: str
    facts: dict[str, list[tuple[str, int]]]
    missing: int


def of(source: str, runs: pd.DataFrame) -> Provenance:
    """Read sweep.json and every provenance.json. W&B's files and projects have neither: all is then empty."""
    folder = Path(source)
    if source.startswith(WANDB) or not (folder / "sweep.json").is_file():
        return Provenance("", "", {}, len(runs))
    sweep = read_json(folder / "sweep.json")
    counts: dict[str, Counter[str]] = {}
    missing = 0
    own = runs[runs["copy_of"].isna()]
    for directory in own["dir"]:
        try:
            found = read_json(folder / directory / "provenance.json")
        except RunError:
            found = {}
        missing += not found
        for name, value in _facts(found).items():
            counts.setdefault(name, Counter())[value] += 1
    facts = {name: counter.most_common() for name, counter in counts.items()}
    return Provenance(_command(sweep.get("command")), str(sweep.get("created", "")), facts, missing)


def _command(words: object) -> str:
    if not isinstance(words, list) or not words:
        return ""
    return shlex.join(["python", "-m", "src.run", *map(str, words)])


def _facts(found: dict[str, Any]) -> dict[str, str]:
    """In the order of the page. What a later version writes beside these is shown under its own name."""
    facts = {}
    rest = dict(found)
    rest.pop("command", None)
    rest.pop("argv0", None)
    if "git_commit" in rest:
        dirty = " with uncommitted changes" if rest.pop("git_dirty", False) else ""
        facts["commit"] = f"{rest.pop('git_commit') or 'not in a repository'}{dirty}"
    if "python" in rest:
        facts["Python"] = str(rest.pop("python"))
    libraries = rest.pop("libraries", None)
    if isinstance(libraries, dict):
        facts |= {str(name): str(version) for name, version in libraries.items()}
    if "platform" in rest:
        facts["machine"] = str(rest.pop("platform"))
    if "cpu_count" in rest:
        facts["CPU cores"] = str(rest.pop("cpu_count"))
    return facts | {name: value if isinstance(value, str) else json.dumps(value) for name, value in rest.items()}
