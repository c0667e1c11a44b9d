"""Rows of a preference file or hub data set, one at a time, each with the place it was read from.

JSON is read here, line by line, so that a mistake is reported with its line and nothing is written to a cache.
Everything else is read by `datasets`.
"""

import gzip
import json
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from src.errors import BadInput

Row = dict[str, Any]

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
OTHER_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


def read_rows(path: str, split: str) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) in file order; `where` names file and line (or data set and row) for error messages.

    Args:
        path: a local file, a local folder that `datasets` can read, or the name of a data set on the hub.
        split: a split of the folder or hub data set. A single file is one split, "train".

    Raises:
        BadInput: it cannot be found or read, or a row is not an object.
    """
    local = Path(path).expanduser()
    if local.is_file():
        if split != "train":
            raise BadInput(f"{path}: a single file has one split, 'train'; split={split!r} is not there")
        if local.name.endswith(JSON_SUFFIXES):
            yield from _json_rows(local, path)
        elif local.suffix in OTHER_BUILDERS:
            yield from _local_rows(path, OTHER_BUILDERS[local.suffix], split, data_files=str(local))
        else:
            known = ", ".join((*JSON_SUFFIXES, *OTHER_BUILDERS))
            raise BadInput(f"{path}: cannot tell its format from its name; known are {known}")
    elif local.is_dir():
        yield from _local_rows(path, str(local), split)
    elif path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith((*JSON_SUFFIXES, *OTHER_BUILDERS)):
        raise BadInput(f"{path}: no such file")
    else:
        yield from _dataset_rows(path, path, split)


def _json_rows(file: Path, path: str) -> Iterator[tuple[str, Row]]:
    """Objects one a line, or one JSON array of objects, whatever the name says."""
    try:
        with _open(file) as lines:
            first = True
            for number, raw in enumerate(lines, start=1):
                line = _decode(raw, path, number).strip()
                if first and line.startswith("["):
                    rest = _decode(lines.read(), path, number + 1)
                    for index, value in enumerate(_parse(f"{line}\n{rest}", path, number), start=1):
                        yield _checked(f"{path}, row {index}", value)
                    return
                if line:
                    first = False
                    yield _checked(f"{path}, line {number}", _parse(line, path, number))
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip raises any of the three
        raise BadInput(f"{path}: cannot be read: {error}") from error


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _decode(raw: bytes, path: str, first_line: int) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        raise BadInput(f"{path}, line {line}: not UTF-8 (byte {raw[error.start]:#04x})") from error


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise BadInput(f"{path}, line {line}: not valid JSON: {error.msg} (column {error.colno})") from error


def _checked(where: str, value: Any) -> tuple[str, Row]:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: a row must be a JSON object, this is {json.dumps(value)[:40]}")
    return where, value


def _local_rows(path: str, builder: str, split: str, **options: Any) -> Iterator[tuple[str, Row]]:
    """Read local files in place: without streaming `datasets` first copies them into the user's cache."""
    with tempfile.TemporaryDirectory() as cache:  # even so it leaves lock files
        yield from _dataset_rows(path, builder, split, streaming=True, cache_dir=cache, **options)


def _dataset_rows(path: str, builder: str, split: str, **options: Any) -> Iterator[tuple[str, Row]]:
    """Rows of whatever `datasets` can load; a data set on the hub is kept in its cache and found there when offline."""
    import datasets

    datasets.disable_progress_bars()
    source = f"{path}[{split}]"
    try:
        for number, row in enumerate(datasets.load_dataset(builder, split=split, **options), start=1):
            yield f"{source}, row {number}", dict(row)
    except Exception as error:  # `datasets` raises a dozen kinds, from pyarrow's to the hub's
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise BadInput(f"{source}: cannot be read: {reason}") from error
