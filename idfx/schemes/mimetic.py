"""Mimetic: attention that starts similar to trained attention."""

from __future__ import annotations

from dataclasses import dataclass

from idfx.analysis.queries import AttentionWeights, StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role, not_writable_reason
from idfx.schemes.scheme import Keep, check_number, scheme, with_layout


@dataclass(frozen=True)
class Options:
    """W_qᵀ W_k ≈ `alpha_qk` · Z + `beta_qk` · I and W_out W_v = `alpha_vo` · Z − `beta_vo` · I."""

    alpha_qk: float = 0.7
    beta_qk: float = 0.7
    alpha_vo: float = 0.4
    beta_vo: float = 0.4

    def __post_init__(self) -> None:
        for name in ("alpha_qk", "beta_qk", "alpha_vo", "beta_vo"):
            check_number(name, getattr(self, name), such_as="0.7")


# The two weights of a product.
_PARTNERS = {"query": "key", "key": "query", "value": "output", "output": "value"}


@scheme("mimetic", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Mimetic: products of attention weights near multiples of the identity (Trockman and Kolter, 2023), the rest kept.

    Source: Trockman and Kolter, "Mimetic initialization of self-attention layers", ICML 2023, arXiv 2305.09828. The
    defaults are those for vision transformers. Deviation: positions are kept. Ours: a product is written completely or
    not at all, so if one of its two weights is kept, so is the other.
    """
    found = _attentions(network, parameter.name)
    if not found:
        return Keep("it is not an attention weight; its own values are kept")
    attention = found[0]
    why = _unfit(network, parameter.name) or _alone(attention, parameter, network)
    if why:
        return Keep(f"{why}; its own values are kept")
    assert attention.head_width is not None and role.layout is not None
    parts = _parts(attention, parameter)
    width = role.layout.matrix(parameter.shape)[1]
    arguments = {
        "pair": attention.name,
        "parts": parts,
        "heads": width // attention.head_width,
        "alpha": [options.alpha_qk, options.alpha_vo],
        "beta": [options.beta_qk, options.beta_vo],
    }
    reason = f"the weights of attention {attention.name} have products near the identity: {', '.join(parts)}"
    return Decision(parameter.name, "mimetic", with_layout(arguments, role), reason, role.evidence)


def _attentions(network: StructureQueries, name: str) -> list[AttentionWeights]:
    return [a for a in network.attentions if name in (*sum(a.parts.values(), ()), *a.output)]


def _unfit(network: StructureQueries, name: str) -> str:
    """Return the reason why the method does not cover an attention weight, or ""."""
    parameter, role = network.structure.parameters[name], network.structure.roles[name]
    attention, *others = _attentions(network, name)
    if reason := not_writable_reason(parameter):
        return reason
    if others:
        return "several attentions share it"
    if attention.cross:
        return f"attention {attention.name} attends to other data than its queries come from"
    if role.layout is None or attention.head_width is None:
        return "idfx cannot read its matrix"
    rows, columns = role.layout.matrix(parameter.shape)
    rows *= role.layout.parts
    count = 1 if name in attention.output else sum(name in names for names in attention.parts.values())
    if rows != columns * count or columns % attention.head_width:
        return f"its {count} part(s) of ({rows // count}, {columns}) are not square"
    return "" if _parts(attention, parameter) else "its rows of queries, keys and values are not known"


def _alone(attention: AttentionWeights, parameter: ParameterInfo, network: StructureQueries) -> str:
    """Return the reason why a weight has no partner for a product, or ""."""
    for part in _parts(attention, parameter):
        partner = _PARTNERS[part]
        names = attention.output if partner == "output" else attention.parts[partner]
        if not names:
            return f"attention {attention.name} has no {partner} weight for its product"
        for name in names:
            if name != parameter.name and (why := _unfit(network, name)):
                return f"{name}, the other weight of its product, is kept: {why}"
    return ""


def _parts(attention: AttentionWeights, parameter: ParameterInfo) -> list[str]:
    """The parts of a weight, from the first row to the last; empty if they are not contiguous."""
    if parameter.name in attention.output:
        return ["output"]
    own = [part for part, names in attention.parts.items() if parameter.name in names]
    if len(own) == 1:
        return own
    rows = {part: attention.rows.get((part, parameter.name)) for part in own}
    if any(found is None or len(found) != 1 for found in rows.values()):
        return []
    ordered = sorted((found[0], part) for part, found in rows.items() if found)
    height = parameter.shape[0] // len(ordered) if parameter.shape else 0
    even = all(span[1] - span[0] == ordered[0][0][1] - ordered[0][0][0] for span, _ in ordered)
    return [part for _, part in ordered] if even and height else []
