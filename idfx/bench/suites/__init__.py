"""Suites: models, their data and settings, from TOML files; those in this folder can be given by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from idfx.core.errors import UsageError
from idfx.core.forms import Form, Number, Text, Whole, read
from idfx.core.registry import did_you_mean

SCHEMES = (
    *("default", "kaiming", "xavier", "orthogonal", "zero-gamma"),
    *("fixup", "skipinit", "rezero", "zero", "idinit", "idfx"),
)


def _listed(value: Any) -> Any:
    """A number stands for a list of one."""
    return value if isinstance(value, (list, tuple)) else [value]


def _different(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len({*numbers}) < len(numbers):
        raise PydanticCustomError("twice", "different numbers")
    return numbers


Count = Annotated[Whole, Field(ge=1)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Rates = Annotated[tuple[Positive, ...], Field(min_length=1), BeforeValidator(_listed), AfterValidator(_different)]
Decays = Annotated[tuple[NotNegative, ...], Field(min_length=1), BeforeValidator(_listed), AfterValidator(_different)]


class Settings(Form):
    """How one model of a suite is trained; the same for every scheme.

    `lr` × `weight_decay` is the grid. `warmup`: epochs over which the rate rises; then it falls as a cosine to 0.
    `momentum`: of SGD, with Nesterov. `clip`: the maximum gradient norm, 0 for no limit. `validation`: the share of the
    training samples that is held out, if the data has no validation part.
    """

    build: Text
    data: Text
    epochs: Count = 15
    batch: Count = 64
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Rates = (0.1,)
    weight_decay: Decays = (0.0,)
    momentum: NotNegative = 0.9
    warmup: NotNegative = 0.0
    clip: NotNegative = 0.0
    validation: Share = 0.15

    @property
    def grid(self) -> list[tuple[float, float]]:
        """The pairs of learning rate and weight decay."""
        return [(lr, decay) for lr in self.lr for decay in self.weight_decay]


class SuiteFile(Form):
    """A TOML file of models; what else stands in it holds for every model that does not say otherwise."""

    model_config = ConfigDict(extra="allow")

    about: Text = ""
    schemes: list[Text] = Field([*SCHEMES], min_length=1)
    seeds: Count = 5
    models: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Suite:
    """Models by name, with default schemes and seeds."""

    name: str
    about: str
    models: Mapping[str, Settings]
    schemes: tuple[str, ...] = SCHEMES
    seeds: int = 5


def suite_names() -> list[str]:
    """Return the names of the suites that come with idfx.

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
        UsageError: neither, or a file with other contents.

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
    file = read(SuiteFile, given, where)
    shared = file.model_extra or {}
    models = {key: settings({**shared, **table}, f"{where}: models → {key}") for key, table in file.models.items()}
    return Suite(name, file.about, models, tuple(file.schemes), file.seeds)


def settings(given: Mapping[str, Any], where: str) -> Settings:
    """Return the settings of a model, checked.

    Args:
        given: by name, as TOML has them.
        where: the location to name in errors.

    Raises:
        UsageError: a setting that is unknown, missing or of the wrong type.

    Example:
        >>> settings({"build": "mlp", "data": "digits", "lr": [0.1, 0.01]}, "here").grid
        [(0.1, 0.0), (0.01, 0.0)]
    """
    return read(Settings, given, where)
