"""The audit of entries, rows and look-ups, with expectations computed by hand and healthy counterparts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import idfx

audited = functools.partial(idfx.audit, batch=False)
IDS = torch.randint(1, 40, (2, 8), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """Words and positions, a layer in a residual block, a head."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(40, 32, padding), nn.Embedding(8, 32)
        self.norm, self.fc, self.head = nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 40, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        return self.head(x + torch.relu(self.fc(self.norm(x))))


def words(padding: int | None = None, **values: Callable[[Tensor], Tensor]) -> Words:
    torch.manual_seed(0)
    model = Words(padding)
    with torch.no_grad():
        for name, change in values.items():
            weight = model.get_submodule(name).weight
            weight.copy_(change(weight.clone()))
    return model


def found(model: nn.Module, *inputs: Tensor, batch: bool = False) -> list[tuple[str, str, str, float]]:
    findings = idfx.audit(model, inputs or (IDS,), batch=batch).at_least("warning")
    return [(f.severity, f.metric, f.parameter, f.value) for f in findings]


def poked(count: int, value: float) -> Callable[[Tensor], Tensor]:
    def poke(old: Tensor) -> Tensor:
        old.flatten()[: 37 * count : 37] = value
        return old

    return poke


def test_outliers_are_counted_and_long_tails_are_not():
    normal = lambda old: torch.randn(32, 32) * 0.02  # noqa: E731
    assert found(words(fc=normal)) == []
    assert found(words(fc=lambda old: poked(5, -2.0)(normal(old)))) == [("warning", "entries", "fc.weight", 5)]
    assert found(words(fc=lambda old: torch.distributions.Laplace(0.0, 0.1).sample((32, 32)))) == []
    assert found(words(fc=lambda old: torch.eye(32) + 1e-4 * torch.randn(32, 32))) == []
    sparse = lambda old: torch.where(torch.rand(32, 32) < 0.1, torch.randn(32, 32), torch.zeros(()))  # noqa: E731
    assert found(words(fc=sparse)) == []


def test_a_truncated_normal_in_low_precision_puts_entries_on_its_bounds():
    """At bounds of a hundred deviations, a bfloat16 draw of 1 or −1 is an entry of 2 or −2."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        uniform = (torch.rand(64, 64, dtype=torch.float64) * 2 - 1).bfloat16().double()
        layer.weight.copy_((torch.special.erfinv(uniform) * 2**0.5 * 0.02).clamp(-2, 2))
    count = int((layer.weight.abs() == 2).sum())
    (outliers,) = [f for f in audited(layer, (torch.ones(1, 64),)).findings if f.metric == "entries"]
    assert count and (outliers.severity, outliers.value) == ("warning", count)


@pytest.mark.parametrize("name", ["fc", "embed", "place"])
def test_a_uniform_draw_from_0_to_1_is_far_from_0(name):
    torch.manual_seed(1)
    drawn = torch.rand({"fc": 32, "embed": 40, "place": 8}[name], 32) * 0.1
    ((severity, metric, parameter, value),) = found(words(**{name: lambda old: drawn}))
    assert (severity, metric, parameter) == ("warning", "entries", f"{name}.weight")
    assert value == pytest.approx(float(drawn.mean() / drawn.std(correction=0)))  # close to √3
    assert found(words(**{name: lambda old: drawn - 0.05})) == []


def test_a_positive_weight_by_construction_is_not_judged():
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(32, 32) / 16)

        def forward(self, x: Tensor) -> Tensor:
            return x @ nn.functional.softplus(self.weight)

    assert found(Positive(), torch.randn(3, 32)) == []


@pytest.mark.parametrize(("name", "size"), [("embed", 0.02), ("embed", 8.0), ("head", 0.02)])
def test_added_rows_of_another_size(name, size):
    def grown(old: Tensor) -> Tensor:
        old[-4:] *= size
        return old

    assert found(words(**{name: grown})) == [("warning", "entries", f"{name}.weight", 4)]


def test_rows_of_zeros_beside_the_padding_row():
    def emptied(*rows: int) -> Callable[[Tensor], Tensor]:
        return lambda old: old.index_fill(0, torch.tensor(rows), 0.0)

    assert found(words(embed=emptied(0))) == []  # one row may be for padding, whoever treats it so
    assert found(words(0, embed=emptied(0, 3))) == []
    assert found(words(embed=emptied(38, 39))) == [("warning", "entries", "embed.weight", 2)]


def test_a_table_of_zeros_tells_no_words_apart():
    assert found(words(embed=torch.zeros_like)) == [("error", "lookups", "embed.weight", 40)]
    model = words(embed=torch.zeros_like)
    with torch.no_grad():
        assert torch.equal(model(IDS), model(IDS.flip(0)))
    assert found(words(place=torch.zeros_like)) == []  # positions may start as nothing


def test_the_low_rank_part_of_an_embedding_may_be_zero():
    class Adapted(Words):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.up = nn.Embedding(40, 4), nn.Linear(4, 32, bias=False)
            nn.init.zeros_(self.low.weight)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids) + self.up(self.low(ids))
            return self.head(x + torch.relu(self.fc(self.norm(x))))

    assert [entry for entry in found(Adapted()) if entry[2] == "low.weight"] == []


def test_the_padding_row_is_empty():
    assert found(words(0)) == []
    redrawn = words(0, embed=torch.randn_like)
    assert found(redrawn) == [("warning", "lookups", "embed.weight", 32)]
    redrawn(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    assert redrawn.embed.weight.grad is not None and not redrawn.embed.weight.grad[0].any()
    assert found(words(None, embed=torch.randn_like)) == []


def test_biases_of_experts_that_a_router_looks_up_may_be_zero():
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.fc, self.bias = nn.Linear(8, 4), nn.Linear(8, 16), nn.Parameter(torch.zeros(4, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.bias[self.router(x).argmax(-1)]

    assert [entry for entry in found(Routed(), torch.randn(3, 8)) if entry[1] == "lookups"] == []


def test_entries_of_large_tables_are_found_by_exact_numbers():
    """From 2²⁴ on, float32 has no odd numbers: the last entry of a table of 2²⁴ entries would be one too far."""
    from idfx.audits.clones import _some

    size = 2**24 + 4
    found = _some(torch.arange(size, dtype=torch.int32)[None])[0].tolist()
    assert len(found) == 64 and (found[0], found[-1]) == (0, size - 1)


class Placed(nn.Module):
    """Positions as one parameter with an axis for the batch, as vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(32, 32), nn.Linear(32, 4)
        self.places = nn.Parameter(torch.randn(1, 20, 32) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.stem(x) + self.places).relu().mean(1))


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda t: t[:, 16:].normal_(), 4),  # positions added at deviation 1
        (lambda t: t[:, 18:].mul_(0.01), 2),
        (lambda t: t[:, 16:].zero_(), 4),
        (lambda t: t[:, 16:].normal_(0, 0.04), 0),
        (lambda t: t[:, 0].zero_(), 0),  # that of a class token
        (lambda t: t, 0),
    ],
)
def test_positions_with_an_axis_for_the_batch_are_judged_row_by_row(
    change: Callable[[Tensor], Tensor], rows: int
) -> None:
    torch.manual_seed(0)
    model = Placed()
    with torch.no_grad():
        change(model.places)
    found = audited(model, (torch.randn(2, 20, 32),), only=["entries"]).findings
    assert [(f.severity, f.parameter, f.value) for f in found] == ([("warning", "places", rows)] if rows else [])
