"""SkipInit and ReZero: a learned scalar, initially 0, on every residual branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, End, ParameterInfo, Role, Scalar
from idfx.schemes.kaiming import Options, he
from idfx.schemes.scheme import Keep, beside, check_number, is_weight, scheme


def on_every_branch(network: StructureQueries, value: float) -> Sequence[Scalar]:
    """Return a learned scalar for each residual branch that can be closed; one for branches that share their ends.

    Ends belong together if they close the same joins. Of a parameter with several ends, all rows have one scalar.
    """
    rows: dict[str, set[tuple[int, int]] | None] = {}
    closes: dict[str, list[str]] = {}
    added: dict[str, float] = {}
    for join in network.structure.joins:
        for end in (*join.ends, *(End(name) for name in join.zeroed_biases)) if join.zeroable else ():
            added[end.parameter] = end.added
            known = rows.get(end.parameter, set())
            rows[end.parameter] = None if known is None or end.rows is None else known | set(end.rows)
            if join.name not in closes.setdefault(end.parameter, []):
                closes[end.parameter].append(join.name)
    together: dict[tuple[str, ...], list[End]] = {}
    for name, found in rows.items():
        end = End(name, None if found is None else tuple(sorted(found)), added[name])
        together.setdefault(tuple(closes[name]), []).append(end)
    return tuple(Scalar(", ".join(joins), value, tuple(ends)) for joins, ends in together.items())


@scheme(
    "skipinit",
    Options,
    prefer_scale_ends=lambda options: True,
    scalars=lambda network, options: on_every_branch(network, 0.0),
)
def skipinit(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """SkipInit: kaiming, and a learned scalar at 0 on every residual branch (De and Smith, 2020).

    Source: De and Smith, "Batch normalization biases residual blocks towards the identity function in deep networks",
    NeurIPS 2020, arXiv 2002.10444. The scalar is added to the end of the branch through torch.nn.utils.parametrize.
    Normalisations, which the paper removes, stay in the model.
    """
    if is_weight(role):
        return he(parameter, role, options.mode, options.distribution, options.nonlinearity)
    if role.name == "branch scale" or (role.name == "end scale" and "norm" not in role.traits):
        reason = "a branch scale of 1 does not interfere with the learned scalar (ours)"
        return Decision(parameter.name, "constant", {"value": 1.0}, reason, role.evidence)
    return beside(parameter, role)


@dataclass(frozen=True)
class Start:
    """`start`: the initial value of the learned scalars."""

    start: float = 0.0

    def __post_init__(self) -> None:
        check_number("start", self.start, such_as="0")


@scheme(
    "rezero",
    Start,
    prefer_scale_ends=lambda options: True,
    scalars=lambda network, options: on_every_branch(network, options.start),
)
def rezero(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Start) -> Decision | Keep:
    """ReZero: the model's own weights, and a learned scalar at 0 on every residual branch (Bachlechner et al., 2020).

    Source: Bachlechner et al., "ReZero is all you need: fast convergence at large depth", UAI 2021, arXiv 2003.04887.
    The scalar is added to the end of the branch through torch.nn.utils.parametrize; normalisations stay in the model.
    Ours: a norm scale that the scalar multiplies is set to 1, because many models start it at 0, and a scalar that
    multiplies a zero never gets a gradient.
    """
    if role.name == "end scale" and "norm" in role.traits:
        reason = "a norm scale of 1 does not interfere with the learned scalar (ours)"
        return Decision(parameter.name, "constant", {"value": 1.0}, reason, role.evidence)
    return Keep("ReZero adds a scalar to every branch and keeps the model's own weights")
