"""Plan × overrides → plan: parameters that are written, kept or filled differently from the scheme's decision."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from idfx.core.errors import PlanError, UsageError
from idfx.core.literals import parse_call, read_value
from idfx.core.patterns import matching
from idfx.core.records import Decision, ParameterInfo, Plan, Role, Structure, not_writable_reason
from idfx.core.registry import did_you_mean

_WORDS = ("only", "keep", "set", "roles")
Word = str | float | Mapping[str, Any]


@dataclass(frozen=True)
class Overrides:
    """Overrides of a plan, by patterns of parameters (`idfx.core.patterns`).

    `only`: write nothing else. `keep`: leave these unchanged. `set`: what to write instead, by pattern: "keep", a fill
    such as "idiz(eps=1e-4)", a number, or a mapping of a fill and its arguments. The last matching pattern wins.
    """

    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    set: Mapping[str, Word] = field(default_factory=dict)


def read_overrides(
    sets: Iterable[str] = (), only: Iterable[str] = (), keep: Iterable[str] = ()
) -> tuple[Overrides, dict[str, str]]:
    """Return the overrides given on a command line, and the roles in its files.

    Args:
        sets: PATTERN=FILL(KEY=VALUE, ...), PATTERN=NUMBER, PATTERN=keep, or a .toml file.
        only, keep: patterns.

    Raises:
        UsageError: an override or a file that cannot be read.

    Example:
        >>> read_overrides(["head.*=keep", "fc.weight=idiz(eps=1e-4)"])[0].set
        {'head.*': 'keep', 'fc.weight': 'idiz(eps=1e-4)'}
    """
    words: dict[str, Word] = {}
    roles: dict[str, str] = {}
    only, keep = list(only), list(keep)
    for text in sets:
        pattern, equals, value = text.partition("=")
        if equals and pattern.strip() and value.strip():
            words.pop(pattern.strip(), None)  # the last one wins, so it moves to the end
            words[pattern.strip()] = value.strip()
        elif text.endswith(".toml"):
            found = _read_file(text)
            words = {name: word for name, word in words.items() if name not in found["set"]} | found["set"]
            roles |= found["roles"]
            only += found["only"]
            keep += found["keep"]
        else:
            raise UsageError(
                f"--set {text!r}: expected PATTERN=FILL(KEY=VALUE, ...), PATTERN=keep or a .toml file. "
                "Write 'head.weight=idiz(eps=1e-4)', say."
            )
    return Overrides(tuple(only), tuple(keep), words), roles


def _read_file(path: str) -> dict[str, Any]:
    """Read the overrides in a .toml file."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{path}: {reason}; expected a TOML file. Give it a table [set].") from error
    forms: dict[str, type] = {"only": list, "keep": list, "set": dict, "roles": dict}
    for name, value in document.items():
        if name not in forms:
            near = did_you_mean(name, _WORDS)
            raise UsageError(f"{path}: unknown key {name!r}; expected {', '.join(_WORDS)}.{near}")
        entries = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
        texts = name == "set" or all(isinstance(entry, str) for entry in entries)
        if not isinstance(value, forms[name]) or not texts:
            form = "a list of patterns" if forms[name] is list else "a table of patterns"
            raise UsageError(f"{path}: {name} is {value!r}; expected {form}. Correct it.")
    return {name: document.get(name, form()) for name, form in forms.items()}


def steer(plan: Plan, structure: Structure, steering: Overrides) -> Plan:
    """Return the plan with overrides applied: `only` and `keep` first, then `set`.

    A fill that takes a layout or an order gets those that idfx found and planned, unless the override gives them.

    Args:
        plan: made for this structure.
        structure: of the model.
        steering: the overrides.

    Raises:
        UsageError: a pattern that matches nothing, an unknown fill, or a parameter that is never written.
        PlanError: a fill that does not fit the parameter, or arguments that do not fit the fill.

    Example:
        >>> import torch, idfx
        >>> structure = idfx.analyze(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        >>> made = steer(idfx.plan(structure), structure, Overrides(keep=("bias",), set={"weight": "idi(tau=2)"}))
        >>> made.kept, made.decisions["weight"].arguments
        ({'bias': 'set by --keep bias'}, {'tau': 2})
    """
    if steering == Overrides():
        return plan
    if plan.shapes.keys() != structure.parameters.keys():
        raise PlanError(
            f"plan for {plan.model}: made for another model than {structure.model}; expected its parameters. "
            "Make a plan for this model with `idfx plan`."
        )
    decisions, kept, loaded = dict(plan.decisions), dict(plan.kept), dict(plan.loaded)
    held = _held(structure, steering)
    for name, reason in held.items():
        if decisions.pop(name, None) is not None:
            kept[name] = reason
    for pattern, word in steering.set.items():
        for name in _writable(pattern, word, structure):
            found = _decision(structure.parameters[name], structure.roles[name], plan, pattern, word)
            for place in (decisions, kept, loaded):
                place.pop(name, None)
            if found is None:
                kept[name] = held[name] = f"set by --set {pattern}=keep"
            else:
                held.pop(name, None)
                decisions[name] = found
    from idfx.planning.make import notes

    own = notes(structure, plan.decisions)
    return replace(
        plan,
        decisions={name: decisions[name] for name in plan.shapes if name in decisions},
        kept={name: kept[name] for name in plan.shapes if name in kept},
        loaded={name: loaded[name] for name in plan.shapes if name in loaded},
        notes=(*notes(structure, decisions), *(note for note in plan.notes if note not in own)),
        scalars=tuple(s for s in plan.scalars if held.keys().isdisjoint(end.parameter for end in s.on)),
    )


def _writable(pattern: str, word: Word, structure: Structure) -> list[str]:
    """The writable parameters that a pattern matches; an error if it matches only parameters that are never written."""
    names = matching(pattern, structure.parameters, structure.roles, "set")
    barred = {name: reason for name in names if (reason := not_writable_reason(structure.parameters[name]))}
    if len(barred) == len(names) and word != "keep":
        raise UsageError(
            f"set {pattern}: {names[0]} is never written, {barred[names[0]]}; expected a writable parameter. "
            "Leave it out."
        )
    return [name for name in names if name not in barred]


def _held(structure: Structure, steering: Overrides) -> dict[str, str]:
    """The parameters that must not be written, each with the override that says so."""
    held: dict[str, str] = {}
    if steering.only:
        named = {
            name
            for pattern in steering.only
            for name in matching(pattern, structure.parameters, structure.roles, "only")
        }
        reason = f"set by --only {', '.join(steering.only)}"
        held = {name: reason for name in structure.parameters if name not in named}
    for pattern in steering.keep:
        for name in matching(pattern, structure.parameters, structure.roles, "keep"):
            held.setdefault(name, f"set by --keep {pattern}")
    return held


def _decision(info: ParameterInfo, role: Role, plan: Plan, pattern: str, word: Word) -> Decision | None:
    """The decision that an override makes for one parameter; None to keep it."""
    subject = f"set {pattern}"
    fill, arguments = _read_word(subject, word)
    if fill == "keep" and not arguments:
        return None
    from idfx.fills import check_fill, fills
    from idfx.schemes.scheme import layout_fields

    try:
        known = fills.takes(fill)
    except UsageError as error:
        raise UsageError(f"{subject}: {error}") from error
    layout = layout_fields(role.layout)
    if "layout" in known and len(info.shape) < 2:
        raise PlanError(
            f"{subject}: {info.name} has the shape {list(info.shape)}; fill {fill!r} expects two axes or more. "
            "Match only weights, as in 'head.weight', or set this parameter to a number."
        )
    if "layout" in known and "layout" not in arguments and layout:
        arguments["layout"] = layout
    before = plan.decisions.get(info.name)
    if "order" in known and "order" not in arguments and before is not None and "order" in before.arguments:
        arguments["order"] = before.arguments["order"]
    made = Decision(info.name, fill, arguments, f"set by --set {pattern}={_written(word)}", role.evidence)
    try:
        check_fill(made, info.shape, info.dtype, plan.seed)
    except PlanError as error:
        raise PlanError(f"{subject}: {error}") from error
    return made


def _read_word(subject: str, word: Word) -> tuple[str, dict[str, Any]]:
    """Read a fill and its arguments."""
    if isinstance(word, str):
        number = read_value(word)
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            return parse_call(word, subject)
        word = as_number(number)
    if isinstance(word, Mapping):
        arguments = dict(word)
        fill = arguments.pop("fill", None)
        if not isinstance(fill, str):
            raise UsageError(
                f"{subject}: {dict(word)}; expected a fill and its arguments. Write fill = 'idiz'; in a file a "
                "pattern with a dot needs quotes."
            )
        return fill, arguments
    number = as_number(word)
    if not math.isfinite(number):
        raise UsageError(f"{subject}: {word!r}; expected a fill, keep or a finite number. Write 'idiz(eps=1e-4)'.")
    return "constant", {"value": number}


def as_number(value: object) -> float:
    """Return a number as a float; NaN for anything else, infinity for an integer too large for a float.

    Example:
        >>> as_number(10**400), as_number(True)
        (inf, nan)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    from idfx.core.literals import as_float

    return as_float(value)


def steering(only: object = (), keep: object = (), set: object = None) -> Overrides:
    """Return the overrides given in Python; a single pattern counts as a list of one.

    Raises:
        UsageError: patterns that are not strings, or `set` that is not a mapping.
    """

    def patterns(subject: str, given: object) -> tuple[str, ...]:
        several = (given,) if isinstance(given, str) else given
        if not isinstance(several, (list, tuple)) or not all(isinstance(pattern, str) for pattern in several):
            raise UsageError(f"{subject}: {given!r}; expected a list of patterns. Write {subject}=['head'].")
        return tuple(several)

    words = {} if set is None else set
    if not isinstance(words, Mapping) or not all(isinstance(pattern, str) for pattern in words):
        raise UsageError(f"set: {set!r}; expected a mapping of patterns. Write set={{'head.weight': 'keep'}}.")
    return Overrides(patterns("only", only), patterns("keep", keep), words)


def _written(word: Word) -> str:
    """An override as written on the command line."""
    if isinstance(word, Mapping):
        inside = ", ".join(f"{name}={value}" for name, value in word.items() if name != "fill")
        return f"{word['fill']}({inside})"
    return str(word)
