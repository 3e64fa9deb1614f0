"""Small transformers: a vision transformer, a GPT and a BERT-like encoder with a norm after each sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.models import Task, draw_, model, needs


class _Attention(nn.Module):
    """Multi-head attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(n, t, c))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each with a shortcut; LayerNorm before them, or after the sums (`post`)."""

    def __init__(self, width: int, heads: int, expansion: int, causal: bool = False, post: bool = False) -> None:
        super().__init__()
        self.post = post
        self.norm1, self.attn = nn.LayerNorm(width), _Attention(width, heads, causal)
        self.norm2, self.mlp = nn.LayerNorm(width), _Mlp(width, expansion)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm1(x + self.attn(x))
            x = self.norm2(x + self.mlp(x))
        else:
            x = x + self.attn(self.norm1(x))
            x = x + self.mlp(self.norm2(x))
        return x


class _Vit(nn.Module):
    def __init__(
        self, task: Task, depth: int, width: int, heads: int, patch: int, expansion: int, position: float
    ) -> None:
        super().__init__()
        channels, height, breadth = task.shape
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(torch.empty(1, (height // patch) * (breadth // patch), width))
        self.blocks = nn.ModuleList(Block(width, heads, expansion) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, task.classes)
        draw_(self, 0.02)
        nn.init.trunc_normal_(self.position, std=position)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


@model("vit")
def vit(
    task: Task,
    *,
    depth: int = 4,
    width: int = 64,
    heads: int = 4,
    patch: int = 2,
    expansion: int = 4,
    position: float = 0.02,
) -> nn.Module:
    """A vision transformer with a norm before each branch, and the mean of its tokens instead of a class token.

    Linear weights are drawn with standard deviation 0.02, as in timm, and positions with `position`; the patch
    embedding is PyTorch's.
    """
    needs(task, "vit", "images")
    return _Vit(task, depth, width, heads, patch, expansion, position)


class _Language(nn.Module):
    """Token and position embeddings, blocks, and a head on every position."""

    def __init__(self, task: Task, depth: int, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(task.vocabulary, width)
        self.positions = nn.Embedding(task.shape[0], width)
        self.blocks = nn.ModuleList(Block(width, heads, 4, causal, post=not causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width)  # after the blocks in a GPT, after the embeddings in a BERT
        self.causal = causal
        self.head = nn.Linear(width, task.classes)
        draw_(self, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        if not self.causal:
            y = self.norm(y)
        for block in self.blocks:
            y = block(y)
        out: Tensor = self.head(self.norm(y) if self.causal else y)
        return out


@model("gpt")
def gpt(task: Task, *, depth: int = 4, width: int = 64, heads: int = 4) -> nn.Module:
    """A small GPT: causal attention, a norm before each branch.

    Weights are drawn with standard deviation 0.02, those at the ends of branches divided by √(2·depth) (Radford et al.,
    2019).
    """
    needs(task, "gpt", "language")
    net = _Language(task, depth, width, heads, causal=True)
    with torch.no_grad():
        for block in net.blocks:
            assert isinstance(block, Block)
            for end in (block.attn.proj, block.mlp.fc2):
                end.weight.div_(math.sqrt(2 * depth))
    return net


@model("bert")
def bert(task: Task, *, depth: int = 4, width: int = 64, heads: int = 4) -> nn.Module:
    """A BERT-like encoder: a norm after each sum; weights drawn with standard deviation 0.02."""
    needs(task, "bert", "masked")
    return _Language(task, depth, width, heads, causal=False)
