"""Plan ⇄ JSON text: one entry per parameter, to be read, compared and edited by hand.

`form.py` describes it; here it is written, read and made a plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from idfx.core.errors import PlanError
from idfx.core.records import Decision, End, Plan, Scalar
from idfx.core.version import __version__

if TYPE_CHECKING:
    from idfx.planning.form import Filled, LearnedScalar

FORMAT = 1
_RENAMED = {"mixed": "idic_idizc", "stepped": "piecewise_constant"}  # fills in plans from before 0.2


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


def _scalar_entry(scalar: Scalar) -> dict[str, Any]:
    def entry(end: End) -> dict[str, Any]:
        rows, added = {"rows": end.rows} if end.rows else {}, {"added": end.added} if end.added else {}
        return {"parameter": end.parameter, **rows, **added}

    return {"join": scalar.join, "value": scalar.value, "on": [entry(end) for end in scalar.on]}


def from_json(text: str, subject: str = "plan") -> Plan:
    """Return the plan that a JSON text holds.

    Args:
        text: as written by `to_json`, possibly edited.
        subject: its name in errors, usually its path.

    Raises:
        PlanError: the text is not JSON, has another version, or has a malformed entry, which the message names.
    """
    document = _document(text, subject)
    from idfx.core.forms import read
    from idfx.planning.form import Filled, Kept, Loaded, PlanFile

    found = read(PlanFile, document, subject, PlanError)
    entries = found.parameters.items()
    return Plan(
        model=found.model,
        scheme=found.scheme,
        seed=found.seed,
        options=found.options,
        shapes={name: tuple(entry.shape) for name, entry in entries},
        decisions={name: _decision(name, entry) for name, entry in entries if isinstance(entry, Filled)},
        kept={name: entry.keep for name, entry in entries if isinstance(entry, Kept)},
        notes=tuple(found.notes),
        roles=found.roles,
        scalars=tuple(_scalar(entry) for entry in found.scalars),
        loaded={name: entry.load for name, entry in entries if isinstance(entry, Loaded)},
    )


def _decision(name: str, entry: Filled) -> Decision:
    return Decision(name, _RENAMED.get(entry.fill, entry.fill), entry.arguments, entry.reason, entry.evidence)


def _scalar(entry: LearnedScalar) -> Scalar:
    ends = ((end, tuple((start, stop) for start, stop in end.rows or ()) or None) for end in entry.on)
    return Scalar(entry.join, entry.value, tuple(End(end.parameter, rows, end.added) for end, rows in ends))


def _document(text: str, subject: str) -> dict[str, Any]:
    """The JSON object of a plan of this version, its numbers all finite and its names all different."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the entry {name!r} occurs twice")
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
