"""Normalisations: by the data's own statistics, or by running statistics, which is a fixed scale."""

from __future__ import annotations

from typing import Any

from idfx.ops.kinds import Kind
from idfx.ops.semantics import OpSemantics, affine, norm, operator

_FLOAT32 = 1.1920929e-07  # torch's own choice for float32 where none is given


@operator("aten.batch_norm", "aten.cudnn_batch_norm", "aten._native_batch_norm_legit")
def batch_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
               momentum: Any = 0.1, eps: float = 1e-5, cudnn_enabled: bool = True) -> OpSemantics:  # fmt: skip
    """Batch normalisation: in evaluation mode (x − mean) / √(var + eps) with fixed statistics."""
    if training or running_mean is None:
        return norm(input, weight, bias, eps)
    return affine(shifted(input, running_mean, eps), weight, bias)


def shifted(x: Any, mean: Any, eps: float) -> OpSemantics:
    """(x − mean) divided by running statistics: a fixed scale, and an offset unless the mean is zero."""
    return OpSemantics(Kind.SCALE, (OpSemantics(Kind.SUM, (x, mean), tag="running mean"),), eps=float(eps))


@operator("aten.native_batch_norm")
def native_batch_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
                      momentum: Any, eps: float) -> OpSemantics:  # fmt: skip
    """Batch normalisation that also returns its statistics."""
    return batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


@operator("aten._native_batch_norm_legit_no_training")
def batch_norm_of_running_statistics(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any,
                                     momentum: Any, eps: float) -> OpSemantics:  # fmt: skip
    """Batch normalisation in evaluation mode, in the form that torch.export produces."""
    return batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)


@operator("aten.instance_norm")
def instance_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: bool,
                  momentum: Any, eps: float, cudnn_enabled: bool) -> OpSemantics:  # fmt: skip
    """Instance normalisation."""
    return batch_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps)


@operator("aten.layer_norm", "aten.native_layer_norm")
def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
               cudnn_enable: bool = True) -> OpSemantics:  # fmt: skip
    """Layer normalisation."""
    return norm(input, weight, bias, eps)


@operator("aten.group_norm")
def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
               cudnn_enabled: bool = True) -> OpSemantics:  # fmt: skip
    """Group normalisation."""
    return norm(input, weight, bias, eps)


@operator("aten.native_group_norm")
def native_group_norm(
    input: Any, weight: Any, bias: Any, n: Any, c: Any, hxw: Any, group: Any, eps: float
) -> OpSemantics:
    """Group normalisation that also returns its statistics."""
    return norm(input, weight, bias, eps)


@operator("aten.rms_norm", "aten._fused_rms_norm")
def rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> OpSemantics:
    """Root-mean-square normalisation."""
    return norm(input, weight, None, _FLOAT32 if eps is None else eps)


@operator("aten._weight_norm", "aten._weight_norm_interface")
def weight_norm(v: Any, g: Any, dim: int = 0) -> OpSemantics:
    """Weight normalisation, g · v / |v|."""
    return OpSemantics(
        Kind.PRODUCT, (OpSemantics(Kind.NORM, (v,), eps=0.0, axes=(dim,) if dim >= 0 else None), g), tag="gain"
    )


@operator("aten.renorm", "aten.renorm_")
def normalised(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """X divided by its own norm."""
    return OpSemantics(Kind.NORM, (x,), eps=0.0)
