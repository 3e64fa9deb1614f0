"""Small models of plain torch.nn modules, one factory each: `tests/zoo/plain.py:lstm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

FACTORIES: dict[str, Callable[[], nn.Module]] = {}


def factory(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Register a factory under its name."""
    FACTORIES[make.__name__] = make
    return make


class Called(nn.Module):
    """A module, how to call it, and its example inputs."""

    def __init__(self, inner: nn.Module, *inputs: Tensor, call: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.example_inputs = inputs
        self.call = call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.inner, *inputs) if self.call is not None else self.inner(*inputs)


class Residual(nn.Module):
    """x + f(x), with an output layer that makes f(x) as wide as x."""

    def __init__(self, inner: nn.Module, width: int, *inputs: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.out = nn.Linear(width, inputs[0].shape[-1])
        self.example_inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        out: Tensor = x + self.out(found[0] if isinstance(found, tuple) else found)
        return out


def sequence(width: int = 16) -> Tensor:
    """Two sequences of five steps."""
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))


@factory
def transformer() -> nn.Module:
    return Called(nn.Transformer(16, 4, 2, 2, 32, batch_first=True), sequence(), sequence())


@factory
def transformer_norm_first() -> nn.Module:
    return Called(nn.Transformer(16, 4, 2, 2, 32, batch_first=True, norm_first=True), sequence(), sequence())


@factory
def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return Called(nn.TransformerEncoder(layer, 2), sequence())


@factory
def transformer_encoder_norm_first() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu")
    return Called(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), sequence())


@factory
def transformer_decoder() -> nn.Module:
    layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    return Called(nn.TransformerDecoder(layer, 2), sequence(), sequence())


@factory
def multihead_attention() -> nn.Module:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    return Called(attention, sequence(), call=lambda m, x: x + m(x, x, x, need_weights=False)[0])


@factory
def multihead_attention_weights() -> nn.Module:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    return Called(attention, sequence(), call=lambda m, x: x + m(x, x, x, need_weights=True)[0])


@factory
def multihead_attention_other_widths() -> nn.Module:
    attention = nn.MultiheadAttention(16, 4, kdim=8, vdim=12, add_bias_kv=True, batch_first=True)
    return Called(attention, sequence(), sequence(8), sequence(12), call=lambda m, x, k, v: x + m(x, k, v)[0])


@factory
def lstm() -> nn.Module:
    return Called(nn.LSTM(16, 16, 2, batch_first=True), sequence())


@factory
def lstm_residual() -> nn.Module:
    return Residual(nn.LSTM(16, 8, bidirectional=True, batch_first=True), 16, sequence())


@factory
def lstm_projected() -> nn.Module:
    return Called(nn.LSTM(16, 16, proj_size=8), sequence(), call=lambda m, x: m(x)[0])


@factory
def lstm_bare_residual() -> nn.Module:
    return Called(nn.LSTM(16, 16, batch_first=True), sequence(), call=lambda m, x: x + m(x)[0])


@factory
def gru() -> nn.Module:
    return Residual(nn.GRU(16, 16, batch_first=True), 16, sequence())


@factory
def rnn() -> nn.Module:
    return Residual(nn.RNN(16, 16, nonlinearity="relu", batch_first=True), 16, sequence())


@factory
def lstm_cell() -> nn.Module:
    return Residual(nn.LSTMCell(16, 16), 16, sequence()[0])


@factory
def gru_cell() -> nn.Module:
    return Residual(nn.GRUCell(16, 16), 16, sequence()[0])


@factory
def bilinear() -> nn.Module:
    return Called(nn.Bilinear(16, 16, 16), sequence(), call=lambda m, x: x + m(x, x))


@factory
def embedding_bag() -> nn.Module:
    indices = torch.arange(12).view(3, 4)
    head = nn.Sequential(nn.EmbeddingBag(20, 16, mode="sum"), nn.Linear(16, 4))
    return Called(head, indices)


@factory
def embedding() -> nn.Module:
    head = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 20))
    return Called(head, torch.arange(12).view(3, 4))


def _transposed(kind: Any, dimensions: int) -> nn.Module:
    image = torch.randn(1, 8, *[6] * dimensions, generator=torch.Generator().manual_seed(0))
    return Called(kind(8, 8, 3, padding=1), image, call=lambda m, x: x + m(x).relu())


@factory
def conv_transpose1d() -> nn.Module:
    return _transposed(nn.ConvTranspose1d, 1)


@factory
def conv_transpose2d() -> nn.Module:
    return _transposed(nn.ConvTranspose2d, 2)


@factory
def conv_transpose3d() -> nn.Module:
    return _transposed(nn.ConvTranspose3d, 3)


@factory
def conv3d_grouped() -> nn.Module:
    image = torch.randn(1, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return Called(nn.Conv3d(8, 8, 3, padding=1, groups=2), image, call=lambda m, x: x + m(x).relu())


def _linears() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def _parametrised(register: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = _linears()
    register(layers[0])
    register(layers[2])
    return Called(layers, sequence(), call=lambda m, x: x + m(x))


@factory
def weight_norm() -> nn.Module:
    return _parametrised(parametrizations.weight_norm)


@factory
def old_weight_norm() -> nn.Module:
    return _parametrised(nn.utils.weight_norm)


@factory
def spectral_norm() -> nn.Module:
    return _parametrised(parametrizations.spectral_norm)


@factory
def old_spectral_norm() -> nn.Module:
    return _parametrised(nn.utils.spectral_norm)


@factory
def orthogonal() -> nn.Module:
    return _parametrised(parametrizations.orthogonal)


@factory
def orthogonal_cayley() -> nn.Module:
    return _parametrised(lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"))


@factory
def shared_module() -> nn.Module:
    """One layer under two names, called twice."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = self.first
            self.example_inputs = (sequence(),)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.first(x).relu()
            out: Tensor = x + self.second(x).relu()
            return out

    return Shared()


@factory
def cached_table() -> nn.Module:
    """A table that the first forward pass keeps as an attribute."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.table: Tensor | None = None
            self.example_inputs = (sequence(),)

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(16, device=x.device)
            out: Tensor = x + self.layer(x)[..., self.table]
            return out

    return Cached()
