"""Values on the command line → Python values; imports nothing heavy."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from idfx.core.errors import UsageError

WORDS = {"true": True, "false": False, "none": None}


def parse_call(text: str, subject: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of `name` or `name(key=value, ...)`.

    Args:
        text: the call; values are Python literals, true and false, or plain words, including "none".
        subject: its name in errors.

    Raises:
        UsageError: the text has another form.

    Example:
        >>> parse_call("eoi(density=0.5)", "--scheme"), parse_call("keep", "--set")
        (('eoi', {'density': 0.5}), ('keep', {}))
    """
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if found is None:
        raise UsageError(
            f"{subject} {text!r}: expected NAME or NAME(KEY=VALUE, ...). Write, for example, kaiming(mode=fan_out)."
        )
    inside = found[2] or ""
    values: dict[str, object] = {}
    for pair in split_calls(inside):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier() or not value or key in values:
            raise UsageError(f"{subject} {text!r}: {pair.strip()!r}; expected KEY=VALUE, each key once. Correct it.")
        values[key] = value if value == "none" else read_value(value)
    return found[1], values


def read_value(text: str) -> object:
    """Return the value of a Python literal, true, false or none; anything else stays text.

    Example:
        >>> read_value("1e-3"), read_value("true"), read_value("fan_out")
        (0.001, True, 'fan_out')
    """
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def is_file_name(text: str) -> bool:
    """Return whether a text names a plan or a checkpoint, judging by its suffix.

    Example:
        >>> is_file_name("plan.json"), is_file_name("idinit(eps=1e-4)")
        (True, False)
    """
    return text.endswith((".json", ".pt", ".pth", ".bin", ".ckpt", ".safetensors"))


def split_calls(text: str) -> list[str]:
    """Return the parts of a comma-separated list; commas inside brackets do not count.

    Example:
        >>> split_calls("default, idinit(eps=1e-4, conv_order=tap),xavier")
        ['default', 'idinit(eps=1e-4, conv_order=tap)', 'xavier']
    """
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(f"{text},"):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, *([text[start:]] if depth else [])] if text.strip() else []


def as_float(value: float) -> float:
    """Return a number as a float; infinity for an integer too large for a float.

    Example:
        >>> as_float(10**400)
        inf
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf
