"""Bounds on a command: `--timeout` on how long it works, `--max-memory` on what it may allocate.

Time is up in two steps. A signal raises in the main thread, in whatever Python it runs, an exception that
`except Exception` does not catch. Where that does not end the work, in a call into C that does not come back or a
model that catches everything, a thread prints the same error and leaves without cleaning up. Files need none: see
`idfx.core.files`, and the clock stops before one is written.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from .session import Progress

GRACE = 3.0  # seconds between the two steps, and between the second and the last resort of the interpreter
LONGEST = 1e8  # seconds; what the clocks of every platform can wait for
_SIGNAL = getattr(signal, "SIGALRM", signal.SIGINT)
_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNIT |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class Size(NamedTuple):
    """A number of bytes, and how it was written."""

    text: str
    bytes: int


def parse_size(text: str) -> Size:
    """Read a size such as 4GiB or 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in _UNIT or not float(found[1]):
        raise click.BadParameter(f"{text!r} is no size; expected a number above 0 with kB, MB, GB, KiB, MiB or GiB.")
    return Size(text.strip(), int(float(found[1]) * _UNIT[found[2]]))


def parse_seconds(text: str) -> float:
    """Read a time such as 60 or 0.5."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:
        raise click.BadParameter(f"{text!r} is no time; expected a number of seconds above 0, at most {LONGEST:g}.")
    return seconds


class _ExpiredError(BaseException):
    """Time is up; no `except Exception` stops it."""


class Clock:
    """Ends the work of a block when its time is up; without a time it does nothing."""

    def __init__(self, progress: Progress, spec: str, seconds: float | None, debug: bool) -> None:
        self._progress, self._spec, self._seconds, self._debug = progress, spec, seconds, debug
        self._done = threading.Event()
        self._expired = ""  # the message, once time is up
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._watch, daemon=True, name="idfx-timeout")

    def __enter__(self) -> Clock:
        if self._seconds is None:
            return self
        self._started = time.monotonic()
        self._signals = threading.current_thread() is threading.main_thread()
        if self._signals:
            self._previous = signal.signal(_SIGNAL, self._interrupt)
        # What holds the interpreter's lock for ever stops even the thread; this does not need it.
        faulthandler.dump_traceback_later(self._seconds + 2 * GRACE, exit=True, file=2)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from idfx.core.errors import ResourceError

        try:
            self.stop()
        except ResourceError as late:
            raise late from error

    def stop(self) -> None:
        """Stop the clock.

        Raises:
            ResourceError: time is up already.
        """
        if self._seconds is None or self._done.is_set():
            return
        self._done.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()
        if self._signals:
            signal.signal(_SIGNAL, self._previous)
        if self._expired:
            from idfx.core.errors import ResourceError

            raise ResourceError(self._expired)

    def _watch(self) -> None:
        assert self._seconds is not None
        if self._done.wait(self._seconds):
            return
        self._expired = self._message()
        if signal.getsignal(_SIGNAL) == self._interrupt:  # a model may have put its own in this place
            if hasattr(signal, "pthread_kill") and self._main is not None:
                signal.pthread_kill(self._main, _SIGNAL)  # wakes a system call too
            else:
                import _thread

                _thread.interrupt_main()
        if not self._done.wait(GRACE):
            self._leave()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._expired and not self._done.is_set():
            raise _ExpiredError(self._expired)
        if not self._expired and callable(self._previous):
            self._previous(number, frame)

    def _message(self) -> str:
        running = sys.modules.get("idfx.capture.module_path")
        module = running.running_module() if running is not None else None
        forward = f"the forward of module {module!r}" if module else "the model's forward"
        where = f", in {forward}" if module is not None else ""
        stage = _stage(self._progress, self._spec)
        return (
            f"{self._spec}: stopped after {time.monotonic() - self._started:.1f} s in the stage {stage!r}{where};"
            f" expected an end within --timeout {self._seconds:g}. Raise it, or see with --debug where the time goes;"
            " nothing was written."
        )

    def _leave(self) -> None:
        """Print the error and end the process, whatever the main thread is doing."""
        from idfx.core.errors import ResourceError

        with contextlib.suppress(Exception):
            lines = [f"idfx: {' '.join(self._expired.split())}\n"]
            if self._debug and self._main in (frames := sys._current_frames()):
                lines = ["Stack of the main thread:\n", *traceback.format_stack(frames[self._main]), *lines]
            os.write(2, (self._progress.unhide + "".join(lines)).encode())
        os._exit(ResourceError.exit_code)


@contextlib.contextmanager
def limited(progress: Progress, options: dict[str, Any]) -> Iterator[Clock]:
    """Hold a block to `timeout` and `max_memory` of the options, which are taken out of them.

    Raises:
        UsageError: this platform cannot bound memory, or what the libraries take exceeds the bound.
        ResourceError: time or memory ran out.
    """
    seconds, size, spec = options.pop("timeout"), options.pop("max_memory"), options["spec"]
    context = click.get_current_context(silent=True)
    debug = bool(context is not None and isinstance(context.obj, dict) and context.obj.get("debug"))
    with Clock(progress, spec, seconds, debug) as clock, contextlib.ExitStack() as stack:
        if size is not None:
            stack.enter_context(_bounded(progress, spec, size))
        yield clock


@contextlib.contextmanager
def _bounded(progress: Progress, spec: str, size: Size) -> Iterator[None]:
    """Let the kernel refuse memory beyond a size; libraries are loaded first, not all of them take a refusal well.

    RLIMIT_DATA counts private memory that can be written to, once it is asked for. RLIMIT_AS would count what
    libraries map as well, 3.1 GiB for torch before any tensor and far more with a CUDA context.
    """
    from idfx.core.errors import ResourceError, UsageError

    if not sys.platform.startswith("linux"):
        raise UsageError(
            f"--max-memory {size.text}: {sys.platform} does not let a program bound its memory; expected Linux."
            " Leave it out, or bound the memory of a container."
        )
    import resource

    progress.step("load libraries")
    _load(spec)
    taken = _data()
    if taken >= size.bytes:
        raise UsageError(
            f"--max-memory {size.text}: the libraries alone take {_readable(taken)}; expected more than that."
            " Raise it: it bounds the whole program."
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (size.bytes, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        if not _refuses(size.bytes):
            raise UsageError(
                f"--max-memory {size.text}: this kernel gives more all the same; expected one that keeps RLIMIT_DATA."
                " Leave it out, or bound the memory of a container."
            )
        yield
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))  # there has to be room for what is said
        if (told := _refusal(error)) is None:
            raise
        raise ResourceError(
            f"{spec}: out of memory in the stage {_stage(progress, spec)!r} with --max-memory {size.text},"
            f" {_readable(taken)} of it for the libraries: {told.removeprefix(f'{spec}: ')}; expected the model to fit."
            " Raise it, use smaller inputs, a smaller --dtype or a smaller model; nothing was written."
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _load(spec: str) -> None:
    """Load what the command and the source of a model need, and start torch's threads."""
    import importlib

    import torch

    import idfx.api
    import idfx.building.build  # noqa: F401

    with contextlib.suppress(Exception):  # what is not installed is for the source to say
        library = spec.partition(":")[0]
        if library in ("timm", "torchvision", "transformers"):
            importlib.import_module(library)
    torch.empty(torch.get_num_threads() << 16, device="cpu").fill_(0)


def _data() -> int:
    """Bytes that RLIMIT_DATA counts now; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)


def _refuses(size: int) -> bool:
    import mmap

    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError, ValueError):
        return True
    return False


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from, outermost first."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _refusal(error: BaseException) -> str | None:
    """What is said of memory that the kernel refused, None if an error is of another kind."""
    from idfx.core.errors import ResourceError, out_of_memory, shortened

    def refused(cause: BaseException) -> bool:
        odd = ("failed to map segment", "can't start new thread")
        # A SystemError is what becomes of a MemoryError that a library has lost.
        return out_of_memory(cause) or isinstance(cause, SystemError) or any(words in str(cause) for words in odd)

    causes = _causes(error)
    if any(type(cause).__name__ == "OutOfMemoryError" for cause in causes):  # memory of a device, which has no bound
        return None
    if isinstance(error, ResourceError):
        return str(error).partition("; expected")[0]
    return next((shortened(cause) for cause in reversed(causes) if refused(cause)), None)


def _stage(progress: Progress, spec: str) -> str:
    return progress.current.removesuffix(spec).strip()


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
