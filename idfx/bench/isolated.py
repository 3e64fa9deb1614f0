"""A function in a process of its own, with bounded time and memory: it reports as it goes, and its end is explained."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from idfx.core.errors import IdfxError, shortened

Tell = Callable[[dict[str, Any]], None]
PATIENCE = 0.5  # seconds between two looks at the memory


@dataclass(frozen=True)
class Limits:
    """Seconds, and bytes of resident memory."""

    seconds: float
    memory: int


def _run(link: Connection, seconds: float, work: Callable[[Any, Tell], None], job: Any) -> None:
    """The main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with a chance to give back the semaphores of libraries
    signal.setitimer(signal.ITIMER_REAL, seconds + 10)  # even if the parent is gone
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)

    def tell(message: dict[str, Any]) -> None:
        try:
            link.send(message)
        except OSError:  # nobody listens
            os._exit(1)

    try:
        tell({"stage": "start"})
        work(job, tell)
    except IdfxError as error:
        tell({"error": str(error)})
    except Exception as error:
        tell({"error": shortened(error)})
    link.close()


class Isolated:
    """A process that works on a job, and why it ended before it was done, if it did.

    Args:
        context: of multiprocessing.
        work: a function of a module, from a job and a function that sends a dict.
        job: anything that can be pickled.
        limits: beyond which the process is killed.
    """

    def __init__(self, context: Any, work: Callable[[Any, Tell], None], job: Any, limits: Limits) -> None:
        self.job, self.reason = job, ""
        self._limits, self._began, self._stage = limits, math.inf, "start"
        self.link: Connection
        self.link, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, limits.seconds, work, job), daemon=True)
        self._process.start()
        theirs.close()
        self.ended = False

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what has arrived; afterwards `ended` and `reason` are up to date."""
        try:
            while self.link.poll():
                message = self.link.recv()
                self._began = min(self._began, time.monotonic())  # not before it lives
                self._stage = message.get("stage", self._stage)
                if "error" in message:
                    self.reason = f"{self._stage}: {message['error']}"
                elif "stage" not in message:
                    yield message
        except (EOFError, OSError):
            self._finish()
        else:
            self._check()

    def _finish(self) -> None:
        self._process.join()
        self.ended = True
        if self._process.exitcode and not self.reason:
            self.reason = f"{self._stage}: the process died, exit code {self._process.exitcode}"

    def _check(self) -> None:
        if time.monotonic() - self._began > self._limits.seconds:
            self.reason = f"{self._stage}: it took longer than {self._limits.seconds:g} s"
        elif (taken := _resident(self._process.pid)) > self._limits.memory:
            self.reason = f"{self._stage}: it took {taken / 2**30:.1f} GiB of memory"
        else:
            return
        self.kill()

    def end(self) -> None:
        """End the process, first politely."""
        self._process.terminate()
        self._process.join(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join(PATIENCE)  # it is dead in any case; what reaps it may be slow
        self.ended = True


def _resident(process: int | None) -> int:
    """The resident memory of a process in bytes, 0 where it cannot be read."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * resource.getpagesize()


def run_isolated(
    work: Callable[[Any, Tell], None], jobs: Sequence[Any], limits: Limits, several: int, preload: Sequence[str] = ()
) -> Generator[tuple[Any, dict[str, Any] | None, str], None, None]:
    """Work on jobs, each in a process of its own, and yield (job, message, "") and, when it ends, (job, None, reason).

    The reason is empty where the work was done. When the iterator is closed, the processes end.

    Args:
        work, limits: as in `Isolated`.
        jobs: in order.
        several: how many at the same time.
        preload: modules to import before the processes fork, which saves each of them the time.
    """
    forks = sys.platform.startswith("linux")
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([*preload])
    waiting, running = [*jobs], list[Isolated]()
    try:
        while waiting or running:
            while waiting and len(running) < several:
                running.append(Isolated(context, work, waiting.pop(0), limits))
            wait([one.link for one in running], PATIENCE)
            for one in [*running]:
                for message in one.messages():
                    yield one.job, message, ""
                if one.ended:
                    running.remove(one)
                    yield one.job, None, one.reason
    finally:
        for one in running:
            one.end()
