"""ZerO: only zeros and ones, through partial identities and Hadamard matrices."""

from __future__ import annotations

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.scheme import Keep, NoOptions, beside, is_weight, scheme, with_layout


@scheme("zero", NoOptions)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: NoOptions) -> Decision | Keep:
    """ZerO: partial identities, Hadamard matrices where a layer widens, 0 at the end of branches (Zhao et al., 2022).

    Source: Zhao, Schäfer and Anandkumar, "ZerO initialization: initializing neural networks with only zeros and ones",
    TMLR 2022, arXiv 2110.12661, algorithm 1, the last layer of each residual branch at 0; no number is random. Ours:
    one matrix for each group, expert and fused part; an end scale at 0.
    """
    if role.name.ends_branch:
        reason = "the last layer of a residual branch starts at 0"
        return Decision(parameter.name, "constant", {"value": 0.0}, reason, role.evidence)
    if not is_weight(role):
        return beside(parameter, role)
    assert role.layout is not None
    rows, columns = role.layout.matrix(parameter.shape)
    for axis in role.layout.tap_axes:
        columns //= parameter.shape[axis]
    what = "a Hadamard matrix, because it has more outputs than inputs" if rows > columns else "a partial identity"
    return Decision(parameter.name, "hadamard", with_layout({}, role), f"it is {what}", role.evidence)
