"""Small models in plain PyTorch, a family per file: a function from a seed to a `Learner`, with the decorator `small`.

What the function draws from torch's global generator is the author's start.
"""

from __future__ import annotations

from collections.abc import Callable

from idfx.bench.zoo import Learner
from idfx.core.registry import Registry

Make = Callable[[int], Learner]
SMALL: Registry[Make] = Registry("small model", "idfx.bench.zoo.small")


def small(name: str) -> Callable[[Make], Make]:
    """Register the decorated function, from a seed to a learner, as a small model."""
    return SMALL.register(name)
