"""State dict → file, written atomically.

The bytes depend on the tensors, the plan and the versions, not on the file's name, the device, or tensors that happen
to share a storage. The safetensors package is only used for the names of types: its own writer orders the metadata at
random, leaves its `.tmp` file behind when killed, and needs a copy of every tied tensor.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from idfx.core.errors import ExportError, UsageError
from idfx.core.files import check_writable, real_path, root_cause, write_atomically
from idfx.core.records import Plan
from idfx.core.version import __version__

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class SavedFile:
    """A file that was written: its path, its size in bytes, and its number of tensors."""

    path: Path
    bytes: int
    tensors: int


def check_path(path: str | os.PathLike[str]) -> None:
    """Check that a state dict can be written to this path, before any work is done; raise UsageError otherwise.

    Args:
        path: of the future file; an existing file will be replaced.

    Raises:
        UsageError: the suffix is not .pt, .pth or .safetensors; the folder does not exist or is not writable; or the
            path is a folder or a device.

    Example:
        >>> check_path("weights.safetensor")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        idfx.core.errors.UsageError: weights.safetensor: the suffix ... Did you mean weights.safetensors?
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        near = difflib.get_close_matches(path.suffix.lower(), SUFFIXES, n=1, cutoff=0.5) or [SUFFIXES[0]]
        found = f"the suffix is '{path.suffix}'" if path.suffix else "there is no suffix"
        hint = f"Did you mean {path.with_suffix(near[0]) if path.name else 'weights.pt'}?"
        raise UsageError(f"{path}: {found}; expected .pt, .pth or .safetensors. {hint}")
    check_writable(path)


def digest(plan: Plan) -> str:
    """Return the sha256 of the plan as canonical JSON (sorted keys, no spaces), in hexadecimal.

    Args:
        plan: any plan; the order of its mappings does not matter, nor does tuple or list.

    Example:
        >>> plan = Plan("m", "idinit", 0, {"eps": 1e-6}, {"w": (2, 3)}, {}, {"b": "bias"})
        >>> digest(plan)[:16]
        '962b0b96062aac6e'
    """
    return hashlib.sha256(_json(plan).encode()).hexdigest()


def save(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SavedFile:
    """Write the state dict of a model to a file, atomically.

    `.pt` and `.pth` hold a plain dict of CPU tensors, in which tied tensors share storage. `.safetensors` holds a copy
    for every name of a tied tensor; its metadata contain the ties, the versions and, if a plan is given, its scheme,
    seed, options and sha256. The names are those of `model.state_dict()`; DataParallel, DistributedDataParallel and
    torch.compile models are saved without the wrapper's prefix. If parameters are DTensors, all processes of the mesh
    call this at the same time; the first one writes .safetensors, with each weight gathered when it is written.

    Args:
        model: on any device, in any mode; not modified.
        path: with suffix .pt, .pth or .safetensors; symbolic links are followed, an existing file is replaced.
        plan: that produced the weights; only .safetensors stores it.
        metadata: further entries for the metadata of .safetensors; entries of idfx take precedence.

    Raises:
        UsageError: the path is not usable, see `check_path`; or a format that needs all weights at once, for DTensors.
        ExportError: an entry of the state dict does not fit the format, or the system refused to write. Nothing is left
            behind, and an existing file at this path is unchanged.
    """
    from idfx.capture.wrappers import unwrap
    from idfx.sharding.together import all_of, is_first, together

    model = unwrap(model)
    with together(model.parameters()):
        if is_first():
            check_path(path)
        state: dict[str, Any] = dict(model.state_dict())
        _check_format(state, path)
        size = _written(state, path, plan, metadata) if is_first() else _read(state)
        return SavedFile(Path(path), all_of(size)[0], len(state))


def _check_format(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Check that a state dict with DTensors can be written weight by weight."""
    from idfx.sharding.layout import is_sharded

    if any(map(is_sharded, state.values())) and Path(path).suffix != ".safetensors":
        raise UsageError(
            f"{path}: the model is sharded, and {Path(path).suffix} is written from all its weights at once; expected "
            ".safetensors, or a folder written by torch.distributed.checkpoint. Change the suffix."
        )


def _read(state: Mapping[str, Any]) -> int:
    """Take part in the gathering of what another process writes."""
    from idfx.sharding.together import whole

    for name, value in _by_size(state):
        whole(value, name)
    return 0


def _written(
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
    plan: Plan | None,
    metadata: Mapping[str, str] | None,
) -> int:
    """Write a state dict, and return the size of the file."""
    writer: Callable[[IO[bytes]], None]
    if Path(path).suffix == ".safetensors":
        _check_entries(state, path, lambda value: _is_plain(value) and bool(_type_name(value.dtype)))
        header = _header(state, {**(metadata or {}), **_describe(state, plan)})
        writer = functools.partial(_write_safetensors, state, header)
    else:
        _check_entries(state, path, lambda value: _is_plain(value) or _loads(value))
        writer = functools.partial(_write_torch, state)
    try:
        return write_atomically(real_path(path), writer)
    except (OSError, RuntimeError) as error:
        # torch.save hides the cause behind its own error about an incomplete archive.
        cause = root_cause(error)
        if not isinstance(cause, OSError):
            raise cause from error
        found = cause.strerror or str(cause)
        hint = "Nothing was written. Free some space, check quota and permissions, or choose another path"
        raise ExportError(f"{path}: {found}; expected to write the whole file. {hint}") from error


def _json(value: Any) -> str:
    def plain(value: Any) -> dict[str, Any]:
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {name: held for name, held in fields.items() if name not in ("roles", "scalars", "loaded") or held}
        return dict(value)  # any mapping

    return json.dumps(value, default=plain, sort_keys=True, separators=(",", ":"))


def _is_plain(value: Any) -> bool:
    import torch

    from idfx.sharding.layout import is_sharded

    plain = type(value) in (torch.Tensor, torch.nn.Parameter) or is_sharded(value)
    return plain and value.layout == torch.strided and not value.is_quantized


def _loads(value: Any) -> bool:
    """Return whether torch.load(weights_only=True) accepts this entry."""
    import torch

    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # whatever a foreign __reduce__ raises
        return False
    return True


def _check_entries(state: Mapping[str, Any], path: str | os.PathLike[str], fits: Callable[[Any], bool]) -> None:
    import torch

    for name, value in state.items():
        if isinstance(value, torch.Tensor) and (torch.nn.parameter.is_lazy(value) or value.is_meta):
            hint = "Materialise the model (run it once, or model.to_empty and initialise it) before saving"
            raise ExportError(f"{path}: {name} has no values yet; expected a tensor with values. {hint}")
        if not fits(value):
            kind = f"{type(value).__qualname__} {getattr(value, 'dtype', '')}".strip()
            hint = "Save as .pt" if _loads(value) else "Remove it from the state dict (see get_extra_state)"
            raise ExportError(f"{path}: {name} is a {kind}; expected a tensor that the format supports. {hint}")


def _write_torch(state: Mapping[str, Any], file: IO[bytes]) -> None:
    import torch

    storages: dict[Any, tuple[torch.UntypedStorage, torch.Tensor]] = {}
    dtypes: dict[Any, torch.dtype] = {}
    packed: dict[str, Any] = {}
    for name, value in state.items():
        if not _is_plain(value):
            packed[name] = value.detach().cpu() if isinstance(value, torch.Tensor) else value
            continue
        tensor = value.detach().resolve_conj().resolve_neg()
        storage, stride = tensor.untyped_storage(), tensor.stride()
        key: Any = (tensor.device, storage.data_ptr()) if tensor.numel() else name
        # A view is packed on its own, so that its storage does not get into the file; the weights of an LSTM share a
        # storage on a GPU but not on a CPU. torch.save accepts one dtype per storage.
        whole = storage.nbytes() == tensor.nbytes and dtypes.setdefault(key, tensor.dtype) == tensor.dtype
        if not whole:
            key = (key, tensor.dtype, tensor.storage_offset(), tensor.shape, stride)
            stride = torch.empty(tensor.shape, device="meta").stride()
        if key not in storages:
            own = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
            storages[key] = own.untyped_storage().cpu(), tensor  # keeping the tensor alive reserves its address
        packed[name] = torch.empty(0, dtype=tensor.dtype, device="cpu")
        packed[name].set_(storages[key][0], 0, tensor.size(), stride)
    torch.save(packed, file)  # to a file object: to a path, the archive would contain the name of the file


@functools.cache
def _type_name(dtype: torch.dtype) -> str:
    """Return the safetensors name of this type, or ""."""
    import safetensors.torch
    import torch

    try:
        file = safetensors.torch.save({"x": torch.empty(2, dtype=dtype, device="cpu")})
    except Exception:  # the class differs between versions of safetensors
        return ""
    size = int.from_bytes(file[:8], "little")
    entry = json.loads(file[8 : 8 + size])["x"]
    return str(entry["dtype"]) if entry["shape"] == [2] else ""  # types of four bits are counted in halves


def _describe(state: Mapping[str, torch.Tensor], plan: Plan | None) -> dict[str, str]:
    import torch

    from idfx.sharding.layout import local

    names: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        held = local(tensor)
        place = (tensor.device, held.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        names.setdefault(place if held.numel() else name, []).append(name)
    about = {
        "format": "pt",
        "idfx_version": __version__,
        # The suffix after "+" is the device that torch was built for.
        "torch_version": torch.__version__.partition("+")[0],
        "ties": _json({first: others for first, *others in names.values() if others}),
    }
    if plan is not None:
        about |= {"scheme": plan.scheme, "seed": str(plan.seed), "options": _json(plan.options)}
        about["plan_sha256"] = digest(plan)
    return about


def _header(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a safetensors file for the tensors in the order of `_by_size`."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for name, tensor in _by_size(state):
        ends = [start, start := start + tensor.numel() * tensor.element_size()]
        entries[name] = {"dtype": _type_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": ends}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text


def _by_size(state: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))


def _write_safetensors(state: Mapping[str, torch.Tensor], header: bytes, file: IO[bytes]) -> None:
    import torch

    from idfx.sharding.together import whole

    file.write(header)
    for name, tensor in _by_size(state):
        flat = whole(tensor, name).detach().resolve_conj().resolve_neg().cpu().contiguous().view(-1)
        file.write(flat.view(torch.uint8).numpy().data)
