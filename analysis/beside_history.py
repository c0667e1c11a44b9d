"""What run directories may hold beside the history: probes of every pair, and answers in words. Read when asked for.

W&B does not mirror these files, so a sweep that was read from there has none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_directories import read_stream
from analysis.sweep import RunError, Sweep

PROBES = {
    "step": "int64",
    "set": "str",
    "pair": "int64",
    "log_ratio_chosen": "float64",
    "log_ratio_rejected": "float64",
}
SAMPLES = ("step", "pair", "prompt", "answer", "k1", "k3")


@dataclass(frozen=True)
class Found:
    """rows: those of all runs that have the file, with `run` (the id) first. problems: runs whose file is no good."""

    rows: pd.DataFrame
    problems: tuple[str, ...] = ()


def probes(sweep: Sweep) -> Found:
    """`probes.arrow`: the log-ratios [nats] of every probed pair at every evaluation.

    Columns: run, step, set ("train" or "held_out"), pair, log_ratio_chosen, log_ratio_rejected.
    """
    return _of_every_run(sweep, "probes.arrow", ["run", *PROBES], _read_probes)


def samples(sweep: Sweep) -> Found:
    """`samples.jsonl`: what the policy answered. Columns: run, step, pair, prompt, answer, k1, k3 (nats)."""
    return _of_every_run(sweep, "samples.jsonl", ["run", *SAMPLES], _read_samples)


def _of_every_run(sweep: Sweep, file: str, columns: list[str], read: Any) -> Found:
    parts, problems = [], []
    own = sweep.runs[sweep.runs["copy_of"].isna() & (sweep.runs["rows"] > 0)]
    for run, label, folder in zip(own["id"], own["label"], own["dir"], strict=True):
        path = Path(sweep.source) / folder / file
        if not path.is_file():
            continue
        try:
            rows = read(path)
        except RunError as error:
            problems.append(f"{label}: {error}, left out")
            continue
        rows.insert(0, "run", run)
        parts.append(rows)
    return Found(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns), tuple(problems))


def _read_probes(path: Path) -> pd.DataFrame:
    table, names = read_stream(path)
    lacking = [name for name in PROBES if names and name not in names]
    if lacking:
        raise RunError(f"{path.name} lacks the column {', '.join(lacking)}")
    rows: pd.DataFrame = table.to_pandas().reindex(columns=[*PROBES]).astype(PROBES)
    return rows


def _read_samples(path: Path) -> pd.DataFrame:
    """Lines up to the last whole one; a line cut off by a kill ends the file."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
            rows.append([row[name] for name in SAMPLES])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path.name}, line {number}: not an object with {', '.join(SAMPLES)}") from error
    return pd.DataFrame(rows, columns=[*SAMPLES])
