"""The interface of schemes, and their registry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idfx.analysis.parity import bound
from idfx.analysis.queries import StructureQueries
from idfx.core.errors import UsageError
from idfx.core.literals import as_float
from idfx.core.records import Decision, Layout, ParameterInfo, Role, Scalar
from idfx.core.registry import Registry, did_you_mean


@dataclass(frozen=True)
class Keep:
    """The decision to leave a parameter as it is."""

    reason: str


# The gains that preserve standard deviations through these functions (torch.nn.init.calculate_gain).
GAINS = {
    "linear": 1.0,
    "relu": math.sqrt(2.0),
    "leaky_relu": math.sqrt(2.0 / (1.0 + 0.01**2)),
    "tanh": 5.0 / 3.0,
    "selu": 0.75,
}

Decide = Callable[[ParameterInfo, Role, StructureQueries, Any], Decision | Keep]
Scalars = Callable[[StructureQueries, Any], Sequence[Scalar]]
PreferScaleEnds = Callable[[Any], bool]


@dataclass(frozen=True)
class Scheme:
    """A scheme: a frozen dataclass of its options and a function from parameter, role and network to a decision.

    The options class checks its values in `__post_init__` and raises UsageError. `decide` sees one parameter at a time,
    touches no tensor, and is called once for each parameter that may be written. `prefer_scale_ends` tells, from the
    options, whether branches end as close to the join as possible, at scales rather than at weights. `scalars` returns
    the learned scalars that the scheme adds to branches.
    """

    name: str
    options: type[Any]
    decide: Decide
    prefer_scale_ends: PreferScaleEnds = lambda options: False
    scalars: Scalars | None = None

    @property
    def summary(self) -> str:
        """The first line of the scheme's docstring."""
        return (self.decide.__doc__ or "").strip().splitlines()[0]

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """Return the options with these values; raise UsageError for an unknown name or an invalid value."""
        known = [field.name for field in dataclasses.fields(self.options)]
        for name in given:
            if name not in known:
                expected = f"expected one of {', '.join(known)}" if known else "it has none"
                raise UsageError(
                    f"scheme {self.name!r}: unknown option {name!r}; {expected}.{did_you_mean(name, known)}"
                )
        return self.options(**given)


SCHEMES: Registry[Scheme] = Registry("scheme", "idfx.schemes", "idfx.schemes")


def default_options(name: str) -> dict[str, Any]:
    """Return the default of each option of a scheme; nothing for one that is not installed.

    Example:
        >>> default_options("orthogonal"), default_options("somebody-elses")
        ({'gain': 1.0}, {})
    """
    if name not in SCHEMES:
        return {}
    return {field.name: field.default for field in dataclasses.fields(SCHEMES[name].options)}


def scheme(
    name: str,
    options: type[Any],
    *,
    prefer_scale_ends: PreferScaleEnds = lambda options: False,
    scalars: Scalars | None = None,
) -> Callable[[Decide], Decide]:
    """Register the decorated function as the decision of a scheme."""

    def add(decide: Decide) -> Decide:
        SCHEMES.register(name, by=decide.__module__)(Scheme(name, options, decide, prefer_scale_ends, scalars))
        return decide

    return add


@dataclass(frozen=True)
class NoOptions:
    """The options of schemes that have none."""


def check_number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf, such_as: str = "1"
) -> None:
    """Check that a value is a finite number within inclusive bounds; raise UsageError otherwise."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(as_float(value))
    if not number or not least <= value <= most:  # type: ignore[operator]
        span = {
            (False, False): "a finite number",
            (True, False): f"a number of at least {least:g}",
            (False, True): f"a number of at most {most:g}",
            (True, True): f"a number from {least:g} to {most:g}",
        }[math.isfinite(least), math.isfinite(most)]
        raise UsageError(f"{name} {value!r}; expected {span}. Write one such as {such_as}.")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Check that a value is one of the known names; raise UsageError otherwise."""
    if value not in known:
        raise UsageError(f"{name} {value!r}; expected one of {', '.join(known)}.{did_you_mean(str(value), known)}")


def check_flag(name: str, value: object) -> None:
    """Check that a value is true or false; raise UsageError otherwise."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} {value!r}; expected true or false. Write one of them.")


def layout_fields(layout: Layout | None) -> dict[str, Any]:
    """Return the fields of a layout that are not the default, as JSON.

    Example:
        >>> layout_fields(Layout(tap_axes=(2, 3), groups=4))
        {'tap_axes': [2, 3], 'groups': 4}
    """
    if layout is None:
        return {}
    fields = {
        field.name: getattr(layout, field.name)
        for field in dataclasses.fields(layout)
        if getattr(layout, field.name) != field.default
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def with_layout(arguments: dict[str, Any], role: Role) -> dict[str, Any]:
    """Return the arguments of a fill, with the layout of the weight added if it is not (out, in)."""
    layout = layout_fields(role.layout)
    return {**arguments, "layout": layout} if layout else arguments


def fans(parameter: ParameterInfo, role: Role) -> tuple[int, int]:
    """Return (fan-in, fan-out) of a weight: the number of inputs of an output, and of outputs of an input.

    They belong to one matrix of a group, expert and fused part. torch.nn.init derives them from the shape alone, which
    gives different values for transposed kernels (swapped), groups and transposed layouts.

    Example:
        >>> fans(ParameterInfo("w", (8, 4, 3, 3), "float32"), Role("inner", "", Layout(tap_axes=(2, 3))))
        (36, 72)
    """
    assert role.layout is not None
    taps = math.prod(parameter.shape[axis] for axis in role.layout.tap_axes)
    rows, columns = role.layout.matrix(parameter.shape)
    fused = max(1, sum(part in role.traits for part in ("query", "key", "value")))
    return columns, rows * taps // fused


def is_weight(role: Role) -> bool:
    """Return whether a role belongs to a weight whose matrix is known."""
    return role.name.is_weight and role.layout is not None


def odd_bias(parameter: ParameterInfo, role: Role, network: StructureQueries) -> Decision | None:
    """Return the draw of a bias without which the model would stay an odd function, f(−x) = −f(x).

    Source: ours; the bound is that of torch.nn.Linear. None for other biases, and for those that end a residual branch.
    """
    if role.name != "bias" or (found := network.breaks_oddness(parameter.name)) is None:
        return None
    operator, inputs = found
    reason = f"drawn, because with biases of 0 the model is an odd function, as is {operator} behind it (ours)"
    return Decision(parameter.name, "uniform", {"bound": bound(inputs)}, reason, role.evidence)


def beside(parameter: ParameterInfo, role: Role) -> Decision | Keep:
    """Return the usual decision for a parameter that is not a weight: 0 for additive ones, 1 for norms, else keep."""
    if role.name.is_shift:
        return Decision(parameter.name, "constant", {"value": 0.0}, f"a {role.name} starts at 0", role.evidence)
    if role.name == "norm scale" or (role.name == "end scale" and "norm" in role.traits):
        return Decision(parameter.name, "constant", {"value": 1.0}, "a norm scale starts at 1", role.evidence)
    if role.name.is_weight:
        return Keep("it is a weight whose matrix idfx cannot read; its own values are kept")
    return Keep(f"the scheme has no rule for the role {str(role.name)!r}; its own values are kept")
