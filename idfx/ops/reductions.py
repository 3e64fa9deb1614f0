"""Reductions, pooling and resampling."""

from __future__ import annotations

from typing import Any

from idfx.ops.kinds import Kind
from idfx.ops.semantics import OpSemantics, gate, keeps_zero, mix, operator, pool


@operator(
    "aten.mean", "aten.sum", "aten.cumsum", "aten.cumsum_", "aten.nansum", "aten.nanmean", "aten.trace",
    "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", "aten.adaptive_avg_pool1d",
    "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d", "aten.col2im", "aten.sum_to_size", "aten.diff",
    "aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d", "aten.affine_grid_generator",
    "aten.segment_reduce", "aten.trapezoid", "aten.cumulative_trapezoid",
)  # fmt: skip
def averaged(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Fixed linear combinations of entries."""
    return mix(x, *rest)


@operator(
    "aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten.upsample_nearest3d", "aten.upsample_linear1d",
    "aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten.upsample_trilinear3d",
    "aten._upsample_nearest_exact1d", "aten._upsample_nearest_exact2d", "aten._upsample_nearest_exact3d",
    "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa",
)  # fmt: skip
def resampled(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Interpolation to another resolution."""
    return OpSemantics(Kind.MIX, (x,), tag="upsample")


@operator(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices", "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d",
    "aten.adaptive_max_pool3d", "aten.fractional_max_pool2d", "aten.amax", "aten.amin", "aten.max", "aten.min",
    "aten.max_pool1d_with_indices", "aten.max_unpool2d", "aten.max_unpool3d",
    "aten.median", "aten.nanmedian", "aten.kthvalue", "aten.sort", "aten.topk", "aten.cummax", "aten.cummin",
    "aten.aminmax", "aten.mode", "aten.quantile", "aten.nanquantile",
)  # fmt: skip
def largest(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """A selection of entries: the largest, sorted ones, the median."""
    if rest and hasattr(rest[0], "all_input_nodes"):
        return keeps_zero(OpSemantics(Kind.CONCAT, (x, rest[0])))
    return pool(x)


@operator("aten.norm", "aten.linalg_vector_norm", "aten.linalg_matrix_norm", "aten.linalg_norm", "aten.std",
          "aten.var", "aten.var_mean", "aten.std_mean", "aten.prod", "aten.frobenius_norm", "aten.dist",
          "aten.nuclear_norm")  # fmt: skip
def measured(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """A nonlinear measure of the entries, zero if all are."""
    return keeps_zero(x, *rest)


@operator("aten.mse_loss", "aten.l1_loss", "aten.smooth_l1_loss", "aten.huber_loss")
def difference(a: Any, b: Any, *rest: Any, **options: Any) -> OpSemantics:
    """A measure of the difference of two tensors, zero if both are."""
    return keeps_zero(OpSemantics(Kind.CONCAT, (a, b)))


@operator(
    "aten.softmax", "aten._softmax", "aten.log_sigmoid", "aten.log_softmax", "aten._log_softmax", "aten._safe_softmax",
    "aten.logsumexp", "aten.argmax", "aten.argmin", "aten.argsort", "aten.any", "aten.all", "aten.bincount",
    "aten.histc", "aten.multinomial", "aten.nonzero", "aten.nonzero_numpy", "aten.searchsorted",
    "aten.bucketize", "aten.one_hot",
    "aten._unique2", "aten.unique_consecutive", "aten.isin", "aten.count_nonzero",
    "aten.masked_select_backward", "aten.logcumsumexp", "aten.cumprod", "aten.matrix_exp",
    "aten.linalg_matrix_exp", "aten.linalg_inv", "aten.linalg_inv_ex", "aten.linalg_det", "aten.linalg_slogdet",
    "aten.slogdet", "aten.logdet", "aten.linalg_solve", "aten.inverse", 
    "aten.linalg_householder_product", "aten.linalg_solve_triangular",
    "aten.linalg_qr", "aten.linalg_eigh", "aten.linalg_svd", "aten.polar", "aten.cross_entropy_loss", "aten.nll_loss",
    "aten.nll_loss_nd", "aten.nll_loss2d", "aten.binary_cross_entropy", "aten.binary_cross_entropy_with_logits",
    "aten.kl_div", "aten.ctc_loss", "aten.cosine_embedding_loss", "aten.triplet_margin_loss",
)  # fmt: skip
def steering(*values: Any, **options: Any) -> OpSemantics:
    """A value that is not zero if its operands are, or that is not used in arithmetic."""
    return gate(*values)
