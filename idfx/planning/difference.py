"""Two plans, two checkpoints, or one of each → their differences, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from idfx.core.errors import UsageError
from idfx.core.records import Decision, Plan
from idfx.fills import fill_
from idfx.fills.geometry import Shard
from idfx.planning.checkpoints import Checkpoint

Side = Plan | Checkpoint


@dataclass(frozen=True)
class Difference:
    """One parameter on two sides, "left" and "right", each described in words.

    `status`: "same", "differs", "only left", "only right", or "not compared" if a side has no values because it keeps
    or loads the parameter. `largest` is max|left − right| if both sides have values.
    """

    parameter: str
    status: str
    left: str
    right: str
    largest: float | None = None


def diff(left: Side, right: Side) -> tuple[Difference, ...]:
    """Return the comparison of each parameter of two sides.

    Two plans are compared by what they write: fill, arguments, seed. A checkpoint is compared by value, entry by entry,
    in its dtype, with the values that a plan would write.

    Args:
        left, right: plans or checkpoints.

    Raises:
        UsageError: they have no parameter in common.

    Example:
        >>> import idfx
        >>> structure = idfx.analyze(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        >>> [d.status for d in diff(idfx.plan(structure), idfx.plan(structure, tau=2.0))]
        ['differs', 'same']
    """
    names = _names(left, right)
    if isinstance(left, Plan) and isinstance(right, Plan):
        return (*(_of_plans(left, right, name) for name in names), *_of_scalars(left, right))
    return tuple(_of_values(left, right, name) for name in names)


def _names(left: Side, right: Side) -> list[str]:
    """The names on both sides, in the order of the left; only parameters if one side is a plan."""
    sides = _shapes(left), _shapes(right)
    if sides[0].keys().isdisjoint(sides[1]):
        examples = " and ".join(next(iter(side), "nothing") for side in sides)
        raise UsageError(f"diff: the sides share no name ({examples}); expected the same model. Compare others.")
    plans = [side.shapes for side in (left, right) if isinstance(side, Plan)]
    return [name for name in {**sides[0], **sides[1]} if not plans or any(name in plan for plan in plans)]


def _shapes(side: Side) -> Mapping[str, tuple[int, ...]]:
    """The shapes of everything on a side."""
    if isinstance(side, Plan):
        return side.shapes
    return {name: tuple(tensor.shape) for name, tensor in side.tensors.items()}


def _of_plans(left: Plan, right: Plan, name: str) -> Difference:
    said = _said(left, name), _said(right, name)
    if alone := _alone(name, left.shapes, right.shapes, said):
        return alone
    one, other = left.decisions.get(name), right.decisions.get(name)
    same = left.shapes[name] == right.shapes[name]
    if one is None or other is None:
        same = same and one is other and (name in left.loaded) == (name in right.loaded)
    else:
        same = same and (one.fill, dict(one.arguments)) == (other.fill, dict(other.arguments))
        if same and left.seed != right.seed and _draws(one, left, right):
            said, same = (f"{said[0]}, seed {left.seed}", f"{said[1]}, seed {right.seed}"), False
    return Difference(name, "same" if same else "differs", *said)


def _of_scalars(left: Plan, right: Plan) -> Iterator[Difference]:
    """The learned scalars of two plans, each under the name of the block whose branch it multiplies."""
    sides = [{scalar.join: scalar for scalar in side.scalars} for side in (left, right)]
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(name) for side in sides)
        said = tuple("" if scalar is None else f"scalar {scalar.value:g}" for scalar in (one, other))
        status = (
            "only right" if one is None else "only left" if other is None else "differs" if one != other else "same"
        )
        yield Difference(f"scalar of {name}", status, said[0], said[1])


def _draws(decision: Decision, left: Plan, right: Plan) -> bool:
    """Whether the values of a fill depend on the seed; tried on a part of the parameter."""
    shape = left.shapes[decision.parameter]
    place = Shard(shape, (0,) * len(shape))

    def part(seed: int) -> torch.Tensor:
        empty = torch.empty([min(size, 8) for size in shape], dtype=torch.float64)
        name = decision.parameter
        return fill_(empty, decision.fill, decision.arguments, parameter=name, seed=seed, shard=place)

    return not torch.equal(part(left.seed), part(right.seed))


def _said(side: Plan, name: str) -> str:
    decision = side.decisions.get(name)
    if decision is not None:
        inside = ", ".join(f"{key}={_short(value)}" for key, value in decision.arguments.items() if key != "layout")
        return f"{decision.fill}({inside})"
    return f"load {side.loaded[name]}" if name in side.loaded else "keep" if name in side.kept else ""


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _alone(
    name: str, left: Mapping[str, object], right: Mapping[str, object], said: tuple[str, str]
) -> Difference | None:
    """A name that only one side has."""
    if name in left and name in right:
        return None
    return Difference(name, "only left" if name in left else "only right", *said)


def _of_values(left: Side, right: Side, name: str) -> Difference:
    said = _described(left, name), _described(right, name)
    if alone := _alone(name, _shapes(left), _shapes(right), said):
        return alone
    if not all(_has_values(side, name) for side in (left, right)):
        return Difference(name, "not compared", *said)
    here, there = _shapes(left)[name], _shapes(right)[name]
    if here != there:
        return Difference(name, "differs", f"{said[0]} {list(here)}", f"{said[1]} {list(there)}")
    dtype = next(side.tensors[name].dtype for side in (left, right) if isinstance(side, Checkpoint))
    one, other = (_values(side, name, dtype) for side in (left, right))
    same = (one == other) | ((one != one) & (other != other))  # NaN equals NaN here
    wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
    apart = torch.where(same, 0.0, (one.to(wide) - other.to(wide)).abs())
    largest = float(apart.max()) if one.numel() else 0.0
    status = "same" if one.dtype == other.dtype and bool(same.all()) else "differs"
    return Difference(name, status, *said, largest)


def _has_values(side: Side, name: str) -> bool:
    return not isinstance(side, Plan) or name in side.decisions


def _described(side: Side, name: str) -> str:
    """Describe a name: by its fill in a plan, by the spread of its values in a checkpoint."""
    if isinstance(side, Plan):
        return _said(side, name)
    tensor = side.tensors.get(name)
    if tensor is None:
        return ""
    if not tensor.is_floating_point() or not tensor.numel():
        return f"{str(tensor.dtype)[6:]} values"
    values = tensor.double()
    if bool((values == values.flatten()[0]).all()):
        return f"all {float(values.flatten()[0]):g}"
    return f"mean {float(values.mean()):.3g}, deviation {float(values.std(correction=0)):.3g}"


def _values(side: Side, name: str, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(side, Checkpoint):
        return side.tensors[name]
    decision, empty = side.decisions[name], torch.empty(side.shapes[name], dtype=dtype)
    return fill_(empty, decision.fill, decision.arguments, parameter=name, seed=side.seed)
