"""Safeguards against a division by zero that are zero themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.fx

from idfx.audits.folding import Folding
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding
from idfx.ops.semantics import operator_name

_GUARDS = frozenset({"add", "add_", "clamp", "clamp_", "clamp_min", "clamp_min_", "maximum", "sub", "rsub"})
_PASSING = frozenset({
    "sqrt", "sqrt_", "expand", "expand_as", "view", "reshape", "unsqueeze", "squeeze", "clone", "contiguous", "detach",
    "abs", "transpose", "permute", "broadcast_to",
})  # fmt: skip
_INVERTING = frozenset({"rsqrt", "rsqrt_", "reciprocal", "reciprocal_", "log", "log_", "log2", "log10"})

_REMEDY = "Compute the statistic in float32 (x.float()), or use an eps that the dtype resolves: 1e-6 in float16."


@metric("epsilon")
def epsilon(subject: AuditContext) -> Iterator[Finding]:
    """Epsilons that round to 0 in the dtype in which they are added.

    Definition: a number that is not 0, but is 0 in the dtype of the value that it is added to or bounds from below
    (1e-12 in float16), if that value is a divisor, or goes into a root or a logarithm, later. The operators of torch
    that take an eps themselves compute it in float32, and are not findings.

    Unit: the number. Threshold: 0 (warning): a row of zeros, such as padding, becomes NaN.

    Source: IEEE 754-2019: the smallest number of float16 above 0 is 6e-8.
    """
    folding, capture = Folding(subject), subject.structure.capture
    for node in subject.flow.nodes.values():
        dtype = getattr(torch, capture.dtypes.get(node.name, ""), None)
        if _name(node) not in _GUARDS or dtype is None or not dtype.is_floating_point:
            continue
        lost = [
            number
            for number in _numbers(folding, capture.shapes, node)
            if number and not float(torch.tensor(number, dtype=dtype))
        ]
        if lost and _divides(node):
            site = capture.modules.get(node.name) or subject.structure.model
            told = f"its eps {lost[0]:g} is 0 in {capture.dtypes[node.name]}, so a row of zeros becomes NaN"
            yield Finding("warning", "epsilon", "", site, lost[0], 0, told, _REMEDY)


def _name(node: Any) -> str:
    return operator_name(node.target).removeprefix("aten.") if getattr(node, "op", "") == "call_function" else ""


def _numbers(folding: Folding, shapes: Mapping[str, tuple[int, ...]], node: torch.fx.Node) -> list[float]:
    """The numbers that are added to a value or bound it, fixed tensors of one entry included."""
    given = [*node.args[:2], *(node.kwargs[key] for key in ("min", "other") if key in node.kwargs)]
    found = []
    for value in given:
        if isinstance(value, torch.fx.Node):
            alone = folding.is_fixed(value) and not any(side != 1 for side in shapes.get(value.name, (0,)))
            tensor = folding.value(value) if alone else None
            found += [float(tensor)] if tensor is not None and not tensor.is_complex() else []
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(float(value))
    return found


def _divides(node: torch.fx.Node) -> bool:
    """Whether a value is a divisor, or is inverted or goes into a logarithm, directly or through roots and moves."""
    seen, stack = {node}, [node]
    while stack:
        one = stack.pop()
        for user in one.users:
            name = _name(user)
            exponent = user.args[1] if len(user.args) > 1 else None
            root = name.startswith("pow") and user.args[0] is one and isinstance(exponent, (int, float))
            if name in _INVERTING or (name in ("div", "div_") and exponent is one):
                return True
            if root and exponent < 0:  # type: ignore[operator]
                return True
            if (root or name in _PASSING) and user not in seen:
                seen.add(user)
                stack.append(user)
    return False
