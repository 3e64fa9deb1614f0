"""Constant folding: computes the parts of the graph that depend on parameters and buffers only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx
from torch import Tensor

from idfx.audits.subject import AuditContext
from idfx.capture.interpreter import evaluate
from idfx.core.records import FACTS

LARGEST = 2**24  # entries; larger values are not computed


class Folding:
    """Computes values that do not depend on the inputs, each once.

    Args:
        subject: of the audit; its tensors are read, never written.
    """

    def __init__(self, subject: AuditContext) -> None:
        self._subject, self._flow = subject, subject.flow
        self._values: dict[torch.fx.Node, Tensor | None] = {}

    def is_fixed(self, node: object) -> bool:
        """Return whether an object is a graph node that does not depend on an input."""
        return isinstance(node, torch.fx.Node) and not self._flow.terms[self._flow.positions[node.name]].data

    def value(self, node: torch.fx.Node) -> Tensor | None:
        """Return the value of a fixed node; None if it cannot be computed or is too large."""
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    def leaves(self, node: torch.fx.Node) -> tuple[str, ...]:
        """Return the parameters and buffers that a fixed node depends on, in graph order."""
        above = self._above(node)
        return tuple(name for one in above if one.op == "get_attr" and (name := self._name(one)))

    def maximal(self) -> Iterator[torch.fx.Node]:
        """Yield the fixed nodes that act on the data and are not just a parameter or buffer."""
        for node in self._flow.nodes.values():
            if node.op == "call_function" and self.is_fixed(node) and self._meets_data(node):
                yield node

    def _meets_data(self, node: torch.fx.Node) -> bool:
        return any(user.op == "output" or not self.is_fixed(user) for user in node.users)

    def _name(self, node: torch.fx.Node) -> str:
        name = node.meta[FACTS].name
        return name if name in self._subject.tensors else self._subject.alias(name)

    def _above(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        found, stack = {node}, [node]
        while stack:
            for other in stack.pop().all_input_nodes:
                if other not in found:
                    found.add(other)
                    stack.append(other)
        return [one for one in self._flow.nodes.values() if one in found]

    def _leaf(self, node: torch.fx.Node) -> Tensor:
        name = self._name(node)
        found = self._subject.tensors[name] if name else self._flow.capture.constants[node.name]
        return found.detach().clone()

    def _computed(self, node: torch.fx.Node) -> Tensor | None:
        above = self._above(node)
        shapes = (self._flow.capture.shapes.get(one.name, ()) for one in above)
        if any(torch.Size(shape).numel() > LARGEST for shape in shapes):
            return None
        device = next((tensor.device for tensor in self._subject.tensors.values()), torch.device("cpu"))
        try:
            with torch.random.fork_rng(devices=[]):
                found = evaluate(above, self._leaf, device)[node]
        except (RuntimeError, KeyError, TypeError, NotImplementedError, ValueError, IndexError):
            return None
        return found if isinstance(found, Tensor) and not found.is_meta else None
