"""Limits of a command: `--timeout` on its duration, `--max-memory` on what it may allocate.

A timeout acts in two steps. A signal raises an exception in the main thread that `except Exception` does not catch. If
that does not end the work, because a C call does not return or the model catches everything, a thread prints the same
error and exits without cleaning up. Files need no clean-up: see `idfx.core.files`; the clock stops before a file is
written.
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

GRACE = 3.0  # seconds between the two steps, and from the second step to faulthandler's exit
LONGEST = 1e8  # seconds; the clocks of every platform can wait this long
_SIGNAL = getattr(signal, "SIGALRM", signal.SIGINT)
_UNIT = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNIT |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class Size(NamedTuple):
    """A number of bytes, and its text on the command line."""

    text: str
    bytes: int


def parse_size(text: str) -> Size:
    """Read a size such as 4GiB or 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in _UNIT or not float(found[1]):
        raise click.BadParameter(f"{text!r} is not a size; expected a number above 0 with kB, MB, GB, KiB, MiB or GiB.")
    return Size(text.strip(), int(float(found[1]) * _UNIT[found[2]]))


def parse_seconds(text: str) -> float:
    """Read a time such as 60 or 0.5."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST:
        raise click.BadParameter(f"{text!r} is not a time; expected a number of seconds above 0, at most {LONGEST:g}.")
    return seconds


class _ExpiredError(BaseException):
    """Time is up; no `except Exception` stops it."""


class Clock:
    """Stops a block when its time is up; without a time limit it does nothing."""

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
        # Code that holds the interpreter lock for ever blocks the thread as well; faulthandler does not need the lock.
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
        if signal.getsignal(_SIGNAL) == self._interrupt:  # a model may have installed its own handler
            if hasattr(signal, "pthread_kill") and self._main is not None:
                signal.pthread_kill(self._main, _SIGNAL)  # also interrupts a system call
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
            f" expected to finish within --timeout {self._seconds:g}. Raise it, or use --debug to see where time is"
            " spent; nothing was written."
        )

    def _leave(self) -> None:
        """Print the error and exit, regardless of what the main thread is doing."""
        from idfx.core.errors import ResourceError

        with contextlib.suppress(Exception):
            lines = [f"idfx: {' '.join(self._expired.split())}\n"]
            if self._debug and self._main in (frames := sys._current_frames()):
                lines = ["Stack of the main thread:\n", *traceback.format_stack(frames[self._main]), *lines]
            os.write(2, (self._progress.unhide + "".join(lines)).encode())
        os._exit(ResourceError.exit_code)


@contextlib.contextmanager
def limited(progress: Progress, options: dict[str, Any]) -> Iterator[Clock]:
    """Apply `timeout` and `max_memory` to a block; both are removed from the options.

    Raises:
        UsageError: this platform cannot limit memory, or the libraries alone exceed the limit.
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
    """Make the kernel refuse memory beyond a size; libraries are loaded first, because some handle a refusal badly.

    RLIMIT_DATA counts private writable memory as soon as it is requested. RLIMIT_AS would also count the mappings of
    libraries: 3.1 GiB for torch before any tensor, and far more with a CUDA context.
    """
    from idfx.core.errors import ResourceError, UsageError

    if not sys.platform.startswith("linux"):
        raise UsageError(
            f"--max-memory {size.text}: {sys.platform} does not let a program limit its memory; expected Linux."
            " Leave it out, or limit the memory of a container."
        )
    import resource

    progress.step("load libraries")
    _load(spec)
    taken = _data()
    if taken >= size.bytes:
        raise UsageError(
            f"--max-memory {size.text}: the libraries alone take {_readable(taken)}; expected more than that."
            " Raise it: the limit applies to the whole program."
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (size.bytes, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        if not _refuses(size.bytes):
            raise UsageError(
                f"--max-memory {size.text}: this kernel allows more; expected one that enforces RLIMIT_DATA."
                " Leave it out, or limit the memory of a container."
            )
        yield
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))  # leaves room for the error message
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
    """Load the libraries of the command and of the model's source, and start torch's threads."""
    import importlib

    import torch

    import idfx.api
    import idfx.building.build  # noqa: F401

    with contextlib.suppress(Exception):  # the source reports missing packages
        library = spec.partition(":")[0]
        if library in ("timm", "torchvision", "transformers"):
            importlib.import_module(library)
    torch.empty(torch.get_num_threads() << 16, device="cpu").fill_(0)


def _data() -> int:
    """Return the bytes that RLIMIT_DATA counts now; 0 if the kernel does not report them."""
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
    """Return an error and its causes, outermost first."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _refusal(error: BaseException) -> str | None:
    """Return the message for memory that the kernel refused, or None for any other error."""
    from idfx.core.errors import ResourceError, out_of_memory, shortened

    def refused(cause: BaseException) -> bool:
        odd = ("failed to map segment", "can't start new thread")
        # A library that loses a MemoryError raises a SystemError.
        return out_of_memory(cause) or isinstance(cause, SystemError) or any(words in str(cause) for words in odd)

    causes = _causes(error)
    if any(type(cause).__name__ == "OutOfMemoryError" for cause in causes):  # device memory, which is not limited
        return None
    if isinstance(error, ResourceError):
        return str(error).partition("; expected")[0]
    return next((shortened(cause) for cause in reversed(causes) if refused(cause)), None)


def _stage(progress: Progress, spec: str) -> str:
    return progress.current.removesuffix(spec).strip()


def _readable(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
