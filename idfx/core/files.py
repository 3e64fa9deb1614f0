"""Atomic writing of files.

The file is written without a name (O_TMPFILE) and named when it is complete, so a killed process leaves nothing behind.
If it replaces another file, it has a hidden name between two system calls. Systems without unnamed files use a hidden
file, which is removed on every exception but not on SIGKILL.

A file that replaces another is synced to disk first, so a power loss cannot destroy the old one. A new file is not
synced: fsync doubles the time of writing (0.5 to 0.7 s more per GB, measured), and if a power loss leaves the file
empty, the same command produces the same bytes again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from idfx.core.errors import ExportError, UsageError

_UNNAMED: int = getattr(os, "O_TMPFILE", 0)  # Linux; elsewhere opening the folder fails, as intended


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with every symbolic link followed."""
    return Path(os.path.realpath(path))


def check_writable(path: Path) -> None:
    """Check that a file can be written to this path; raise UsageError otherwise.

    Raises:
        UsageError: the folder does not exist or is not writable, or the path is a folder or a device.
    """
    target = real_path(path)
    try:
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise UsageError(f"{path}: this is {kind}; expected the path of a file. Choose another name.")
        if not target.parent.is_dir():
            found = "is not a folder" if target.parent.exists() else "does not exist"
            hint = f"Create it (mkdir -p '{path.parent}') or choose another."
            raise UsageError(f"{path}: {path.parent} {found}; expected an existing folder. {hint}")
        with tempfile.TemporaryFile(dir=target.parent):
            pass  # the only reliable test of a writable folder; unnamed where the system supports it
    except OSError as error:
        hint = "Choose another folder or change its permissions."
        raise UsageError(f"{path}: {error.strerror}; expected a writable folder. {hint}") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises:
        UsageError: as in `check_writable`.
        ExportError: the system refused, for example because the disk is full.
    """
    check_writable(Path(path))
    try:
        write_atomically(real_path(path), lambda file: file.write(text.encode()))
    except OSError as error:
        raise ExportError(
            f"{path}: {error.strerror}; nothing was written. Free some space or choose another path."
        ) from error


def write_atomically(target: Path, write: Callable[[IO[bytes]], object]) -> int:
    """Write a file through `write` and return its size; it appears at `target` when it is complete."""
    hidden = target.with_name(f".idfx-{secrets.token_hex(8)}.tmp")
    unnamed = True
    try:
        try:
            descriptor = os.open(target.parent, _UNNAMED | os.O_WRONLY, 0o666)
        except OSError:  # no unnamed files here; the next open reports any other problem
            descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            unnamed = False
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
            write(file)
            file.flush()
            size = os.fstat(descriptor).st_size
            if os.path.lexists(target):
                os.fsync(descriptor)
            if unnamed:
                # os.link follows the link in /proc only if a folder is given; an absolute path ignores that folder.
                link = functools.partial(os.link, f"/proc/self/fd/{descriptor}", src_dir_fd=descriptor)
                try:
                    link(target)
                    return size
                except FileExistsError:
                    link(hidden)
        hidden.replace(target)
        return size
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()


def root_cause(error: BaseException) -> BaseException:
    """Return the first system error or interrupt among an error's causes, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError | KeyboardInterrupt | MemoryError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error
