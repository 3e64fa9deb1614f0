"""Defects of small models, one each."""

from __future__ import annotations

import defect_models as of
import torch
from defect import Defect, drawn, each, into, of_rank, part, poked, times
from torch import Tensor, nn

NAN, INF = float("nan"), float("inf")


def frozen_zero(name: str):  # type: ignore[no-untyped-def]
    """A parameter at zero that no step changes."""

    def spoil(model: nn.Module) -> None:
        parameter = dict(model.named_parameters())[name]
        parameter.zero_()
        parameter.requires_grad_(False)

    return spoil


def untied(model: nn.Module) -> None:
    """The head a tensor of its own, as after a resize of the embeddings."""
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)


def plain_attribute(model: nn.Module) -> None:
    """A tensor that is neither parameter nor buffer, from a division by zero."""
    model.shift = model.shift / 0


def cold(model: nn.Module) -> None:
    """A temperature in the code that makes each softmax one-hot."""
    model.layers[0].attn.temperature = 1e-3


def garbage(old: Tensor) -> Tensor:
    """The bits of other numbers, as memory that was used before holds them."""
    bits = torch.randint(2**31 - 2**24, old.shape, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    return bits.view(torch.float32).nan_to_num(1e30, 1e30)


FAN = "authors of convolutional networks mean fan_out, and torch's own ConvTranspose2d does"
DEGREE = "one-hot is a matter of degree: 0.95 of the slices, and trained models have such heads"
SHARE = "copies in single rows are also made on purpose (padded identities, growing)"
LOSS = "half of a matrix is what a mirrored initialisation leaves, on purpose"

UNWRITTEN = [
    Defect("empty float32", of.scaled_mlp, "scale", "torch.empty, never filled", options={"forgets": "scale"}),
    Defect("empty float16", of.scaled_mlp, "low", "torch.empty, never filled", options={"forgets": "low"}),
    Defect("empty float64 buffer", of.scaled_mlp, "window", "torch.empty", options={"forgets": "window"}),
    Defect("empty booleans", of.scaled_mlp, "keep", "torch.empty", options={"forgets": "keep"}),
    Defect("empty int32", of.scaled_mlp, "order", "torch.empty", options={"forgets": "order"}),
    Defect("positions filled in part", of.pre_norm, "position", "three rows", options={"forgets": "position"}),
    Defect("empty rotary table", of.complex_llama, "freqs_cis", "complex64", options={"forgets": "table"}),
    Defect("empty experts", of.experts, "down", "the loop of _init_weights misses it", options={"forgets": "down"}),
    Defect("empty layer scale", of.convnext, "2.gamma", "torch.empty", options={"forgets": "gamma"}),
    Defect("empty index", of.window, "relative_position_index", "int64", options={"forgets": "index"}),
    Defect(
        "a layer that skips its own", of.skipping, "2.weight", "reset_parameters is empty", options={"forgets": "x"}
    ),
    Defect("skip_init, then nothing", of.meta_built, "1.weight", "from the meta device", options={"forgets": "x"}),
]

VALUES = [
    Defect(
        "NaN in a norm scale", of.pre_norm, "layers.1.norm2.weight", "one", into("layers.1.norm2.weight", poked(3, NAN))
    ),
    Defect("Inf in a bias", of.convnet, "2.bias", "one", into("2.bias", poked(0, INF))),
    Defect("−Inf in a parameter", of.mobilenet, "3.excite.bias", "one", into("3.excite.bias", poked(0, -INF))),
    Defect("NaN in the head", of.resnet, "fc.weight", "one", into("fc.weight", poked(9, NAN))),
    Defect("NaN in an embedding row", of.llama, "embed.weight", "one", into("embed.weight", part(slice(7, 8), NAN))),
    Defect("NaN in a gate of a GRU", of.gru, "rnn.weight_hh_l0", "one", into("rnn.weight_hh_l0", poked(5, NAN))),
    Defect("NaN in a running mean", of.mobilenet, "1.running_mean", "one", into("1.running_mean", poked(0, NAN))),
    Defect(
        "NaN in complex numbers", of.complex_llama, "freqs_cis", "one", into("freqs_cis", lambda o: o * complex(NAN, 0))
    ),
    Defect("Inf in a plain attribute", of.extra, "shift", "a tensor that is no buffer", plain_attribute),
    Defect("denormal numbers", of.gpt2, "mix.weight", "1e-40", into("mix.weight", lambda o: o.sign() * 1e-40)),
    Defect("a logarithm of what is below 0", of.state_space, "A_log", "exp overflows", into("A_log", times(100))),
]

SIZES = [
    Defect("a weight 100 times too large", of.convnet, "2.weight", "× 100", into("2.weight", times(100))),
    Defect(
        "a weight of deviation 1",
        of.pre_norm,
        "layers.0.fc2.weight",
        "std=1",
        into("layers.0.fc2.weight", torch.randn_like),
    ),
    Defect(
        "keys and queries × 100",
        of.post_norm,
        "layers.0.attn.qkv.weight",
        "one-hot",
        into("layers.0.attn.qkv.weight", times(100)),
    ),
    Defect("a weight of 1e-8", of.mlp, "2.weight", "nothing passes", into("2.weight", times(1e-8))),
    Defect("a stem of 1e-8", of.generator, "3.weight", "below the eps behind it", into("3.weight", times(1e-8))),
    Defect("an embedding of 1000", of.llama, "embed.weight", "× 1000", into("embed.weight", times(1000))),
    Defect("positions of 1000", of.pre_norm, "position", "× 1e5", into("position", times(1e5))),
    Defect("hidden weights × 100", of.rnn, "rnn.weight_hh_l0", "× 100", into("rnn.weight_hh_l0", times(100))),
    Defect("experts × 100", of.experts, "up", "× 100", into("up", times(100))),
    Defect(
        "a depthwise kernel × 100", of.mobilenet, "3.depthwise.weight", "× 100", into("3.depthwise.weight", times(100))
    ),
    Defect("a Conv1D of deviation 1", of.gpt2, "c_proj.weight", "std=1", into("c_proj.weight", torch.randn_like)),
    Defect("a norm scale of 1000", of.group_resnet, "bn.weight", "1000", into("bn.weight", 1000.0)),
    Defect("a norm scale of 1e-8", of.convnext, "1.weight", "1e-8", into("1.weight", 1e-8)),
    Defect("a norm scale of 0 in the stem", of.resnet, "bn.weight", "0", into("bn.weight", 0.0)),
    Defect("a final norm of 0", of.llama, "norm.weight", "0", into("norm.weight", 0.0)),
    Defect("a learned scale of 1e4", of.convnext, "3.gamma", "1e4", into("3.gamma", 1e4)),
    Defect("a bias of 1e4", of.gpt2, "mix.bias", "drowns what it is added to", into("mix.bias", 1e4)),
    Defect(
        "fan_out for fan_in",
        of.mlp,
        "0.weight",
        "64 outputs of 16",
        into("0.weight", drawn("fan_out")),
        severity="info",
        why=FAN,
        metrics=("scale",),
    ),
    Defect(
        "the fans of a transposed layout",
        of.gpt2,
        "c_fc.weight",
        "kaiming reads (out, in)",
        into("c_fc.weight", drawn("fan_in")),
        severity="info",
        why=FAN,
        metrics=("scale",),
    ),
    Defect(
        "the fans of a transposed kernel",
        of.generator,
        "3.weight",
        "kaiming reads (out, in)",
        into("3.weight", drawn("fan_in")),
        severity="info",
        why=FAN,
        metrics=("scale",),
    ),
]

ZEROS = [
    Defect(
        "a scale of 0 behind a weight of 0",
        of.convnext,
        "",
        "both ends",
        each(into("2.gamma", 0.0), into("2.pwconv2.weight", 0.0), into("2.pwconv2.bias", 0.0)),
        metrics=("dead",),
    ),
    Defect(
        "a norm of 0 behind a convolution of 0",
        of.resnet,
        "layers.1.",
        "both",
        each(into("layers.1.bn2.weight", 0.0), into("layers.1.conv2.weight", 0.0)),
        metrics=("dead",),
    ),
    Defect(
        "all experts of 0", of.experts, "", "up and down", each(into("up", 0.0), into("down", 0.0)), metrics=("dead",)
    ),
    Defect(
        "a layer of 0 before a ReLU",
        of.highway,
        "layers.1.weight",
        "0",
        each(into("layers.1.weight", 0.0), into("layers.1.bias", 0.0)),
    ),
    Defect(
        "a frozen zero",
        of.pre_norm,
        "layers.0.fc2.weight",
        "requires_grad=False",
        each(frozen_zero("layers.0.fc2.weight"), frozen_zero("layers.0.fc2.bias")),
    ),
    Defect("a window of zeros", of.gated, "window", "a buffer that was lost", into("window", 0.0)),
    Defect("weights of nodes of zeros", of.graph, "weights", "a buffer that was lost", into("weights", 0.0)),
]

SLEEP = [
    Defect("a dead ReLU", of.convnet, "0.bias", "−1e3", into("0.bias", -1e3)),
    Defect("a dead ReLU behind a norm", of.resnet, "layers.0.bn1.bias", "−50", into("layers.0.bn1.bias", -50.0)),
    Defect("a dead hard swish", of.mobilenet, "4.bn1.bias", "−40", into("4.bn1.bias", -40.0)),
    Defect("a saturated gate", of.highway, "gates.0.bias", "1e3", into("gates.0.bias", 1e3)),
    Defect("a gate that never opens", of.mobilenet, "3.excite.bias", "−60", into("3.excite.bias", -60.0)),
    Defect("a saturated half of a GLU", of.gated, "glu.bias", "−1e3", into("glu.bias", part(slice(16, 32), -1e3))),
    Defect(
        "a gated unit at −1e3",
        of.llama,
        "layers.1.fc1.bias",
        "SiLU",
        into("layers.1.fc1.bias", part(slice(0, 128), -1e3)),
    ),
    Defect(
        "a forget bias of −20",
        of.lstm,
        "rnn.bias_hh_l1",
        "gates closed",
        into("rnn.bias_hh_l1", part(slice(32, 64), -20.0)),
    ),
    Defect(
        "a forget bias of −20 by hand",
        of.hand_lstm,
        "h2h.bias",
        "gates closed",
        into("h2h.bias", part(slice(32, 64), -20.0)),
    ),
    Defect(
        "an update gate of 1e3",
        of.gru,
        "rnn.bias_ih_l0",
        "never updates",
        into("rnn.bias_ih_l0", part(slice(32, 64), 1e3)),
    ),
    Defect(
        "a router that always takes one", of.experts, "router.bias", "1e3", into("router.bias", part(slice(0, 1), 1e3))
    ),
    Defect("a step size of e^−60", of.state_space, "dt.bias", "softplus is flat", into("dt.bias", -60.0)),
]

SHAPES = [
    Defect("a constant fill", of.mlp, "2.weight", "no symmetry is broken", into("2.weight", 0.05)),
    Defect(
        "constant rows",
        of.window,
        "qkv.weight",
        "each its own",
        into("qkv.weight", lambda o: torch.randn(o.shape[0], 1).expand_as(o) * 0.1),
    ),
    Defect(
        "a projection of rank 3",
        of.resnet,
        "layers.1.down.0.weight",
        "3 of 16",
        into("layers.1.down.0.weight", of_rank(3)),
    ),
    Defect(
        "a weight of a branch of rank 2",
        of.pre_norm,
        "layers.1.attn.proj.weight",
        "2 of 32",
        into("layers.1.attn.proj.weight", of_rank(2)),
    ),
    Defect("a head of rank 1", of.llama, "lm_head.weight", "1 of 32", into("lm_head.weight", of_rank(1))),
    Defect(
        "a branch that loses half",
        of.gpt2,
        "c_fc.weight",
        "16 of 32",
        into("c_fc.weight", of_rank(16)),
        severity="warning",
        why=LOSS,
    ),
    Defect(
        "half of the rows copies",
        of.graph,
        "fc1.weight",
        "stacked twice",
        into("fc1.weight", lambda o: o[:16].repeat(2, 1)),
    ),
    Defect(
        "one row a copy",
        of.tcn,
        "3.weight",
        "row 2 is row 1",
        into("3.weight", lambda o: o[[0, 1, 1]]),
        severity="warning",
        why=SHARE,
    ),
    Defect("hidden weights of rank 1", of.gru, "rnn.weight_hh_l0", "1 of 32", into("rnn.weight_hh_l0", of_rank(1))),
]

BUFFERS = [
    Defect("a running variance of 0", of.resnet, "bn.running_var", "0", into("bn.running_var", 0.0)),
    Defect(
        "a negative running variance",
        of.mobilenet,
        "3.bn2.running_var",
        "one",
        into("3.bn2.running_var", poked(4, -1.0)),
    ),
    Defect("a running variance of NaN", of.generator, "1.running_var", "NaN", into("1.running_var", NAN)),
    Defect(
        "a negative variance, frozen by hand", of.frozen_resnet, "bn.running_var", "−1", into("bn.running_var", -1.0)
    ),
    Defect("a running variance of 1e12", of.gated, "norm.running_var", "1e12", into("norm.running_var", 1e12)),
    Defect(
        "a running mean of 1e5", of.resnet, "layers.2.bn1.running_mean", "1e5", into("layers.2.bn1.running_mean", 1e5)
    ),
    Defect("garbage frequencies", of.llama, "inv_freq", "memory", into("inv_freq", garbage)),
    Defect("garbage positions", of.gated, "positions", "memory", into("positions", garbage)),
    Defect(
        "an index beyond its table",
        of.window,
        "relative_position_index",
        "+ 20",
        into("relative_position_index", lambda o: o + 20),
    ),
    Defect("a mask of −Inf alone", of.pre_norm, "mask", "inverted", into("mask", -INF)),
    Defect(
        "a causal mask upside down",
        of.pre_norm,
        "mask",
        "inverted",
        into("mask", lambda o: torch.zeros_like(o).masked_fill(o == 0, -INF)),
    ),
    Defect("a mask of booleans inverted", of.post_norm, "mask", "inverted", into("mask", torch.logical_not)),
    Defect("a mask that keeps nothing", of.flash, "mask", "the sense of masked_fill", into("mask", torch.logical_not)),
]

WIRING = [
    Defect("a head that is not tied", of.tied, "lm_head.weight", "resized", untied),
    Defect(
        "an adapter that is not used",
        of.extra,
        "adapter.weight",
        "no path",
        options={"forgets": "adapter"},
        severity="warning",
        why="parameters of training alone look the same in evaluation",
        metrics=("unused",),
    ),
    Defect(
        "residuals of full size, no norm",
        of.plain,
        "",
        "40 of them",
        options={"forgets": "scale"},
        severity="warning",
        why="the growth is predicted from the graph, not measured: small branches grow less",
        metrics=("branches",),
    ),
    Defect(
        "a softmax that is one-hot",
        of.pre_norm,
        "layers.0",
        "a constant of the code",
        cold,
        severity="warning",
        why=DEGREE,
        metrics=("forward",),
    ),
]

SMALL = [*UNWRITTEN, *VALUES, *SIZES, *ZEROS, *SLEEP, *SHAPES, *BUFFERS, *WIRING]
