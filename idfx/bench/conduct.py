"""Runs a study: opens the results directory, trains the missing runs, and records each run when it ends."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from idfx.bench.data import Data, load_data, split
from idfx.bench.machine import machine
from idfx.bench.runs import RunsFile
from idfx.bench.starts import Start, check_scheme, starts
from idfx.bench.study import Study, check_same, key_of, read_config, ready, wanted
from idfx.bench.training import Run
from idfx.bench.workers import Bench, Event, Inline, Processes, Workers
from idfx.core.errors import UsageError
from idfx.core.files import write_text


class Listener(Protocol):
    """Receives the progress of a study."""

    def planned(self, done: int, total: int) -> None: ...

    def begun(self, run: Run, epochs: int) -> None: ...

    def epoch(self, event: Event) -> None: ...

    def finished(self, run: Run, record: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """The result of a call: the numbers of finished and planned runs, whether the budget ran out, and all records."""

    done: int
    total: int
    cut: bool
    records: list[dict[str, Any]]


def all_starts(study: Study) -> dict[tuple[str, str], Start]:
    """Return the effect of each scheme on each model.

    Raises:
        IdfxError: a model that cannot be built or analysed.
    """
    found: dict[tuple[str, str], Start] = {}
    data: dict[str, Data] = {}
    for name, settings in study.suite.models.items():
        if settings.data not in data:
            data[settings.data] = load_data(settings.data, study.path)
        held = data[settings.data]
        example, _ = split(held, 0, settings.validation)[0].take(torch.arange(2), None)
        its = starts(settings.build, held.task, example, study.suite.schemes)
        found |= {(name, scheme): start for scheme, start in its.items()}
    return found


def facts(study: Study) -> dict[str, Any]:
    """Return the identifying facts of each data set of a study, by its text."""
    texts = dict.fromkeys(settings.data for settings in study.suite.models.values())
    return {text: dict(load_data(text, study.path).facts) for text in texts}


def conduct(study: Study, folder: Path, jobs: int, budget: float | None, listener: Listener) -> Outcome:
    """Train the missing runs of a results directory; every finished run is on disk before the next one begins.

    Args:
        study: to run, with the facts of its data.
        folder: new, empty, or of the same study.
        jobs: the number of parallel runs, in separate processes if there are several.
        budget: in seconds; no run begins that would exceed it; None for no limit.
        listener: receives the progress.

    Raises:
        UsageError: the directory belongs to something else.
        IdfxError: from models, data and schemes.
    """
    for text in study.suite.schemes:
        check_scheme(text)
    _open(study, folder)
    with RunsFile(folder) as runs:
        found = all_starts(study)
        _check_plans(folder, runs.records, found)
        config = {**study.config(), "machine": machine(study.device)}
        write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        for (model, scheme), start in found.items():
            if not start.applies and not _noted(runs.records, model, scheme):
                note = {"suite": study.suite.name, "model": model, "scheme": scheme}
                runs.append({**note, "applies": False, "reason": start.reason, "plan": start.plan})
        bench = Bench(study.suite.models, study.path, study.device, study.watch)
        workers = Inline(bench, listener.epoch) if jobs == 1 else Processes(bench, jobs)
        try:
            return _train(study, found, runs, workers, budget, listener)
        finally:
            if isinstance(workers, Processes):
                workers.close()


def _open(study: Study, folder: Path) -> None:
    """Create the directory, or check that it belongs to the study."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}: this is not a folder; expected one for the results. Choose another name.")
    config = read_config(folder)
    if config is not None:
        check_same(folder, config, study)
    elif folder.exists() and any(path.name != "runs.jsonl" or path.stat().st_size for path in folder.iterdir()):
        raise UsageError(f"-o {folder}: has other files; expected a new folder or that of a study. Choose another.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {folder}: {error.strerror}; expected a writable folder. Choose another one.") from error


def _noted(records: list[dict[str, Any]], model: str, scheme: str) -> bool:
    return any(r["model"] == model and r["scheme"] == scheme and r.get("applies") is False for r in records)


def _check_plans(folder: Path, records: list[dict[str, Any]], found: Mapping[tuple[str, str], Start]) -> None:
    """Check that schemes write the same as in the recorded runs; raise UsageError otherwise."""
    for record in records:
        start = found.get((record["model"], record["scheme"]))
        if start is not None and record["plan"] != start.plan:
            raise UsageError(
                f"{folder}: {record['scheme']} on {record['model']} had the plan {record['plan'] or 'none'} and has"
                f" {start.plan or 'none'} now; expected the same one. Choose another -o: idfx has changed since."
            )


def _train(
    study: Study, found: Mapping[tuple[str, str], Start], runs: RunsFile, workers: Workers, budget: float | None,
    listener: Listener,
) -> Outcome:  # fmt: skip
    began = time.monotonic()
    applying = [model for (model, _), start in found.items() if start.applies]
    total = sum(study.runs_of(study.suite.models[model]) for model in applying)
    running: list[Run] = []
    cut = False
    listener.planned(_done(study, found, runs.records), total)
    while True:
        for run in ready(study, found, runs.records, running):
            if not workers.room:
                break
            if budget is not None and time.monotonic() - began + _expected(runs.records, run) > budget:
                cut = True
                break
            workers.submit(run)
            running.append(run)
            listener.begun(run, study.suite.models[run.model].epochs)
        if not running:
            return Outcome(_done(study, found, runs.records), total, cut, runs.records)
        for event in workers.events():
            if event.record is None:
                listener.epoch(event)
                continue
            running.remove(event.run)
            runs.append(_line(study, event))
            listener.finished(event.run, event.record)


def _done(study: Study, found: Mapping[tuple[str, str], Start], records: list[dict[str, Any]]) -> int:
    """The number of planned runs that are recorded."""
    keys = {key_of(record) for record in records if "lr" in record}
    return sum(run in keys for run in wanted(study, found, records))


def _expected(records: list[dict[str, Any]], run: Run) -> float:
    """The expected seconds of a run: the median over the runs of its model, or 0."""
    known = [record["seconds"] for record in records if record["model"] == run.model and "seconds" in record]
    return statistics.median(known) if known else 0.0


def _line(study: Study, event: Event) -> dict[str, Any]:
    run = event.run
    assert event.record is not None
    versions = {"torch": torch.__version__, "idfx": study.config()["versions"]["idfx"]}
    return {
        "suite": study.suite.name,
        "model": run.model,
        "scheme": run.scheme,
        "seed": run.seed,
        "lr": run.lr,
        "weight_decay": run.weight_decay,
        **event.record,
        "device": study.device,
        "versions": versions,
    }
