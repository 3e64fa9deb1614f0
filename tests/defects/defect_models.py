"""Small healthy models of many kinds, each with example inputs; some forget an initialisation if they are told to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
VOCABULARY, LENGTH, WIDTH = 50, 12, 32


def noise(*shape: int) -> Tensor:
    """Fixed noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def ids() -> Tensor:
    """Fixed token ids."""
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def mlp(width: int = WIDTH) -> Made:
    """Three linear layers without a normalisation."""
    layers = nn.Sequential(
        nn.Linear(16, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.Tanh(), nn.Linear(width, 5)
    )
    return layers, (noise(4, 16),), {}


class ScaledMLP(nn.Module):
    """A learned scale, a learned mask and a shift that their author allocates with torch.empty."""

    def __init__(self, forgets: str = "") -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 5)
        self.scale = nn.Parameter(torch.empty(WIDTH))
        self.low = nn.Parameter(torch.empty(WIDTH, dtype=torch.float16))
        self.register_buffer("window", torch.empty(WIDTH, dtype=torch.float64))
        self.register_buffer("keep", torch.empty(WIDTH, dtype=torch.bool), persistent=False)
        self.register_buffer("order", torch.empty(WIDTH, dtype=torch.int32))
        for name, make in (("scale", torch.ones_like), ("low", torch.ones_like), ("window", torch.ones_like)):
            if name != forgets:
                getattr(self, name).data.copy_(make(getattr(self, name)))
        if forgets != "keep":
            self.keep.fill_(True)
        if forgets != "order":
            self.order.copy_(torch.arange(WIDTH).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)[:, self.order.clamp(0, WIDTH - 1).long()] * self.scale * self.low.float()
        return self.fc2(torch.where(self.keep, x, 0.0).relu() * self.window.float())


def scaled_mlp(forgets: str = "") -> Made:
    """`ScaledMLP`."""
    return ScaledMLP(forgets), (noise(4, 16),), {}


def convnet() -> Made:
    """Convolutions, ReLU and pooling, no normalisation."""
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return layers, (noise(2, 3, 16, 16),), {}


class BasicBlock(nn.Module):
    """conv, norm, relu, conv, norm; with a projection where the width changes, before the sum or after norms."""

    def __init__(self, inputs: int, outputs: int, norm: Any = nn.BatchNorm2d, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False, groups=groups), norm(outputs)
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))
        self.down = self.down if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.down(x) + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """A stem, three blocks, a head."""

    def __init__(self, norm: Any = nn.BatchNorm2d, groups: int = 1) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16)
        self.layers = nn.Sequential(*(BasicBlock(n, m, norm, groups) for n, m in ((16, 16), (16, 32), (32, 32))))
        self.fc = nn.Linear(32, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(torch.relu(self.bn(self.stem(x)))).mean((2, 3)))


def resnet() -> Made:
    """Batch normalisation."""
    return ResNet(), (noise(2, 3, 12, 12),), {}


def group_resnet() -> Made:
    """Group normalisation and grouped convolutions."""
    return ResNet(lambda width: nn.GroupNorm(4, width), groups=4), (noise(2, 3, 12, 12),), {}


class FrozenNorm(nn.Module):
    """Batch normalisation by buffers alone, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt())[:, None, None]
        return x * scale + (self.bias[:, None, None] - self.running_mean[:, None, None] * scale)


def frozen_resnet() -> Made:
    """Frozen normalisation, as detectors have it."""
    return ResNet(FrozenNorm), (noise(2, 3, 12, 12),), {}


class Attention(nn.Module):
    """One fused projection, a mask of whatever kind."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.temperature = 1.0

    def forward(self, x: Tensor, mask: Tensor | None = None, rotate: Any = None) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = (q, k) if rotate is None else (rotate(q), rotate(k))
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads) / self.temperature
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9) if mask.dtype == torch.bool else scores + mask
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Layer(nn.Module):
    """A transformer block, the norm before the branch or behind the sum."""

    def __init__(self, width: int, pre: bool = True, gated: bool = False) -> None:
        super().__init__()
        norm = nn.RMSNorm if gated else nn.LayerNorm
        self.norm1, self.norm2, self.attn, self.pre = norm(width), norm(width), Attention(width), pre
        self.fc1, self.fc2 = nn.Linear(width, (8 if gated else 4) * width), nn.Linear(4 * width, width)
        self.gated = gated

    def mlp(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.fc2(functional.gelu(self.fc1(x)))
        gate, up = self.fc1(x).chunk(2, -1)
        return self.fc2(functional.silu(gate) * up)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotate: Any = None) -> Tensor:
        if self.pre:
            x = x + self.attn(self.norm1(x), mask, rotate)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attn(x, mask, rotate))
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    """A small language model with learned positions and a causal mask in a buffer."""

    def __init__(self, pre: bool = True, boolean: bool = False, forgets: str = "") -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.layers = nn.ModuleList(Layer(WIDTH, pre) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        upper = torch.ones(LENGTH, LENGTH).triu(1).bool()
        mask = upper if boolean else torch.zeros(LENGTH, LENGTH).masked_fill(upper, -torch.inf)
        self.register_buffer("mask", mask, persistent=False)
        nn.init.normal_(self.position[:3] if forgets == "position" else self.position, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, self.mask[: tokens.shape[1], : tokens.shape[1]])
        return self.head(self.norm(x))


def pre_norm(forgets: str = "") -> Made:
    """A mask of 0 and −Inf that is added."""
    return Transformer(forgets=forgets), (ids(),), {}


def post_norm() -> Made:
    """A mask of booleans that is filled in."""
    return Transformer(pre=False, boolean=True), (ids(),), {}


class Flash(Transformer):
    """Attention by scaled_dot_product_attention with a mask of booleans that keep."""

    def __init__(self) -> None:
        super().__init__(boolean=True)
        self.mask.logical_not_()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        key, value = self.kv(x).chunk(2, -1)
        x = x + functional.scaled_dot_product_attention(self.q(x), key, value, self.mask)
        return self.head(self.norm(super_free(self.layers, x)))


def super_free(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """The layers without a mask."""
    for layer in layers:
        x = layer(x)
    return x


def flash() -> Made:
    """`Flash`."""
    return Flash(), (ids(),), {}


class Llama(nn.Module):
    """RMS norms, gated units, rotary positions: from a table of frequencies, or a table of complex numbers."""

    def __init__(self, complex_table: bool = False, forgets: str = "") -> None:
        super().__init__()
        half = WIDTH // 4 // 2
        self.embed, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.RMSNorm(WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, gated=True) for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        frequencies = 10000.0 ** (-torch.arange(half).float() / half)
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("freqs_cis", None)
        if complex_table:
            angles = torch.outer(torch.arange(LENGTH).float(), frequencies)
            table = torch.empty(LENGTH, half, dtype=torch.complex64)
            self.freqs_cis = table if forgets else table.copy_(torch.polar(torch.ones_like(angles), angles))

    def rotate(self, x: Tensor) -> Tensor:
        if self.freqs_cis is not None:
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * self.freqs_cis).flatten(-2)
        angles = torch.outer(torch.arange(x.shape[-2], device=x.device).float(), self.inv_freq)
        cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
        one, other = x.chunk(2, -1)
        return x * cos + torch.cat((-other, one), -1) * sin

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, None, self.rotate)
        return self.lm_head(self.norm(x))


def llama() -> Made:
    """Rotary frequencies."""
    return Llama(), (ids(),), {}


def complex_llama(forgets: str = "") -> Made:
    """Rotary tables of complex numbers."""
    return Llama(True, forgets), (ids(),), {}


class Tied(nn.Module):
    """A language model that says, as models of transformers do, that its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.block, self.norm = nn.Embedding(VOCABULARY, WIDTH), Layer(WIDTH), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.wte.weight, std=0.02)
        self.lm_head.weight = self.wte.weight
        self.all_tied_weights_keys = {"lm_head.weight": "wte.weight"}

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.norm(self.block(self.wte(tokens))))


def tied() -> Made:
    """`Tied`."""
    return Tied(), (ids(),), {}


class Conv1D(nn.Module):
    """A linear layer whose weight lies transposed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.02), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class GPT2(nn.Module):
    """Conv1D layers in a pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.ln, self.ln_f = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_fc, self.c_proj = Conv1D(WIDTH, 4 * WIDTH), Conv1D(4 * WIDTH, WIDTH)
        self.mix, self.head = Conv1D(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens)
        x = x + self.c_proj(functional.gelu(self.c_fc(self.ln(x))))
        return self.head(self.ln_f(self.mix(x)))


def gpt2() -> Made:
    """`GPT2`."""
    return GPT2(), (ids(),), {}


class Recurrent(nn.Module):
    """An embedding, a recurrent layer of torch, a head."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(VOCABULARY, 16), kind(16, WIDTH, batch_first=True, **options)
        self.head = nn.Linear(WIDTH * (2 if self.rnn.bidirectional else 1), 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


def lstm() -> Made:
    """Two layers, both directions."""
    return Recurrent(nn.LSTM, num_layers=2, bidirectional=True), (ids(),), {}


def gru() -> Made:
    """One layer."""
    return Recurrent(nn.GRU), (ids(),), {}


def rnn() -> Made:
    """One layer of tanh."""
    return Recurrent(nn.RNN), (ids(),), {}


class LSTMByHand(nn.Module):
    """A cell of two linear layers, four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h, self.h2h, self.head = nn.Linear(16, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.tanh(x[:, 0].mean(1, keepdim=True)).expand(-1, WIDTH)
        for step in range(x.shape[1]):
            i, f, g, o = (self.x2h(x[:, step]) + self.h2h(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


def hand_lstm() -> Made:
    """`LSTMByHand`."""
    return LSTMByHand(), (noise(2, 4, 16),), {}


class Experts(nn.Module):
    """A router and experts whose weights are two tensors of three axes."""

    def __init__(self, forgets: str = "", count: int = 4) -> None:
        super().__init__()
        self.embed, self.norm, self.router = nn.Linear(16, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, count)
        self.up = nn.Parameter(torch.empty(count, WIDTH, 2 * WIDTH))
        self.down = nn.Parameter(torch.empty(count, 2 * WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 5)
        for name in ("up", "down"):
            if name != forgets:
                nn.init.normal_(getattr(self, name), std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        weights = self.router(y).softmax(-1)
        hidden = functional.silu(torch.einsum("bd,edh->ebh", y, self.up))
        return self.head(x + torch.einsum("be,ebd->bd", weights, torch.einsum("ebh,ehd->ebd", hidden, self.down)))


def experts(forgets: str = "") -> Made:
    """`Experts`."""
    return Experts(forgets), (noise(4, 16),), {}


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze and excite, projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.expand, self.bn1 = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(hidden), nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(hidden, width, 1), nn.Conv2d(width, hidden, 1)
        self.project = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.bn1(self.expand(x)))
        y = functional.hardswish(self.bn2(self.depthwise(y)))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.bn3(self.project(y))


def mobilenet() -> Made:
    """A stem, two inverted residuals, a head."""
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), InvertedResidual(16), InvertedResidual(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return layers, (noise(2, 3, 12, 12),), {}


def generator() -> Made:
    """Transposed convolutions to a picture."""
    layers = nn.Sequential(
        nn.ConvTranspose2d(16, 32, 4), nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 8, 4, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
    return layers, (noise(2, 16, 1, 1),), {}


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two linear layers, a learned scale."""

    def __init__(self, width: int, forgets: bool = False) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.empty(width) if forgets else torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(functional.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


def convnext(forgets: str = "") -> Made:
    """A patch stem and two blocks."""
    blocks = (ConvNeXtBlock(16, bool(forgets)), ConvNeXtBlock(16))
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(1, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    return layers, (noise(2, 3, 16, 16),), {}


class TemporalBlock(nn.Module):
    """Two dilated convolutions with weight normalisation."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        make = lambda: nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)  # noqa: E731
        self.conv1, self.conv2 = parametrizations.weight_norm(make()), parametrizations.weight_norm(make())

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + torch.relu(self.conv2(torch.relu(self.conv1(x)))))


def tcn() -> Made:
    """A stem, two blocks, a head."""
    layers = nn.Sequential(nn.Conv1d(4, 16, 1), TemporalBlock(16, 1), TemporalBlock(16, 2), nn.Conv1d(16, 3, 1))
    return layers, (noise(2, 4, 20),), {}


class StandardConv(nn.Conv2d):
    """A convolution whose weight is standardised, times a gain."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        var = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        weight = self.gain * (self.weight - mean) / (var * self.weight[0].numel() + 1e-4).sqrt()
        return functional.conv2d(x, weight, self.bias, padding=1)


class NFNet(nn.Module):
    """Residual blocks without a normalisation of the signal, with a skip scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = StandardConv(3, 16), nn.Linear(16, 5)
        self.first = nn.ModuleList(StandardConv(16, 16) for _ in range(3))
        self.second = nn.ModuleList(StandardConv(16, 16) for _ in range(3))
        self.skip = nn.ParameterList(torch.zeros(()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second, skip in zip(self.first, self.second, self.skip, strict=True):
            x = x + 0.2 * skip * second(functional.gelu(first(functional.gelu(x))))
        return self.head(x.mean((2, 3)))


def nfnet() -> Made:
    """`NFNet`."""
    return NFNet(), (noise(2, 3, 8, 8),), {}


class Plain(nn.Module):
    """Residual blocks without a normalisation, each scaled by 1/√depth unless it is not."""

    def __init__(self, scaled: bool = True, depth: int = 40) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 5)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.scales = nn.Parameter(torch.full((depth,), 0.0 if scaled else 1.0))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + scale * layer(x.relu())
        return self.head(x)


def plain(forgets: str = "") -> Made:
    """Forty blocks without a normalisation."""
    return Plain(not forgets), (noise(2, 16),), {}


class Window(nn.Module):
    """Attention with a relative position bias that is looked up."""

    def __init__(self, forgets: str = "", side: int = 3) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.stem, self.head, self.side = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 5), side
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, 4))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        apart = places[:, None] - places[None] + side - 1
        index = torch.empty(side**2, side**2, dtype=torch.long)
        if not forgets:
            index.copy_(apart[..., 0] * (2 * side - 1) + apart[..., 1])
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = q @ k.transpose(-1, -2) * (d // 4) ** -0.5 + bias.view(n, n, 4).permute(2, 0, 1)
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))
        return self.head(x.mean(1))


def window(forgets: str = "") -> Made:
    """`Window`."""
    return Window(forgets), (noise(2, 9, 16),), {}


class Highway(nn.Module):
    """Gates that choose between a layer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 5)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = t * layer(x).relu() + (1 - t) * x
        return self.head(x)


def highway() -> Made:
    """`Highway`."""
    return Highway(), (noise(2, 16),), {}


class Gated(nn.Module):
    """Gated linear units along a sequence, a fixed window and a table of positions in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv1d(4, 16, 3, padding=1), nn.BatchNorm1d(16), nn.Linear(16, 5)
        self.glu = nn.Conv1d(16, 32, 3, padding=1)
        angles = torch.outer(10000.0 ** (-torch.arange(16) / 16), torch.arange(20).float())
        self.register_buffer("positions", angles.sin())
        self.register_buffer("window", torch.hann_window(20, periodic=False) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)) + self.positions
        return self.head((x + functional.glu(self.glu(x), 1) * self.window).mean(2))


def gated() -> Made:
    """`Gated`."""
    return Gated(), (noise(2, 4, 20),), {}


class Graph(nn.Module):
    """Two graph convolutions over a fixed adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 5)
        near = (torch.arange(7)[:, None] - torch.arange(7)[None]).abs() <= 1
        self.register_buffer("adjacency", near / near.sum(1, keepdim=True))
        self.register_buffer("weights", torch.linspace(0.5, 1.5, 7)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.adjacency @ (self.adjacency @ self.fc1(x) * self.weights).relu())


def graph() -> Made:
    """`Graph`."""
    return Graph(), (noise(7, 16),), {}


class StateSpace(nn.Module):
    """A diagonal recurrence whose decay is −exp(A_log), as Mamba's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.in_proj, self.out_proj = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(32, 16)
        self.A_log = nn.Parameter(torch.log(torch.linspace(1, 8, 32)))
        self.dt = nn.Linear(32, 32)
        nn.init.constant_(self.dt.bias, math.log(math.expm1(0.01)))
        self.D, self.head = nn.Parameter(torch.ones(32)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(self.norm(x)).chunk(2, -1)
        step = functional.softplus(self.dt(u))
        state = torch.zeros_like(u[:, 0])
        outputs = []
        for place in range(x.shape[1]):
            state = state * torch.exp(-step[:, place] * self.A_log.exp()) + step[:, place] * u[:, place]
            outputs.append(state + self.D * u[:, place])
        return self.head(x + self.out_proj(torch.stack(outputs, 1) * functional.silu(z)))


def state_space() -> Made:
    """`StateSpace`."""
    return StateSpace(), (noise(2, 5, 16),), {}


class Extra(nn.Module):
    """Parts that the forward uses, or forgets to."""

    def __init__(self, forgets: str = "") -> None:
        super().__init__()
        self.fc1, self.fc2, self.adapter = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 5), nn.Linear(WIDTH, WIDTH)
        self.forgets = forgets
        self.shift = torch.zeros(WIDTH)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).relu() + self.shift
        return self.fc2(x if self.forgets else x + self.adapter(x))


def extra(forgets: str = "") -> Made:
    """`Extra`."""
    return Extra(forgets), (noise(4, 16),), {}


class Skipping(nn.Linear):
    """A layer whose author turned its initialisation off, to save time, and never called another."""

    def reset_parameters(self) -> None:
        return None


def skipping(forgets: str = "") -> Made:
    """A layer inside of two."""
    middle = Skipping(WIDTH, WIDTH)
    if not forgets:
        nn.Linear.reset_parameters(middle)
    return nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), middle, nn.ReLU(), nn.Linear(WIDTH, 5)), (noise(2, 16),), {}


def meta_built(forgets: str = "") -> Made:
    """A normalisation that torch.nn.utils.skip_init made, and that its author fills, or not."""
    norm = nn.utils.skip_init(nn.LayerNorm, WIDTH)
    if not forgets:
        norm.reset_parameters()
    return nn.Sequential(nn.Linear(16, WIDTH), norm, nn.ReLU(), nn.Linear(WIDTH, 5)), (noise(2, 16),), {}
