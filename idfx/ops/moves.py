"""Operators that move entries: copies, permutations, selections, repetitions, zero padding.

Views need no entry here: an operator whose schema says that its result aliases its input is a move.
"""

from __future__ import annotations

from typing import Any

from idfx.ops.kinds import Kind
from idfx.ops.semantics import OpSemantics, concat, gate, move, operator, tensors


@operator("aten.clone", "aten.contiguous", "aten._to_copy", "aten.to", "aten.type_as", "aten.lift_fresh",
          "aten.lift_fresh_copy", "aten.alias", "aten.alias_copy")  # fmt: skip
def copied_whole(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Every entry of x where it was, perhaps in another dtype."""
    return OpSemantics(Kind.MOVE, (x,), tag="copy")


@operator("aten.detach", "aten.detach_", "aten.detach_copy")
def detached(x: Any) -> OpSemantics:
    """Every entry of x where it was, as a value that gets no gradient."""
    return OpSemantics(Kind.MOVE, (x,), tag="detached")


@operator("aten.fake_quantize_per_tensor_affine", "aten.fake_quantize_per_channel_affine",
          "aten.fake_quantize_per_tensor_affine_cachemask", "aten.fake_quantize_per_channel_affine_cachemask",
          "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
          "aten._fake_quantize_learnable_per_tensor_affine", "aten._fake_quantize_learnable_per_channel_affine",
          "aten.fused_moving_avg_obs_fake_quant")  # fmt: skip
def rounded(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Every entry of x rounded to a grid that contains zero: a fake quantiser."""
    return OpSemantics(Kind.MOVE, (x,), tag="rounded")


@operator(
    "aten._conj_physical", "aten.conj_physical",
    "aten.repeat", "aten.tile", "aten.roll", "aten.flip", "aten.fliplr", "aten.flipud", "aten.rot90",
    "aten.repeat_interleave", "aten.pixel_unshuffle", "aten.channel_shuffle",
    "aten.native_channel_shuffle", "aten.im2col", "aten.tril", "aten.tril_", "aten.triu", "aten.triu_",
    "aten.diag_embed", "aten.diag", "aten.real", "aten.imag", "aten.to_sparse", "aten._to_sparse",
    "aten.view_as_complex_copy",
    "aten.view_as_real_copy", "aten.resize_", "aten.nan_to_num", "aten.nan_to_num_", "aten.combinations",
    "aten.to_dense", "aten.unsafe_split", "aten.unsafe_chunk", "aten.unsafe_split_with_sizes",
    "aten._reshape_copy", "aten._unsafe_view", "aten.unfold_copy", "aten.squeeze_copy", "aten.unsqueeze_copy",
    "aten.narrow_copy", "aten.expand_copy", "aten.view_copy", "aten.permute_copy", "aten.slice_copy",
    "aten.select_copy", "aten.transpose_copy", "aten.reshape_as", "aten.expand_as", "aten.view_as",
    "aten.t_", "aten.transpose_", "aten.swapaxes_", "aten.swapdims_", "aten.numpy_T", "aten.adjoint", "aten.mT",
    "aten.matrix_H",
)  # fmt: skip
def moved(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Entries of x in another order, position or dtype."""
    return move(x)


@operator("aten.pixel_shuffle")
def shuffled(x: Any, factor: int) -> OpSemantics:
    """Channels arranged as a finer resolution."""
    return OpSemantics(Kind.MOVE, (x,), tag="upsample")


@operator(
    "aten.dropout", "aten.dropout_", "aten.feature_dropout", "aten.feature_dropout_", "aten.alpha_dropout",
    "aten.alpha_dropout_", "aten.feature_alpha_dropout", "aten.native_dropout",
)  # fmt: skip
def dropped(x: Any, p: float, train: bool) -> OpSemantics:
    """Dropout: nothing in evaluation mode, random zeros in training mode."""
    return move(x)


@operator("aten.constant_pad_nd", "aten.pad", "aten.reflection_pad1d", "aten.reflection_pad2d",
          "aten.reflection_pad3d", "aten.replication_pad1d", "aten.replication_pad2d",
          "aten.replication_pad3d")  # fmt: skip
def padded(x: Any, pad: Any, mode: Any = "constant", value: Any = 0) -> OpSemantics:
    """The tensor x with a border of zeros, of a constant, or of its own entries."""
    if not isinstance(mode, str):  # constant_pad_nd has no mode
        value = mode
    return concat((move(x), gate())) if value else move(x)


@operator("aten.index", "aten._unsafe_index", "aten.index_select", "aten.gather", "aten.take",
          "aten.take_along_dim", "aten.masked_select", "aten.nonzero_static")  # fmt: skip
def selected(x: Any, *where: Any, **options: Any) -> OpSemantics:
    """Entries of x chosen by an index tensor."""
    return move(x, where)


@operator("aten.cat", "aten.concat", "aten.concatenate", "aten.stack", "aten.hstack", "aten.vstack",
          "aten.dstack", "aten.column_stack", "aten.row_stack", "aten.meshgrid", "aten.complex",
          "aten._pad_packed_sequence", "aten.block_diag", "aten.cartesian_prod", "aten.broadcast_tensors",
          "aten._pack_padded_sequence", "aten.pad_sequence")  # fmt: skip
def joined(values: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Several tensors, concatenated or stacked."""
    return concat((values, *[r for r in rest if tensors(r)]))


@operator("aten.where")
def where(condition: Any, *values: Any) -> OpSemantics:
    """Entries selected from one tensor or another."""
    if not values:
        return gate(condition)
    return concat(tuple(_or_number(value) for value in values), condition)


@operator("aten.masked_fill", "aten.masked_fill_")
def masked(x: Any, mask: Any, value: Any) -> OpSemantics:
    """The tensor x with some entries set to a value."""
    return concat((x, _or_number(value)), mask)


@operator("aten.copy_", "aten.copy")
def copied(x: Any, src: Any, non_blocking: bool = False) -> OpSemantics:
    """The entries of src, whatever x contains."""
    return move(src)


@operator("aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index_put")
def put(x: Any, indices: Any, values: Any, accumulate: bool = False, unsafe: bool = False) -> OpSemantics:
    """The tensor x with some entries replaced by, or increased by, values."""
    return OpSemantics(Kind.SUM if accumulate else Kind.CONCAT, tensors(x, values), tensors(indices))


@operator("aten.scatter", "aten.scatter_", "aten.masked_scatter", "aten.masked_scatter_", "aten.index_copy",
          "aten.index_copy_", "aten.index_fill", "aten.index_fill_")  # fmt: skip
def scattered(x: Any, *rest: Any, reduce: Any = "") -> OpSemantics:
    """The tensor x with some entries replaced, or added to or multiplied, depending on `reduce`."""
    values = tuple(_or_number(value) for value in rest[-1:])
    if reduce == "multiply":
        return gate(x, *rest)
    return OpSemantics(Kind.SUM if reduce == "add" else Kind.CONCAT, tensors(x, *values), tensors(*rest[:-1]))


@operator("aten.index_add", "aten.index_add_", "aten.scatter_add", "aten.scatter_add_")
def scatter_added(x: Any, dim: int, index: Any, source: Any, *rest: Any, **options: Any) -> OpSemantics:
    """The tensor x with values added at some entries."""
    return OpSemantics(Kind.SUM, tensors(x, source), tensors(index))


@operator("aten.scatter_reduce", "aten.scatter_reduce_", "aten.index_reduce", "aten.index_reduce_")
def scatter_reduced(
    x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> OpSemantics:
    """The tensor x with values combined with some entries: added, averaged, or the larger or smaller of both."""
    if reduce in ("sum", "mean") and include_self:
        both = OpSemantics(Kind.SUM, tensors(x, source), tensors(index))
        return both if reduce == "sum" else OpSemantics(Kind.MIX, (both,))
    if reduce in ("amax", "amin", "mean", "sum"):
        return OpSemantics(Kind.MAP, (concat((x, source)),), tensors(index))
    return gate(x, source)


@operator("aten.slice_scatter", "aten.select_scatter", "aten.diagonal_scatter", "aten.as_strided_scatter")
def part_replaced(x: Any, src: Any, *rest: Any, **options: Any) -> OpSemantics:
    """The tensor x with a slice replaced by src."""
    return concat((x, src))


def _or_number(value: Any) -> Any:
    """A tensor unchanged; the number zero as nothing; any other number as a value that is never zero."""
    if tensors(value):
        return value
    return () if value == 0 else gate()
