"""Small models of architecture families that no library here carries, one factory each: `tests/zoo/small.py:unet`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

FACTORIES: dict[str, Callable[[], nn.Module]] = {}


def factory(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Register a factory under its name."""
    FACTORIES[make.__name__] = make
    return make


def shown(model: nn.Module, *inputs: Any) -> nn.Module:
    """Give a model its example inputs."""
    model.example_inputs = inputs  # type: ignore[assignment]
    return model


def noise(*shape: int) -> Tensor:
    """Fixed noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens(count: int, batch: int = 2, length: int = 6) -> Tensor:
    """Fixed token ids."""
    return torch.randint(count, (batch, length), generator=torch.Generator().manual_seed(0))


# Diffusion


def timestep_embedding(steps: Tensor, width: int) -> Tensor:
    """Sines and cosines of the step."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=steps.device) / (width // 2))
    angles = steps[:, None].float() * frequencies[None]
    return torch.cat((angles.sin(), angles.cos()), -1)


class ResnetBlock2D(nn.Module):
    """norm, act, conv, plus the time, norm, act, conv; a 1 x 1 shortcut where the widths differ."""

    def __init__(self, inputs: int, outputs: int, temb: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(functional.silu(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(functional.silu(self.norm2(hidden))))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + hidden) / 1.0


class CrossAttention(nn.Module):
    """Multi-head attention to itself or to a context."""

    def __init__(self, width: int, context: int | None = None, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Half of a projection, gated by the gelu of the other half."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * functional.gelu(gate)


class SpatialTransformer(nn.Module):
    """Self-attention, cross-attention and a gated MLP over the pixels."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norm1, self.attn1 = nn.LayerNorm(width), CrossAttention(width)
        self.norm2, self.attn2 = nn.LayerNorm(width), CrossAttention(width, context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = nn.Sequential(GEGLU(width, 2 * width), nn.Dropout(0.0), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        residual = x
        y = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * breadth, width)
        y = self.attn1(self.norm1(y)) + y
        y = self.attn2(self.norm2(y), context) + y
        y = self.ff(self.norm3(y)) + y
        y = y.reshape(batch, height, breadth, width).permute(0, 3, 1, 2).contiguous()
        return self.proj_out(y) + residual


class UNet2DCondition(nn.Module):
    """Down, middle and up with concatenated skips, a timestep and a context."""

    def __init__(self, width: int = 8, context: int = 12) -> None:
        super().__init__()
        temb = 4 * width
        self.width = width
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.time_embedding = nn.Sequential(nn.Linear(width, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.down_res = nn.ModuleList([ResnetBlock2D(width, width, temb), ResnetBlock2D(width, 2 * width, temb)])
        self.down_attn = nn.ModuleList([SpatialTransformer(width, context), SpatialTransformer(2 * width, context)])
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.mid1, self.mid2 = (ResnetBlock2D(2 * width, 2 * width, temb) for _ in range(2))
        self.mid_attn = SpatialTransformer(2 * width, context)
        self.up_res = nn.ModuleList([ResnetBlock2D(4 * width, 2 * width, temb), ResnetBlock2D(3 * width, width, temb)])
        self.up_attn = nn.ModuleList([SpatialTransformer(2 * width, context), SpatialTransformer(width, context)])
        self.upsample = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.norm_out, self.conv_out = nn.GroupNorm(4, width), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        temb = self.time_embedding(timestep_embedding(timestep, self.width))
        context = encoder_hidden_states
        x = self.conv_in(sample)
        first = self.down_attn[0](self.down_res[0](x, temb), context)
        second = self.down_attn[1](self.down_res[1](self.downsample(first), temb), context)
        x = self.mid2(self.mid_attn(self.mid1(second, temb), context), temb)
        x = self.up_attn[0](self.up_res[0](torch.cat((x, second), 1), temb), context)
        x = self.upsample(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.up_attn[1](self.up_res[1](torch.cat((x, first), 1), temb), context)
        return self.conv_out(functional.silu(self.norm_out(x)))


@factory
def unet() -> nn.Module:
    return shown(UNet2DCondition(), noise(2, 4, 8, 8), torch.tensor([3, 500]), noise(2, 5, 12))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x scaled and shifted by a condition."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = CrossAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class DiT(nn.Module):
    """A diffusion transformer over patches, conditioned on a step and a label."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.width = width
        self.x_embedder = nn.Conv2d(4, width, 2, 2)
        self.t_embedder = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = nn.Embedding(11, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, width), requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(width) for _ in range(depth)])
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, 2 * 2 * 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(timestep_embedding(t, self.width)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        x = self.linear(modulate(self.norm_final(x), shift, scale))
        return torch.einsum("nhwpqc->nchpwq", x.view(-1, 4, 4, 2, 2, 4)).reshape(-1, 4, 8, 8)


@factory
def dit() -> nn.Module:
    return shown(DiT(), noise(2, 4, 8, 8), torch.tensor([3, 500]), torch.tensor([1, 7]))


# Detection and segmentation


def cbr(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Sequential:
    """Convolution, batch normalisation, SiLU."""
    padding = options.pop("padding", kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Pyramid(nn.Module):
    """Three maps of halving resolution, as a backbone gives them."""

    def __init__(self, widths: tuple[int, int, int] = (4, 6, 8)) -> None:
        super().__init__()
        before = (3, *widths)
        self.stages = nn.ModuleList([cbr(a, b, 3, 2) for a, b in zip(before, widths, strict=False)])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class FPN(nn.Module):
    """A top-down pathway with lateral connections."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = Pyramid()
        self.inner = nn.ModuleList([nn.Conv2d(w, width, 1) for w in (4, 6, 8)])
        self.layer = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        last = self.inner[-1](features[-1])
        results = [self.layer[-1](last)]
        for i in range(len(features) - 2, -1, -1):
            lateral = self.inner[i](features[i])
            last = lateral + functional.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            results.insert(0, self.layer[i](last))
        return {str(i): result for i, result in enumerate(results)}


@factory
def fpn() -> nn.Module:
    return shown(FPN(), noise(1, 3, 32, 32))


class BiFPN(nn.Module):
    """Weighted fusion down and up again."""

    def __init__(self, width: int = 6, layers: int = 2) -> None:
        super().__init__()
        self.body = Pyramid((width, width, width))
        self.down = nn.ModuleList([nn.ModuleList([cbr(width, width) for _ in range(2)]) for _ in range(layers)])
        self.up = nn.ModuleList([nn.ModuleList([cbr(width, width) for _ in range(2)]) for _ in range(layers)])
        self.w1 = nn.Parameter(torch.ones(layers, 2, 2))
        self.w2 = nn.Parameter(torch.ones(layers, 2, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p3, p4, p5 = self.body(x)
        for layer, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            w1, w2 = self.w1[layer].relu(), self.w2[layer].relu()
            w1, w2 = w1 / (w1.sum(1, keepdim=True) + 1e-4), w2 / (w2.sum(1, keepdim=True) + 1e-4)
            mid = down[0](w1[0, 0] * p4 + w1[0, 1] * functional.interpolate(p5, scale_factor=2))
            out3 = down[1](w1[1, 0] * p3 + w1[1, 1] * functional.interpolate(mid, scale_factor=2))
            out4 = up[0](w2[0, 0] * p4 + w2[0, 1] * mid + w2[0, 2] * functional.max_pool2d(out3, 2))
            out5 = up[1](w2[1, 0] * p5 + w2[1, 1] * functional.max_pool2d(out4, 2))
            p3, p4, p5 = out3, out4, out5
        return p3, p4, p5


@factory
def bifpn() -> nn.Module:
    return shown(BiFPN(), noise(1, 3, 32, 32))


class PANet(nn.Module):
    """A top-down pathway followed by a bottom-up one, by concatenation."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.body = Pyramid((width, width, width))
        self.fuse = nn.ModuleList([cbr(2 * width, width) for _ in range(4)])
        self.down = nn.ModuleList([cbr(width, width, 3, 2) for _ in range(2)])

    def forward(self, x: Tensor) -> list[Tensor]:
        c3, c4, c5 = self.body(x)
        p4 = self.fuse[0](torch.cat((functional.interpolate(c5, scale_factor=2), c4), 1))
        p3 = self.fuse[1](torch.cat((functional.interpolate(p4, scale_factor=2), c3), 1))
        n4 = self.fuse[2](torch.cat((self.down[0](p3), p4), 1))
        return [p3, n4, self.fuse[3](torch.cat((self.down[1](n4), c5), 1))]


@factory
def panet() -> nn.Module:
    return shown(PANet(), noise(1, 3, 32, 32))


class Bottleneck(nn.Module):
    """Two convolutions beside an optional shortcut."""

    def __init__(self, width: int, add: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = cbr(width, width), cbr(width, width), add

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """A split, a chain of bottlenecks over one half, all of it side by side."""

    def __init__(self, inputs: int, outputs: int, number: int = 2) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1, self.cv2 = cbr(inputs, 2 * self.c, 1), cbr((2 + number) * self.c, outputs, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    """Max pooling three times over, side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = cbr(width, width // 2, 1), cbr(width * 2, width, 1)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


@factory
def yolo_backbone() -> nn.Module:
    body = nn.Sequential(cbr(3, 8, 3, 2), cbr(8, 8, 3, 2), C2f(8, 8), cbr(8, 12, 3, 2), C2f(12, 12), SPPF(12))
    return shown(body, noise(1, 3, 32, 32))


class AnchorFreeHead(nn.Module):
    """Shared towers for classes, boxes and centre-ness, with a learned scale per level."""

    def __init__(self, width: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.fpn = FPN(width)
        self.cls_tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU())
        self.box_tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU())
        self.logits = nn.Conv2d(width, classes, 3, padding=1)
        self.boxes = nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, corners = [], []
        for level, feature in enumerate(self.fpn(x).values()):
            stride = 2 ** (level + 1)
            cls, box = self.cls_tower(feature), self.box_tower(feature)
            score = (self.logits(cls).sigmoid() * self.centre(box).sigmoid()).sqrt()
            left, right = (functional.relu(self.scales[level] * self.boxes(box)) * stride).chunk(2, 1)
            ys, xs = torch.meshgrid(
                torch.arange(box.shape[2], device=x.device), torch.arange(box.shape[3], device=x.device), indexing="ij"
            )
            points = (torch.stack((xs, ys)).to(x.dtype) + 0.5) * stride
            corners.append(torch.cat((points - left, points + right), 1).flatten(2))
            scores.append(score.flatten(2))
        return torch.cat(scores, 2), torch.cat(corners, 2)


@factory
def anchor_free_head() -> nn.Module:
    return shown(AnchorFreeHead(), noise(1, 3, 32, 32))


class AttentionGate(nn.Module):
    """Lets of a skip pass what the gating signal asks for."""

    def __init__(self, gating: int, skip: int, inner: int) -> None:
        super().__init__()
        self.w_g, self.w_x = nn.Conv2d(gating, inner, 1), nn.Conv2d(skip, inner, 1, bias=False)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.psi(functional.relu(self.w_g(g) + self.w_x(x))))


class AttentionUNet(nn.Module):
    """A U-Net whose skips are gated by the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = cbr(3, 4), cbr(4, 8), cbr(8, 8)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)
        self.gate2, self.gate1 = AttentionGate(8, 8, 4), AttentionGate(4, 4, 2)
        self.dec2, self.dec1, self.out = cbr(16, 8), cbr(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(functional.max_pool2d(a, 2))
        u = self.up2(self.middle(functional.max_pool2d(b, 2)))
        u = self.up1(self.dec2(torch.cat((self.gate2(u, b), u), 1)))
        return self.out(self.dec1(torch.cat((self.gate1(u, a), u), 1)))


@factory
def attention_unet() -> nn.Module:
    return shown(AttentionUNet(), noise(1, 3, 16, 16))


class ASPP(nn.Module):
    """Dilated convolutions and image pooling, side by side."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([cbr(inputs, width, 1)])
        self.branches.extend(cbr(inputs, width, 3, padding=rate, dilation=rate) for rate in (2, 4))
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1), nn.ReLU())
        self.project = cbr(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.interpolate(self.pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


@factory
def deeplab() -> nn.Module:
    model = nn.Sequential(cbr(3, 6, 3, 2), Bottleneck(6), ASPP(6, 4), nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=2))
    return shown(model, noise(1, 3, 16, 16))


# Generative models


@factory
def dcgan_generator() -> nn.Module:
    def up(a: int, b: int, *where: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(a, b, 4, *where, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]

    layers = [*up(10, 16, 1, 0), *up(16, 8, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh()]
    return shown(nn.Sequential(*layers), noise(4, 10, 1, 1))


@factory
def dcgan_discriminator() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    layers += [nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2, inplace=True)]
    layers += [nn.Conv2d(16, 1, 4, 1, 0, bias=False), nn.Sigmoid(), nn.Flatten(0)]
    return shown(nn.Sequential(*layers), noise(2, 3, 16, 16))


class EqualLinear(nn.Module):
    """A linear layer whose weight is scaled at run time."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.scale, self.bias)


class ModulatedConv(nn.Module):
    """A convolution whose weight is scaled by a style, sample by sample, and normalised again."""

    def __init__(self, inputs: int, outputs: int, style: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.modulation = EqualLinear(style, inputs, bias=1.0)
        self.demodulate, self.scale = demodulate, 1 / math.sqrt(inputs * 9)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, inputs, height, width = x.shape
        weight = self.scale * self.weight * self.modulation(style).view(batch, 1, inputs, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(batch, -1, 1, 1, 1)
        weight = weight.view(-1, inputs, 3, 3)
        out = functional.conv2d(x.view(1, batch * inputs, height, width), weight, padding=1, groups=batch)
        return out.view(batch, -1, height, width)


class StyleGenerator(nn.Module):
    """A constant, styled convolutions, noise, and images summed over the resolutions."""

    def __init__(self, width: int = 8, style: int = 6) -> None:
        super().__init__()
        self.mapping = nn.Sequential(EqualLinear(style, style), nn.LeakyReLU(0.2), EqualLinear(style, style))
        self.const = nn.Parameter(torch.randn(1, width, 4, 4))
        self.conv1, self.conv2 = ModulatedConv(width, width, style), ModulatedConv(width, width, style)
        self.rgb1, self.rgb2 = ModulatedConv(width, 3, style, False), ModulatedConv(width, 3, style, False)
        self.noise_strength = nn.Parameter(torch.zeros(2))
        self.bias1, self.bias2 = (nn.Parameter(torch.zeros(1, width, 1, 1)) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z * torch.rsqrt(z.pow(2).mean(1, keepdim=True) + 1e-8))
        x = self.const.repeat(z.shape[0], 1, 1, 1)
        x = self.conv1(x, style)
        x = functional.leaky_relu(x + self.noise_strength[0] * torch.randn_like(x[:, :1]) + self.bias1, 0.2)
        image = self.rgb1(x, style)
        x = self.conv2(functional.interpolate(x, scale_factor=2), style)
        x = functional.leaky_relu(x + self.noise_strength[1] * torch.randn_like(x[:, :1]) + self.bias2, 0.2)
        return functional.interpolate(image, scale_factor=2) + self.rgb2(x, style)


@factory
def stylegan() -> nn.Module:
    return shown(StyleGenerator(), noise(2, 6))


class SpectralBlock(nn.Module):
    """A residual block of a discriminator: relu, conv, relu, conv, pool, all with spectral norm."""

    def __init__(self, inputs: int, outputs: int, new: bool = False) -> None:
        super().__init__()
        norm = parametrizations.spectral_norm if new else spectral_norm
        self.conv1 = norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv2 = norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.conv_sc = norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(functional.relu(self.conv1(functional.relu(x))))
        return functional.avg_pool2d(y, 2) + functional.avg_pool2d(self.conv_sc(x), 2)


class ProjectionDiscriminator(nn.Module):
    """A residual discriminator with a class projection."""

    def __init__(self, new: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(SpectralBlock(3, 6, new), SpectralBlock(6, 8, new))
        self.linear = spectral_norm(nn.Linear(8, 1))
        self.embed = spectral_norm(nn.Embedding(5, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = functional.relu(self.blocks(x)).sum((2, 3))
        return self.linear(h) + (self.embed(y) * h).sum(1, keepdim=True)


@factory
def sngan_discriminator() -> nn.Module:
    return shown(ProjectionDiscriminator(False), noise(2, 3, 16, 16), torch.tensor([1, 4]))


@factory
def sngan_discriminator_parametrised() -> nn.Module:
    return shown(ProjectionDiscriminator(True), noise(2, 3, 16, 16), torch.tensor([1, 4]))


class GeneratorBlock(nn.Module):
    """A residual block of a generator with conditional batch normalisation and upsampling on both sides."""

    def __init__(self, inputs: int, outputs: int, classes: int = 5) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs, affine=False)
        self.gain, self.shift = nn.Embedding(classes, inputs), nn.Embedding(classes, inputs)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv_sc = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.bn(x) * (1 + self.gain(y)[:, :, None, None]) + self.shift(y)[:, :, None, None]
        h = self.conv1(functional.interpolate(functional.relu(h), scale_factor=2))
        h = self.conv2(functional.relu(self.bn2(h)))
        return h + self.conv_sc(functional.interpolate(x, scale_factor=2))


class ResnetGenerator(nn.Module):
    """Two generator blocks behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8 * 16)
        self.block1, self.block2 = GeneratorBlock(8, 8), GeneratorBlock(8, 4)
        self.out = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.fc(z).view(-1, 8, 4, 4)
        return self.out(self.block2(self.block1(x, y), y))


@factory
def resnet_generator() -> nn.Module:
    return shown(ResnetGenerator(), noise(2, 6), torch.tensor([1, 4]))


@factory
def autoencoder() -> nn.Module:
    encoder = [nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()]
    decoder = [nn.ConvTranspose2d(8, 4, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3, 2, 1, 1), nn.Sigmoid()]
    return shown(nn.Sequential(*encoder, *decoder), noise(2, 1, 8, 8))


class VAE(nn.Module):
    """An encoder to mean and log variance, a draw, a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 12), nn.ReLU())
        self.mu, self.logvar = nn.Linear(12, 3), nn.Linear(12, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 20))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return self.decoder(z).sigmoid(), mu, logvar


@factory
def vae() -> nn.Module:
    return shown(VAE(), noise(4, 20))


class ResidualLayer(nn.Module):
    """relu, conv, relu, 1 x 1 conv, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, width, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class VQVAE(nn.Module):
    """An encoder, the nearest of a codebook, a straight-through gradient, a decoder."""

    def __init__(self, width: int = 8, codes: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), ResidualLayer(width), ResidualLayer(width))
        self.codebook = nn.Embedding(codes, width)
        self.decoder = nn.Sequential(ResidualLayer(width), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        table = self.codebook.weight
        distances = flat.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1) - 2 * flat @ table.t()
        quantised = self.codebook(distances.argmin(1)).view_as(z)
        loss = functional.mse_loss(quantised, z.detach()) + 0.25 * functional.mse_loss(quantised.detach(), z)
        quantised = z + (quantised - z).detach()
        return self.decoder(quantised.permute(0, 3, 1, 2)), loss


@factory
def vqvae() -> nn.Module:
    return shown(VQVAE(), noise(1, 3, 8, 8))


# Flows


class AffineCoupling(nn.Module):
    """RealNVP: the masked-out half scaled and shifted by a function of the other."""

    def __init__(self, mask: Tensor, hidden: int = 8) -> None:
        super().__init__()
        width = len(mask)
        self.register_buffer("mask", mask)
        self.s = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, width), nn.Tanh())
        self.t = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = x * self.mask
        s, t = self.s(kept) * (1 - self.mask), self.t(kept) * (1 - self.mask)
        return kept + (1 - self.mask) * (x * torch.exp(s) + t), s.sum(-1)


class Dataflow(nn.Module):
    """Layers that each return their output and the logarithm of their determinant."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total


@factory
def realnvp() -> nn.Module:
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    return shown(Dataflow(AffineCoupling(mask), AffineCoupling(1 - mask), AffineCoupling(mask)), noise(3, 4))


class GlowStep(nn.Module):
    """Actnorm, an invertible 1 x 1 convolution, an affine coupling."""

    def __init__(self, width: int, lu: bool) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(1, width, 1, 1)), nn.Parameter(torch.ones(1, width, 1, 1))
        rotation = torch.linalg.qr(noise(width, width))[0]
        self.lu = lu
        if lu:
            p, lower, upper = torch.linalg.lu(rotation)
            self.register_buffer("p", p)
            self.register_buffer("eye", torch.eye(width))
            self.register_buffer("sign", upper.diagonal().sign())
            self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper.triu(1))
            self.log_s = nn.Parameter(upper.diagonal().abs().log())
        else:
            self.weight = nn.Parameter(rotation)
        self.net = nn.Sequential(
            nn.Conv2d(width // 2, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = x.shape[2] * x.shape[3]
        x = self.scale * (x + self.loc)
        log_det = pixels * self.scale.abs().log().sum()
        if self.lu:
            upper = self.upper.triu(1) + torch.diag(self.sign * self.log_s.exp())
            weight = self.p @ (self.lower.tril(-1) + self.eye) @ upper
            log_det = log_det + pixels * self.log_s.sum()
        else:
            weight = self.weight
            log_det = log_det + pixels * torch.slogdet(weight)[1]
        a, b = functional.conv2d(x, weight[:, :, None, None]).chunk(2, 1)
        log_s, t = self.net(a).chunk(2, 1)
        s = torch.sigmoid(log_s + 2)
        return torch.cat((a, (b + t) * s), 1), log_det + s.log().sum((1, 2, 3))


@factory
def glow() -> nn.Module:
    return shown(Dataflow(GlowStep(4, lu=False), GlowStep(4, lu=False)), noise(2, 4, 4, 4))


@factory
def glow_lu() -> nn.Module:
    return shown(Dataflow(GlowStep(4, lu=True), GlowStep(4, lu=True)), noise(2, 4, 4, 4))


class MaskedLinear(nn.Linear):
    """A linear layer whose weight is multiplied by a fixed mask."""

    def __init__(self, inputs: int, outputs: int, mask: Tensor) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.mask * self.weight, self.bias)


class MADE(nn.Module):
    """An autoregressive network of masked linear layers with a masked residual block."""

    def __init__(self, width: int = 4, hidden: int = 9, outputs: int = 2) -> None:
        super().__init__()
        first, inner = torch.arange(1, width + 1), torch.arange(hidden) % (width - 1) + 1
        self.first = MaskedLinear(width, hidden, (inner[:, None] >= first).float())
        self.a, self.b = (MaskedLinear(hidden, hidden, (inner[:, None] >= inner).float()) for _ in range(2))
        last = first.repeat_interleave(outputs)
        self.last = MaskedLinear(hidden, width * outputs, (last[:, None] > inner).float())

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.b(functional.relu(self.a(functional.relu(h))))
        return self.last(functional.relu(h))


class MaskedAutoregressive(nn.Module):
    """x scaled and shifted by a MADE."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = MADE(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.net(x).unflatten(-1, (-1, 2)).unbind(-1)
        return (x - shift) * torch.exp(-log_scale), -log_scale.sum(-1)


@factory
def made() -> nn.Module:
    return shown(Dataflow(MaskedAutoregressive(4), MaskedAutoregressive(4)), noise(3, 4))


class SplineCoupling(nn.Module):
    """Half of the entries through a monotone piecewise linear spline, its knots made of the other half."""

    def __init__(self, width: int = 4, bins: int = 5) -> None:
        super().__init__()
        self.half, self.bins = width // 2, bins
        self.net = nn.Sequential(nn.Linear(self.half, 12), nn.ReLU(), nn.Linear(12, self.half * bins))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.half], x[:, self.half :].sigmoid()
        heights = self.net(a).view(-1, self.half, self.bins).softmax(-1)
        knots = functional.pad(heights.cumsum(-1), (1, 0))
        place = (b * self.bins).floor().clamp(0, self.bins - 1).long().unsqueeze(-1)
        slope = heights.gather(-1, place).squeeze(-1) * self.bins
        start = knots.gather(-1, place).squeeze(-1)
        y = start + slope * (b - place.squeeze(-1) / self.bins)
        return torch.cat((y, a), -1), slope.log().sum(-1)


@factory
def spline_flow() -> nn.Module:
    return shown(Dataflow(SplineCoupling(), SplineCoupling()), noise(3, 4))


class ReversibleBlock(nn.Module):
    """i-RevNet: one half takes up a function of the other, and they change places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        first, second = pair
        return second, first + self.f(second)


class IRevNet(nn.Module):
    """A chain of reversible couplings."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * width, 3, padding=1)
        self.blocks = nn.Sequential(*(ReversibleBlock(width) for _ in range(3)))
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.fc(functional.relu(torch.cat(self.blocks((a, b)), 1)).mean((2, 3)))


@factory
def irevnet() -> nn.Module:
    return shown(IRevNet(), noise(2, 3, 8, 8))


class RevNet(nn.Module):
    """RevNet: y1 = x1 + F(x2), y2 = x2 + G(y1)."""

    def __init__(self, width: int = 4, depth: int = 2) -> None:
        super().__init__()

        def half() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

        self.stem = nn.Linear(6, 2 * width)
        self.f, self.g = (nn.ModuleList(half() for _ in range(depth)) for _ in range(2))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, -1)
        for f, g in zip(self.f, self.g, strict=True):
            a = a + f(b)
            b = b + g(a)
        return self.head(torch.cat((a, b), -1))


@factory
def revnet() -> nn.Module:
    return shown(RevNet(), noise(2, 6))


# Sound and sequences


class WaveNetLayer(nn.Module):
    """A dilated causal gated convolution, with a residual and a skip output."""

    def __init__(self, width: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.pad = dilation
        self.filter = nn.Conv1d(width, width, 2, dilation=dilation)
        self.gate = nn.Conv1d(width, width, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(width, width, 1), nn.Conv1d(width, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = functional.pad(x, (self.pad, 0))
        z = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    """Layers of growing dilation whose skips are summed."""

    def __init__(self, width: int = 6, skip: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(WaveNetLayer(width, skip, 2**i) for i in range(3))
        self.post1, self.post2 = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        total: Any = 0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.post2(functional.relu(self.post1(functional.relu(total))))


@factory
def wavenet() -> nn.Module:
    return shown(WaveNet(), noise(2, 1, 16))


class SharedWaveNetLayer(nn.Module):
    """A gated convolution whose one output layer gives residual and skip, as WaveGlow and DiffWave have it."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.condition, self.out = nn.Conv1d(5, 2 * width, 1), nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = (self.conv(x) + self.condition(mel)).chunk(2, 1)
        residual, skip = self.out(gate.sigmoid() * value.tanh()).chunk(2, 1)
        return (x + residual) / math.sqrt(2.0), skip


class DiffWave(nn.Module):
    """Shared layers, their skips stacked and summed."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.input = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(SharedWaveNetLayer(width, 2**i) for i in range(3))
        self.skip, self.output = nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        x = functional.relu(self.input(x))
        skips = []
        for layer in self.layers:
            x, skip = layer(x, mel)
            skips.append(skip)
        x = torch.sum(torch.stack(skips), dim=0) / math.sqrt(len(self.layers))
        return self.output(functional.relu(self.skip(x)))


@factory
def diffwave() -> nn.Module:
    return shown(DiffWave(), noise(2, 1, 16), noise(2, 5, 16))


class TemporalBlock(nn.Module):
    """TCN: two dilated causal convolutions with weight norm, chomped, and a 1 x 1 shortcut where widths differ."""

    def __init__(self, inputs: int, outputs: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        self.chomp = (kernel - 1) * dilation
        norm = parametrizations.weight_norm
        self.conv1 = norm(nn.Conv1d(inputs, outputs, kernel, padding=self.chomp, dilation=dilation))
        self.conv2 = norm(nn.Conv1d(outputs, outputs, kernel, padding=self.chomp, dilation=dilation))
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.conv1(x)[:, :, : -self.chomp].contiguous())
        out = functional.relu(self.conv2(functional.dropout(out, 0.2, self.training))[:, :, : -self.chomp])
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


@factory
def tcn() -> nn.Module:
    model = nn.Sequential(TemporalBlock(3, 6, 1), TemporalBlock(6, 6, 2), TemporalBlock(6, 6, 4), nn.Conv1d(6, 2, 1))
    return shown(model, noise(2, 3, 16))


class HiFiResBlock(nn.Module):
    """Pairs of dilated and plain convolutions, each pair added."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...] = (1, 3)) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.convs1 = nn.ModuleList(
            norm(nn.Conv1d(width, width, kernel, padding=d * (kernel - 1) // 2, dilation=d)) for d in dilations
        )
        self.convs2 = nn.ModuleList(norm(nn.Conv1d(width, width, kernel, padding=(kernel - 1) // 2)) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for c1, c2 in zip(self.convs1, self.convs2, strict=True):
            xt = c1(functional.leaky_relu(x, 0.1))
            x = c2(functional.leaky_relu(xt, 0.1)) + x
        return x


class HiFiGenerator(nn.Module):
    """Transposed convolutions, each followed by the mean of residual blocks of several kernel sizes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.conv_pre = norm(nn.Conv1d(5, width, 7, padding=3))
        self.ups = nn.ModuleList(
            norm(nn.ConvTranspose1d(width >> i, width >> (i + 1), 4, 2, padding=1)) for i in range(2)
        )
        self.resblocks = nn.ModuleList(HiFiResBlock(width >> (i + 1), k) for i in range(2) for k in (3, 5))
        self.conv_post = norm(nn.Conv1d(width >> 2, 1, 7, padding=3))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, 0.1))
            xs = None
            for block in self.resblocks[2 * i : 2 * i + 2]:
                xs = block(x) if xs is None else xs + block(x)
            x = xs / 2
        return torch.tanh(self.conv_post(functional.leaky_relu(x)))


@factory
def hifigan() -> nn.Module:
    return shown(HiFiGenerator(), noise(2, 5, 8))


class ConformerConvolution(nn.Module):
    """norm, pointwise, GLU, depthwise, batch norm, swish, pointwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pointwise1, self.pointwise2 = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise, self.bn = nn.Conv1d(width, width, 5, padding=2, groups=width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.glu(self.pointwise1(self.norm(x).transpose(1, 2)), 1)
        return self.pointwise2(functional.silu(self.bn(self.depthwise(x)))).transpose(1, 2)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, the other half, a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def ffn() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 24), nn.SiLU(), nn.Linear(24, width))

        self.ffn1, self.ffn2 = ffn(), ffn()
        self.norm, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.conv, self.final = ConformerConvolution(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ffn1(x)
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.conv(x)
        return self.final(x + 0.5 * self.ffn2(x))


@factory
def conformer() -> nn.Module:
    return shown(nn.Sequential(nn.Linear(10, 12), ConformerBlock(12), ConformerBlock(12)), noise(2, 7, 10))


class Seq2Seq(nn.Module):
    """An LSTM encoder, and a decoder that attends to it step by step."""

    def __init__(self, words: int = 15, width: int = 8) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.encoder = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)
        self.cell = nn.LSTMCell(2 * width, width)
        self.query, self.key, self.score = nn.Linear(width, 6), nn.Linear(width, 6), nn.Linear(6, 1, bias=False)
        self.out = nn.Linear(2 * width, words)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.bridge(self.encoder(self.source(source))[0])
        h = c = memory[:, -1].tanh()
        context, logits = memory.mean(1), []
        for word in self.target(target).unbind(1):
            h, c = self.cell(torch.cat((word, context), -1), (h, c))
            energy = self.score(torch.tanh(self.query(h)[:, None] + self.key(memory))).squeeze(-1)
            context = torch.bmm(energy.softmax(-1).unsqueeze(1), memory).squeeze(1)
            logits.append(self.out(torch.cat((h, context), -1)))
        return torch.stack(logits, 1)


@factory
def seq2seq() -> nn.Module:
    return shown(Seq2Seq(), tokens(15), tokens(15, length=3))


class MambaBlock(nn.Module):
    """A selective state space, its scan written as a loop."""

    def __init__(self, width: int, state: int = 4, rank: int = 2) -> None:
        super().__init__()
        inner = 2 * width
        self.state, self.rank = state, rank
        self.norm = nn.RMSNorm(width)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.x_proj, self.dt_proj = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def scan(self, u: Tensor) -> Tensor:
        delta, b, c = self.x_proj(u).split([self.rank, self.state, self.state], -1)
        delta = functional.softplus(self.dt_proj(delta))
        a = -torch.exp(self.A_log)
        decay = torch.exp(delta.unsqueeze(-1) * a)
        drive = delta.unsqueeze(-1) * b.unsqueeze(2) * u.unsqueeze(-1)
        h = torch.zeros(u.shape[0], *a.shape, device=u.device)
        ys = []
        for t in range(u.shape[1]):
            h = decay[:, t] * h + drive[:, t]
            ys.append((h @ c[:, t].unsqueeze(-1)).squeeze(-1))
        return torch.stack(ys, 1) + u * self.D

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(self.norm(x)).chunk(2, -1)
        u = functional.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        return x + self.out_proj(self.scan(u) * functional.silu(z))


class LanguageModel(nn.Module):
    """An embedding, blocks, a norm, a head tied to the embedding."""

    def __init__(self, *blocks: nn.Module, width: int, words: int = 15) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(words, width), nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@factory
def mamba() -> nn.Module:
    return shown(LanguageModel(MambaBlock(8), MambaBlock(8), width=8), tokens(15))


def shifted(x: Tensor) -> Tensor:
    """Each step sees the one before."""
    return functional.pad(x, (0, 0, 1, -1))


class RWKVBlock(nn.Module):
    """Time mix by a decaying average, channel mix by a squared relu, both on a mixture with the step before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_k, self.mix_v, self.mix_r, self.mix_c = (nn.Parameter(torch.full((width,), 0.5)) for _ in range(4))
        self.decay, self.first = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.key, self.value, self.receptance, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.ffn_key, self.ffn_value = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.ffn_receptance = nn.Linear(width, width, bias=False)

    def time_mix(self, x: Tensor) -> Tensor:
        before = shifted(x)
        k = self.key(x * self.mix_k + before * (1 - self.mix_k))
        v = self.value(x * self.mix_v + before * (1 - self.mix_v))
        r = self.receptance(x * self.mix_r + before * (1 - self.mix_r)).sigmoid()
        w = -self.decay.exp()
        num = den = torch.zeros_like(x[:, 0])
        outs = []
        for t in range(x.shape[1]):
            now = torch.exp(self.first + k[:, t])
            outs.append((num + now * v[:, t]) / (den + now))
            num = w.exp() * num + k[:, t].exp() * v[:, t]
            den = w.exp() * den + k[:, t].exp()
        return self.output(r * torch.stack(outs, 1))

    def channel_mix(self, x: Tensor) -> Tensor:
        mixed = x * self.mix_c + shifted(x) * (1 - self.mix_c)
        return torch.sigmoid(self.ffn_receptance(mixed)) * self.ffn_value(functional.relu(self.ffn_key(mixed)) ** 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time_mix(self.ln1(x))
        return x + self.channel_mix(self.ln2(x))


@factory
def rwkv() -> nn.Module:
    return shown(LanguageModel(RWKVBlock(8), RWKVBlock(8), width=8), tokens(15))


class LinearAttention(nn.Module):
    """Attention by feature maps, phi(q) (phi(k)^T v) over its normaliser, and an MLP."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).unbind(2)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        kv = torch.einsum("blhd,blhe->bhde", k, v)
        z = 1 / (torch.einsum("blhd,bhd->blh", q, k.sum(1)) + 1e-6)
        return self.proj(torch.einsum("blhd,bhde,blh->blhe", q, kv, z).reshape(batch, length, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@factory
def linear_attention() -> nn.Module:
    return shown(LanguageModel(LinearAttention(8), LinearAttention(8), width=8), tokens(15))


class ExpertMLP(nn.Module):
    """Experts as one weight each (experts, out, in), mixed by the two largest of a softmax."""

    def __init__(self, width: int, hidden: int, experts: int = 4) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, experts, bias=False)
        self.w_in = nn.Parameter(torch.randn(experts, hidden, width) * 0.1)
        self.b_in = nn.Parameter(torch.zeros(experts, hidden))
        self.w_out = nn.Parameter(torch.randn(experts, width, hidden) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        probabilities = self.router(y).softmax(-1)
        top, chosen = probabilities.topk(2, -1)
        gates = torch.zeros_like(probabilities).scatter(-1, chosen, top / top.sum(-1, keepdim=True))
        hidden = functional.gelu(torch.einsum("btd,ehd->bteh", y, self.w_in) + self.b_in)
        each = torch.einsum("bteh,edh->bted", hidden, self.w_out)
        return x + torch.einsum("bted,bte->btd", each, gates)


class RoutedExperts(nn.Module):
    """Experts as modules, run on the tokens that were routed to them, added in place."""

    def __init__(self, width: int, experts: int = 3) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 12), nn.SiLU(), nn.Linear(12, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).flatten(0, 1)
        weights, chosen = self.router(y).softmax(-1).topk(2, -1)
        result = torch.zeros_like(y)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            result.index_add_(0, row, expert(y[row]) * weights[row, place, None])
        return x + result.view_as(x)


@factory
def experts() -> nn.Module:
    return shown(LanguageModel(ExpertMLP(8, 12), ExpertMLP(8, 12), width=8), tokens(15))


@factory
def routed_experts() -> nn.Module:
    return shown(LanguageModel(RoutedExperts(8), RoutedExperts(8), width=8), tokens(15))


class DecisionTransformer(nn.Module):
    """Returns, states and actions interleaved as tokens of one causal transformer."""

    def __init__(self, state: int = 5, action: int = 3, width: int = 8) -> None:
        super().__init__()
        self.time, self.rtg = nn.Embedding(20, width), nn.Linear(1, width)
        self.state, self.action, self.norm = nn.Linear(state, width), nn.Linear(action, width), nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True, norm_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.predict = nn.Sequential(nn.Linear(width, action), nn.Tanh())

    def forward(self, states: Tensor, actions: Tensor, rtg: Tensor, timesteps: Tensor) -> Tensor:
        batch, length = states.shape[:2]
        time = self.time(timesteps)
        parts = (self.rtg(rtg) + time, self.state(states) + time, self.action(actions) + time)
        x = self.norm(torch.stack(parts, 1).permute(0, 2, 1, 3).reshape(batch, 3 * length, -1))
        mask = torch.full((3 * length, 3 * length), float("-inf"), device=x.device).triu(1)
        x = self.body(x, mask=mask).reshape(batch, length, 3, -1).permute(0, 2, 1, 3)
        return self.predict(x[:, 1])


@factory
def decision_transformer() -> nn.Module:
    steps = torch.arange(4).expand(2, 4).contiguous()
    return shown(DecisionTransformer(), noise(2, 4, 5), noise(2, 4, 3), noise(2, 4, 1), steps)


# Vision without convolution


class EinsumMixer(nn.Module):
    """A mixer block whose weights are bare and whose layers are einsums."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token_in, self.token_out = (nn.Parameter(torch.randn(s) * 0.1) for s in ((length, 10), (10, length)))
        self.channel_in, self.channel_out = (nn.Parameter(torch.randn(s) * 0.1) for s in ((width, 20), (20, width)))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(torch.einsum("bld,lh->bhd", self.norm1(x), self.token_in))
        x = x + torch.einsum("bhd,hl->bld", y, self.token_out)
        y = functional.gelu(torch.einsum("...d,dh->...h", self.norm2(x), self.channel_in))
        return x + torch.einsum("...h,hd->...d", y, self.channel_out) + self.bias


@factory
def einsum_mixer() -> nn.Module:
    return shown(nn.Sequential(EinsumMixer(6, 8), EinsumMixer(6, 8), nn.Linear(8, 3)), noise(2, 6, 8))


class GMLPBlock(nn.Module):
    """gMLP: one half gated by a spatial projection of the other."""

    def __init__(self, length: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.proj1 = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.sgu_norm, self.spatial = nn.LayerNorm(hidden // 2), nn.Conv1d(length, length, 1)
        self.proj2 = nn.Linear(hidden // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = functional.gelu(self.proj1(self.norm(x))).chunk(2, -1)
        return self.proj2(u * self.spatial(self.sgu_norm(v))) + x


@factory
def gmlp() -> nn.Module:
    return shown(LanguageModel(GMLPBlock(6, 8, 16), GMLPBlock(6, 8, 16), width=8), tokens(15))


class Perceiver(nn.Module):
    """Learned latents that attend to the input, then to themselves, with shared weights over two rounds."""

    def __init__(self, inputs: int = 5, width: int = 8, count: int = 4) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(count, width) * 0.02)
        self.norm_c, self.norm_l, self.norm_s, self.norm_f = nn.LayerNorm(inputs), *(nn.LayerNorm(width) for _ in "abc")
        self.cross, self.own = CrossAttention(width, inputs), CrossAttention(width)
        self.ff = nn.Sequential(GEGLU(width, 2 * width), nn.Linear(2 * width, width))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

    def forward(self, data: Tensor) -> Tensor:
        x = self.latents.expand(data.shape[0], -1, -1)
        context = self.norm_c(data)
        for _ in range(2):
            x = x + self.cross(self.norm_l(x), context)
            x = x + self.own(self.norm_s(x))
            x = x + self.ff(self.norm_f(x))
        return self.head(x.mean(1))


@factory
def perceiver() -> nn.Module:
    return shown(Perceiver(), noise(2, 10, 5))


# Graphs and points


class PointNet(nn.Module):
    """Shared MLPs, a learned transform of the features that starts at the identity, a maximum over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.tnet = nn.Sequential(nn.Conv1d(6, 8, 1), nn.ReLU())
        self.tfc = nn.Linear(8, 36)
        self.second = nn.Sequential(nn.Conv1d(6, 12, 1), nn.BatchNorm1d(12), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, points: Tensor) -> Tensor:
        x = self.first(points)
        transform = self.tfc(self.tnet(x).max(2)[0]).view(-1, 6, 6) + torch.eye(6, device=x.device)
        x = torch.bmm(x.transpose(2, 1), transform).transpose(2, 1)
        return self.head(torch.max(self.second(x), 2)[0]).log_softmax(-1)


@factory
def pointnet() -> nn.Module:
    return shown(PointNet(), noise(2, 3, 10))


def adjacency(nodes: int = 7) -> Tensor:
    """A ring with self loops, normalised."""
    ring = torch.eye(nodes) + torch.eye(nodes).roll(1, 0) + torch.eye(nodes).roll(-1, 0)
    return ring / 3


class GraphConvolution(nn.Module):
    """A X W with a bare weight (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.3), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return torch.spmm(adj, torch.mm(x, self.weight)) + self.bias


class GCN(nn.Module):
    """Graph convolutions, the inner ones residual."""

    def __init__(self, inputs: int = 5, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.first, self.last = GraphConvolution(inputs, width), GraphConvolution(width, classes)
        self.inner = nn.ModuleList(GraphConvolution(width, width) for _ in range(2))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = functional.relu(self.first(x, adj))
        for layer in self.inner:
            x = x + functional.relu(layer(x, adj))
        return functional.log_softmax(self.last(x, adj), dim=1)


@factory
def gcn() -> nn.Module:
    return shown(GCN(), noise(7, 5), adjacency())


class GINLayer(nn.Module):
    """Messages along an edge list, summed at their targets: (1 + eps) x + sum, then an MLP; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps, self.norm = nn.Parameter(torch.zeros(1)), nn.BatchNorm1d(width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, width))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        messages = torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])
        return x + functional.relu(self.norm(self.mlp((1 + self.eps) * x + messages)))


class GIN(nn.Module):
    """Layers over an edge list, read out as a sum."""

    def __init__(self, inputs: int = 5, width: int = 8) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(inputs, width), nn.ModuleList(GINLayer(width) for _ in range(2))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, edges)
        return self.out(x.sum(0))


@factory
def gin() -> nn.Module:
    return shown(GIN(), noise(7, 5), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]))


class GATLayer(nn.Module):
    """Attention over neighbours from a sum of a source and a target score."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Linear(inputs, outputs, bias=False)
        self.a_source, self.a_target = (nn.Parameter(torch.randn(outputs, 1) * 0.3) for _ in range(2))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        h = self.W(x)
        e = functional.leaky_relu(h @ self.a_source + (h @ self.a_target).T, 0.2)
        attention = torch.where(adj > 0, e, torch.full_like(e, -9e15)).softmax(dim=1)
        return functional.elu(attention @ h)


class GAT(nn.Module):
    """Two residual attention layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.two, self.out = nn.Linear(5, 8), GATLayer(8, 8), GATLayer(8, 8), GATLayer(8, 3)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.one(x, adj)
        x = x + self.two(x, adj)
        return self.out(x, adj)


@factory
def gat() -> nn.Module:
    return shown(GAT(), noise(7, 5), adjacency())


class GraphTransformerLayer(nn.Module):
    """Attention biased by the distance in the graph and by the degree, then an MLP."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.spatial = nn.Embedding(8, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.ff1, self.ff2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, distance: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + self.spatial(distance).permute(2, 0, 1)
        x = x + self.o((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))
        return x + self.ff2(functional.gelu(self.ff1(self.norm2(x))))


class Graphormer(nn.Module):
    """A transformer over nodes with degree embeddings and a virtual node."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.node, self.degree, self.virtual = (
            nn.Linear(5, width),
            nn.Embedding(8, width),
            nn.Parameter(torch.randn(width)),
        )
        self.layers = nn.ModuleList(GraphTransformerLayer(width) for _ in range(2))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor, degree: Tensor, distance: Tensor) -> Tensor:
        x = self.node(x) + self.degree(degree)
        x = torch.cat((self.virtual[None], x), 0)
        for layer in self.layers:
            x = layer(x, distance)
        return self.out(x[0])


@factory
def graph_transformer() -> nn.Module:
    distance = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    return shown(Graphormer(), noise(7, 5), torch.tensor([1, 2, 2, 2, 2, 2, 1]), distance)


# Wiring


class Highway(nn.Module):
    """t h(x) + (1 - t) x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * functional.relu(self.transform(x)) + (1 - t) * x


@factory
def highway() -> nn.Module:
    return shown(nn.Sequential(nn.Linear(6, 8), Highway(8), Highway(8), nn.Linear(8, 3)), noise(4, 6))


class DenseLayer(nn.Module):
    """bn, relu, 1 x 1, bn, relu, 3 x 3, beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 8, 1, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.f(x)), 1)


@factory
def densenet() -> nn.Module:
    first = [nn.Conv2d(3, 6, 3, padding=1), DenseLayer(6, 4), DenseLayer(10, 4)]
    then = [nn.Conv2d(14, 8, 1), nn.AvgPool2d(2), DenseLayer(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return shown(nn.Sequential(*first, *then, nn.Linear(12, 3)), noise(2, 3, 8, 8))


class Fractal(nn.Module):
    """f_{n+1}(x) = mean(conv(x), f_n(f_n(x)))."""

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        deeper = columns > 1
        self.deep = nn.Sequential(Fractal(width, columns - 1), Fractal(width, columns - 1)) if deeper else None

    def forward(self, x: Tensor) -> Tensor:
        if self.deep is None:
            return self.conv(x)
        return torch.stack((self.conv(x), self.deep(x))).mean(0)


@factory
def fractalnet() -> nn.Module:
    return shown(nn.Sequential(nn.Conv2d(3, 4, 1), Fractal(4, 3), nn.Conv2d(4, 2, 1)), noise(1, 3, 8, 8))


class Siamese(nn.Module):
    """One encoder for two inputs, compared by their absolute difference."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Bottleneck(4), nn.Flatten(), nn.Linear(64, 8))
        self.score = nn.Linear(8, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.score((self.encoder(a) - self.encoder(b)).abs()).sigmoid()


@factory
def siamese() -> nn.Module:
    return shown(Siamese(), noise(2, 1, 4, 4), noise(2, 1, 4, 4).flip(0))


class SlowFast(nn.Module):
    """Two streams at different frame rates with lateral connections."""

    def __init__(self) -> None:
        super().__init__()
        self.slow1, self.fast1 = nn.Conv3d(3, 6, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(3, 2, 3, padding=1)
        self.lateral = nn.Conv3d(2, 4, (5, 1, 1), (4, 1, 1), (2, 0, 0))
        self.slow2, self.fast2 = nn.Conv3d(10, 10, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)
        self.bn_s, self.bn_f, self.fc = nn.BatchNorm3d(10), nn.BatchNorm3d(2), nn.Linear(12, 3)

    def forward(self, video: Tensor) -> Tensor:
        slow, fast = self.slow1(video[:, :, ::4]).relu(), self.fast1(video).relu()
        slow = torch.cat((slow, self.lateral(fast)), 1)
        slow = functional.relu(slow + self.bn_s(self.slow2(slow)))
        fast = functional.relu(fast + self.bn_f(self.fast2(fast)))
        return self.fc(torch.cat((slow.mean((2, 3, 4)), fast.mean((2, 3, 4))), 1))


@factory
def slowfast() -> nn.Module:
    return shown(SlowFast(), noise(1, 3, 8, 6, 6))


class TwoTower(nn.Module):
    """CLIP: an image and a text tower, cosine logits with a learned temperature."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, width, 4, 4), Bottleneck(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.token, self.place = nn.Embedding(15, width), nn.Parameter(torch.randn(6, width) * 0.01)
        layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True, norm_first=True)
        self.text = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.image_projection = nn.Parameter(torch.randn(width, 5))
        self.text_projection = nn.Parameter(torch.randn(width, 5))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        pictures = self.image(image) @ self.image_projection
        x = self.text(self.token(text) + self.place)
        words = x[torch.arange(len(x), device=x.device), text.argmax(-1)] @ self.text_projection
        pictures = pictures / pictures.norm(dim=1, keepdim=True)
        words = functional.normalize(words, dim=1)
        logits = self.logit_scale.exp() * pictures @ words.t()
        return logits, logits.t()


@factory
def clip() -> nn.Module:
    return shown(TwoTower(), noise(2, 3, 16, 16), tokens(15))


# Coordinates


class NeRF(nn.Module):
    """A positional encoding, an MLP with its input put in again half way, a density and a view-dependent colour."""

    def __init__(self, width: int = 12, bands: int = 3) -> None:
        super().__init__()
        self.register_buffer("bands", 2.0 ** torch.arange(bands))
        size = 3 + 6 * bands
        self.first = nn.ModuleList([nn.Linear(size, width), nn.Linear(width, width)])
        self.second = nn.ModuleList([nn.Linear(width + size, width), nn.Linear(width, width)])
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.view, self.colour = nn.Linear(width + size, width // 2), nn.Linear(width // 2, 3)

    def encode(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.bands).flatten(-2)
        return torch.cat((x, angles.sin(), angles.cos()), -1)

    def forward(self, points: Tensor, directions: Tensor) -> Tensor:
        encoded = h = self.encode(points)
        for layer in self.first:
            h = functional.relu(layer(h))
        h = torch.cat((encoded, h), -1)
        for layer in self.second:
            h = functional.relu(layer(h))
        density = functional.softplus(self.density(h))
        h = torch.cat((self.feature(h), self.encode(directions)), -1)
        return torch.cat((self.colour(functional.relu(self.view(h))).sigmoid(), density), -1)


@factory
def nerf() -> nn.Module:
    return shown(NeRF(), noise(4, 3), noise(4, 3))


class Sine(nn.Module):
    """sin(omega (W x + b))."""

    def __init__(self, inputs: int, outputs: int, omega: float = 30.0) -> None:
        super().__init__()
        self.linear, self.omega = nn.Linear(inputs, outputs), omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class SirenResidual(nn.Module):
    """The residual form of a sine network: the half of x plus two sine layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = Sine(width, width), Sine(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x + self.b(self.a(x)))


@factory
def siren() -> nn.Module:
    return shown(nn.Sequential(Sine(2, 8), Sine(8, 8), SirenResidual(8), nn.Linear(8, 3)), noise(5, 2))


# Recommenders


class DLRM(nn.Module):
    """Bags of embeddings and a dense vector, their dot products, a top MLP."""

    def __init__(self, width: int = 6, tables: int = 3) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(10, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width), nn.ReLU())
        pairs = tables * (tables + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = torch.stack([x, *(table(ids) for table, ids in zip(self.tables, sparse.unbind(1), strict=True))], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        row, column = torch.tril_indices(vectors.shape[1], vectors.shape[1], -1, device=x.device)
        return self.top(torch.cat((x, products[:, row, column]), 1))


@factory
def dlrm() -> nn.Module:
    return shown(DLRM(), noise(3, 4), tokens(10, 3, 6).view(3, 3, 2))


class DeepFM(nn.Module):
    """A factorisation machine beside an MLP, over the same embeddings."""

    def __init__(self, fields: int = 4, width: int = 5) -> None:
        super().__init__()
        self.first, self.table = nn.Embedding(20, 1), nn.Embedding(20, width)
        self.bias = nn.Parameter(torch.zeros(1))
        self.deep = nn.Sequential(nn.Linear(fields * width, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, ids: Tensor) -> Tensor:
        linear = self.first(ids).sum(1) + self.bias
        e = self.table(ids)
        interaction = 0.5 * (e.sum(1).pow(2) - e.pow(2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(linear + interaction + self.deep(e.flatten(1))).squeeze(1)


@factory
def deepfm() -> nn.Module:
    return shown(DeepFM(), tokens(20, 3, 4))


class WideAndDeep(nn.Module):
    """A linear model of crossed features beside an MLP over embeddings and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.table = nn.Linear(12, 1), nn.Embedding(10, 4)
        self.deep = nn.Sequential(nn.Linear(4 * 3 + 2, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, crossed: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
        deep = self.deep(torch.cat((self.table(ids).flatten(1), numbers), 1))
        return torch.sigmoid(self.wide(crossed) + deep)


@factory
def wide_and_deep() -> nn.Module:
    return shown(WideAndDeep(), noise(3, 12), tokens(10, 3, 3), noise(3, 2))


class CrossNetwork(nn.Module):
    """Deep and cross: x0 (w x + b) + x, layer by layer, beside an MLP."""

    def __init__(self, width: int = 6, depth: int = 2) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.deep = nn.Sequential(nn.Linear(width, 8), nn.ReLU())
        self.out = nn.Linear(width + 8, 1)

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.out(torch.cat((x, self.deep(x0)), 1))


@factory
def dcn() -> nn.Module:
    return shown(CrossNetwork(), noise(3, 6))
