"""A study: its runs, their order, and whether a results directory belongs to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idfx.bench.machine import versions
from idfx.bench.starts import Start
from idfx.bench.statistics import Point, Record, choose, point_of
from idfx.bench.suites import Settings, Suite, settings
from idfx.bench.training import Run
from idfx.core.errors import UsageError

SELECTION = 2  # seeds for choosing the learning rate
GROWS = ("models", "schemes", "seeds", "data")  # more of these may be added to a study
WIDENS = ("lr", "weight_decay")  # and more points of these


@dataclass(frozen=True)
class Study:
    """A suite with all options of its runs.

    `full`: every seed at every point of the grid, not only at the chosen one. `watch`: record the state of models
    during training. `facts`: of the data sets, by their texts.
    """

    suite: Suite
    full: bool = False
    watch: bool = False
    device: str = "cpu"
    path: Path | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def selection(self) -> range:
        """The seeds for choosing the learning rate."""
        return range(min(SELECTION, self.suite.seeds))

    @property
    def planned(self) -> int:
        """The number of planned runs, without schemes that do not apply."""
        return sum(map(self.runs_of, self.suite.models.values()))

    def runs_of(self, model: Settings) -> int:
        """Return the number of runs of a scheme on a model."""
        points, chosen_on = len(model.grid), len(self.selection)
        return points * self.suite.seeds if self.full else points * chosen_on + self.suite.seeds - chosen_on

    def config(self) -> dict[str, Any]:
        """Return the contents of config.json, which identify a study."""
        return {
            "suite": self.suite.name,
            "about": self.suite.about,
            "models": {name: model.model_dump() for name, model in self.suite.models.items()},
            "schemes": list(self.suite.schemes),
            "seeds": self.suite.seeds,
            "selection_seeds": len(self.selection),
            "full": self.full,
            "watch": self.watch,
            "device": self.device,
            "data": dict(self.facts),
            "versions": versions(),
        }


def key_of(record: Record) -> Run:
    """Return the run of a record."""
    return Run(record["model"], record["scheme"], record["lr"], record["weight_decay"], record["seed"])


def unit(records: Sequence[Record], model: str, scheme: str) -> list[Record]:
    """Return the records of the runs of a model and a scheme."""
    return [r for r in records if r["model"] == model and r["scheme"] == scheme and "lr" in r]


def chosen(study: Study, records: Sequence[Record], model: str, scheme: str) -> Point | None:
    """Return the learning rate and weight decay of a model and a scheme; None while selection runs are missing."""
    grid = study.suite.models[model].grid
    if len(grid) == 1:
        return grid[0]
    deciding = [r for r in unit(records, model, scheme) if r["seed"] in study.selection and point_of(r) in grid]
    return choose(deciding) if len(deciding) == len(grid) * len(study.selection) else None


def wanted(study: Study, starts: Mapping[tuple[str, str], Start], records: Sequence[Record]) -> Iterator[Run]:
    """Yield the runs of a study as far as they are known, in order of models and schemes.

    Runs of the remaining seeds are known once the selection runs are recorded.

    Args:
        study: to run.
        starts: by model and scheme.
        records: of finished runs.
    """
    for model, settings_ in study.suite.models.items():
        for scheme in study.suite.schemes:
            if not starts[model, scheme].applies:
                continue
            seeds = range(study.suite.seeds) if study.full else study.selection
            runs = [Run(model, scheme, *point, seed) for point in settings_.grid for seed in seeds]
            if (best := chosen(study, records, model, scheme)) is not None:
                runs += [Run(model, scheme, *best, seed) for seed in range(study.suite.seeds)]
            yield from dict.fromkeys(runs)


def ready(
    study: Study, starts: Mapping[tuple[str, str], Start], records: Sequence[Record], running: Collection[Run] = ()
) -> Iterator[Run]:
    """Yield the planned runs that are neither recorded nor running."""
    begun = {*running, *(key_of(record) for record in records if "lr" in record)}
    yield from (run for run in wanted(study, starts, records) if run not in begun)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Return descriptions of the differences of two configurations; permitted additions do not count.

    Example:
        >>> differences({"seeds": 5, "device": "cpu"}, {"seeds": 6, "device": "cuda:0"})
        ["device was 'cpu' and is 'cuda:0'"]
        >>> differences({"schemes": ["kaiming", "zero"]}, {"schemes": ["zero", "xavier"]})
        ['schemes: kaiming is missing']
        >>> differences({"models": {"vit": {"lr": [0.1]}}}, {"models": {"vit": {"lr": [0.1, 0.3]}}})
        []
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            path = f"{where}.{key}" if where else str(key)
            if key not in new:
                found.append(f"{where}: {key} is missing" if where in GROWS else f"{path} is missing")
            elif key in old:
                found += differences(old[key], new[key], path)
            elif where not in GROWS:
                found.append(f"{path} is new")
        return found
    if where == "schemes":
        return [f"{where}: {name} is missing" for name in old if name not in new]
    if where == "seeds" and new >= old:
        return []
    if where.startswith("models.") and where.rpartition(".")[2] in WIDENS and {*old} <= {*new}:
        return []
    return [] if old == new else [f"{where} was {old!r} and is {new!r}"]


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the contents of config.json in a results directory, or None if there is no such file.

    Raises:
        UsageError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; expected the configuration of a study. Choose another -o.") from error
    if not isinstance(found, dict) or not {"suite", "models", "schemes", "seeds"} <= found.keys():
        raise UsageError(f"{path}: not the configuration of a study; expected one. Choose another -o.")
    return found


def suite_of(config: Mapping[str, Any]) -> Suite:
    """Return the suite of a configuration."""
    models = {name: settings(given, f"config.json, model {name}") for name, given in config["models"].items()}
    return Suite(config["suite"], config.get("about", ""), models, tuple(config["schemes"]), config["seeds"])


def check_same(folder: Path, old: Mapping[str, Any], study: Study) -> None:
    """Check that a study can resume a results directory; raise UsageError otherwise.

    Raises:
        UsageError: it was started with a different configuration; the message lists the differences.
    """
    new = json.loads(json.dumps(study.config()))
    old, new = ({key: its[key] for key in its if key not in ("machine", "about")} for its in (old, new))
    found = differences(old, new)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UsageError(
            f"{folder}: started with a different configuration: {'; '.join(found[:5])}{more}; expected the same one. "
            "Choose another -o, or resume the original study with only -o."
        )
