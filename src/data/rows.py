"""Rows of a preference file or hub data set, one at a time, each with the place it was read from.

A JSON file is read here, line by line, so that a mistake is reported with its line and nothing is written to a cache.
Everything else is read by `datasets`, which runs no code that comes with a data set.
"""

import gzip
import json
import re
import tempfile
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from src.errors import BadInput

Row = dict[str, Any]

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
OTHER_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
KNOWN_SUFFIXES = (*JSON_SUFFIXES, *OTHER_BUILDERS)
LONGEST_LINE = 1_000_000  # bytes


@dataclass(frozen=True)
class Source:
    """Where rows are.

    path: a local file, a local folder that `datasets` can read, or the name of a data set on the hub.
    split: a split of the folder or hub data set. A single file is one split, "train".
    subset: a folder or a file inside the folder or hub data set; None: all of it.
    streaming: read a hub data set as it arrives, and no further than needed, rather than download it first.
    num_proc: processes that download and convert a hub data set.
    """

    path: str
    split: str = "train"
    subset: str | None = None
    streaming: bool = False
    num_proc: int | None = None

    def __str__(self) -> str:
        return f"{self.path}{f'/{self.subset}' if self.subset else ''}[{self.split}]"


def read_rows(source: Source) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) in file order; `where` names file and line (or data set and row) for error messages.

    Raises:
        BadInput: it cannot be found or read, or a row is not an object.
    """
    path = source.path
    try:
        local = Path(path).expanduser()
        is_file, is_folder = local.is_file(), local.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such user's home, a null byte
        raise BadInput(f"{path!r:.80}: cannot be read: {error!s:.80}") from error
    if is_file:
        if source.subset is not None:
            raise BadInput(f"{path}: a single file has no subset; subset={source.subset!r} is not there")
        if source.split != "train":
            raise BadInput(f"{path}: a single file has one split, 'train'; split={source.split!r} is not there")
        if local.name.endswith(JSON_SUFFIXES):
            yield from _json_rows(local, path)
        elif local.suffix in OTHER_BUILDERS:
            yield from _local_rows(source, OTHER_BUILDERS[local.suffix], data_files=str(local))
        else:
            known = ", ".join(KNOWN_SUFFIXES)
            raise BadInput(f"{path}: cannot tell its format from its name; known are {known}")
    elif is_folder and source.subset is not None:
        yield from read_rows(replace(source, path=str(Path(path) / source.subset), subset=None))
    elif is_folder:
        yield from _local_rows(source, str(local))
    elif path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith(KNOWN_SUFFIXES):
        raise BadInput(f"{path}: no such file")
    else:
        yield from _dataset_rows(source, path, **_hub_options(source))


def _hub_options(source: Source) -> dict[str, Any]:
    """Only what is asked for: the rest is for `datasets` to decide."""
    options: dict[str, Any] = {}
    if source.subset is not None:
        options["data_files" if source.subset.endswith(KNOWN_SUFFIXES) else "data_dir"] = source.subset
    if source.streaming:
        options["streaming"] = True  # for which there is nothing to convert
    elif source.num_proc is not None:
        options["num_proc"] = source.num_proc
    return options


def _json_rows(file: Path, path: str) -> Iterator[tuple[str, Row]]:
    """Objects one a line, or one JSON array of objects, whatever the name says."""
    try:
        with _open(file) as lines:
            first = True
            # No more than that is read at once: a file of another kind may be one line of any length.
            for number, raw in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), start=1):
                if first and raw.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                    text = _decode(raw + lines.read(), path, number)
                    for index, value in enumerate(_parse(text, path, number), start=1):
                        yield _checked(f"{path}, row {index}", value)
                    return
                if len(raw) > LONGEST_LINE:
                    raise BadInput(
                        f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes; a row is a JSON object on one line"
                    )
                line = _decode(raw, path, number).strip()
                if line:
                    first = False
                    yield _checked(f"{path}, line {number}", _parse(line, path, number))
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip raises any of the three
        raise BadInput(f"{path}: cannot be read: {error}") from error


def found(row: Row) -> str:
    return ", ".join(row) or "none"


def cell(where: str, row: Row, column: str, needed: Sequence[str]) -> Any:
    """Raises BadInput if the row lacks the column, naming those that are `needed`."""
    if column not in row:
        plural = "s" if len(needed) > 1 else ""
        names = " and ".join(filter(None, (", ".join(needed[:-1]), needed[-1])))
        raise BadInput(f"{where}: needs the column{plural} {names}, found {found(row)}")
    return row[column]


def text_of(where: str, row: Row, column: str, needed: Sequence[str]) -> str:
    """As `cell`; raises BadInput also if the column holds something else than text."""
    value = cell(where, row, column, needed)
    if not isinstance(value, str):
        raise BadInput(f"{where}: column {column} must hold text, not {type(value).__name__}")
    return value


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


def _local_rows(source: Source, builder: str, **options: Any) -> Iterator[tuple[str, Row]]:
    """Read local files in place: without streaming `datasets` first copies them into the user's cache."""
    with tempfile.TemporaryDirectory() as cache:  # even so it leaves lock files
        yield from _dataset_rows(source, builder, streaming=True, cache_dir=cache, **options)


def _dataset_rows(source: Source, builder: str, **options: Any) -> Iterator[tuple[str, Row]]:
    """Rows of whatever `datasets` can load; a data set on the hub is kept in its cache and found there when offline."""
    import datasets

    datasets.disable_progress_bars()
    try:
        for number, row in enumerate(datasets.load_dataset(builder, split=source.split, **options), start=1):
            yield f"{source}, row {number}", dict(row)
    except Exception as error:  # `datasets` raises a dozen kinds, from pyarrow's to the hub's
        reason = textwrap.shorten(_without_secrets(str(error)), 300, placeholder=" …") or type(error).__name__
        raise BadInput(f"{source}: cannot be read: {reason}") from error


def _without_secrets(text: str) -> str:
    """Errors of the hub quote signed addresses, and can quote the token itself."""
    return re.sub(r"\bhf_\w+", "hf_…", re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?…", text))
