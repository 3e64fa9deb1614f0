"""runs.jsonl: one line per finished run, appended and synced; a partially written line is dropped."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from idfx.core.errors import ExportError, UsageError


def parse_runs(text: bytes, where: str = "runs.jsonl") -> tuple[list[dict[str, Any]], int]:
    """Return the records in a file, and the number of bytes in complete lines.

    Raises:
        UsageError: a line other than the last is not a record.

    Example:
        >>> parse_runs(b'{"seed": 0}\\n{"se')
        ([{'seed': 0}], 12)
    """
    whole = text[: text.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UsageError(f"{where}, line {number}: not a JSON object; expected a run. Fix or remove this line.")
        records.append(record)
    return records, len(whole)


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """Return the records of a results directory; an unfinished last line does not count."""
    path = Path(folder) / "runs.jsonl"
    return parse_runs(path.read_bytes(), str(path))[0] if path.exists() else []


class RunsFile:
    """The file, open for appending by this process alone.

    Args:
        folder: the results directory, which exists.

    Raises:
        UsageError: another process uses it, or one of its lines is not a record.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "runs.jsonl"
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UsageError(
                f"{self.path}: {error.strerror}; expected a file to append to. Choose another -o."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise UsageError(
                f"{folder}: another process is writing to it; expected one at a time. Wait, or choose another -o."
            ) from error
        try:
            self.records, size = parse_runs(self.path.read_bytes(), str(self.path))
        except UsageError:
            os.close(self._file)
            raise
        os.ftruncate(self._file, size)

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            ExportError: the system refused.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            raise ExportError(
                f"{self.path}: {error.strerror}; the run was not recorded. Free some space and run the command again."
            ) from error
        self.records.append(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
