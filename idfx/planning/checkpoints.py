"""Checkpoint × plan → plan: matching tensors are loaded, and only the rest is initialised. Nothing is ever unpickled.

The parameters of a checkpoint are found by name; a tensor with a different shape counts as missing.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idfx.capture.wrappers import unwrap
from idfx.core.errors import PlanError, UsageError
from idfx.core.records import Plan, Structure
from idfx.planning.renaming import Rule, Rules, check_made, read_rules, reordered
from idfx.planning.renaming import rename as renaming
from idfx.planning.widening import AS_IT_IS, NOTHING, Growing, Grown, grown
from idfx.sharding.layout import copy_

_NESTED = ("state_dict", "model_state_dict", "model", "module", "state_dict_ema", "model_ema", "params")
_WRAPPERS = ("module.", "_orig_mod.")
_CONVERT = "If you trust it, load it yourself and save its state dict: torch.save(model.state_dict(), 'plain.pt')."


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by name, and the name of the file in messages.

    `renamed` are the old names by the new ones that each rule has made; `grown` says which tensors were made to fit a
    larger model.
    """

    name: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    renamed: Mapping[Rule, Mapping[str, str]] = field(default_factory=dict, repr=False)
    grown: Grown = field(default=NOTHING, repr=False)

    def lookup(self, names: Collection[str], like: Tensor) -> Tensor | None:
        """Return the tensor that has one of these names and can be copied into another tensor, or None.

        It has the same shape, and the same dtype unless both are floating-point.
        """
        own = (self.tensors.get(name) for name in names)
        return next((tensor for tensor in own if tensor is not None and _fits(tensor, like)), None)


def _fits(tensor: Tensor, like: Tensor) -> bool:
    same = tensor.dtype == like.dtype or (tensor.is_floating_point() and like.is_floating_point())
    return same and tensor.shape == like.shape


def read_checkpoint(
    source: str | os.PathLike[str] | Mapping[str, Tensor] | Checkpoint, rename: Rules = ()
) -> Checkpoint:
    """Return the tensors of a checkpoint; a pickle is read with weights_only, and refused if that fails.

    The state dict may be nested under a common key (state_dict, model, ...); the prefixes of DataParallel and
    torch.compile are removed.

    Args:
        source: a .safetensors file, a file that torch.save wrote, or a state dict.
        rename: rules "OLD=NEW", a mapping of them, or a file; OLD is a name in the checkpoint, without those prefixes,
            and NEW the name in the model. `{i}` stands for a whole number, as in "layers.{i}=layers.{2*i}".

    Raises:
        UsageError: the file does not exist, has another format, contains Python objects, or does not have one state
            dict; a rule has another form, matches nothing, or makes two names one.

    Example:
        >>> read_checkpoint({"module.weight": torch.ones(2)}).tensors
        {'weight': tensor([1., 1.])}
    """
    found = _read(source)
    rules = read_rules(rename)
    if not rules:
        return found
    tensors, made = renaming(found.name, found.tensors, rules)
    return replace(found, tensors=tensors, renamed=made)


def _read(source: str | os.PathLike[str] | Mapping[str, Tensor] | Checkpoint) -> Checkpoint:
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return Checkpoint("the state dict", _state("the state dict", source))
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"checkpoint: a {type(source).__name__}; expected a path or a state dict. Give one of them.")
    path = Path(source)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {found}; expected a file of torch.save or .safetensors. Give its path.")
    return Checkpoint(path.name, _state(str(path), _safetensors(path) if _is_safetensors(path) else _torch(path)))


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; expected a safetensors file. Is it complete?") from error


def _torch(path: Path) -> Any:
    def load(mapped: bool) -> Any:
        with warnings.catch_warnings(action="ignore"):  # problems with the file are reported as errors
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)

    try:
        try:
            return load(True)
        except RuntimeError as error:  # the format before torch 1.6 cannot be memory-mapped
            if "mmap" not in str(error):
                raise
            return load(False)
    except pickle.UnpicklingError as error:
        objects = (
            "it holds more than tensors" if "GLOBAL" in str(error) or "Unsupported" in str(error) else "no tensors"
        )
        raise UsageError(
            f"{path}: {objects} ({_first(error)}); expected a plain state dict, because idfx unpickles nothing else. "
            f"{_CONVERT}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path}: {_first(error)}; expected a file of torch.save or .safetensors. Is it complete?"
        ) from error


def _first(error: Exception) -> str:
    """Return the first sentence of an error message."""
    text = " ".join(str(error).split())
    unsafe = text.partition("WeightsUnpickler error:")[2].strip() or text
    if isinstance(error, (KeyError, EOFError)):
        return "it cannot be read"
    return re.split(r"\. | Check the documentation| was not an allowed", unsafe)[0].rstrip(".") or type(error).__name__


def _state(subject: str, document: Any) -> dict[str, Tensor]:
    """Return the state dict in the contents of a file."""
    if not isinstance(document, Mapping):
        raise UsageError(f"{subject}: it holds a {type(document).__name__}; expected a state dict. {_CONVERT}")
    found = _tensors(document)
    nested = {key: own for key in _NESTED if (own := _tensors(document.get(key)))}
    if (nested and len(found) < max(map(len, nested.values()))) or not found:
        if len(nested) != 1:
            what = f"{len(nested)} state dicts ({', '.join(nested)})" if nested else "no tensors by name"
            raise UsageError(f"{subject}: {what}; expected one state dict. Save the one that you want separately.")
        (found,) = nested.values()
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    for name, tensor in found.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse or nested"
            raise UsageError(
                f"{subject}: {name} is a {kind} tensor; expected plain tensors. Save it as a dense tensor with values."
            )
    return found


def _tensors(value: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping by name, without other entries (extra state)."""
    items = value.items() if isinstance(value, Mapping) else ()
    return {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, Tensor)}


def resume(
    plan: Plan,
    structure: Structure,
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor],
    again: bool = False,
    growing: Growing = AS_IT_IS,
) -> tuple[Plan, Checkpoint]:
    """Return a plan that loads matching parameters, and the checkpoint under the model's names.

    A parameter matches if the checkpoint has a tensor with its name and shape; frozen parameters are loaded too. No
    learned scalar is added to a loaded parameter.

    Args:
        plan: made for this structure.
        structure: of the model.
        checkpoint: read from a file.
        state: the model's state dict, used for shapes and dtypes only.
        again: whether the plan itself says what it loads, and must not change.
        growing: which tensors are made to fit a larger model.

    Raises:
        UsageError: nothing matches, the plan loads nothing, or a tensor cannot grow as asked.
    """
    if again and not plan.loaded:
        raise UsageError(
            f"{checkpoint.name}: the plan for {plan.model} loads nothing from a checkpoint; expected one that does. "
            "Make the plan with `idfx plan --from`, or leave one of the two out."
        )
    if again:
        checkpoint, _ = _named_alike(checkpoint, state)
        checkpoint, _ = _fitted(checkpoint, structure, state, growing, plan.seed)
        others = sorted({*plan.loaded.values()} - {checkpoint.name})
        named = [f"the plan loads from {', '.join(others)}; this run uses {checkpoint.name}"] if others else []
        return replace(plan, notes=(*plan.notes, *named)), checkpoint
    checkpoint, renamed = _named_alike(checkpoint, state)
    checkpoint, fitted = _fitted(checkpoint, structure, state, growing, plan.seed)
    checkpoint, loaded, notes = matched(structure, checkpoint, state)
    notes = (*renamed, *fitted, *notes)
    return replace(
        plan,
        decisions={name: decision for name, decision in plan.decisions.items() if name not in loaded},
        kept={name: reason for name, reason in plan.kept.items() if name not in loaded},
        loaded=loaded,
        notes=(*plan.notes, *notes),
        scalars=tuple(s for s in plan.scalars if loaded.keys().isdisjoint(end.parameter for end in s.on)),
    ), checkpoint


def matched(
    structure: Structure, checkpoint: Checkpoint, state: Mapping[str, Tensor]
) -> tuple[Checkpoint, dict[str, str], tuple[str, ...]]:
    """Return a checkpoint under the model's names, the parameters for which it has values, and notes on mismatches.

    Args:
        structure: of the model.
        checkpoint: read from a file.
        state: the model's state dict, used for shapes and dtypes only.

    Returns:
        The checkpoint, its name by parameter, and the notes.

    Raises:
        UsageError: nothing matches.
    """
    checkpoint, renamed = _named_alike(checkpoint, state)
    check_made(checkpoint.name, structure.model, checkpoint.renamed, state)
    loaded = {
        name: checkpoint.name
        for name, info in structure.parameters.items()
        if checkpoint.lookup((name, *info.aliases), state[name]) is not None
    }
    if not loaded:
        names = ", ".join(list(checkpoint.tensors)[:3])
        raise UsageError(
            f"{checkpoint.name}: none of its {len(checkpoint.tensors)} tensors ({names}, ...) has the name and shape "
            f"of a parameter of {structure.model}; expected a checkpoint of this model or of part of it. "
            "Rename its entries (--rename)."
        )
    return (
        checkpoint,
        loaded,
        (*renamed, *reordered(checkpoint.renamed), *_mismatches(checkpoint, state), *_unsound(checkpoint, loaded)),
    )


def _named_alike(checkpoint: Checkpoint, state: Mapping[str, Any]) -> tuple[Checkpoint, list[str]]:
    """Remove the first component that all names share (a model inside another) if the names match only without it."""
    own = checkpoint.tensors
    if not state.keys().isdisjoint(own):
        return checkpoint, []
    prefixes = {name.partition(".")[0] for name in own}
    inner = {name.partition(".")[2]: tensor for name, tensor in own.items()}
    if len(prefixes) != 1 or state.keys().isdisjoint(inner):
        return checkpoint, []
    note = f"{checkpoint.name}: the first component of its names, {prefixes.pop()!r}, is ignored"
    made = {
        rule: {name.partition(".")[2]: old for name, old in names.items()} for rule, names in checkpoint.renamed.items()
    }
    return replace(checkpoint, tensors=inner, renamed=made), [note]


def _fitted(
    checkpoint: Checkpoint, structure: Structure, state: Mapping[str, Tensor], growing: Growing, seed: int
) -> tuple[Checkpoint, list[str]]:
    """Make tensors of a checkpoint fit a larger model, and tell which."""
    if not growing:
        return checkpoint, []
    tensors, found = grown(checkpoint.tensors, structure, state, growing, seed)
    told = {"widened by copies of their units": found.widened, "given new rows": found.longer}
    notes = [
        f"{checkpoint.name}: {len(names)} tensors are {what}: {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in told.items()
        if names
    ]
    for asked, names, what in (
        (growing.widen, found.widened, "tensor is narrower than the model's"),
        (growing.new_rows, found.longer, "table of tokens has fewer rows than the model's"),
    ):
        if asked and not names:
            notes.append(f"{checkpoint.name}: no {what}")
    return replace(checkpoint, tensors=tensors, grown=found), notes


def unplaced(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors of a checkpoint that a model cannot take, each with the reason.

    Args:
        checkpoint: under the model's names.
        state: the model's state dict.

    Example:
        >>> unplaced(Checkpoint("f", {"weight": torch.ones(3), "x": torch.ones(1)}), {"weight": torch.ones(2)})
        {'weight': 'is [2] in the model and [3] in the checkpoint', 'x': ''}
    """
    found = {}
    first: dict[int, str] = {}
    for name, tensor in checkpoint.tensors.items():
        own = state.get(name)
        if own is None:
            found[name] = ""
        elif tensor.shape != own.shape:
            found[name] = f"is {list(own.shape)} in the model and {list(tensor.shape)} in the checkpoint"
        elif not _fits(tensor, own):
            found[name] = f"is {str(own.dtype)[6:]} in the model and {str(tensor.dtype)[6:]} in the checkpoint"
        elif not torch.equal(tensor, checkpoint.tensors[first.setdefault(id(own), name)]):
            found[name] = f"is tied to {first[id(own)]} in the model and has other values in the checkpoint"
    return found


def _mismatches(checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> list[str]:
    """Return notes on what is not loaded from a checkpoint."""
    found = unplaced(checkpoint, state)
    notes = [f"{checkpoint.name}: {name} {reason}: not loaded" for name, reason in found.items() if reason]
    if unused := [name for name, reason in found.items() if not reason]:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        notes.append(
            f"{checkpoint.name}: {len(unused)} of its tensors are not in the model: {', '.join(unused[:3])}{more}"
        )
    return notes


def _unsound(checkpoint: Checkpoint, loaded: Mapping[str, str]) -> list[str]:
    """Return notes on loaded tensors with NaN or Inf."""
    bad = [
        name for name in loaded if name in checkpoint.tensors and not bool(checkpoint.tensors[name].isfinite().all())
    ]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return [f"{checkpoint.name}: {bad[0]}{more} holds NaN or Inf"] if bad else []


def fitting(model: nn.Module, checkpoint: Checkpoint | None, loaded: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that a plan loads.

    Args:
        model: any module; it is unwrapped.
        checkpoint: under the model's names.
        loaded: parameters of the model, each with the name of its checkpoint.

    Raises:
        PlanError: there is no checkpoint, or it lacks what the plan loads.
    """
    if not loaded:
        return {}
    names: dict[int, list[str]] = {}
    parameters = dict(unwrap(model).named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    found = {}
    for name, source in loaded.items():
        if checkpoint is None:
            raise PlanError(
                f"{name}: the plan loads it from {source}; expected that checkpoint. Give it (--from, checkpoint=)."
            )
        like = parameters[name]
        tensor = checkpoint.lookup((name, *names[id(like)]), like)
        if tensor is None:
            shape = list(like.shape)
            raise PlanError(
                f"{name}: {checkpoint.name} has no tensor of shape {shape} for it; expected what the plan loads. "
                "Make a new plan with this checkpoint."
            )
        found[name] = tensor
    return found


def load_(model: nn.Module, checkpoint: Checkpoint, loaded: Mapping[str, str]) -> None:
    """Copy parameters, and every buffer that the checkpoint has in the same shape, into a model.

    Args:
        model, checkpoint, loaded: as in `fitting`, which also lists the errors.
    """
    parameters = dict(unwrap(model).named_parameters())
    with torch.no_grad():
        for name, tensor in fitting(model, checkpoint, loaded).items():
            copy_(parameters[name], tensor, name)
        for name, buffer in unwrap(model).named_buffers():
            own = checkpoint.lookup((name,), buffer)
            if own is not None:
                buffer.copy_(own)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a model under all their names; tied names share one tensor.

    Example:
        >>> {name: list(tensor.shape) for name, tensor in state_of(nn.Linear(2, 1)).items()}
        {'weight': [1, 2], 'bias': [1]}
    """
    model = unwrap(model)
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        own = ((name, buffer) for name, buffer in module.named_buffers(recurse=False))
        kept = {name: buffer for name, buffer in own if name not in module._non_persistent_buffers_set}
        state |= {f"{path}.{name}".lstrip("."): buffer for name, buffer in kept.items()}
    return state
