"""Zero-gamma: the last normalisation scale of every residual branch starts at 0."""

from __future__ import annotations

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.kaiming import Options, he
from idfx.schemes.scheme import Keep, beside, is_weight, scheme


@scheme("zero-gamma", Options, prefer_scale_ends=lambda options: True)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Zero-gamma: kaiming, and 0 for the last scale of every residual branch (Goyal et al., 2017).

    Source: Goyal et al., "Accurate, large minibatch SGD", arXiv 1706.02677, section 5.1; timm's `zero_init_last`,
    torchvision's `zero_init_residual`. Ours: a branch scale (LayerScale) counts as such a scale; a branch without one
    gets kaiming and starts open.
    """
    if role.name == "end scale":
        reason = "the last scale of a residual branch starts at 0, so that the block is its shortcut"
        return Decision(parameter.name, "constant", {"value": 0.0}, reason, role.evidence)
    if is_weight(role):
        why = "; its branch has no scale that could be 0" if role.name == "end" else ""
        return he(parameter, role, options.mode, options.distribution, options.nonlinearity, why=why)
    return beside(parameter, role)
