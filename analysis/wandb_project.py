"""A W&B project, over the network -> runs. Full histories (`scan_history`), never the sample `history()` gives.

Tested against the client's own classes fed with recorded answers in the server's shapes: the listing of runs, paging,
configurations, the pages of `scan_history`, values that are not finite. Not exercised: a real server, the network,
authentication, and runs so large that the server splits or thins their history.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.sweep import EVALUATED, SweepError, is_wanted
from analysis.wandb_runs import WandbRun, history_and_evaluations

# W&B's words -> ours; "finished" may turn out to be diverged.
STATES = {"finished": "finished", "failed": "failed", "running": "running", "pending": "planned"}
PAGE = 10_000  # rows a request
LAYOUT = 2  # of what is kept: null where a row lacks the column; in layout 1 that was NaN


def cache_folder() -> Path:
    """Where histories are kept between calls: $XDG_CACHE_HOME/margincall/wandb."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "margincall" / "wandb"


def read(
    entity: str, project: str, sweep: str | None, columns: Collection[str] | None, cache: Path
) -> tuple[list[WandbRun], dict[str, str]]:
    """Every run of the project (of the sweep, a W&B group, if one is named), and those that failed to load -> why.

    A run that has ended is asked for once; its history then lies in `cache` as parquet, all columns, until W&B says
    that it has more rows. Raises SweepError if the project cannot be listed.
    """
    import wandb

    try:
        found = wandb.Api().runs(
            f"{entity}/{project}", filters={"group": sweep} if sweep else None, per_page=200, lazy=False
        )
        listed = list(found)
    except (wandb.Error, ValueError) as error:
        raise SweepError(f"wandb://{entity}/{project}: {' '.join(str(error).split())}") from error
    runs, problems = [], {}
    for run in listed:
        file = cache / entity / project / f"{run.id}.parquet"
        try:
            table = _history(run, file)
        except Exception as error:  # whatever the client's many layers raise is this run's trouble; the others go on
            problems[f"W&B run {run.id}"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        logged = {
            name: (np.flatnonzero(column.is_valid().to_numpy()), column.drop_null().to_numpy())
            for name, column in zip(table.column_names, table.columns, strict=True)
            if name.startswith(EVALUATED) or is_wanted(name, columns)
        }
        history, evaluations = history_and_evaluations(logged, table.num_rows)
        state = STATES.get(run.state, "interrupted")  # crashed, killed, preempted
        started = np.datetime64(run.createdAt.removesuffix("Z")).astype("datetime64[us]").astype(float) / 1e6
        reason = "" if state == "finished" else f"W&B says {run.state}"
        own = frozenset(name for name in table.column_names if not name.startswith(EVALUATED))
        name = f"W&B run {run.id}"
        runs.append(WandbRun(name, run.id, started, state, reason, run.config, own, history, evaluations))
    return runs, problems


def _history(run: Any, file: Path) -> pa.Table:
    """All rows of a run, from the cache if they are all there."""
    version = json.dumps([LAYOUT, run.state, run.historyLineCount, run.heartbeatAt])
    if file.is_file() and run.state != "running":
        kept = pq.read_table(file)
        if kept.schema.metadata.get(b"version") == version.encode():
            return kept
    rows = list(run.scan_history(page_size=PAGE))
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name.startswith("_"):  # W&B's own: _step, _runtime, _timestamp
            continue
        try:  # what is not finite comes as text
            values = [None if (value := row.get(name)) is None else float(value) for row in rows]
        except (TypeError, ValueError):  # a table, an image: no number, no column
            continue
        columns[name] = pa.array(values, pa.float64())
    table = pa.table(columns).replace_schema_metadata({"version": version})
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(file)
    return table
