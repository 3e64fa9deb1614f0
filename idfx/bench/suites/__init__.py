"""What is trained: models, their data and settings, read from TOML files; those of this folder have a name."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idfx.core.errors import UsageError
from idfx.core.registry import did_you_mean

OPTIMISERS = ("sgd", "adam", "adamw")
SCHEMES = (
    *("default", "kaiming", "xavier", "orthogonal", "zero-gamma"),
    *("fixup", "skipinit", "rezero", "zero", "idinit", "idfx"),
)


@dataclass(frozen=True)
class Settings:
    """How one model of a suite is trained; the same for every scheme.

    `lr` × `weight_decay` is the grid. `warmup`: epochs over which the rate rises; then it falls as a cosine to 0.
    `momentum`: of SGD, with Nesterov. `clip`: the largest norm of a gradient, 0 for any. `validation`: the share of the
    training samples that is held out, where the data has no validation part of its own.
    """

    build: str
    data: str
    epochs: int = 15
    batch: int = 64
    optimiser: str = "sgd"
    lr: tuple[float, ...] = (0.1,)
    weight_decay: tuple[float, ...] = (0.0,)
    momentum: float = 0.9
    warmup: float = 0.0
    clip: float = 0.0
    validation: float = 0.15

    @property
    def grid(self) -> list[tuple[float, float]]:
        """The pairs of learning rate and weight decay."""
        return [(lr, decay) for lr in self.lr for decay in self.weight_decay]


@dataclass(frozen=True)
class Suite:
    """Models by name, and what is trained where nobody says otherwise."""

    name: str
    about: str
    models: Mapping[str, Settings]
    schemes: tuple[str, ...] = SCHEMES
    seeds: int = 5


def suite_names() -> list[str]:
    """Return the names of the suites that idfx brings.

    Example:
        >>> "digits" in suite_names()
        True
    """
    return sorted(path.stem for path in Path(__file__).parent.glob("*.toml"))


def read_suite(name: str) -> Suite:
    """Return a suite.

    Args:
        name: one of `suite_names()`, or a TOML file.

    Raises:
        UsageError: neither, or a file with something else in it.

    Example:
        >>> read_suite("digits").models["vit"].optimiser
        'adamw'
    """
    known = suite_names()
    path = Path(__file__).parent / f"{name}.toml" if name in known else Path(name)
    if name not in known and path.suffix != ".toml":
        raise UsageError(
            f"--suite {name}: unknown; expected {', '.join(known)} or a .toml file.{did_you_mean(name, known)}"
        )
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--suite {name}: {reason}; expected a TOML file. See docs/bench.md.") from error
    return _suite(path.stem, given)


def _suite(name: str, given: dict[str, Any]) -> Suite:
    where = f"suite {name}"
    tables = given.pop("models", None)
    if not isinstance(tables, dict) or not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"{where}: no models; expected [models.NAME] with build = ... . Write one.")
    about = given.pop("about", "")
    schemes = given.pop("schemes", list(SCHEMES))
    seeds = given.pop("seeds", 5)
    if not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"{where}: seeds {seeds!r}; expected a number of seeds from 1. Write 5.")
    if not isinstance(schemes, list) or not all(isinstance(scheme, str) for scheme in schemes):
        raise UsageError(f"{where}: schemes {schemes!r}; expected a list of names. See `idfx list schemes`.")
    models = {key: settings({**given, **table}, f"{where}, model {key}") for key, table in tables.items()}
    return Suite(name, str(about), models, tuple(schemes), seeds)


def settings(given: Mapping[str, Any], where: str) -> Settings:
    """Return the settings of a model, checked.

    Args:
        given: by name, as TOML has them.
        where: how to call it in errors.

    Raises:
        UsageError: one that is unknown, missing or of another kind.

    Example:
        >>> settings({"build": "mlp", "data": "digits", "lr": [0.1, 0.01]}, "here").grid
        [(0.1, 0.0), (0.01, 0.0)]
    """
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise UsageError(
                f"{where}: unknown setting {key!r}; expected {', '.join(fields)}.{did_you_mean(key, fields)}"
            )
        values[key] = _read(key, value, str(fields[key].type), where)
    for key in ("build", "data"):
        if key not in values:
            raise UsageError(f'{where}: no {key}; expected one. Write {key} = "...".')
    made = Settings(**values)
    if made.optimiser not in OPTIMISERS:
        raise UsageError(f"{where}: optimiser {made.optimiser!r}; expected {', '.join(OPTIMISERS)}. Write one of them.")
    if made.epochs < 1 or made.batch < 1 or not 0 < made.validation < 1:
        raise UsageError(f"{where}: epochs and batch are from 1, validation is between 0 and 1. Correct them.")
    return made


def _read(key: str, value: Any, kind: str, where: str) -> Any:
    """Return a setting as the type of its field says."""
    if kind.startswith("tuple"):
        listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        numbers = tuple(_read(key, entry, "float", where) for entry in listed)
        least = 0.0 if key == "weight_decay" else 5e-324
        if not numbers or min(numbers) < least or len({*numbers}) < len(numbers):
            raise UsageError(f"{where}: {key} {value!r}; expected different numbers above 0. Write [0.1, 0.01], say.")
        return numbers
    good = isinstance(value, str) if kind == "str" else isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        good = (good or isinstance(value, float)) and 0 <= value < math.inf
    if not good:
        raise UsageError(f"{where}: {key} {value!r}; expected {kind}. Correct it.")
    return float(value) if kind == "float" else value
