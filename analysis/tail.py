"""The end of a history that is being written: each row is read once, as soon as its batch is whole."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis.run_directories import CONTINUATION
from analysis.sweep import RunError, is_wanted


class Tail:
    """Reads what was added to an Arrow IPC stream (docs/run-directory.md) since it was last asked."""

    def __init__(self, path: Path, columns: Collection[str]) -> None:
        """columns: which to keep, names or patterns."""
        self._path, self._columns = path, columns
        self._forget()

    def _forget(self) -> None:
        self._at = 0  # where the first message begins that was not whole yet
        self._size = 0  # of the file, when it was last read
        self._file: tuple[int, int] | None = None
        self._schema: pa.Schema | None = None
        self._parts: dict[str, list[npt.NDArray[np.float64]]] = {}
        self.rows = 0

    @property
    def names(self) -> frozenset[str]:
        """Of all columns of the stream; empty before its schema is there."""
        return frozenset(self._schema.names) if self._schema is not None else frozenset()

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """[rows] of a column that was asked for; NaN where the run has none."""
        parts = self._parts.get(name)
        if not parts:
            return np.full(self.rows, np.nan)
        if len(parts) > 1:
            self._parts[name] = parts = [np.concatenate(parts)]
        return parts[0]

    def read(self) -> bool:
        """Take in what is new. True if there was any; a batch that is not whole yet is left for the next time.

        A file that another has replaced, or that has become shorter, is read from its start: the run began anew.

        Raises:
            RunError: the file does not begin as an Arrow stream does.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            began = self.rows > 0
            self._forget()
            return began
        if (found.st_dev, found.st_ino) != self._file or found.st_size < self._at:
            self._forget()
            self._file = found.st_dev, found.st_ino
        if found.st_size == self._size:
            return False
        with self._path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        if self._at == 0 and not CONTINUATION.startswith(content[:4]):
            raise RunError(f"{self._path.name} is not an Arrow IPC stream")
        self._size = found.st_size
        before, start, source = self.rows, self._at, pa.BufferReader(content)
        while self._take_message(source):
            self._at = start + source.tell()
        return self.rows > before

    def _take_message(self, source: pa.BufferReader) -> bool:
        """False at the end of the stream, or of what has been written of it."""
        try:
            message = pa.ipc.read_message(source)
            if message.type == "schema":
                self._schema = pa.ipc.read_schema(message)
            else:
                batch = pa.ipc.read_record_batch(message, self._schema)
                batch.validate(full=True)
                self._keep(batch)
        except (EOFError, pa.ArrowInvalid, OSError):
            return False
        return True

    def _keep(self, batch: pa.RecordBatch) -> None:
        for name in batch.schema.names:
            if is_wanted(name, self._columns):
                values = batch[name].to_numpy(zero_copy_only=False).astype(float)
                self._parts.setdefault(name, []).append(values)
        self.rows += batch.num_rows
