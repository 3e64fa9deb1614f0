"""An operator on lists of tensors → one call for each entry, of the operator that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from idfx.core.torch_private import resolve_overload

_PREFIX = "aten::_foreach_"


class Call(NamedTuple):
    """An operator and what it is called with."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def single_calls(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Call] | None:
    """Return the calls of an operator on lists, one per entry; None for other operators, or if it has no counterpart.

    Args:
        func: an overload.
        args, kwargs: of its call; a list has an entry for each call, anything else goes into all of them.

    Example:
        >>> found = single_calls(torch.ops.aten._foreach_mul.ScalarList, ([torch.ones(1), torch.ones(2)], [3, 4]), {})
        >>> [(str(call.operator), call.args[1]) for call in found]
        [('aten.mul.Tensor', 3), ('aten.mul.Tensor', 4)]
    """
    name = func._schema.name
    packet = getattr(torch.ops.aten, name.removeprefix(_PREFIX), None) if name.startswith(_PREFIX) else None
    if packet is None or any(argument.is_out for argument in func._schema.arguments):
        return None
    calls: list[Call] = []
    for index in range(len(args[0])):
        own = tuple(value[index] if isinstance(value, (list, tuple)) else value for value in args)
        named = {key: value[index] if isinstance(value, (list, tuple)) else value for key, value in kwargs.items()}
        try:
            calls.append(Call(resolve_overload(packet, own, named), own, named))
        except RuntimeError:
            return None
    return calls
