"""Contractions: weight uses if one operand consists of parameters, products if both carry data."""

from __future__ import annotations

from typing import Any

from idfx.core.records import Layout
from idfx.ops.kinds import Kind
from idfx.ops.semantics import OpSemantics, Reading, Shape, contract, gate, operator, product, scale, tensors

LINEAR = Layout(out_axis=0, in_axis=1)


def left(own: Shape | None, other: Shape | None) -> Reading | None:
    """Read W of W · x: outputs on its second-to-last axis; axes before the last two count matrices."""
    dimensions = len(own or ())
    if dimensions < 2:
        return None
    layout = Layout(dimensions - 2, dimensions - 1, batch_axes=tuple(range(dimensions - 2)))
    return Reading(layout, (-1,) if other is not None and len(other) == 1 else (-2,))


def right(own: Shape | None, other: Shape | None) -> Reading | None:
    """Read W of x · W: outputs on its last axis."""
    dimensions = len(own or ())
    if dimensions < 2:
        return None
    return Reading(Layout(dimensions - 1, dimensions - 2, batch_axes=tuple(range(dimensions - 2))), (-1,))


@operator("aten.linear", "aten.mkldnn_linear")
def linear(input: Any, weight: Any, bias: Any = None) -> OpSemantics:
    """A linear layer: x · Wᵀ + b, weight (out, in)."""
    return contract(input, weight, None, LINEAR, bias)


@operator("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot", "aten.inner", "aten.vdot",
          "aten._sparse_mm",
          "aten.linalg_matmul", "aten.chain_matmul", "aten.linalg_vecdot")  # fmt: skip
def matmul(a: Any, b: Any) -> OpSemantics:
    """The product a · b over the last axis of a and the second-to-last axis of b."""
    return contract(a, b, left, right)


@operator("aten._grouped_mm")
def grouped_matmul(a: Any, b: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> OpSemantics:
    """Rows of a times the matrix of their group in b, as in mixtures of experts."""
    result = contract(a, b, left, right, bias)
    return OpSemantics(Kind.MOVE, (result,), tensors(offs))


@operator("aten.addmm", "aten.addmm_", "aten.addbmm", "aten.baddbmm", "aten.baddbmm_", "aten.addmv",
          "aten._addmm_activation")  # fmt: skip
def add_matmul(input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1, **options: Any) -> OpSemantics:
    """The sum beta · input + alpha · mat1 · mat2."""
    result = contract(mat1, mat2, left, right)
    scaled = result if alpha == 1 else scale(result, float(alpha))
    if beta == 0:
        return scaled
    return OpSemantics(Kind.SUM, (scaled, input if beta == 1 else scale(input, float(beta))), tag="bias")


@operator("aten.addr", "aten.addr_")
def add_outer(input: Any, vec1: Any, vec2: Any, *, beta: Any = 1, alpha: Any = 1) -> OpSemantics:
    """The sum beta · input + alpha · vec1 ⊗ vec2."""
    result = outer(vec1, vec2)
    scaled = result if alpha == 1 else scale(result, float(alpha))
    return OpSemantics(Kind.SUM, (scaled, input if beta == 1 else scale(input, float(beta)))) if beta else scaled


@operator("aten.linalg_multi_dot")
def chained(tensors: Any) -> OpSemantics:
    """A chain of matrix products."""
    result = tensors[0]
    for other in tensors[1:]:
        result = contract(result, other, left, right)
    return result if isinstance(result, OpSemantics) else OpSemantics(Kind.MOVE, (result,))


def conv_layout(dimensions: int, groups: int = 1) -> Layout:
    """Layout of a convolution kernel (out, in / groups, *taps)."""
    return Layout(0, 1, tuple(range(2, 2 + dimensions)), groups, "out")


def conv_transpose_layout(dimensions: int, groups: int = 1) -> Layout:
    """Layout of a transposed convolution's kernel (in, out / groups, *taps)."""
    return Layout(1, 0, tuple(range(2, 2 + dimensions)), groups, "in")


def _convolution(dimensions: int) -> Any:
    def conv(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
             groups: int = 1) -> OpSemantics:  # fmt: skip
        """A convolution, kernel (out, in / groups, *taps)."""
        return contract(input, weight, None, conv_layout(dimensions, groups), bias)

    return conv


def _transposed_convolution(dimensions: int) -> Any:
    def conv_transpose(input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
                       output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> OpSemantics:  # fmt: skip
        """A transposed convolution, kernel (in, out / groups, *taps)."""
        layouts = None, conv_transpose_layout(dimensions, groups)
        steps = stride if isinstance(stride, (list, tuple)) else (stride,)
        tag = "upsample" if any(step > 1 for step in steps) else ""
        result = OpSemantics(Kind.CONTRACT, (input, weight), layouts=layouts, tag=tag)
        return result if bias is None else OpSemantics(Kind.SUM, (result, bias), tag="bias")

    return conv_transpose


for _dimensions in (1, 2, 3):
    operator(f"aten.conv{_dimensions}d")(_convolution(_dimensions))
operator("aten.conv_transpose1d")(_transposed_convolution(1))
operator("aten.conv_transpose2d")(_transposed_convolution(2))
operator("aten.conv_transpose3d")(_transposed_convolution(3))


@operator("aten.convolution", "aten._convolution")
def convolution(input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
                output_padding: Any, groups: int, *rest: Any) -> OpSemantics:  # fmt: skip
    """A convolution of any kind."""
    layout = conv_transpose_layout if transposed else conv_layout
    return contract(input, weight, None, layout(len(stride), groups), bias)


@operator("aten.bilinear")
def bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> OpSemantics:
    """y_o = x1 · W_o · x2 + b, weight (out, in1, in2)."""
    result = OpSemantics(Kind.CONTRACT, (OpSemantics(Kind.PRODUCT, (input1, input2)), weight), tag="bilinear")
    return result if bias is None else OpSemantics(Kind.SUM, (result, bias), tag="bias")


@operator("aten.cdist", "aten._cdist_forward", "aten.pairwise_distance", "aten.cosine_similarity")
def distance(a: Any, b: Any, *rest: Any, **options: Any) -> OpSemantics:
    """A distance between rows."""
    return gate(a, b)


@operator("aten.outer", "aten.ger")
def outer(a: Any, b: Any) -> OpSemantics:
    """A product in which every entry has one factor from each operand, as of a column and a row."""
    return product(a, b)


@operator("aten.kron", "aten.cross", "aten.linalg_cross")
def arranged_product(a: Any, b: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Products of entries of both operands in another arrangement, or differences of them."""
    return contract(a, b, None, None)


@operator("aten.embedding")
def embedding(weight: Any, indices: Any, padding_idx: Any = -1, scale_grad_by_freq: Any = False,
              sparse: Any = False) -> OpSemantics:  # fmt: skip
    """Rows of a table chosen by indices."""
    return OpSemantics(Kind.CONTRACT, (gate(indices), weight), tag="table")


@operator("aten.embedding_bag", "aten._embedding_bag")
def embedding_bag(weight: Any, indices: Any, offsets: Any, *rest: Any, **options: Any) -> OpSemantics:
    """Sums of rows of a table chosen by indices."""
    return OpSemantics(Kind.CONTRACT, (gate(indices, offsets), weight), tag="table")


@operator("aten.scaled_dot_product_attention")
def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **options: Any) -> OpSemantics:
    """Softmax(query · keyᵀ) · value: zero if the value is, whatever query and key are."""
    scores = OpSemantics(Kind.PRODUCT, (query, key))
    weights = OpSemantics(Kind.GATE, tensors(scores, attn_mask), tag="softmax")
    return OpSemantics(Kind.PRODUCT, (weights, value), tag="attention")


@operator("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu", "aten.lstm_cell", "aten.gru_cell",
          "aten.rnn_tanh_cell", "aten.rnn_relu_cell")  # fmt: skip
def recurrent(*values: Any, **options: Any) -> OpSemantics:
    """A recurrent layer, all steps at once."""
    return OpSemantics(Kind.RECURRENT, tensors(*values), tag="recurrent")


@operator("aten.fft_fft", "aten.fft_ifft", "aten.fft_rfft", "aten.fft_irfft", "aten.fft_fft2", "aten.fft_ifft2",
          "aten.fft_rfft2", "aten.fft_irfft2", "aten.fft_fftn", "aten.fft_ifftn", "aten.fft_rfftn",
          "aten.fft_irfftn", "aten.fft_hfft", "aten.fft_ihfft", "aten.stft", "aten.istft")  # fmt: skip
def fourier(x: Any, *rest: Any, **options: Any) -> OpSemantics:
    """A Fourier transform."""
    return OpSemantics(Kind.MIX, (x,))
