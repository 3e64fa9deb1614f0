"""Pure tensor fills: (shape, seed, parameter name) → values, in place, whole or one shard at a time.

A weight is treated as matrices W of shape (D_out, D_in), with rows m and columns j from 0, as its `Layout` says. Values
are computed in float64 and rounded once to the dtype of the weight. Each family of fills is one file, discovered
automatically.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from idfx.core.errors import PlanError, UsageError
from idfx.core.noise import key
from idfx.core.records import Decision
from idfx.core.registry import Registry
from idfx.fills.geometry import Shard
from idfx.fills.matrices import Target, check_name
from idfx.sharding.layout import is_sharded, parts

Fill = Callable[..., None]


@functools.cache
def _parameters(fill: Fill) -> Mapping[str, inspect.Parameter]:
    """The arguments of a fill other than the target."""
    return dict([*inspect.signature(fill).parameters.items()][1:])


class Fills(Registry[Fill]):
    """The fills by name, what each takes, and what each claims to write."""

    def __init__(self) -> None:
        super().__init__("fill", "idfx.fills", "idfx.schemes")  # a scheme may provide its own
        self._zeros: dict[str, str] = {}

    def register(self, *names: str, by: str = "", zero: str = "") -> Callable[[Fill], Fill]:
        """Register the decorated fill under each name; raises ValueError if a name is taken.

        Args:
            names, by: as in `Registry.register`.
            zero: the argument that is the size of the entries that the fill calls zero, if it calls any so: two at most
                in a row of a matrix or, if it takes no `layout`, all of them. An end with such a fill is claimed to
                close its branch; with any other fill, nothing is claimed.
        """
        add = super().register(*names, by=by)

        def declare(fill: Fill) -> Fill:
            if zero and zero not in _parameters(fill):
                raise ValueError(f"fill {names[0]!r}: zero={zero!r} is none of its arguments")
            self._zeros.update(dict.fromkeys(names, zero))
            return add(fill)

        return declare

    def takes(self, name: str) -> Mapping[str, inspect.Parameter]:
        """Return the arguments that a fill takes; raises UsageError for an unknown one."""
        return _parameters(self.find(name))

    def arguments(self, decision: Decision) -> dict[str, Any]:
        """Return all the arguments of a decision: the defaults of its fill, with what is given over them.

        Example:
            >>> fills.arguments(Decision("w", "idiz", {"rows": [[0, 2]]}, ""))
            {'eps': 1e-06, 'rows': [[0, 2]], 'layout': None}
        """
        known = self.takes(decision.fill).items()
        return {name: one.default for name, one in known if one.default is not one.empty} | dict(decision.arguments)

    def zero(self, decision: Decision) -> float | None:
        """Return the size of the entries that a decision calls zero, None if its fill calls none so.

        Example:
            >>> fills.zero(Decision("w", "idiz", {}, "")), fills.zero(Decision("w", "idi", {}, ""))
            (1e-06, None)
        """
        arguments = self.arguments(decision)
        argument = self._zeros[decision.fill]
        return abs(float(arguments[argument])) if argument else None


fills = Fills()


def check_fill(decision: Decision, shape: Sequence[int], dtype: str | torch.dtype, seed: int) -> None:
    """Check that a decision can be written into a parameter; raise an error otherwise. Nothing is written or allocated.

    Args:
        decision: about the parameter.
        shape, dtype: of the parameter.
        seed: of the plan.

    Raises:
        UsageError, PlanError: as in `fill_`.

    Example:
        >>> check_fill(Decision("w", "idiz", {"eps": 0.5}, ""), (10**6, 10**6), "float32", 0)
    """
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    scratch = torch.empty((0,) * len(shape), dtype=kind)  # none of it, or a single entry
    place = Shard(tuple(shape), (0,) * len(shape))
    fill_(scratch, decision.fill, decision.arguments, parameter=decision.parameter, seed=seed, shard=place)


@torch.no_grad()
def fill_(
    tensor: Tensor,
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    parameter: str,
    seed: int,
    shard: Shard | None = None,
) -> Tensor:
    """Fill a tensor in place and return it; the values depend only on its shape and dtype and on these arguments.

    fill_(full)[part] == fill_(full[part], shard=Shard(full.shape, starts of part)), bit for bit. So this process's
    shard of a DTensor is filled without communication.

    Args:
        tensor: a floating-point tensor of any strides on any device; a parameter may require grad.
        name: a registered fill.
        arguments: its keyword arguments, plain JSON values; a layout may also be a `Layout`.
        parameter: the full name of the parameter, which together with the seed determines the noise.
        seed: any integer.
        shard: the position of the tensor in the full parameter, if it is only a part.

    Raises:
        UsageError: an unknown fill, or an invalid tensor, seed or shard.
        PlanError: invalid arguments for the fill, or a DTensor whose placements are not supported. In all cases nothing
            has been written.

    Source: ours.

    Example:
        >>> fill_(torch.empty(2, 3), "idiz", {"eps": 0.5}, parameter="w", seed=0)
        tensor([[ 0.5000,  0.0000, -0.5000],
                [ 0.0000,  0.5000, -0.5000]])
    """
    if is_sharded(tensor):
        for part in [*parts(tensor, parameter)]:
            place = Shard(tuple(tensor.shape), part.offsets)
            fill_(part.tensor, name, arguments, parameter=parameter, seed=seed, shard=place)
        return tensor
    fill = fills.find(name)
    if not tensor.is_floating_point():
        raise UsageError(
            f"{parameter}: dtype {tensor.dtype}; expected a real floating-point dtype. Leave it out of the plan."
        )
    if tensor.is_meta:
        raise UsageError(
            f"{parameter}: on the meta device; expected memory to write to. Call to_empty(device=...) first."
        )
    shape = tuple(tensor.shape)
    place = shard or Shard(shape, (0,) * len(shape))
    if not len(shape) == len(place.shape) == len(place.offsets) or any(
        start < 0 or start + size > full for start, size, full in zip(place.offsets, shape, place.shape, strict=True)
    ):
        raise UsageError(
            f"{parameter}: {place} of shape {shape}; expected a part of the full tensor. Correct the offsets."
        )
    key(seed, parameter)  # raises for an invalid seed before anything is written
    known = fills.takes(name)
    for argument in arguments or {}:
        check_name(f"{parameter}: argument", argument, [*known])
    for argument, needed in known.items():
        if needed.default is needed.empty and argument not in (arguments or {}):
            raise PlanError(f"{parameter}: no {argument}; fill {name!r} requires it. Add it to the arguments.")
    fill(Target(tensor, parameter, seed, place), **(arguments or {}))
    return tensor
