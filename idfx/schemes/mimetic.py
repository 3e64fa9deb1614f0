"""Mimetic: attention that starts as trained attention looks."""

from __future__ import annotations

from dataclasses import dataclass

from idfx.network import AttentionWeights, Network
from idfx.records import Decision, ParameterInfo, Role
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


@scheme("mimetic", Options)
def decide(parameter: ParameterInfo, role: Role, network: Network, options: Options) -> Decision | Keep:
    """Mimetic: products of attention weights near multiples of the identity (Trockman and Kolter, 2023), the rest kept.

    Source: Trockman and Kolter, "Mimetic initialization of self-attention layers", ICML 2023, arXiv 2305.09828. The
    defaults are those for vision transformers. Deviation: positions stay as the author made them.
    """
    found = [a for a in network.attentions if parameter.name in (*sum(a.parts.values(), ()), *a.output)]
    if not found:
        return Keep("it is no weight of attention; the author's values stay")
    attention = found[0]
    why = _unfit(attention, parameter, role) if len(found) == 1 else "several attentions share it"
    parts = [] if why else _parts(attention, parameter)
    if not parts:
        return Keep(f"{why or 'which of its rows make queries, keys and values is not seen'}; the author's values stay")
    assert attention.head_width is not None and role.layout is not None
    width = role.layout.matrix(parameter.shape)[1]
    arguments = {
        "pair": attention.name,
        "parts": parts,
        "heads": width // attention.head_width,
        "alpha": [options.alpha_qk, options.alpha_vo],
        "beta": [options.beta_qk, options.beta_vo],
    }
    reason = f"the weights of attention {attention.name} make products near the identity: {', '.join(parts)}"
    return Decision(parameter.name, "mimetic", with_layout(arguments, role), reason, role.evidence)


def _unfit(attention: AttentionWeights, parameter: ParameterInfo, role: Role) -> str:
    """Why the method does not speak of a weight, if so."""
    if attention.cross:
        return f"attention {attention.name} looks at other data than its queries come from"
    if role.layout is None or attention.head_width is None:
        return "its matrix is not read"
    rows, columns = role.layout.matrix(parameter.shape)
    rows *= role.layout.parts
    count = (
        1 if parameter.name in attention.output else sum(parameter.name in names for names in attention.parts.values())
    )
    if rows != columns * count or columns % attention.head_width:
        return f"its {count} part(s) of ({rows // count}, {columns}) are not square"
    return ""


def _parts(attention: AttentionWeights, parameter: ParameterInfo) -> list[str]:
    """Which parts a weight makes, from the first row to the last; none if they do not lie one below the other."""
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
