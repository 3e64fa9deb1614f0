"""Defects of models of timm, torchvision and transformers, one each."""

from __future__ import annotations

import functools
from typing import Any

import torch
from defect import Defect, Made, each, into, of_rank, part, poked, times
from torch import Tensor, nn

from idfx.building.build import build


def model(spec: str, **options: Any) -> Any:
    """What builds a model of a library, with the example inputs that idfx has for it."""

    def make() -> Made:
        built = build(spec, arguments=options, device="cpu")
        built.pending.materialize(built.model)
        assert built.example is not None
        return built.model, built.example.args, dict(built.example.kwargs)

    make.__name__ = spec
    return make


tiny = functools.partial(model, tiny=True)


def emptied(name: str) -> Any:
    """A tensor in place of one that the library fills, as where `_init_weights` misses a module."""

    def spoil(built: nn.Module) -> None:
        path, _, last = name.rpartition(".")
        module = built.get_submodule(path)
        old = getattr(module, last)
        new = torch.empty_like(old)
        setattr(module, last, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    return spoil


def untied(built: Any) -> None:
    """The head a tensor of its own."""
    built.lm_head.weight = nn.Parameter(built.lm_head.weight.detach().clone())


def gpt2_lm() -> Made:
    """A tiny GPT-2 with its head."""
    transformers = __import__("transformers")
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config), (), {"input_ids": torch.arange(1, 9)[None]}


def shuffled(old: Tensor) -> Tensor:
    """Indices beyond the table."""
    return old + 10_000


VIT = "timm:vit_tiny_patch16_224"
REAL = [
    Defect(
        "timm resnet: NaN",
        model("timm:resnet18"),
        "layer1.0.conv1.weight",
        "one",
        into("layer1.0.conv1.weight", poked(7, float("nan"))),
    ),
    Defect(
        "timm resnet: zero behind zero",
        model("timm:resnet18"),
        "layer2.1.",
        "zero_init_last, and the convolution",
        each(into("layer2.1.bn2.weight", 0.0), into("layer2.1.conv2.weight", 0.0)),
        metrics=("dead",),
    ),
    Defect("timm vit: class token", model(VIT), "cls_token", "torch.empty", emptied("cls_token")),
    Defect(
        "timm vit: std=1",
        model(VIT),
        "blocks.2.attn.qkv.weight",
        "std",
        into("blocks.2.attn.qkv.weight", torch.randn_like),
    ),
    Defect(
        "timm convnext: layer scale",
        model("timm:convnext_atto"),
        "stages.1.blocks.0.",
        "LayerScale and fc2",
        each(
            into("stages.1.blocks.0.gamma", 0.0),
            into("stages.1.blocks.0.mlp.fc2.weight", 0.0),
            into("stages.1.blocks.0.mlp.fc2.bias", 0.0),
        ),
        metrics=("dead",),
    ),
    Defect(
        "timm swin: index",
        model("timm:swin_tiny_patch4_window7_224"),
        "layers.0.blocks.0.attn.relative_position_index",
        "of another window",
        into("layers.0.blocks.0.attn.relative_position_index", shuffled),
    ),
    Defect(
        "timm mobilenet: excite",
        model("timm:mobilenetv3_small_100"),
        "blocks.1.0.bn1.bias",
        "−1e3",
        into("blocks.1.0.bn1.bias", -1e3),
    ),
    Defect(
        "timm efficientnet: variance",
        model("timm:efficientnet_b0"),
        "bn1.running_var",
        "negative",
        into("bn1.running_var", -0.5),
    ),
    Defect(
        "torchvision resnet: variance 0",
        model("torchvision:resnet18"),
        "layer3.0.bn1.running_var",
        "0",
        into("layer3.0.bn1.running_var", 0.0),
    ),
    Defect(
        "torchvision mobilenet: constant",
        model("torchvision:mobilenet_v3_small"),
        "features.4.block.0.0.weight",
        "0.1",
        into("features.4.block.0.0.weight", 0.1),
    ),
    Defect(
        "torchvision vit: rank",
        model("torchvision:vit_b_32"),
        "conv_proj.weight",
        "8 of 768",
        into("conv_proj.weight", of_rank(8)),
    ),
    Defect("gpt2: untied", gpt2_lm, "lm_head.weight", "resized", untied),
    Defect(
        "llama: frequencies",
        tiny("transformers:llama"),
        "rotary_emb.inv_freq",
        "memory",
        into("rotary_emb.inv_freq", 1e20),
    ),
    Defect(
        "bert: embedding",
        tiny("transformers:bert"),
        "embeddings.word_embeddings.weight",
        "× 1e5",
        into("embeddings.word_embeddings.weight", times(1e5)),
    ),
    Defect(
        "bert: norm of 0",
        tiny("transformers:bert"),
        "embeddings.LayerNorm.weight",
        "zeros under sharding",
        into("embeddings.LayerNorm.weight", 0.0),
    ),
    Defect(
        "mixtral: experts",
        tiny("transformers:mixtral"),
        "layers.0.mlp.experts.down_proj",
        "torch.empty",
        emptied("layers.0.mlp.experts.down_proj"),
    ),
    Defect(
        "t5: copies",
        tiny("transformers:t5"),
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "half",
        into("encoder.block.0.layer.0.SelfAttention.q.weight", lambda o: o[: len(o) // 2].repeat(2, 1)),
    ),
    Defect(
        "mamba: log",
        tiny("transformers:mamba"),
        "layers.0.mixer.A_log",
        "exp overflows",
        into("layers.0.mixer.A_log", 1e3),
    ),
    Defect(
        "whisper: Inf",
        tiny("transformers:whisper"),
        "encoder.conv1.bias",
        "one",
        into("encoder.conv1.bias", part(slice(0, 1), float("inf"))),
    ),
]
