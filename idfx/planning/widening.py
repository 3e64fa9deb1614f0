"""Tensors of a narrower model → tensors of a wider one that computes the same function, and tables with more rows.

A unit of the narrow model becomes k units of the wide one: unit j is a copy of unit j mod n. Whatever makes a unit is
copied (rows of weights, biases, normalisations and their statistics), and the weights that read it are divided by k.
Where a weight makes several parts, a gate and a value, each part is copied for itself.
The copies would get the same gradients, so noise is added to the divided weights, with the sum 0 over the copies of
each unit: the function stays as it is, and the copies learn different things. With this noise, the divided weights have
the variance of a draw for the larger number of inputs, rms(V)² / k.

    W[j] = V[j mod n]        U[:, j] = V[:, j mod n] / k + rms(V) / √k · (z_j − mean of z over the copies)

New rows of a table are the mean of the old rows, plus noise of a hundredth of their spread. For an output layer, a new
token then gets at most the mean probability of the old ones, up to the noise, because exp is convex.

Source: Chen, Goodfellow and Shlens, "Net2Net", ICLR 2016 (copies); Wang et al., "LEMON", ICLR 2024 (unequal shares
in place of unequal copies); Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021 (the mean).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from idfx.analysis.queries import StructureQueries
from idfx.core.errors import UsageError
from idfx.core.noise import normal
from idfx.core.records import Layout, Structure
from idfx.core.roles import Acts, RoleName

_NEW_ROWS = 0.01  # noise in new rows, as a part of the spread of the old ones


@dataclass(frozen=True)
class Growing:
    """What may grow: the units of layers (`widen`), and the rows of tables of tokens (`new_rows`)."""

    widen: bool = False
    new_rows: bool = False

    def __bool__(self) -> bool:
        return self.widen or self.new_rows


@dataclass(frozen=True)
class Grown:
    """What grew: the tensors of the checkpoint before, and the names of those that are wider or have new rows."""

    before: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    widened: tuple[str, ...] = ()
    longer: tuple[str, ...] = ()
    rows: frozenset[tuple[int, int]] = frozenset()  # the old and new numbers of rows


AS_IT_IS = Growing()
NOTHING = Grown()


def grown(
    tensors: Mapping[str, Tensor], structure: Structure, state: Mapping[str, Tensor], growing: Growing, seed: int = 0
) -> tuple[dict[str, Tensor], Grown]:
    """Return the tensors of a checkpoint, grown into the model's shapes, and which of them grew.

    Whether the function is preserved depends on what the model does between the layers; the certificate tells.

    Args:
        tensors: of the checkpoint, by the model's names.
        structure: of the model.
        state: the model's state dict, used for shapes only.
        growing: what may grow.
        seed: of the noise.

    Raises:
        UsageError: a tensor whose shape differs in a way that no unit accounts for.
    """
    differing = {
        name: tensor for name, tensor in tensors.items() if name in state and tensor.shape != state[name].shape
    }
    pairs = _tables(differing, structure, state) if growing.new_rows else frozenset()
    queries = StructureQueries(structure)
    found: dict[str, Tensor] = {}
    widened, longer = [], []
    for name, tensor in differing.items():
        shape = state[name].shape
        axis = _row_axis(name, tensor, structure, state) if growing.new_rows else None
        rows = axis is not None and (tensor.shape[axis], shape[axis]) in pairs
        if not rows and not growing.widen:
            continue
        made = tensor
        if rows and axis is not None:
            made = _with_rows(made, axis, shape[axis], seed, structure.first_names[name])
            longer.append(name)
        if made.shape != shape and growing.widen:
            made = _widened(name, made, queries, state, seed)
            widened.append(name)
        found[name] = made
    before = {name: differing[name] for name in found}
    return {**tensors, **found}, Grown(before, tuple(widened), tuple(longer), pairs)


def _tables(
    differing: Mapping[str, Tensor], structure: Structure, state: Mapping[str, Tensor]
) -> frozenset[tuple[int, int]]:
    """The old and new numbers of rows of the tables that have more rows in the model."""
    return frozenset(
        (len(tensor), len(state[name]))
        for name, tensor in differing.items()
        if _role(name, structure) is RoleName.EMBEDDING and tensor.dim() == state[name].dim() and tensor.dim()
        if 0 < len(tensor) < len(state[name])
    )


def _row_axis(name: str, tensor: Tensor, structure: Structure, state: Mapping[str, Tensor]) -> int | None:
    """The axis of a tensor that may count tokens: the rows of a table, or the outputs of a head or its bias."""
    if name not in structure.first_names or tensor.dim() != state[name].dim():
        return None
    role = structure.roles[structure.first_names[name]]
    if role.name is RoleName.EMBEDDING or (role.name.acts is Acts.SHIFT and tensor.dim() == 1):
        return 0
    return role.layout.out_axis if role.name is RoleName.HEAD and role.layout is not None else None


def _role(name: str, structure: Structure) -> RoleName | None:
    first = structure.first_names.get(name)
    return None if first is None else structure.roles[first].name


def _with_rows(tensor: Tensor, axis: int, number: int, seed: int, key: str) -> Tensor:
    """A table with new rows along an axis: the mean of the old ones, and noise of a part of their spread."""
    old = tensor.double()
    mean, spread = old.mean(axis, keepdim=True), old.std(axis, keepdim=True, correction=0)
    shape = list(tensor.shape)
    shape[axis] = number - tensor.shape[axis]
    new = mean + _NEW_ROWS * spread * _noise(seed, f"{key}: new rows", shape)
    return torch.cat([tensor, new.to(tensor.dtype)], axis)


def _widened(name: str, tensor: Tensor, queries: StructureQueries, state: Mapping[str, Tensor], seed: int) -> Tensor:
    """A tensor with copies of the units along each axis that differs; those that read units are divided."""
    shape = tuple(state[name].shape)
    axes = [axis for axis in range(tensor.dim()) if len(shape) == tensor.dim() and tensor.shape[axis] != shape[axis]]
    if not axes or any(not 0 < tensor.shape[axis] < shape[axis] for axis in axes):
        raise _refusal(name, tensor, shape, "the same axes, each as long or longer")
    structure = queries.structure
    layout = _layout(name, tensor, shape, axes, structure)
    first = structure.first_names.get(name, name)
    parts = queries.parts(first) if first in structure.roles else 1
    made = tensor
    for axis in axes:
        reads = layout is not None and axis in layout.in_axes
        origin = origins(tensor.shape[axis], shape[axis], 1 if reads else parts)
        copies = made.index_select(axis, origin)
        made = _divided(copies, made, axis, origin, seed, f"{first}: axis {axis}") if reads else copies
    return made


def origins(old: int, new: int, parts: int = 1) -> Tensor:
    """Return by unit the unit of which it is a copy, each part for itself.

    Args:
        old, new: the numbers of units.
        parts: into which both numbers fall; where they do not, there is one.

    Returns:
        int64 of shape (new,).

    Example:
        >>> origins(4, 6).tolist(), origins(4, 8, parts=2).tolist()
        ([0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 2, 3, 2, 3])
    """
    parts = 1 if old % parts or new % parts else parts
    each = torch.arange(new // parts) % (old // parts)
    return torch.cat([each + part * (old // parts) for part in range(parts)])


def _layout(name: str, tensor: Tensor, shape: tuple[int, ...], axes: list[int], structure: Structure) -> Layout | None:
    """How a weight is read, None for a tensor that is only copied; a refusal where an axis counts no units."""
    if name not in structure.first_names or tensor.dim() < 2:
        return None
    role = structure.roles[structure.first_names[name]]
    if role.layout is None and role.name.acts in (Acts.SHIFT, Acts.FACTOR, Acts.VALUE, Acts.TABLE):
        counted: tuple[int, ...] = tuple(range(int(role.name.acts in (Acts.TABLE, Acts.VALUE)), tensor.dim()))
    elif role.layout is None:
        raise _refusal(name, tensor, shape, f"the same shape, because it is no plain matrix ({role.name})")
    else:
        counted = (*role.layout.out_axes, *role.layout.in_axes)
    if any(axis not in counted for axis in axes):
        raise _refusal(
            name, tensor, shape, "other numbers only of inputs and outputs, no larger kernel and no new rows"
        )
    return role.layout


def _divided(copies: Tensor, old: Tensor, axis: int, origin: Tensor, seed: int, key: str) -> Tensor:
    """Shares of what reads a unit, one for each of its copies; their sum is what read it."""
    number = torch.bincount(origin, minlength=old.shape[axis]).double()
    across = [1] * old.dim()
    across[axis] = -1
    draw = _noise(seed, key, list(copies.shape))
    sums = torch.zeros(old.shape, dtype=torch.float64).index_add_(axis, origin, draw)
    draw -= (sums / number.view(across)).index_select(axis, origin)
    size, number = float(old.double().pow(2).mean().sqrt()), number[origin].view(across)
    shares = copies.double() / number + size / number.sqrt() * draw
    return shares.to(old.dtype)


def _noise(seed: int, key: str, shape: list[int]) -> Tensor:
    index = torch.arange(int(torch.Size(shape).numel()))
    return normal(seed, key, index).view(shape)


def _refusal(name: str, tensor: Tensor, shape: tuple[int, ...], expected: str) -> UsageError:
    return UsageError(
        f"--widen: {name} is {list(shape)} in the model and {list(tensor.shape)} in the checkpoint; expected "
        f"{expected}. Leave --widen out to initialise it anew."
    )
