"""EOI: sparse weights that are exactly orthogonal."""

from __future__ import annotations

from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.scheme import Keep, beside, check_number, is_weight, scheme, with_layout


@dataclass(frozen=True)
class Options:
    """`density`: the share of non-zero entries (of the central tap). `gain`: a factor."""

    density: float = 0.1
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_number("density", self.density, 1e-9, 1.0, such_as="0.1")
        check_number("gain", self.gain)


@scheme("eoi", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """EOI: sparse orthogonal weights, composed of Givens rotations (Nowak et al., 2024), biases 0, norms 1.

    Source: Nowak, Grooten, Mocanu and Tabor, "Sparser, better, deeper, stronger", ICML 2024; kernels as
    delta-orthogonal. A weight has at least one entry in each column, or row if those are fewer, whatever the density.
    The mask marks the non-zero entries (`idfx.masks`).
    """
    if not is_weight(role):
        return beside(parameter, role)
    arguments = {"density": options.density, "gain": options.gain}
    reason = "it is sparse, and its rows or its columns are orthonormal"
    return Decision(parameter.name, "givens", with_layout(arguments, role), reason, role.evidence)
