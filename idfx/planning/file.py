"""Plan ⇄ JSON text: one entry per parameter, to be read, compared and edited by hand.

`plan.schema.json` beside this file describes the form; here it is read with errors that name the entry.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from idfx.core.errors import PlanError
from idfx.core.records import Decision, End, Plan, Scalar
from idfx.core.registry import did_you_mean
from idfx.core.version import __version__

FORMAT = 1
SCHEMA = Path(__file__).with_name("plan.schema.json")
_ENTRY = ("fill", "keep", "load")


def to_json(plan: Plan) -> str:
    """Return the plan as JSON text: one entry per parameter, in the model's order.

    Args:
        plan: any plan.
    """
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
        "parameters": {name: {"shape": list(shape), **_entry(plan, name)} for name, shape in plan.shapes.items()},
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _entry(plan: Plan, name: str) -> dict[str, Any]:
    """What is done with a parameter."""
    if name in plan.loaded:
        return {"load": plan.loaded[name]}
    if name in plan.kept:
        return {"keep": plan.kept[name]}
    decision = plan.decisions[name]
    filled = {"fill": decision.fill, "arguments": dict(decision.arguments)}
    return {**filled, "reason": decision.reason, "evidence": decision.evidence}


def from_json(text: str, subject: str = "plan") -> Plan:
    """Return the plan that a JSON text holds.

    Args:
        text: as `to_json` writes it, perhaps edited.
        subject: what to call it in errors, its path as a rule.

    Raises:
        PlanError: no JSON, another version, or an entry that is malformed; the message names it.
    """
    document = _document(text, subject)
    _require(subject, document, {"parameters": dict, "seed": int, "options": dict, "scheme": str, "model": str})
    optional: dict[str, Any] = {"notes": [], "roles": {}, "scalars": []}
    _require(subject, {**optional, **document}, {"notes": list, "roles": dict, "scalars": list})
    shapes: dict[str, tuple[int, ...]] = {}
    found: dict[str, dict[str, Any]] = {"fill": {}, "keep": {}, "load": {}}
    for name, entry in document["parameters"].items():
        where = f"{subject}: parameter {name!r}"
        if not isinstance(entry, dict):
            raise PlanError(f"{where}: {entry!r}; expected an object. Give it a shape and a fill, keep or load.")
        shapes[name] = _shape(where, entry)
        kind, value = _read_entry(where, name, entry)
        found[kind][name] = value
    scalars = enumerate(document.get("scalars", ()))
    return Plan(
        model=document["model"],
        scheme=document["scheme"],
        seed=document["seed"],
        options=document["options"],
        shapes=shapes,
        decisions=found["fill"],
        kept=found["keep"],
        notes=tuple(str(note) for note in document.get("notes", ())),
        roles={str(name): str(role) for name, role in document.get("roles", {}).items()},
        scalars=tuple(_scalar(f"{subject}: scalar {number}", entry) for number, entry in scalars),
        loaded=found["load"],
    )


def _document(text: str, subject: str) -> dict[str, Any]:
    """The JSON object of a plan of this version, its numbers all finite and its names all different."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the entry {name!r} stands there twice")
            found[name] = value
        return found

    try:
        document = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"{subject}: {error}; expected JSON. Make a plan with `idfx plan SPEC -o plan.json`."
        ) from error
    for path, number in _numbers(document):
        if not math.isfinite(number):
            where = f"{subject}: {path}" if path else subject
            raise PlanError(f"{where} is {number}, which no weight can hold; expected a finite number. Correct it.")
    if not isinstance(document, dict) or document.get("idfx_plan") != FORMAT:
        version = document.get("idfx_plan") if isinstance(document, dict) else None
        raise PlanError(f"{subject}: plan version {version!r}; expected {FORMAT}. Make it anew with `idfx plan`.")
    return document


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a document, with the way to it; a whole number that no float holds is infinite."""
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, int) and value.bit_length() > 1000:
        yield path, math.inf
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _numbers(item, f"{path} → {key}" if path else str(key))


def _shape(where: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    _require(where, entry, {"shape": list})
    shape = entry["shape"]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise PlanError(f"{where}: shape {shape!r}; expected whole numbers from 0. Write the parameter's own shape.")
    return tuple(shape)


def _read_entry(where: str, name: str, entry: Mapping[str, Any]) -> tuple[str, Any]:
    """Return whether a parameter is filled, kept or loaded, and how."""
    kinds = [kind for kind in _ENTRY if kind in entry]
    if len(kinds) != 1:
        found = ", ".join(kinds) or f"only {', '.join(entry)}"
        near = "" if kinds else did_you_mean(next((key for key in entry if key != "shape"), ""), _ENTRY)
        raise PlanError(f"{where}: {found}; expected one of fill, keep and load.{near} Write exactly one of them.")
    known = {"fill": ("arguments", "reason", "evidence")}.get(kinds[0], ())
    for key in entry:
        if key not in ("shape", *kinds, *known):
            near = did_you_mean(key, ("shape", *kinds, *known))
            raise PlanError(f"{where}: unknown word {key!r} beside {kinds[0]}.{near} Correct it or leave it out.")
    _require(where, entry, {kinds[0]: str})
    if kinds[0] != "fill":
        return kinds[0], entry[kinds[0]]
    if entry["fill"] == "keep":
        raise PlanError(
            f'{where}: fill "keep"; expected a fill. To keep it write "keep": "your reason" instead of fill.'
        )
    arguments = entry.get("arguments", {})
    if not isinstance(arguments, dict):
        raise PlanError(f"{where}: arguments {arguments!r}; expected an object. Write {{}} for none.")
    reason, evidence = str(entry.get("reason", "by hand")), str(entry.get("evidence", ""))
    return "fill", Decision(name, entry["fill"], arguments, reason, evidence)


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


def _require(where: str, entry: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    for name, kind in fields.items():
        if not isinstance(entry.get(name), kind) or isinstance(entry.get(name), bool):
            found = repr(entry[name]) if name in entry else "nothing"
            near = "" if name in entry else did_you_mean(name, entry)
            raise PlanError(f"{where}: {name} is {found}; expected a {kind.__name__}.{near} Correct the entry.")
