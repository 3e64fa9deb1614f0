"""Structure × scheme → plan, and the plan as a file. Touches no tensor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from idfx._version import __version__
from idfx.errors import PlanError
from idfx.network import Network
from idfx.records import Decision, End, Plan, Scalar, Structure, untouchable
from idfx.registry import did_you_mean
from idfx.schemes.scheme import SCHEMES, Keep

FORMAT = 1


def make_plan(structure: Structure, scheme: str = "idinit", seed: int = 0, **options: Any) -> Plan:
    """Return what the scheme writes into each parameter, and why the others are kept.

    Args:
        structure: of the model.
        scheme: one of `idfx list schemes`.
        seed: of the noise and of every random fill; any integer.
        options: the scheme's own.

    Raises:
        UsageError: an unknown scheme or option, or a value that it does not take.
    """
    found = SCHEMES.find(scheme)
    chosen = found.read_options(options)
    decisions: dict[str, Decision] = {}
    kept: dict[str, str] = {}
    network = Network(nearest(structure) if found.nearest else structure)
    for name, info in structure.parameters.items():
        reason = untouchable(info)
        decision = Keep(reason) if reason else found.decide(info, network.structure.roles[name], network, chosen)
        if isinstance(decision, Keep):
            kept[name] = decision.reason
        else:
            decisions[name] = decision
    return Plan(
        model=structure.model,
        scheme=scheme,
        seed=seed,
        options=dataclasses.asdict(chosen),
        shapes={name: info.shape for name, info in structure.parameters.items()},
        decisions=decisions,
        kept=kept,
        notes=tuple(_notes(structure, decisions)),
        roles=dict(structure.overruled),
        scalars=tuple(found.scalars(network, chosen)) if found.scalars is not None else (),
    )


def nearest(structure: Structure) -> Structure:
    """Return the structure with every branch ended as near to its join as it can be, at scales rather than weights.

    Args:
        structure: as it was read; what a person has said of it stays.
    """
    from idfx.overrule import overrule
    from idfx.structure import analyse

    return overrule(analyse(structure.capture, nearest=True), structure.overruled)


def _notes(structure: Structure, decisions: Mapping[str, Decision]) -> list[str]:
    """What the numbers of a dtype do to the plan."""
    import torch

    from idfx.noise import resolves_loosening

    lost: dict[str, int] = {}
    for name, decision in decisions.items():
        if decision.arguments.get("loosen") != "diagonal" or not decision.arguments["eps_tau"]:
            continue
        dtype = structure.parameters[name].dtype
        tau, eps_tau = decision.arguments["tau"], decision.arguments["eps_tau"]
        if not resolves_loosening(getattr(torch, dtype), tau, eps_tau):
            lost[dtype] = lost.get(dtype, 0) + 1
    return [
        f"loosening: {dtype} rounds the noise beside tau away, so the copies in {count} weight(s) are exact replicas; "
        "--loosen dense survives; so do float32 weights under autocast"
        for dtype, count in lost.items()
    ]


def to_json(plan: Plan) -> str:
    """Return the plan as JSON text: one entry per parameter, in the model's order.

    Args:
        plan: any plan.
    """
    parameters: dict[str, dict[str, Any]] = {}
    for name, shape in plan.shapes.items():
        entry: dict[str, Any] = {"shape": list(shape)}
        if name in plan.decisions:
            decision = plan.decisions[name]
            entry |= {"fill": decision.fill, "arguments": dict(decision.arguments)}
            entry |= {"reason": decision.reason, "evidence": decision.evidence}
        else:
            entry |= {"keep": plan.kept[name]}
        parameters[name] = entry
    document = {
        "idfx_plan": FORMAT,
        "idfx_version": __version__,
        "model": plan.model,
        "scheme": plan.scheme,
        "seed": plan.seed,
        "options": dict(plan.options),
        "notes": list(plan.notes),
        **({"roles": dict(plan.roles)} if plan.roles else {}),
        **({"scalars": [_scalar_entry(scalar) for scalar in plan.scalars]} if plan.scalars else {}),
        "parameters": parameters,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, subject: str = "plan") -> Plan:
    """Return the plan that a JSON text holds.

    Args:
        text: as `to_json` writes it, perhaps edited.
        subject: what to call it in errors, its path as a rule.

    Raises:
        PlanError: no JSON, another version, or an entry that says neither what to fill nor to keep.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise PlanError(
            f"{subject}: {error}; expected JSON. Make a plan with `idfx plan SPEC -o plan.json`."
        ) from error
    if not isinstance(document, dict) or document.get("idfx_plan") != FORMAT:
        version = document.get("idfx_plan") if isinstance(document, dict) else None
        raise PlanError(f"{subject}: plan version {version!r}; expected {FORMAT}. Make it anew with `idfx plan`.")
    _require(subject, document, {"parameters": dict, "seed": int, "options": dict, "scheme": str, "model": str})
    shapes: dict[str, tuple[int, ...]] = {}
    decisions: dict[str, Decision] = {}
    kept: dict[str, str] = {}
    for name, entry in document["parameters"].items():
        where = f"{subject}: parameter {name!r}"
        if not isinstance(entry, dict):
            raise PlanError(f"{where}: {entry!r}; expected an object. Give it a shape and a fill, or keep.")
        _require(where, entry, {"shape": list})
        shapes[name] = tuple(entry["shape"])
        if ("keep" in entry) == ("fill" in entry):
            raise PlanError(f"{where}: {', '.join(entry)}; expected either fill or keep. Leave one of them out.")
        if "keep" in entry:
            kept[name] = str(entry["keep"])
            continue
        _require(where, entry, {"fill": str})
        if entry["fill"] == "keep":
            raise PlanError(
                f'{where}: fill "keep"; expected a fill. To keep it write "keep": "your reason" instead of fill.'
            )
        arguments = entry.get("arguments", {})
        if not isinstance(arguments, dict):
            raise PlanError(f"{where}: arguments {arguments!r}; expected an object. Write {{}} for none.")
        decisions[name] = Decision(
            name,
            entry["fill"],
            arguments,
            str(entry.get("reason", "by hand")),
            str(entry.get("evidence", "")),
        )
    _require(
        subject, {"notes": [], "roles": {}, "scalars": [], **document}, {"notes": list, "roles": dict, "scalars": list}
    )
    notes = tuple(str(note) for note in document.get("notes", ()))
    return Plan(
        document["model"],
        document["scheme"],
        document["seed"],
        document["options"],
        shapes,
        decisions,
        kept,
        notes,
        {str(name): str(role) for name, role in document.get("roles", {}).items()},
        tuple(
            _scalar(f"{subject}: scalar {number}", entry) for number, entry in enumerate(document.get("scalars", ()))
        ),
    )


def _scalar_entry(scalar: Scalar) -> dict[str, Any]:
    on = [{"parameter": end.parameter, **({"rows": end.rows} if end.rows else {})} for end in scalar.on]
    return {"join": scalar.join, "value": scalar.value, "on": on}


def _scalar(where: str, entry: Any) -> Scalar:
    """Read a learned scalar of a plan."""
    if not isinstance(entry, dict):
        raise PlanError(f"{where}: {entry!r}; expected an object. Give it a join, a value and on.")
    value = entry.get("value")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PlanError(f"{where}: value is {value!r}; expected a number. Write 0.0.")
    _require(where, entry, {"join": str, "on": list})
    ends = []
    for end in entry["on"]:
        if not isinstance(end, dict) or not isinstance(end.get("parameter"), str):
            raise PlanError(f"{where}: on holds {end!r}; expected objects with a parameter. Correct the entry.")
        rows = end.get("rows")
        pairs = isinstance(rows, list) and all(
            isinstance(span, list) and len(span) == 2 and all(isinstance(edge, int) for edge in span) for span in rows
        )
        if rows is not None and not pairs:
            raise PlanError(f"{where}: rows {rows!r}; expected [[start, stop], ...]. Correct them or leave them out.")
        ends.append(End(end["parameter"], tuple((span[0], span[1]) for span in rows) if rows else None))
    if not ends:
        raise PlanError(f"{where}: on is empty; expected what the scalar multiplies. Name a parameter.")
    return Scalar(entry["join"], float(value), tuple(ends))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that a weight can have")


def _require(where: str, entry: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if not isinstance(entry.get(name), kind) or isinstance(entry.get(name), bool):
            found = repr(entry[name]) if name in entry else "nothing"
            near = "" if name in entry else did_you_mean(name, entry)
            raise PlanError(f"{where}: {name} is {found}; expected a {kind.__name__}.{near} Correct the entry.")
