"""Fixup: residual networks without normalisation; weights inside branches are scaled by the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role, Scalar
from idfx.schemes.kaiming import SPREADS, he
from idfx.schemes.scheme import Keep, beside, check_choice, check_flag, is_weight, scheme


@dataclass(frozen=True)
class Options:
    """The options of Fixup.

    `mode`, `distribution`: of the He initialisation that is scaled. `multipliers`: add a learned scalar, initially 1,
    to each branch, as in the paper's third rule.
    """

    mode: str = "fan_in"
    distribution: str = "normal"
    multipliers: bool = False

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("fan_in", "fan_out"))
        check_choice("distribution", self.distribution, SPREADS)
        check_flag("multipliers", self.multipliers)


def _scalars(network: StructureQueries, options: Options) -> Sequence[Scalar]:
    from idfx.schemes.skipinit import on_every_branch

    return on_every_branch(network, 1.0) if options.multipliers else ()


def share(parameter: ParameterInfo, role: Role, network: StructureQueries) -> tuple[float, str]:
    """Return the factor of the second rule for a weight inside a residual branch, and the reason; else 1 and ""."""
    join = network.around(parameter.name)
    if role.name != "inner" or "gating" in role.traits or join is None:
        return 1.0, ""
    layers, depth = network.layers(join), network.depth
    if layers < 2 or depth < 2:
        return 1.0, ""
    why = f" times {depth}^(−1/{2 * layers - 2}) for {depth} branches with {layers} weights in this one (Fixup, rule 2)"
    return float(depth ** (-1 / (2 * layers - 2))), why


@scheme("fixup", Options, scalars=_scalars)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Fixup: head and ends 0, the other weights of a branch times L^(−1/(2m−2)) (Zhang et al., 2019).

    L is the number of residual branches, m the number of weights in the branch.

    Source: Zhang, Dauphin and Ma, "Fixup initialization: residual learning without normalization", ICLR 2019, the three
    rules. The scalar biases of the third rule are the model's own biases, at 0; none are added. Ours: weights that only
    gate the branch are not scaled and do not count.
    """
    if role.name.is_last:
        what = "the last weight of a residual branch" if role.name == "end" else "the classification layer"
        return Decision(parameter.name, "constant", {"value": 0.0}, f"{what} starts at 0 (rule 1)", role.evidence)
    if role.name == "end scale":
        reason = "the branch ends at this scale, which starts at 0 (ours: it has no weight that can)"
        return Decision(parameter.name, "constant", {"value": 0.0}, reason, role.evidence)
    if not is_weight(role):
        return beside(parameter, role)
    factor, why = share(parameter, role, network)
    return he(parameter, role, options.mode, options.distribution, factor=factor, why=why)
