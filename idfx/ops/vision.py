"""Operators of torchvision."""

from __future__ import annotations

from typing import Any

from idfx.ops.contractions import conv_layout
from idfx.ops.semantics import OpSemantics, contract, gate, mix, operator


@operator("torchvision.roi_align", "torchvision.roi_pool", "torchvision.ps_roi_align", "torchvision.ps_roi_pool")
def pooled_in_boxes(input: Any, rois: Any, *rest: Any) -> OpSemantics:
    """Features of an image averaged or maximised inside boxes."""
    return mix(input, rois)


@operator("torchvision.nms")
def suppressed(*values: Any) -> OpSemantics:
    """The indices of the boxes that are kept."""
    return gate(*values)


@operator("torchvision.deform_conv2d")
def deformable_convolution(input: Any, weight: Any, offset: Any, mask: Any, bias: Any, *rest: Any) -> OpSemantics:
    """A convolution whose taps are shifted by offsets, weight (out, in / groups, *taps)."""
    groups = rest[6] if len(rest) > 6 else 1
    return contract(mix(input, offset, mask), weight, None, conv_layout(2, groups), bias)
