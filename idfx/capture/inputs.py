"""Checks example inputs against the signature of a forward: what is missing, what does not fit, and how to pass it.

If the signature is inconclusive (`*args`, `**kwargs`, hooks that change the inputs, compiled code), the model is run
without a check.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from idfx.core.errors import SourceError
from idfx.core.records import Example
from idfx.core.registry import did_you_mean

if TYPE_CHECKING:
    from torch import nn

Audience = Literal["shell", "python", "both"]
_Parameters = list[inspect.Parameter]

_IN_ORDER = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_CONTAINERS = {"list", "tuple", "dict", "List", "Tuple", "Dict", "Sequence", "Mapping", "Iterable"}
_SCALARS = {"bool": "true", "int": "1", "float": "0.5", "str": "TEXT"}


def check(model: nn.Module, example: Example, subject: str, words: Audience) -> None:
    """Check that the signature of a model's forward accepts an example; raise SourceError otherwise.

    Args:
        model: without wrappers.
        example: its inputs.
        subject: the beginning of the message.
        words: the audience of the message, on the command line ("shell") or in Python.

    Raises:
        SourceError: an argument is missing, unknown, given twice or one too many.

    Example:
        >>> import torch
        >>> check(torch.nn.Bilinear(2, 2, 2), Example((torch.ones(1, 2),)), "Bilinear", "python")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        idfx.core.errors.SourceError: Bilinear: input2 (torch.Tensor) is missing; ... example_inputs=(input1, input2).
    """
    from torch import nn

    found = _parameters(model)
    # A hook or the model's own __call__ may change the inputs of the forward.
    changed = bool(model._forward_pre_hooks) or type(model).__call__ is not nn.Module.__call__
    if found is None or changed or any(parameter.kind in _OPEN for parameter in found):
        return
    if problem := _problem(found, example.args, example.kwargs, words):
        raise SourceError(f"{subject}: {problem}")


def misfit(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], words: Audience = "both") -> str:
    """Return how a call does not fit the declared forward; "" if it does, or if that is unknown.

    Used after a forward has rejected a call, because a decorator may change its arguments.

    Example:
        >>> import torch
        >>> misfit(torch.nn.ReLU(), (), {"inputs": torch.ones(1)}, "python")
        "forward has no argument 'inputs'; expected one of input. Did you mean input?"
    """
    found = _parameters(model, declared=True)
    return _problem(found, args, kwargs, words) if found is not None else ""


def no_example(subject: str, model: nn.Module, words: Audience) -> SourceError:
    """Return the error for a model without example inputs: the arguments of its forward, and how to pass them."""
    found = _parameters(model, declared=True) or []
    needed = _required(found)
    if needed:
        expected = f"expected {_listed(needed)}, which its forward needs"
    elif named := [parameter for parameter in found if parameter.kind not in _OPEN]:
        expected = f"expected some of {', '.join(map(str, named))}, none of which its forward requires"
    else:
        expected = "expected the tensors that its forward takes"
    how = _how(needed, found, words)
    return SourceError(f"{subject}: no example input, and the model defines none; {expected}. {how}")


def laid_over(model: nn.Module, example: Example, named: Mapping[str, Any]) -> Example:
    """Return an example in which these named arguments replace those of the same name.

    Args:
        model: without wrappers; its forward gives the names of positional inputs.
        example: to complete.
        named: values by the names of the forward's arguments.

    Example:
        >>> import torch
        >>> laid_over(torch.nn.Bilinear(1, 1, 1), Example((1, 2)), {"input2": 3, "other": 4})
        Example(args=(1, 3), kwargs={'other': 4})
    """
    found = _parameters(model, declared=True) or []
    order = [parameter.name for parameter in found if parameter.kind in _IN_ORDER][: len(example.args)]
    args = list(example.args)
    for place, name in enumerate(order):
        args[place] = named.get(name, args[place])
    rest = {name: value for name, value in named.items() if name not in order}
    return Example(tuple(args), {**example.kwargs, **rest})


def names_of_tensors(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """Return a name for each tensor of a call, in order: that of its argument, numbered if it contains several.

    Args:
        model: without wrappers; its forward gives the names of positional inputs.
        args, kwargs: of the call.

    Example:
        >>> import torch
        >>> names_of_tensors(torch.nn.Bilinear(1, 1, 1), (torch.ones(1), [torch.ones(1), torch.ones(1)]), {})
        ['input1', 'input2_0', 'input2_1']
    """
    from idfx.capture.nested import tensors_in

    declared = [parameter.name for parameter in _parameters(model, declared=True) or () if parameter.kind in _IN_ORDER]
    given = [*zip([*declared, *(f"input_{index}" for index in range(len(declared), len(args)))], args, strict=False)]
    names: dict[str, None] = {}
    for name, value in (*given, *kwargs.items()):
        count = sum(1 for _ in tensors_in(value))
        for found in [name] if count == 1 else [f"{name}_{index}" for index in range(count)]:
            while found in names or not found.isidentifier() or keyword.iskeyword(found):
                found = f"input_{found}" if not found.isidentifier() or keyword.iskeyword(found) else f"{found}_"
            names[found] = None
    return list(names)


def takes_nothing(model: nn.Module) -> bool:
    """Return whether a forward has no arguments at all."""
    return _parameters(model) == []


def _parameters(model: nn.Module, declared: bool = False) -> _Parameters | None:
    """The arguments of the forward: of the callable or, if `declared`, of the function under its decorators."""
    try:
        return list(inspect.signature(model.forward, follow_wrapped=declared).parameters.values())
    except (TypeError, ValueError):
        return None


def _required(found: Iterable[inspect.Parameter]) -> _Parameters:
    return [parameter for parameter in found if parameter.default is parameter.empty and parameter.kind not in _OPEN]


def _problem(found: _Parameters, args: Sequence[Any], kwargs: Mapping[str, Any], words: Audience) -> str:
    """Return the first problem of a call, or ""."""
    in_order = [parameter for parameter in found if parameter.kind in _IN_ORDER]
    by_name = [parameter.name for parameter in found if parameter.kind in _BY_NAME]
    kinds = {parameter.kind for parameter in found}
    unknown = [name for name in kwargs if name not in by_name]
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        expected = f"one of {', '.join(by_name)}" if by_name else "none by name"
        return f"forward has no argument {unknown[0]!r}; expected {expected}.{did_you_mean(unknown[0], by_name)}"
    if len(args) > len(in_order) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        names = f" ({', '.join(parameter.name for parameter in in_order)})" if in_order else ""
        return f"{len(args)} positional inputs; expected {len(in_order) or 'none'}{names}. {_surplus(words)}"
    given = [parameter.name for parameter in in_order[: len(args)]]
    if twice := [name for name in given if name in kwargs and name in by_name]:
        return f"{twice[0]} is given twice, by position and by name; expected once. {_surplus(words)}"
    missing = [p for p in _required(found) if p.name not in given and not (p.name in kwargs and p.name in by_name)]
    if missing:
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        how = _how(missing, found, words)
        return f"{_listed(missing)} {verb} missing; expected a value, the forward needs {them}. {how}"
    return ""


def _surplus(words: Audience) -> str:
    option = "an --input-shape or --input"
    return f"Leave out {option if words == 'shell' else 'an input' if words == 'python' else f'an input ({option})'}."


def _listed(parameters: _Parameters) -> str:
    """Names with their annotations: `x (torch.Tensor) and scale (float)`."""
    texts = [f"{p.name} ({kind})" if (kind := _annotation(p)) else p.name for p in parameters]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]


def _annotation(parameter: inspect.Parameter) -> str:
    note = parameter.annotation
    if note is parameter.empty:
        return ""
    text = note if isinstance(note, str) else inspect.formatannotation(note)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def _how(needed: _Parameters, found: _Parameters, words: Audience) -> str:
    """Return how to pass these arguments."""
    shell, python = _in_shell(needed), _in_python(found)
    if words == "both":
        return f"Give {shell} on the command line, {python} in Python."
    return f"Give {shell}." if words == "shell" else f"Pass {python}."


def _in_shell(needed: _Parameters) -> str:
    """Return the options for these arguments."""
    shapes, plain, others = [], [], []
    for parameter in needed:
        words = set(re.findall(r"\w+", _annotation(parameter))) - {"None", "Optional", "Union", "typing"}
        if words and words <= _SCALARS.keys():
            plain.append(f"--input {parameter.name}={next(_SCALARS[kind] for kind in _SCALARS if kind in words)}")
        elif words and (words & _CONTAINERS or not any("Tensor" in word for word in words)):
            others.append(parameter.name)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            shapes.append(f"--input-shape {_sample(parameter)}")
        else:
            shapes.append(f"--input-shape {parameter.name}={_sample(parameter)}")
    if not needed:
        shapes = ["--input-shape 1,3,224,224 (NAME=SIZES by name)"]
    parts = []
    if shapes:
        parts.append(f"{' '.join(shapes)} with the right sizes (:int64 for indices), or --input FILE.safetensors")
    if plain:
        parts.append(" ".join(plain))
    if others:
        parts.append(f"{', '.join(others)} through `example_inputs` in the model's file")
    return ", and ".join(parts)


def _sample(parameter: inspect.Parameter) -> str:
    if re.search(r"ids?$|tokens?$|index|indices", parameter.name) or "LongTensor" in _annotation(parameter):
        return "1,16:int64"
    return "1,16:bool" if "mask" in parameter.name or "BoolTensor" in _annotation(parameter) else "1,3,224,224"


def _in_python(found: _Parameters) -> str:
    """Return the arguments of the whole call for `analyze` or `init_`."""
    required = _required(found)
    order = [parameter.name for parameter in required if parameter.kind in _IN_ORDER]
    names = [parameter.name for parameter in required if parameter.kind not in _IN_ORDER]
    if not required:
        return "example_inputs=(tensor, ...) or example_kwargs={name: tensor, ...}"
    parts = [f"example_inputs=({', '.join(order)}{',' if len(order) == 1 else ''})"] if order else []
    if names:
        parts.append(f"example_kwargs={{{', '.join(f'{name!r}: ...' for name in names)}}}")
    return ", ".join(parts)
