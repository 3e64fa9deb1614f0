"""Structure × scheme → plan; writes no tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from idfx.analysis.queries import StructureQueries
from idfx.analysis.role_overrides import with_scale_ends
from idfx.analysis.strays import strays, told
from idfx.core.records import Decision, Plan, Structure, not_writable_reason
from idfx.core.roles import RoleName
from idfx.planning.added import without_added
from idfx.planning.deliberate import Meant, meant, opened, respect
from idfx.planning.factors import acting
from idfx.schemes.scheme import SCHEMES, Keep


def make_plan(
    structure: Structure, scheme: str = "idinit", seed: int = 0, *, overwrite_deliberate: bool = False, **options: Any
) -> Plan:
    """Return the plan of a scheme: what it writes into each parameter, and why it keeps the others.

    Parameters that only training mode uses (auxiliary heads) are decided on its path; no scalar is added there.

    Args:
        structure: of the model.
        scheme: one of `idfx list schemes`.
        seed: of the noise and of every random fill; any integer.
        overwrite_deliberate: write what the author set on purpose, too (`idfx.planning.provenance`).
        options: the scheme's own.

    Raises:
        UsageError: an unknown scheme or option, or an invalid value.
    """
    made = _plan(structure, scheme, seed, overwrite_deliberate, options)
    if structure.training is None:
        return made
    other = _plan(structure.training, scheme, seed, overwrite_deliberate, options)
    own, roles = structure.roles, structure.training.roles
    names = [name for name in own if own[name].name is RoleName.UNUSED and roles[name].name is not RoleName.UNUSED]
    decisions = {name: other.decisions[name] for name in names if name in other.decisions}
    told = {n: dataclasses.replace(d, reason=f"{d.reason}; training mode alone uses it") for n, d in decisions.items()}
    kept = {name: reason for name, reason in made.kept.items() if name not in told}
    kept |= {name: f"{other.kept[name]}; training mode alone uses it" for name in names if name in other.kept}
    decided = {**made.decisions, **told}
    order = list(structure.parameters)
    return dataclasses.replace(
        made,
        decisions={name: decided[name] for name in order if name in decided},
        kept={name: kept[name] for name in order if name in kept},
    )


def _plan(structure: Structure, scheme: str, seed: int, overwrite_deliberate: bool, options: Mapping[str, Any]) -> Plan:
    """The plan for what one path of the forward uses."""
    found = SCHEMES.find(scheme)
    chosen = found.read_options(options)
    decisions: dict[str, Decision] = {}
    kept: dict[str, str] = {}
    network = StructureQueries(with_scale_ends(structure) if found.prefer_scale_ends(chosen) else structure)
    author = Meant() if overwrite_deliberate else meant(structure, network)
    network = StructureQueries(opened(network.structure, author.gates))
    for name, info in structure.parameters.items():
        reason = not_writable_reason(info)
        decision = Keep(reason) if reason else found.decide(info, network.structure.roles[name], network, chosen)
        if isinstance(decision, Keep):
            kept[name] = decision.reason
        else:
            decisions[name] = without_added(decision, network.structure.roles[name])
    decisions = acting(network, decisions)
    remarks: tuple[str, ...] = ()
    if not overwrite_deliberate:
        decisions, stays, remarks = respect(structure, network, decisions, author)
        kept |= stays
    return Plan(
        model=structure.model,
        scheme=scheme,
        seed=seed,
        options=dataclasses.asdict(chosen),
        shapes={name: info.shape for name, info in structure.parameters.items()},
        decisions=decisions,
        kept={name: kept[name] for name in structure.parameters if name in kept},
        notes=(*notes(structure, decisions), *remarks, *filter(None, [told(strays(network.flow))])),
        roles=dict(structure.role_overrides),
        scalars=tuple(found.scalars(network, chosen)) if found.scalars is not None else (),
    )


def notes(structure: Structure, decisions: Mapping[str, Decision]) -> tuple[str, ...]:
    """Return notes on how the precision of a dtype affects a plan.

    Args:
        structure: of the model.
        decisions: of the plan.
    """
    import torch

    from idfx.core.noise import resolves_loosening
    from idfx.fills import fills

    lost: dict[str, int] = {}
    for name, decision in decisions.items():
        arguments = fills.arguments(decision)
        tau, eps_tau = arguments.get("tau"), arguments.get("eps_tau")
        if arguments.get("loosen") != "diagonal" or not eps_tau:
            continue
        if not isinstance(tau, (int, float)) or not isinstance(eps_tau, (int, float)):  # the fill will refuse them
            continue
        dtype = structure.parameters[name].dtype
        if not resolves_loosening(getattr(torch, dtype), tau, eps_tau):
            lost[dtype] = lost.get(dtype, 0) + 1
    return tuple(
        f"loosening: {dtype} rounds away the noise added to tau; in {count} weight(s) repeated rows are exact copies; "
        "use --loosen dense, or float32 weights under autocast"
        for dtype, count in lost.items()
    )
