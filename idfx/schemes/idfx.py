"""idfx's own scheme: identities on the main stem, orthogonal matrices everywhere else, branches near zero."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from idfx.analysis.queries import StructureQueries
from idfx.analysis.scores import score_factor
from idfx.core.records import Decision, Layout, ParameterInfo, Role
from idfx.schemes.fixup import share
from idfx.schemes.kaiming import gain_of, he
from idfx.schemes.scheme import (
    Keep,
    beside,
    check_choice,
    check_flag,
    check_number,
    is_weight,
    odd_bias,
    scheme,
    with_layout,
)

FILLS = ("identity", "orthogonal", "delta", "mirrored", "random", "keep")
ENDS = ("scale", "weight")


@dataclass(frozen=True)
class Options:
    """The options of idfx's own scheme: how each of five kinds of weights starts, and how branches end.

    `main`: weights of the main stem with as many outputs as inputs, without taps. `inner`: such weights inside residual
    branches. `other`: weights with different numbers of outputs and inputs. `stem`, `head`: the first and the last
    weights of the model, whatever their shape. Each is "identity" (padded if not square; in the order `centre` for a
    kernel), "orthogonal" times the gain of the function that follows, "delta" (the same at the centre of a kernel, 0
    elsewhere), "mirrored" ([M; −M] if a ReLU follows, otherwise orthogonal), "random" (Kaiming) or "keep"; the head may
    also be "zero". `ends`: whether a residual branch ends at the last scale before the join, if there is one, or always
    at a weight. `eps`: the size of the ends; 0 for exact zeros. `depth`: in a model without any normalisation, multiply
    weights inside branches by L^(−1/(2m−2)), where L is the number of branches and m the number of weights in the
    branch (Fixup's second rule); false turns this off. `even`: queries start near zero, so that all places count alike;
    false treats them as other weights.
    """

    main: str = "identity"
    inner: str = "orthogonal"
    other: str = "orthogonal"
    stem: str = "orthogonal"
    head: str = "orthogonal"
    ends: str = "scale"
    eps: float = 1e-6
    depth: bool = True
    even: bool = True

    def __post_init__(self) -> None:
        for name in ("main", "inner", "other", "stem"):
            check_choice(name, getattr(self, name), FILLS)
        check_choice("head", self.head, (*FILLS, "zero"))
        check_choice("ends", self.ends, ENDS)
        check_number("eps", self.eps, 0.0, such_as="1e-6")
        check_flag("depth", self.depth)
        check_flag("even", self.even)


_WHAT = {
    "stem": "the input stem",
    "head": "the head",
    "main": "a square weight of the main stem",
    "inner": "a square weight inside a residual branch",
    "other": "a non-square weight",
}


def _fused(parameter: ParameterInfo, layout: Layout, traits: Collection[str]) -> Layout:
    """The layout with queries, keys and values as parts, if they are square and contiguous."""
    rows, columns = layout.matrix(parameter.shape)
    parts = sum(part in traits for part in ("query", "key", "value"))
    alone = layout.parts == layout.groups == 1 and not layout.tap_axes
    return replace(layout, parts=parts) if alone and parts > 1 and rows == parts * columns else layout


def _kind(parameter: ParameterInfo, role: Role) -> str:
    """The option that applies to a weight."""
    if role.name in ("input stem", "head"):
        return role.name.removeprefix("input ")
    assert role.layout is not None
    rows, columns = role.layout.matrix(parameter.shape)
    for axis in role.layout.tap_axes:
        columns //= parameter.shape[axis]
    if rows != columns:
        return "other"
    return "inner" if role.name == "inner" else "main"


def _weight(parameter: ParameterInfo, role: Role, kind: str, how: str, factor: float, why: str) -> Decision | Keep:
    """The decision for a weight that ends no branch."""
    assert role.layout is not None
    what, kernel = _WHAT[kind], bool(role.layout.tap_axes)

    def write(fill: str, arguments: dict[str, Any], reason: str) -> Decision:
        return Decision(parameter.name, fill, with_layout(arguments, role), f"{what}: {reason}", role.evidence)

    if how == "keep":
        return Keep(f"{what}: its own values are kept")
    if how == "zero":
        return Decision(parameter.name, "constant", {"value": 0.0}, f"{what} starts at 0", role.evidence)
    if how == "random":
        return he(parameter, role, nonlinearity="auto", factor=factor, why=f"{why}; {what}")
    if how == "identity" and "normalised" in role.traits:
        return Keep(f"{what}: it is divided by norms of slices that the identity leaves zero; its own values are kept")
    if how == "identity":
        return write(
            "idic" if kernel else "idi",
            {**({"tau": factor} if factor != 1 else {}), **({"order": "centre"} if kernel else {})},
            f"the identity{why}",
        )
    rows, columns = role.layout.matrix(parameter.shape)
    if how == "mirrored" and role.activation == "aten.relu" and rows % 2 == 0:
        return write(
            "mirrored",
            {"inputs": False, "outputs": True, "gain": factor},
            f"mirrored{why}, so that the following ReLU loses nothing",
        )
    gain = gain_of("auto", role) * factor
    centre = {"taps": "centre"} if how == "delta" and kernel else {}
    for axis in role.layout.tap_axes if centre else ():
        columns //= parameter.shape[axis]
    lines = f"{'columns' if rows >= columns else 'rows'}{' at the centre' if centre else ''}"
    return write(
        "orthogonal",
        {"gain": gain, **centre},
        f"its {lines} are orthonormal, times the gain {gain_of('auto', role):.4g}{why}",
    )


def _even(
    decision: Decision | Keep, parameter: ParameterInfo, role: Role, network: StructureQueries
) -> Decision | Keep:
    """The decision with the queries in it near zero, as idinit has them.

    Where a normalisation takes the size of the queries out, they stay: only their directions count.
    """
    factor = score_factor(network, parameter.name) if {"query", "key"} & role.traits.keys() else None
    if factor is None or factor.undone:
        return decision
    std = Options.eps**0.5 if factor.both else Options.eps
    reason = "a factor of attention scores starts near zero, so that all places count alike"
    if factor.rows is None:
        return Decision(parameter.name, "normal", {"std": std}, reason, role.evidence)
    if isinstance(decision, Keep) or decision.fill != "orthogonal":
        return decision
    rows = [list(part) for part in factor.rows]
    arguments = {**decision.arguments, "rows": rows, "std": std}
    return replace(decision, arguments=arguments, reason=f"{decision.reason}; {reason}")


def _end(parameter: ParameterInfo, role: Role, eps: float) -> Decision:
    """The decision for the last weight of a residual branch."""
    reason = "the last weight of a residual branch starts near zero"
    if role.layout is None:
        return Decision(parameter.name, "constant", {"value": 0.0}, "the last weight of a branch: 0", role.evidence)
    kernel = bool(role.layout.tap_axes)
    arguments: dict[str, Any] = {"eps": eps} | ({"order": "channel"} if kernel else {})
    fill = "idizc" if kernel else "idiz"
    if role.rows is not None:
        arguments["rows"] = [list(rows) for rows in role.rows]
        if "depthwise" in role.traits:
            reason += "; its other rows only mix neighbours, and keep their own values"
        else:
            fill, reason = "idic_idizc", f"{reason}, its other rows as the identity"
    return Decision(parameter.name, fill, with_layout(arguments, role), reason, role.evidence)


@scheme("idfx", Options, prefer_scale_ends=lambda options: options.ends == "scale")
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """idfx: identities on the main stem, orthogonal elsewhere, branches near zero at their last scale or weight.

    Source: ours, a combination of the parts that measured best (docs/evidence.md has the ablation of each part). From
    Pan et al., "IDInit", ICLR 2025, arXiv 2503.04626: identities where the signal has to pass, and near-zero ends of
    branches. From Goyal et al., arXiv 1706.02677: if a normalisation ends the branch, its scale is near zero, because
    it would divide by the size of a near-zero weight before it. From Saxe, McClelland and Ganguli, ICLR 2014:
    orthogonal matrices where a weight widens, narrows or mixes. From Zhang, Dauphin and Ma, "Fixup", ICLR 2019: in
    models without normalisation, weights inside branches are smaller the deeper the model is. From Yang et al., "Tensor
    Programs V", arXiv 2203.03466: queries near zero. Fused queries, keys and values are separate matrices. Biases are
    0, norms 1, and everything else is kept.
    """
    if role.name == "end scale":
        reason = "the branch ends at this scale, which starts near zero"
        return Decision(parameter.name, "constant", {"value": options.eps}, reason, role.evidence)
    if role.name == "end" and "normalised" in role.traits and role.layout is not None:
        return Keep("it is divided by norms of slices that a near-zero matrix leaves zero; its own values are kept")
    if role.name == "end":
        return _end(parameter, role, options.eps)
    if is_weight(role):
        assert role.layout is not None
        role = replace(role, layout=_fused(parameter, role.layout, role.traits))
        kind = _kind(parameter, role)
        shrinks = options.depth and not network.flow.normalises
        factor, why = share(parameter, role, network) if shrinks else (1.0, "")
        decision = _weight(parameter, role, kind, getattr(options, kind), factor, why)
        return _even(decision, parameter, role, network) if options.even else decision
    return odd_bias(parameter, role, network) or beside(parameter, role)
