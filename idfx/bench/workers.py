"""Workers for training runs: this process, or several child processes that end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from idfx.bench.suites import Settings
from idfx.bench.training import Run
from idfx.core.errors import ResourceError


@dataclass(frozen=True)
class Bench:
    """What a worker needs in addition to the run: settings by model, and the device."""

    models: Mapping[str, Settings]
    path: Path | None
    device: str
    watch: bool


@dataclass(frozen=True)
class Event:
    """A finished epoch (`values`) or a finished run (`record`)."""

    run: Run
    epoch: int = 0
    values: Mapping[str, float] | None = None
    record: dict[str, Any] | None = None


class Workers(Protocol):
    """Accepts runs while it has room, and reports their progress."""

    @property
    def room(self) -> int: ...

    def submit(self, run: Run) -> None: ...

    def events(self) -> Iterator[Event]:
        """Yield what has happened; waits until there is something."""
        ...


@contextmanager
def alone() -> Iterator[None]:
    """Use one thread and flush denormal numbers inside the block."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


class _Trainer:
    """Trains runs in this process, and loads each data set once."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._data = bench, dict[str, Any]()

    def __call__(self, run: Run, on_epoch: Callable[[int, Mapping[str, float]], None]) -> dict[str, Any]:
        import torch

        from idfx.bench.data import load_data
        from idfx.bench.training import train

        settings = self._bench.models[run.model]
        if settings.data not in self._data:
            self._data[settings.data] = load_data(settings.data, self._bench.path)
        data, device = self._data[settings.data], torch.device(self._bench.device)
        return train(settings, data, run, device, self._bench.watch, on_epoch)


class Inline:
    """Trains in this process: a run is trained when its events are requested."""

    def __init__(self, bench: Bench, on_event: Callable[[Event], None]) -> None:
        self._train, self._on_event, self._waiting = _Trainer(bench), on_event, deque[Run]()

    @property
    def room(self) -> int:
        """How many more runs it takes."""
        return 1 - len(self._waiting)

    def submit(self, run: Run) -> None:
        """Take a run."""
        self._waiting.append(run)

    def events(self) -> Iterator[Event]:
        """Yield events; epochs are passed to `on_event` immediately."""
        run = self._waiting.popleft()
        with alone():
            record = self._train(run, lambda epoch, values: self._on_event(Event(run, epoch, values)))
        yield Event(run, record=record)


def _work(link: Connection, parent: int, bench: Bench) -> None:
    """The main function of a worker process: train the runs that arrive over the link until it is closed."""
    train = _Trainer(bench)

    def tell(event: Event | str) -> None:
        if os.getppid() != parent:  # the parent that would record the run has ended
            os._exit(1)
        link.send(event)

    while True:
        try:
            run = link.recv()
        except (EOFError, OSError):
            return
        try:
            with alone():
                record = train(run, lambda epoch, values, run=run: tell(Event(run, epoch, values)))  # type: ignore[misc]
            tell(Event(run, record=record))
        except Exception as error:
            tell(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


class Processes:
    """Trains in several processes, which end with this one."""

    def __init__(self, bench: Bench, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._busy: dict[Connection, Run | None] = {}
        self._processes = []
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: only this process handles Ctrl-C
        try:
            for _ in range(jobs):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, os.getpid(), bench), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._busy[ours] = None
        finally:
            signal.signal(signal.SIGINT, previous)

    @property
    def room(self) -> int:
        """How many more runs it takes."""
        return sum(run is None for run in self._busy.values())

    def submit(self, run: Run) -> None:
        """Take a run."""
        link = next(link for link, busy in self._busy.items() if busy is None)
        link.send(run)
        self._busy[link] = run

    def events(self) -> Iterator[Event]:
        """Yield what has happened; waits until there is something.

        Raises:
            ResourceError: a process has ended, for example because it ran out of memory.
            RuntimeError: a run raised.
        """
        for link in wait([link for link, run in self._busy.items() if run is not None]):
            assert isinstance(link, Connection)
            run = self._busy[link]
            try:
                event = link.recv()
            except (EOFError, OSError) as error:
                raise ResourceError(
                    f"{run}: its process has ended; expected it to finish. It may have run out of memory: try fewer "
                    "--jobs, and run the same command again."
                ) from error
            if isinstance(event, str):
                raise RuntimeError(f"{run}: {event}")
            if event.record is not None:
                self._busy[link] = None
            yield event

    def close(self) -> None:
        """Stop the processes; the runs in progress are lost."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
