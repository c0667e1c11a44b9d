"""W&B's offline file of a run, written without W&B.

W&B's own way (wandb.init, run.log, run.finish) is most of what a small run costs; this takes a twentieth (docs/LOG.md).
The file holds the records of W&B's own, in its order, with one difference: W&B repeats the whole summary after each
row, here it follows each batch of rows. What `wandb sync` uploads is the same.

The numbers of fields are those of W&B's `wandb_internal.proto` and `wandb_telemetry.proto`.
"""

import json
import os
import platform
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.tracking.about import SUMMARIES, WANDB, About
from src.tracking.wire import FILE_HEADER, framed, length_prefix, message

# Kinds of record, as field numbers of `Record`.
HISTORY, SUMMARY, TELEMETRY, METRIC, RUN, EXIT, HEADER = 2, 3, 11, 12, 17, 18, 21
INFO = 200
# Of `HistoryItem` and `SummaryItem`, and of `HistoryRecord` and `SummaryRecord`.
KEY, NESTED_KEY, VALUE = 1, 2, 16
ITEM, STEP = 1, 2
# Of `MetricSummary`.
HOW = {"min": 1, "max": 2, "last": 5}
# Of `Feature`: finish, offline, metric, set_init_name, set_init_id, set_init_config, set_step_log, metric_summary,
# metric_hidden. They say what of W&B a run makes use of.
FEATURES = (2, 4, 7, 13, 14, 16, 61, 63, 65)
OLDEST_READER = "0.70.0"
BATCH = 4096  # rows written at once
LENGTHS = 32  # of a number; arrow gives a float 25 characters at most (-0.0000012345678901234567), an integer 20


class OfflineRun:
    """The file of one run. Nothing is kept open between calls, and a process that is forked shares nothing."""

    def __init__(self, about: About, folder: Path) -> None:
        """Begin the file, in `folder`/wandb.

        Raises:
            OSError: the folder cannot be written.
        """
        self._started = time.time()
        self._suffix = message((INFO, message((1, about.id))))
        self._numbered = 0
        self._worst: dict[str, float] = {}
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(self._started))
        self._path = folder / "wandb" / f"offline-run-{stamp}-{about.id}" / f"run-{about.id}.wandb"
        (self._path.parent / "files").mkdir(parents=True)  # empty; `wandb sync` writes the last summary there
        self._path.write_bytes(FILE_HEADER)
        versions = message((1, WANDB), (2, OLDEST_READER))
        telemetry = _telemetry()
        opening = [
            (HEADER, message((1, versions))),
            (RUN, _run(about, self._started, telemetry)),
            (TELEMETRY, telemetry),
        ]
        self._write(opening + [(METRIC, metric) for metric in _metrics()])

    def log(self, columns: Mapping[str, np.ndarray]) -> None:
        """Append a row a step. All columns are equally long, and `step` is one of them.

        Raises:
            OSError: not written, or not in full.
        """
        for first in range(0, len(columns["step"]), BATCH):
            self._append({name: values[first : first + BATCH] for name, values in columns.items()})

    def _append(self, columns: Mapping[str, np.ndarray]) -> None:
        steps = columns["step"]
        now = time.time()
        when = {"_timestamp": now, "_runtime": now - self._started}
        rows = _rows({**columns, "_step": steps})
        same = _values(when)
        records = [
            (HISTORY, row + same + message((STEP, message((1, step)))))
            for row, step in zip(rows, steps.tolist(), strict=True)
        ]
        last = {name: values[-1].item() for name, values in columns.items()}
        summary = _values(last | when | {"_step": last["step"]} | self._worst_so_far(columns, last))
        self._write([*records, (SUMMARY, summary)])

    def table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Left out. W&B's tables are artifacts, which its own process stages outside the run's folder."""

    def finish(self, exit_code: int) -> None:
        """Say that the run has ended.

        Raises:
            OSError: not written, or not in full.
        """
        seconds = int(time.time() - self._started)
        runtime = message((NESTED_KEY, "_wandb"), (NESTED_KEY, "runtime"), (VALUE, str(seconds)))
        self._write([(SUMMARY, message((ITEM, runtime))), (EXIT, message((1, exit_code), (2, seconds)))])

    def _write(self, records: Iterable[tuple[int, bytes]]) -> None:
        numbered = []
        for kind, content in records:
            self._numbered += 1
            numbered.append(message((1, self._numbered), (kind, content)) + self._suffix)
        size = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(framed(numbered, at=size))
        except OSError:
            os.truncate(self._path, size)  # half a record, and `wandb sync` would never call the run done
            raise

    def _worst_so_far(
        self, columns: Mapping[str, np.ndarray], last: Mapping[str, float]
    ) -> dict[str, dict[str, float]]:
        """Of the columns that have one. NaN, once met, stays: so W&B does it."""
        shown = {}
        for name, how in SUMMARIES.items():
            if name in columns:
                worst = columns[name].min() if how == "min" else columns[name].max()
                if name in self._worst:
                    worst = (np.minimum if how == "min" else np.maximum)(worst, self._worst[name])
                self._worst[name] = float(worst)
                shown[name] = {how: self._worst[name], "last": last[name]}
        return shown


def _telemetry() -> bytes:
    used = message(*((feature, True) for feature in FEATURES))
    machine = f"{platform.system()}-{platform.machine()}".lower()
    return message((3, used), (4, platform.python_version()), (5, WANDB), (13, machine))


def _run(about: About, started: float, telemetry: bytes) -> bytes:
    config = message(*((1, message((KEY, key), (VALUE, _json(value)))) for key, value in about.config.items()))
    entity = ((2, about.entity),) if about.entity else ()
    seconds, fraction = divmod(started, 1)
    return message(
        (1, about.id), *entity, (3, about.project), (4, config), (6, about.group), (8, about.name),
        (13, socket.gethostname()), (17, message((1, int(seconds)), (2, int(fraction * 1e9)))), (19, telemetry),
    )  # fmt: skip


def _metrics() -> Iterable[bytes]:
    """`step` is the axis of every curve and no curve itself; some are summarised by more than their last value."""
    synced, hidden = message((1, True), (3, True)), message((2, True), (3, True))
    yield message((1, "step"), (6, hidden))
    yield message((2, "*"), (4, "step"), (6, synced))
    for name, how in SUMMARIES.items():
        yield message((1, name), (4, "step"), (6, synced), (7, message((HOW[how], True), (HOW["last"], True))))


def _values(values: Mapping[str, Any]) -> bytes:
    """The items of a history row or of a summary."""
    return message(*((ITEM, message((NESTED_KEY, name), (VALUE, _json(value)))) for name, value in values.items()))


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# ---- the rows: all values of a batch at once, in arrow, as Python would take 20 us a row for the digits alone


def _rows(columns: Mapping[str, np.ndarray]) -> list[bytes]:
    """The items of each row, joined. Integers are written as such, hence apart."""
    parts = []
    for dtype in {values.dtype for values in columns.values()}:
        names = tuple(name for name, values in columns.items() if values.dtype == dtype)
        values_SN = np.stack([columns[name] for name in names], axis=1)
        numbers = _numbers(values_SN.ravel())
        lengths_SN = pc.binary_length(numbers).to_numpy().reshape(values_SN.shape)
        starts = _item_starts(names).take(pa.array((np.arange(len(names)) * LENGTHS + lengths_SN).ravel()))
        items = pc.binary_join_element_wise(starts, numbers, b"")
        row_ends = pa.array(range(0, values_SN.size + 1, len(names)), pa.int32())
        parts.append(pc.binary_join(pa.ListArray.from_arrays(row_ends, items), b""))
    joined: list[bytes] = pc.binary_join_element_wise(*parts, b"").to_pylist()
    return joined


def _numbers(values: np.ndarray) -> pa.Array:
    """As JSON, with the fewest digits that give the same float back; NaN and Infinity as Python and W&B have them."""
    text = pa.array(values).cast(pa.string())
    if not np.isfinite(values).all():
        text = pc.replace_substring(pc.replace_substring(text, "nan", "NaN"), "inf", "Infinity")
    return text.view(pa.binary())


@lru_cache(maxsize=64)
def _item_starts(names: tuple[str, ...]) -> pa.Array:
    """What precedes a value of `names[n]` that is `length` bytes long, at n * LENGTHS + length."""
    starts = []
    for name in names:
        key = message((NESTED_KEY, name))
        for length in range(LENGTHS):
            start = key + length_prefix(VALUE, length)
            starts.append(length_prefix(ITEM, len(start) + length) + start)
    return pa.array(starts, pa.binary())
