"""Which values idfx itself has written, so that it does not take them for an author's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_COMPARED = 64
_written: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember(parameter: Tensor) -> None:
    """Remember that a parameter has values from idfx."""
    _written[parameter] = _some(parameter)


def is_written(parameter: Tensor) -> bool:
    """Return whether a parameter still has the values that idfx has written.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> remember(weight)
        >>> is_written(weight), is_written(torch.nn.Parameter(torch.eye(2)))
        (True, False)
        >>> _ = weight.data.fill_(3)
        >>> is_written(weight)
        False
    """
    before = _written.get(parameter)  # type: ignore[no-untyped-call]
    return before is not None and torch.equal(before, _some(parameter))


def _some(parameter: Tensor) -> Tensor:
    """Evenly spaced entries, which training changes."""
    flat = parameter.detach().reshape(-1)
    return flat[:: -(-flat.numel() // _COMPARED) or 1].clone()
