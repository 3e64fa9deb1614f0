"""Runs a sweep of the zoo: every model in a process of its own, every run on disk before the next one ends."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idfx.bench.isolated import Limits, run_isolated
from idfx.bench.machine import machine, versions
from idfx.bench.runs import RunsFile
from idfx.bench.starts import DEFAULT, check_scheme
from idfx.bench.study import differences
from idfx.bench.training import Run
from idfx.bench.zoo import SETS, find_set, members
from idfx.bench.zoo.learning import Job, work
from idfx.core.errors import UsageError
from idfx.core.files import write_text

PRELOAD = ("idfx.bench.zoo.learning", "timm", "torchvision", "transformers")
Done = Callable[[str, Sequence[dict[str, Any]], str], None]


@dataclass(frozen=True)
class Sweep:
    """Models, schemes, and how they are trained; `default` is always among the schemes, to compare with."""

    members: tuple[str, ...]
    schemes: tuple[str, ...] = (DEFAULT, "idinit", "idfx")
    seeds: int = 1
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    steps: int = 40
    optimiser: str = "adamw"
    device: str = "cpu"
    without_norms: bool = False

    def config(self) -> dict[str, Any]:
        """Return what all runs of a directory have in common."""
        how = {"steps": self.steps, "optimiser": self.optimiser, "device": self.device}
        return {"zoo": True, **how, "without_norms": self.without_norms}

    def runs(self, member: str) -> list[Run]:
        """Return the runs of a model."""
        product = itertools.product(self.schemes, range(self.seeds), self.rates)
        return [Run(member, scheme, rate, 0.0, seed) for scheme, seed, rate in product]


def chosen(sets: Sequence[str] | None, models: Sequence[str] | None, pattern: str | None) -> tuple[str, ...]:
    """Return the members of these sets and these models that a regular expression finds, sets by turns.

    Raises:
        UsageError: an unknown set, a malformed pattern, or nothing is left.
    """
    wanted = [*sets] if sets is not None else ([] if models is not None else [*SETS])
    for name in models or ():
        find_set(name)
    turns = itertools.zip_longest(*(members([name]) for name in wanted))
    found = dict.fromkeys([*(models or ()), *(name for turn in turns for name in turn if name is not None)])
    try:
        kept = tuple(name for name in found if pattern is None or re.search(pattern, name))
    except re.error as error:
        raise UsageError(f"--only {pattern!r}: {error}; expected a regular expression.") from error
    if not kept:
        raise UsageError(f"--only {pattern!r}: none of {len(found)} models has it in its name. See --set and --models.")
    return kept


def key_of(record: dict[str, Any]) -> Run:
    """Return the run of a record."""
    return Run(record["model"], record["scheme"], record["lr"], 0.0, record["seed"])


def missing(sweep: Sweep, records: Sequence[dict[str, Any]], retry: bool = False) -> list[Job]:
    """Return the jobs of a sweep that are not recorded; what failed is tried again only on request."""
    done = {key_of(record) for record in records if "lr" in record}
    lost = {(r["model"], r["scheme"], r["seed"]) for r in records if "failed" in r and not retry}
    jobs = []
    for member in sweep.members:
        runs = [
            run
            for run in sweep.runs(member)
            if run not in done and (run.model, run.scheme, run.seed) not in lost
        ]  # fmt: skip
        if runs:
            jobs.append(Job(member, tuple(runs), sweep.steps, sweep.optimiser, sweep.device, sweep.without_norms))
    return jobs


def conduct(
    sweep: Sweep, folder: Path, limits: Limits, several: int, retry: bool, finished: Done
) -> list[dict[str, Any]]:
    """Train what a results directory lacks, and return all its records.

    Args:
        sweep: to run.
        folder: new, or of the same steps, optimiser and device.
        limits: of the process of a model.
        several: models at the same time.
        retry: try again what failed.
        finished: receives the model, its new records, and the reason where it failed.

    Raises:
        UsageError: the directory belongs to something else, or a scheme is unknown.
    """
    for scheme in sweep.schemes:
        check_scheme(scheme)
    _open(sweep, folder)
    with RunsFile(folder) as file, ExitStack() as stack:
        made: dict[str, list[dict[str, Any]]] = {}
        made_with = {name: versions()[name] for name in ("torch", "idfx")}
        jobs = missing(sweep, file.records, retry)
        told = stack.enter_context(closing(run_isolated(work, jobs, limits, several, PRELOAD)))
        for job, record, reason in told:
            mine = made.setdefault(job.member, [])
            if record is not None:
                file.append({**record, "device": sweep.device, "versions": made_with})
                mine.append(record)
                continue
            for lost in _unfinished(job, mine) if reason else ():
                file.append({**lost, "failed": reason})
                mine.append({**lost, "failed": reason})
            finished(job.member, mine, reason)
        return file.records


def _unfinished(job: Job, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The starts of a job that have not all their runs."""
    done = {key_of(record) for record in records if "lr" in record}
    told = {(record["scheme"], record["seed"]) for record in records if "failed" in record}
    lost = dict.fromkeys((run.scheme, run.seed) for run in job.runs if run not in done)
    left = [start for start in lost if start not in told]
    return [{"model": job.member, "scheme": scheme, "seed": seed} for scheme, seed in left]


def _open(sweep: Sweep, folder: Path) -> None:
    """Create the directory, or check that its runs were made in the same way."""
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"-o {folder}: {error}; expected a folder for the results. Choose another one.") from error
    new = sweep.config()
    if old is not None and (found := differences({key: old.get(key) for key in new}, new)):
        raise UsageError(
            f"{folder}: started with a different configuration: {'; '.join(found)}; expected the same one. Choose"
            " another -o."
        )
    about = {**new, "machine": machine(sweep.device), "versions": versions(), "sweep": dataclasses.asdict(sweep)}
    write_text(path, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
