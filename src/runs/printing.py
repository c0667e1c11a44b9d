"""What `python -m src.runs` prints: tables for people, and everything about one run."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from src.runs.reading import STATES, Run, Sweep, counts, history, more

COLOURS = {"finished": "green", "running": "cyan", "diverged": "yellow", "interrupted": "magenta", "planned": "dim"}
UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


def console() -> Console:
    """As wide as the terminal; a pipe gets lines of any length, for cut-off ids are of no use to a program."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = 1000
    return made


def table_of_runs(runs: Sequence[Run]) -> Table:
    """One line a run; `step` is where a diverged or failed run stopped."""
    now = datetime.now(UTC)
    several = len({run.sweep for run in runs}) > 1
    table = Table(box=None, pad_edge=False)
    for name in (["sweep"] if several else []) + ["label", "id", "state"]:
        table.add_column(name, overflow="fold")
    for name in ("steps", "step", "took", "ended"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", no_wrap=True, overflow="ellipsis")  # `show` has all of it
    for run in runs:
        table.add_row(
            *([run.sweep.name] if several else []),
            Text(run.label),
            run.id,
            _state(run.state),
            f"{_or_dash(run.steps_done)}/{_or_dash(run.config.get('steps'))}",
            _or_dash(run.status.get("step")),
            duration(run.seconds(now)),
            _ago(run, now),
            Text(run.reason),
        )
    return table


def table_of_sweeps(chosen: Sequence[tuple[Sweep, Sequence[Run]]]) -> Table:
    """One line a sweep with how many of its runs are in each state; states that occur nowhere are left out."""
    found = [counts(runs) for _, runs in chosen]
    states = [state for state in STATES if any(state in count for count in found)]
    table = Table(box=None, pad_edge=False)
    table.add_column("sweep", overflow="fold")
    for name in ("runs", *states, "age"):
        table.add_column(name, justify="right", no_wrap=True)
    for (sweep, runs), count in zip(chosen, found, strict=True):
        cells = [Text(str(count.get(state, "")), COLOURS.get(state, "red")) for state in states]
        table.add_row(Text(sweep.folder.name), str(len(runs)), *cells, _since(sweep.manifest.get("created")))
    return table


def about(sweep: Sweep, run: Run) -> str:
    """Everything about one run, in sections; a section that has nothing to say is left out."""
    rows, last = history(run.path)
    status = {"state": run.state, **{k: v for k, v in run.status.items() if k not in {"format", "state", "traceback"}}}
    if run.reason:
        status["reason"] = run.reason
    overrides = [o for o in run.overrides if not _destination(o)]
    sections = {
        f"run {run.label}": {"id": run.id, "sweep": sweep.name, "folder": str(run.path)},
        "differs from the defaults in": dict(o.partition("=")[::2] for o in overrides),
        "status": status,
        "data": more(run, "data.json"),
        f"last of {rows} rows": last,
        "provenance": more(run, "provenance.json"),
        "configuration": {k: v for k, v in run.config.items() if k not in {"format", "id", "label", "sweep"}},
    }
    parts = [f"{title}\n{_lines(content)}" for title, content in sections.items() if content]
    parts.append(f"alone again\n  {reproduce(run)}")
    if traceback := run.status.get("traceback"):
        parts.append(f"traceback\n{traceback.rstrip()}")
    return "\n\n".join(parts)


def as_json(sweep: Sweep, run: Run) -> dict[str, Any]:
    """What `show --json` prints: the same as `about`."""
    rows, last = history(run.path)
    return run.record() | {
        "sweep": sweep.name, "overrides": list(run.overrides), "command": reproduce(run), "status": dict(run.status),
        "config": dict(run.config), "provenance": more(run, "provenance.json"), "data": more(run, "data.json"),
        "rows": rows, "last": {k: v if math.isfinite(v) else str(v) for k, v in last.items()},
    }  # fmt: skip


def reproduce(run: Run) -> str:
    """The command that trains this run and no other, in a sweep of its own."""
    return shlex.join(["python", "-m", "src.run", *(o for o in run.overrides if not _destination(o))])


def duration(seconds: float | None) -> str:
    """Two digits and the largest unit of which there is one."""
    if seconds is None:
        return "-"
    unit, size = next(((unit, size) for unit, size in UNITS if abs(seconds) >= size), UNITS[-1])
    return f"{seconds / size:.{0 if abs(seconds) >= 10 * size else 1}f} {unit}"


def _destination(override: str) -> bool:
    return override.partition("=")[0] in {"output", "sweep"}


def _ago(run: Run, now: datetime) -> str:
    if run.state == "running" or (age := run.age(now)) is None:
        return "-"
    return f"{duration(age)} ago"


def _since(created: object) -> str:
    try:
        return duration((datetime.now(UTC) - datetime.fromisoformat(str(created))).total_seconds())
    except (ValueError, TypeError):
        return "-"


def _state(state: str) -> Text:
    return Text(state, COLOURS.get(state, "red"))


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _lines(content: Mapping[str, Any]) -> str:
    flat = _flat(content)
    width = max(map(len, flat))
    return "\n".join(f"  {key:<{width}}  {value}" for key, value in flat.items())


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and values as a person would type them."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
