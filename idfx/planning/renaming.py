"""Rules OLD=NEW × the names of a checkpoint → the names under which its tensors are matched with a model's.

OLD is a name in the checkpoint and NEW the name in the model, of a module or of a tensor. `{i}` in OLD stands for a
whole number; in NEW, braces hold arithmetic of such numbers: `layers.{i}=layers.{2*i}`.
"""

from __future__ import annotations

import ast
import itertools
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from idfx.core.errors import UsageError
from idfx.core.registry import did_you_mean

V = TypeVar("V")
Made = dict["Rule", dict[str, str]]
Rules = str | os.PathLike[str] | Mapping[str, str] | Sequence[str]

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv
}  # fmt: skip
_BRACES = re.compile(r"\{([^{}]*)\}")
_INDEX = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
_NUMBER = "0|[1-9][0-9]{0,8}"
_WRITE = "Write 'layers.{i}=layers.{2*i}', say."


@dataclass(frozen=True)
class Rule:
    """One rule: `old` is a name in the checkpoint and `new` the name in the model, both as they were written."""

    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.old}={self.new}"

    def match(self, name: str) -> dict[str, int] | None:
        """Return the numbers in a name that `old` matches, alone or as a module that contains it; None otherwise.

        Example:
            >>> Rule("layers.{i}", "layers.{2*i}").match("layers.3.weight"), Rule("a", "b").match("ab.weight")
            ({'i': 3}, None)
        """
        found = re.match(self._pattern(), name)
        return None if found is None else {key: int(value) for key, value in found.groupdict().items()}

    def renamed(self, name: str) -> str | None:
        """Return the name in the model of a tensor; None if the rule does not match it.

        Raises:
            UsageError: a number in the new name is negative, or something is divided by 0.

        Example:
            >>> Rule("layers.{i}", "h.{2*i+1}").renamed("layers.3.weight")
            'h.7.weight'
        """
        numbers = self.match(name)
        if numbers is None:
            return None
        rest = re.sub(self._pattern(), "", name, count=1)
        return _BRACES.sub(lambda braces: str(self._number(braces[1], numbers, name)), self.new) + rest

    def _pattern(self) -> str:
        seen: set[str] = set()
        parts = []
        for index, part in enumerate(_BRACES.split(self.old)):  # every second part was in braces
            if index % 2 == 0:
                parts.append(re.escape(part))
            else:
                parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>{_NUMBER})")
                seen.add(part)
        return f"{''.join(parts)}(?=\\.|$)"

    def _number(self, text: str, numbers: Mapping[str, int], name: str) -> int:
        try:
            value = _evaluated(ast.parse(text.strip(), mode="eval").body, numbers)
        except ZeroDivisionError:
            raise UsageError(f"--rename {self}: {name} makes it divide by 0; expected a number. Correct it.") from None
        if value < 0:
            raise UsageError(f"--rename {self}: {name} gives the number {value}; expected 0 or more. Correct it.")
        return value


def _evaluated(node: ast.expr, numbers: Mapping[str, int]) -> int:
    """Return the value of arithmetic with whole numbers; ValueError for anything else."""
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 10**9:
        return node.value
    if isinstance(node, ast.Name) and node.id in numbers:
        return numbers[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand, numbers)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluated(node.left, numbers), _evaluated(node.right, numbers))
    raise ValueError


def read_rules(given: Rules | Iterable[str]) -> tuple[Rule, ...]:
    """Return rules for renaming.

    Args:
        given: a mapping from old to new names, texts OLD=NEW, or the path of a file: a JSON object of old and new
            names, or one rule OLD=NEW a line. A text without `=` is the path of a file.

    Raises:
        UsageError: a file that cannot be read, or a rule of another form.

    Example:
        >>> read_rules(["layers.{i}=layers.{2*i}"])
        (Rule(old='layers.{i}', new='layers.{2*i}'),)
    """
    if isinstance(given, Mapping):
        return tuple(_rule(str(old), str(new)) for old, new in given.items())
    texts = [given] if isinstance(given, (str, os.PathLike)) else list(given)
    rules: list[Rule] = []
    for text in texts:
        old, equals, new = str(text).partition("=")
        rules += [_rule(old, new)] if equals and not isinstance(text, os.PathLike) else _read_file(Path(text))
    return tuple(rules)


def _read_file(path: Path) -> tuple[Rule, ...]:
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--rename {path}: {reason}; expected OLD=NEW, or a file of such lines or of JSON. {_WRITE}"
        ) from error
    if document is None:
        lines = (line.strip() for line in text.splitlines())
        return tuple(_rule(*line.partition("=")[::2]) for line in lines if line and not line.startswith("#"))
    if not isinstance(document, dict) or not all(isinstance(new, str) for new in document.values()):
        raise UsageError(f'--rename {path}: no object of names; expected {{"OLD": "NEW", ...}}. Correct it.')
    return read_rules(document)


def _rule(old: str, new: str) -> Rule:
    """Return a rule that was checked."""
    rule = Rule(old.strip(), new.strip())
    subject = f"--rename {rule}"
    if not rule.old or not rule.new:
        raise UsageError(f"{subject}: expected OLD=NEW, a name in the checkpoint and the name in the model. {_WRITE}")
    captured = _BRACES.findall(rule.old)
    if bad := [part for part in captured if not (part.isidentifier() and part.isascii())]:
        raise UsageError(f"{subject}: {{{bad[0]}}} on the left; expected a name in braces, as in {{i}}. {_WRITE}")
    if any("{" in _BRACES.sub("", side) or "}" in _BRACES.sub("", side) for side in (rule.old, rule.new)):
        raise UsageError(f"{subject}: a brace without its other half; expected pairs. {_WRITE}")
    for part in _BRACES.findall(rule.new):
        try:
            _evaluated(ast.parse(part.strip(), mode="eval").body, dict.fromkeys(captured, 1))
        except ZeroDivisionError:
            continue  # for these numbers
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            known = ", ".join(dict.fromkeys(captured)) or "none"
            raise UsageError(
                f"{subject}: {{{part}}} on the right; expected +, -, * and // of whole numbers and of the names on the "
                f"left ({known}). {_WRITE}"
            ) from None
    return rule


def rename(subject: str, tensors: Mapping[str, V], rules: Sequence[Rule]) -> tuple[dict[str, V], Made]:
    """Return tensors under their new names, and the names that each rule made: by the new name, the old one.

    The first rule that matches a name renames it, once.

    Args:
        subject: the checkpoint, in errors.
        tensors: by their names in the checkpoint.
        rules: in the order in which they are tried.

    Raises:
        UsageError: a rule that matches nothing, or two tensors with one new name.

    Example:
        >>> rename("a file", {"h.0": 1, "h.1": 2, "head": 3}, read_rules({"h.{i}": "h.{2*i}"}))[0]
        {'h.0': 1, 'h.2': 2, 'head': 3}
    """
    found: dict[str, V] = {}
    before: dict[str, str] = {}
    made: Made = {rule: {} for rule in rules}
    for old, value in tensors.items():
        rule = next((rule for rule in rules if rule.match(old) is not None), None)
        new = (rule.renamed(old) if rule else None) or old
        if new in before:
            raise UsageError(
                f"--rename: {before[new]} and {old} of {subject} would both be {new}; expected different names. "
                "Correct the rules."
            )
        found[new], before[new] = value, old
        if rule is not None:
            made[rule][new] = old
    for rule in (rule for rule in rules if not made[rule]):
        near = did_you_mean(rule.old, _abstract(tensors))
        first = "" if not any(rule.match(name) is not None for name in tensors) else " that an earlier rule leaves it"
        raise UsageError(
            f"--rename {rule}: {subject} has no {rule.old}{first}; expected a name in the checkpoint on the left and "
            f"the name in the model on the right.{near}"
        )
    return found, made


def reordered(made: Mapping[Rule, Mapping[str, str]]) -> list[str]:
    """Return notes on names whose numbers the rules bring into another order: the blocks may run in another one.

    Args:
        made: from `rename`.

    Example:
        >>> reordered(rename("a file", {"h.0": 1, "h.1": 2}, read_rules({"h.{i}": "g.{1-i}"}))[1])
        ['--rename: h.1 comes before h.0 in the model, as g.0 and g.1; if they run in another order, so does the model']
    """
    alike: dict[tuple[str, str], list[tuple[list[int], list[int], str, str]]] = {}
    for new, old in (pair for names in made.values() for pair in names.items()):
        kind = _INDEX.sub("", old), _INDEX.sub("", new)
        alike.setdefault(kind, []).append((_numbers(new), _numbers(old), new, old))
    for group in alike.values():
        ordered = sorted(group)
        for first, second in itertools.pairwise(ordered):
            if first[1] > second[1]:
                told = f"{first[3]} comes before {second[3]} in the model, as {first[2]} and {second[2]}"
                return [f"--rename: {told}; if they run in another order, so does the model"]
    return []


def _numbers(name: str) -> list[int]:
    return [int(number) for number in _INDEX.findall(name)]


def check_made(subject: str, model: str, made: Mapping[Rule, Mapping[str, str]], names: Iterable[str]) -> None:
    """Check that every rule made names that the model has.

    Args:
        subject: the checkpoint, in errors.
        model: its name in errors.
        made: from `rename`.
        names: of the model's parameters and buffers.

    Raises:
        UsageError: no name that a rule made is the model's.
    """
    known = set(names)
    for rule, new in made.items():
        if known.isdisjoint(new):
            first = min(new)
            raise UsageError(
                f"--rename {rule}: {model} has no {first}; expected the name in {subject} on the left and the name in "
                f"the model on the right.{did_you_mean(first, known)}"
            )


def _abstract(names: Iterable[str]) -> list[str]:
    """Return names of tensors and of the modules that contain them, also with {i} for their first number."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            own = ".".join(parts[:length])
            found |= {own: None, re.sub(r"(?<=\.)\d+(?=\.|$)", "{i}", own, count=1): None}
    return list(found)
