"""Looks-linear: ReLU networks that start as linear maps."""

from __future__ import annotations

from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.scheme import Keep, beside, check_choice, check_number, is_weight, scheme, with_layout


@dataclass(frozen=True)
class Options:
    """`core`: of the mirrored blocks, "orthogonal" (Balduzzi et al.) or "normal" (Burkholz and Dubatovka). `gain`."""

    core: str = "orthogonal"
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_choice("core", self.core, ("orthogonal", "normal"))
        check_number("gain", self.gain)


def _mirrors(name: str, network: StructureQueries) -> bool:
    """Whether the outputs of a weight can be mirrored: a ReLU follows, and their number is even."""
    info, role = network.structure.parameters[name], network.structure.roles[name]
    if not is_weight(role) or role.layout is None or role.activation != "aten.relu":
        return False
    return role.layout.groups == 1 and role.layout.parts == 1 and role.layout.matrix(info.shape)[0] % 2 == 0


@scheme("looks-linear", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Looks-linear: mirrored blocks [M, −M; −M, M], with which ReLU layers act as M (Balduzzi et al., 2017).

    Source: Balduzzi et al., "The shattered gradients problem", ICML 2017; core "normal": Burkholz and Dubatovka,
    "Initialization of ReLUs for dynamical isometry", NeurIPS 2019. A network of only weights and ReLUs is then exactly
    linear; maxima, other functions, groups and joins before a ReLU break this. Ours: outputs are mirrored if a ReLU
    follows, inputs if all preceding weights are mirrored.
    """
    if not is_weight(role) or role.layout is None:
        return beside(parameter, role)
    before = network.before(parameter.name)
    inputs = bool(before) and role.layout.groups == 1 and all(_mirrors(name, network) for name in before or ())
    outputs = _mirrors(parameter.name, network)
    sides = [side for side, mirrored in (("inputs", inputs), ("outputs", outputs)) if mirrored]
    reason = f"its {' and '.join(sides)} are mirrored around a ReLU" if sides else "there is no ReLU before or after it"
    arguments = {"inputs": inputs, "outputs": outputs, "core": options.core, "gain": options.gain}
    return Decision(parameter.name, "mirrored", with_layout(arguments, role), reason, role.evidence)
