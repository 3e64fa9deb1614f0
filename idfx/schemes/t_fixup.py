"""T-Fixup: transformers without warm-up or normalisation, some weights scaled by the depth."""

from __future__ import annotations

import math
from dataclasses import replace

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.scheme import Keep, NoOptions, beside, is_weight, scheme
from idfx.schemes.xavier import glorot


def _depth(network: StructureQueries, encoder: bool) -> int:
    """The number of layers: that of self-attentions in the encoder, or of cross-attentions in the decoder."""
    cross = any(attention.cross for attention in network.attentions)
    if encoder:
        return sum(not a.cross and (a.encodes or not cross) for a in network.attentions)
    return sum(a.cross and not a.encodes for a in network.attentions)


def _factor(parameter: ParameterInfo, network: StructureQueries, embedding: bool = False) -> tuple[float, str]:
    encoder = network.encodes(parameter.name)
    depth = _depth(network, encoder)
    if not depth:
        return 1.0, ""
    stack = f"{'an encoder' if encoder else 'a decoder'} of {depth} layers"
    if encoder and not embedding:
        return 0.67 * depth**-0.25, f" times 0.67 · {depth}^(−1/4), {stack}"
    return (9 * depth) ** -0.25, f" times (9 · {depth})^(−1/4), {stack}"


@scheme("t-fixup", NoOptions)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: NoOptions) -> Decision | Keep:
    """T-Fixup: Xavier; values, attention outputs, MLPs and embeddings scaled by the depth (Huang et al., 2020).

    Encoder of N layers: 0.67 · N^(−1/4). Decoder, with cross-attention: (9 · N)^(−1/4). Embeddings of either: d^(−1/2)
    times (9 · N)^(−1/4), N the layers of their own stack.

    Source: Huang, Perez, Ba and Volkovs, "Improving transformer optimization through better initialization", ICML
    2020, and its code, github.com/layer6ai-labs/T-Fixup. Normalisations, which the paper removes, stay in the model.
    Ours: stacks without cross-attention count as encoders; in a fused weight, the rows of the values are scaled.
    """
    if role.name == "embedding":
        factor, why = _factor(parameter, network, embedding=True)
        std = parameter.shape[-1] ** -0.5
        reason = f"an embedding has the standard deviation 1 / √{parameter.shape[-1]}{why}"
        return Decision(parameter.name, "normal", {"std": std * factor}, reason, role.evidence)
    if not is_weight(role):
        return beside(parameter, role)
    traits = role.traits.keys()
    if not traits & {"value", "attention output", "expansion", "contraction"}:
        return glorot(parameter, role)
    factor, why = _factor(parameter, network)
    fused = sorted(traits & {"query", "key", "value"})
    if fused == ["value"] or "value" not in fused:
        return glorot(parameter, role, gain=factor, why=why)
    spans = [attention.rows.get(("value", parameter.name)) for attention in network.attentions]
    rows = next((span for span in spans if span), None)
    if rows is None:
        return Keep("only its rows of values would be scaled, and they are not known; its own values are kept")
    plain = glorot(parameter, role)
    count = len(fused)
    assert role.layout is not None
    fan_out, fan_in = role.layout.matrix(parameter.shape)
    fan_out = fan_out * role.layout.parts // count
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    arguments = {"bound": bound, "rows": [list(span) for span in rows], "factor": factor, "axis": role.layout.out_axis}
    reason = f"{count} fused weights of bound √(6 / ({fan_in} + {fan_out})) (Glorot and Bengio), the values{why}"
    return replace(plain, fill="uniform", arguments=arguments, reason=reason)
