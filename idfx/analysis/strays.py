"""Weights that the forward multiplies by and that are no parameters of the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.fx
from torch import nn

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.terms import NO_READINGS
from idfx.core.records import FACTS
from idfx.ops.semantics import operator_name

_DEPTH = 3  # of nested lists and dicts in an attribute that are searched


class Stray(NamedTuple):
    """A weight that is no parameter: `drawn` if the forward makes it anew, otherwise a parameter that is elsewhere.

    `name` is where in the model's attributes it is, "" if nowhere; `module` is the path of the module that uses it.
    """

    name: str
    shape: tuple[int, ...]
    module: str
    drawn: bool


def strays(flow: Dataflow, model: nn.Module | None = None) -> tuple[Stray, ...]:
    """Return the weights that act on the data and that are no parameters of the model, in the order of execution.

    These are trainable parameters that the forward took from elsewhere (layers in a Python list), and random tensors
    that the forward draws and contracts data with (layers made in the forward). Noise that is added or multiplied
    elementwise does not count.

    Args:
        flow: the data flow of one forward pass.
        model: whose attributes tell the names; without it they are "".
    """
    homes = dict(_homes(model)) if model is not None else {}
    found: dict[torch.fx.Node, Stray] = {}
    for node in flow.nodes.values():
        if node.op == "get_attr" and node.meta[FACTS].kind == "constant" and node.users:
            tensor = flow.capture.constants.get(node.name)
            if tensor is not None and tensor.requires_grad:
                user = next(iter(node.users))
                found[node] = Stray(
                    homes.get(id(tensor), ""), tuple(tensor.shape), flow.capture.modules.get(user.name, ""), False
                )
    for term in flow.terms:
        if term.kind == "mix" and term.readings != NO_READINGS:  # a contraction with something fixed
            for gate in term.gates:
                node = flow.nodes[flow.terms[gate].node]
                if not flow.terms[gate].data and node not in found and _is_random(node):
                    found[node] = Stray("", flow.terms[gate].shape or (), flow.capture.modules.get(term.node, ""), True)
    return tuple(found.values())


def told(found: tuple[Stray, ...]) -> str:
    """Return a note about weights that are no parameters, "" if there are none.

    Example:
        >>> told(()), told((Stray("layers.0.weight", (2, 2), "", False),))[:51]
        ('', 'the forward uses 1 weight(s) that are no parameters')
    """
    if not found:
        return ""
    names = [
        stray.name or f"one of shape {list(stray.shape)} in {stray.module or 'its own forward'}" for stray in found
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"the forward uses {len(found)} weight(s) that are no parameters of its model ({', '.join(names[:3])}{more}): "
        "they are not initialised, not trained, and in no state dict; put layers in nn.ModuleList, in the constructor"
    )


def _is_random(node: torch.fx.Node) -> bool:
    """Whether a fixed value is made of random numbers."""
    seen, stack = {node}, [node]
    while stack:
        one = stack.pop()
        if _draws(one):
            return True
        fresh = [other for other in one.all_input_nodes if other not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _draws(node: torch.fx.Node) -> bool:
    """Whether an operator fills its result with random numbers, and does not only drop some entries of a value."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return "dropout" not in operator_name(node.target) and "attention" not in operator_name(node.target)


def _homes(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Yield the tensors in attributes of modules, lists and dicts included, by identity, each with its place."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield from _inside(value, f"{path}.{name}" if path else name, _DEPTH)


def _inside(value: object, where: str, depth: int) -> Iterator[tuple[int, str]]:
    if isinstance(value, torch.Tensor):
        yield id(value), where
    elif isinstance(value, nn.Module):
        yield from ((id(tensor), f"{where}.{name}") for name, tensor in value.named_parameters())
    elif depth and isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _inside(item, f"{where}.{number}", depth - 1)
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, f"{where}.{key}", depth - 1)
