"""W&B's own offline files (`run-*.wandb`) -> runs.

The file is a LevelDB log (doc/log_format.md of LevelDB) of `Record` messages behind seven bytes of W&B's own. W&B 0.31
ships the message classes and no reader, hence this one. Its values are what `run.log` was given, in full precision.
"""

import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from analysis.sweep import EVALUATED, RunError, is_wanted
from analysis.wandb_runs import WandbRun, history_and_evaluations

IDENTITY = b":W&B\xe1\xbe\x00"  # name, magic number, version 0
BLOCK, HEADER = 32768, 7  # a chunk's header: checksum (4 bytes), length (2), type (1)
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read(folder: Path, columns: Collection[str] | None) -> tuple[list[WandbRun], dict[str, str]]:
    """Every W&B run below `folder`, and those that cannot be read -> why."""
    runs, problems = [], {}
    for file in sorted(folder.rglob("run-*.wandb")):
        try:
            runs.append(_read_run(file, file.relative_to(folder).as_posix(), columns))
        except RunError as error:
            problems[file.relative_to(folder).as_posix()] = str(error)
    return runs, problems


def records(file: Path) -> Iterator[Any]:
    """The messages (`wandb.proto.wandb_internal_pb2.Record`) of one file, in order, up to where it was cut off.

    Raises RunError if the file is not W&B's, or if a checksum does not agree with what it stands for.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    try:
        for content in _contents(file.read_bytes()):
            yield wandb_internal_pb2.Record.FromString(content)  # type: ignore[attr-defined]
    except (OSError, DecodeError) as error:
        raise RunError(f"{file.name}: {error}") from error


def _contents(log: bytes) -> Iterator[bytes]:
    """Blocks of 32 KiB hold chunks; a record is one chunk, or a first, middle ones and a last."""
    if log[: len(IDENTITY)] != IDENTITY[: len(log)]:
        raise RunError("does not begin as a W&B file of version 0 does")
    parts: list[bytes] = []
    at = len(IDENTITY)
    while at + HEADER <= len(log):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # no chunk begins in a block's last six bytes
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        content = log[at + HEADER : at + HEADER + length]
        if len(content) < length:  # cut off: all before it is valid
            return
        checksum = int.from_bytes(log[at : at + 4], "little")
        if zlib.crc32(content, zlib.crc32(bytes([kind]))) != checksum or (kind in (WHOLE, FIRST)) == bool(parts):
            if not any(log[at:]):  # space that was set aside and never written
                return
            raise RunError(f"corrupted at byte {at}")
        parts.append(content)
        at += HEADER + length
        if kind in (WHOLE, LAST):
            yield b"".join(parts)
            parts = []


def _read_run(file: Path, name_of_file: str, columns: Collection[str] | None) -> WandbRun:
    config: dict[str, Any] = {}
    wandb_id, started, exit_code = "", 0.0, None
    rows = 0
    found: dict[str, tuple[list[int], list[float]]] = {}  # column -> rows and values
    names: set[str] = set()
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            wandb_id = record.run.run_id
            started = record.run.start_time.ToNanoseconds() / 1e9
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        elif kind == "exit":
            exit_code = record.exit.exit_code
        elif kind == "history":
            for item in record.history.item:
                name = item.key or item.nested_key[0]
                if name.startswith("_"):  # W&B's own: _step, _runtime, _timestamp
                    continue
                evaluated = name.startswith(EVALUATED)
                if not evaluated:
                    names.add(name)
                if evaluated or is_wanted(name, columns):
                    try:
                        value = float(item.value_json)
                    except ValueError:  # a table, an image: no number, no column
                        names.discard(name)
                        continue
                    at, values = found.setdefault(name, ([], []))
                    at.append(rows)
                    values.append(value)
            rows += 1
    if not wandb_id:
        raise RunError(f"{file.name} holds no run")
    logged = {name: (np.array(at), np.array(values)) for name, (at, values) in found.items()}
    history, evaluations = history_and_evaluations(logged, rows)
    state = "running" if exit_code is None else "finished" if exit_code == 0 else "failed"
    reason = f"W&B's exit code is {exit_code}" if exit_code else ""
    return WandbRun(name_of_file, wandb_id, started, state, reason, config, frozenset(names), history, evaluations)
