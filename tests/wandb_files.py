"""Reads W&B's transaction log, which W&B itself (0.31) has no reader for in Python."""

import json
import zlib
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


def records(path: Path) -> list[Record]:
    """LevelDB's log format after seven bytes of W&B's own.

    Blocks of 32 KiB hold chunks: checksum (4 bytes), length (2), type (1): 1 a whole record, 2 its first part, 3 a
    middle one, 4 the last. No chunk begins in a block's last six bytes.
    """
    return [Record.FromString(content) for content in contents(path.read_bytes())]


def contents(file: bytes) -> list[bytes]:
    assert file[:HEADER] == b":W&B\xe1\xbe\x00"
    found, parts, at = [], b"", HEADER
    while at + HEADER <= len(file):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = (int.from_bytes(file[at + a : at + b], "little") for a, b in ((0, 4), (4, 6), (6, 7)))
        part = file[at + HEADER : at + HEADER + length]
        if at + HEADER + length > len(file):
            break  # cut off
        assert at // BLOCK == (at + HEADER + length - 1) // BLOCK
        assert checksum == zlib.crc32(bytes([kind]) + part)
        assert (kind in {1, 2}) == (parts == b"") or kind in {3, 4}
        parts += part
        at += HEADER + length
        if kind in {1, 4}:
            found.append(parts)
            parts = b""
    return found


def kinds(found: list[Record], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    """Of the items of a row, a summary or a configuration."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
