"""The captured graph computes what the model computes, and reading it costs time in proportion to its size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

import idfx.analysis.zero_rules
import idfx.capture.tracing
from idfx.analysis.dataflow import Dataflow
from idfx.analysis.structure import build_structure
from idfx.capture.nested import tensors_in
from idfx.capture.tracing import capture, record, replay
from idfx.core.errors import CaptureError, ForwardError
from idfx.core.records import Capture, Example


class Small(nn.Module):
    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._body(self, *args, **kwargs)


def values(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def replays(model: nn.Module, first: Example, second: Example, how: str | None = None) -> Capture:
    """Capture on one example; on another one the graph must give, bit for bit, what the model gives."""
    model.eval()
    found = capture(model, first) if how is None else idfx.capture.tracing.record(model, first, how)
    assert how is None or found.how == how
    with torch.no_grad():
        expected = list(tensors_in(model(*second.args, **second.kwargs)))
    result = replay(found, model, second.args, second.kwargs)
    assert len(result) == len(expected) > 0
    for own, theirs in zip(result, expected, strict=True):
        assert own.dtype == theirs.dtype and torch.equal(own, theirs)
    return found


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnet18", 64, {}),
        ("resnetv2_50", 32, {}),
        ("regnety_004", 64, {}),
        ("efficientnet_b0", 64, {}),
        ("convnext_atto", 64, {}),
        ("vit_tiny_patch16_224", 32, {"img_size": 32, "depth": 2}),
        ("swin_tiny_patch4_window7_224", 56, {"img_size": 56, "depths": (2, 2, 1, 1), "embed_dim": 24}),
        ("mixer_s32_224", 64, {"img_size": 64}),
        ("densenet121", 32, {}),
        ("ghostnet_050", 64, {}),
        ("res2net50d", 64, {}),
    ],
)
def test_timm_models_replay_exactly(name: str, size: int, options: dict[str, Any]) -> None:
    model = timm.create_model(name, num_classes=5, **options)
    found = replays(model, Example((values(0, 1, 3, size, size),)), Example((values(1, 1, 3, size, size),)))
    assert found.how == "meta"
    assert {found.parameters[node] for node in found.parameters} == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("how", ["real", "meta"])
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_replay_exactly(layer: Any, how: str) -> None:
    model = layer(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    replays(model, Example((values(0, 2, 5, 3),)), Example((values(1, 2, 5, 3),)), how)


def write_to_a_slice(m: Any, x: Any) -> Any:
    y = m.fc(x)
    y[:, :2] += x[:, :2]
    y[:, 3] = 0.5
    return y * 2


def write_through_a_view(m: Any, x: Any) -> Any:
    y = m.fc(x)
    view = y.view(-1)
    view[1:].mul_(3)
    first, _ = y.chunk(2, 1)
    first.add_(1)
    return y, view


def write_before_a_view_is_read(m: Any, x: Any) -> Any:
    y = m.fc(x)
    transposed = y.t()
    y.relu_()
    return transposed.sum(1), y


def write_into_a_buffer(m: Any, x: Any) -> Any:
    result = torch.zeros(x.shape[0], 4, dtype=x.dtype, device=x.device)
    result[:, :2] = m.fc(x)[:, 2:]
    result.index_add_(1, torch.tensor([0, 3], device=x.device), x[:, :2])
    return result


def write_twice(m: Any, x: Any) -> Any:
    y = m.fc(x).clone()
    part = y[:, 1:3]
    y.add_(x)
    part.mul_(2)
    y.sub_(1)
    return part + 1, y


@pytest.mark.parametrize("how", ["real", "meta"])
@pytest.mark.parametrize("body", [write_to_a_slice, write_through_a_view, write_before_a_view_is_read, write_twice])
def test_writes_through_views_replay_exactly(body: Any, how: str) -> None:
    replays(Small(body, fc=nn.Linear(4, 4)), Example((values(0, 3, 4),)), Example((values(1, 3, 4),)), how)


def test_writes_into_a_new_tensor_replay_exactly() -> None:
    net = Small(write_into_a_buffer, fc=nn.Linear(4, 4))
    for how in ("meta", "real"):
        replays(net, Example((values(0, 3, 4),)), Example((values(1, 3, 4),)), how)


def test_a_tensor_that_the_forward_makes_out_of_sight_has_no_values_on_meta() -> None:
    def body(m: Any, x: Any) -> Any:
        with _disable_current_modes():
            hidden = torch.ones(4, device=x.device)
        return m.fc(x) * hidden

    net = Small(body, fc=nn.Linear(4, 4))
    found = record(net, Example((values(0, 3, 4),)), "meta")
    with pytest.raises(CaptureError, match=r"on meta tensors .*Capture on real tensors"):
        replay(found, net, (values(1, 3, 4),), {})


def test_an_input_that_the_forward_overwrites_stays_as_it_was() -> None:
    x = values(0, 3, 4)
    before = x.clone()
    model = Small(lambda m, x: m.fc(x.mul_(2)) + x, fc=nn.Linear(4, 4)).eval()
    found = capture(model, Example((x,)))
    assert torch.equal(x, before)
    fresh = values(1, 3, 4)
    with torch.no_grad():
        expected = model(fresh.clone())
    assert torch.equal(replay(found, model, (fresh,), {})[0], expected)


@dataclass
class Answer:
    hidden: torch.Tensor
    scores: dict[str, torch.Tensor]
    label: str = "answer"


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def test_nested_inputs_and_outputs_replay_exactly() -> None:
    def body(m: Any, pair: Any, *, extra: Any, flag: bool) -> Any:
        hidden = m.fc(pair.left + extra["a"][0])
        return Answer(hidden if flag else pair.left, {"up": hidden.exp(), "right": pair.right * extra["b"]}), [hidden]

    def example(seed: int) -> Example:
        a, b, c, d = (values(seed + i, 3, 4) for i in range(4))
        return Example((Pair(a, b),), {"extra": {"a": [c], "b": d}, "flag": True})

    found = replays(Small(body, fc=nn.Linear(4, 4)), example(0), example(10))
    assert sum(node.op == "placeholder" for node in found.graph.nodes) == 4


def test_keyword_inputs_replay_exactly_in_any_order() -> None:
    model = Small(lambda m, x, y=None, z=None: m.fc(x) * y - z, fc=nn.Linear(4, 4))
    parts = {"y": values(1, 3, 4), "z": values(2, 3, 4)}
    replays(
        model,
        Example((values(0, 3, 4),), parts),
        Example((values(5, 3, 4),), {"y": values(6, 3, 4), "z": values(7, 3, 4)}),
    )


def test_a_module_called_twice_has_one_parameter() -> None:
    model = Small(lambda m, x: m.fc(m.fc(x).relu()), fc=nn.Linear(4, 4))
    found = replays(model, Example((values(0, 3, 4),)), Example((values(1, 3, 4),)))
    assert sorted(found.parameters.values()) == ["fc.bias", "fc.weight"]
    assert [found.modules[node.name] for node in found.graph.nodes if "linear" in node.name] == ["fc", "fc"]


def test_tied_parameters_are_one() -> None:
    model = Small(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    model.b.weight = model.a.weight
    found = replays(model, Example((values(0, 3, 4),)), Example((values(1, 3, 4),)))
    assert sorted(found.info) == ["a.bias", "a.weight", "b.bias"]
    assert found.info["a.weight"].aliases == ("b.weight",)
    assert set(found.parameters.values()) <= {"a.weight", "b.weight", "a.bias", "b.bias"}


def test_buffers_and_constants_replay_exactly() -> None:
    fixed = values(3, 4)
    model = Small(lambda m, x: m.norm(m.fc(x)) * fixed, fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    model.norm.running_mean.copy_(values(4, 4))
    model.norm.running_var.copy_(values(5, 4).abs())
    replays(model, Example((values(0, 3, 4),)), Example((values(1, 3, 4),)))


@pytest.mark.parametrize("how", ["meta", "real"])
def test_a_buffer_with_two_names_is_one(how: str) -> None:
    model = Small(lambda m, x: m.b(m.a(x)), a=nn.BatchNorm1d(4), b=nn.BatchNorm1d(4))
    model.b.running_mean = model.a.running_mean
    captured = record(model.eval(), Example((values(0, 3, 4),)), how)
    x = values(1, 3, 4)
    assert torch.equal(replay(captured, model, (x,), {})[0], model(x))


def test_control_flow_that_looks_at_inputs_takes_the_path_of_the_example_on_meta_tensors() -> None:
    model = Small(
        lambda m, x: m.a(x) if x.sum() > 0 else m.b(x), a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False)
    )
    up, down = values(0, 3, 4).abs(), -values(0, 3, 4).abs()
    taken = replays(model, Example((up,)), Example((2 * up,)))
    assert taken.how == "meta" and set(taken.parameters.values()) == {"a.weight"}
    other = replays(model, Example((down,)), Example((2 * down,)))
    assert other.how == "meta" and set(other.parameters.values()) == {"b.weight"}


def test_control_flow_that_looks_at_what_parameters_make_runs_on_real_tensors() -> None:
    model = Small(
        lambda m, x: m.a(m.c(x)) if m.c(x).sum() > 0 else m.b(m.c(x)),
        a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False), c=nn.Linear(4, 4, bias=False),
    )  # fmt: skip
    x = values(0, 3, 4)
    way = "a.weight" if float(model.c(x).sum()) > 0 else "b.weight"
    found = replays(model, Example((x,)), Example((2 * x,)))
    assert found.how == "real" and set(found.parameters.values()) == {"c.weight", way}


def test_values_of_inputs_are_read_as_they_were_when_they_are_asked_for() -> None:
    def body(m: Any, x: Any) -> Any:
        before = x.sum()
        y = x.clone()
        y.view(-1)[:2].mul_(0.0)
        y[..., -1] += 100.0
        steps = int((before > 0).item()) + 2 * int((y.sum() > 50).item()) + 4 * int(y.view(-1)[0].item() == 0.0)
        kept = x[x > x.mean()]
        return m.fc(x) * steps + kept.numel()

    x = values(0, 3, 4)
    net = Small(body, fc=nn.Linear(4, 4))
    meta, real = (idfx.capture.tracing.record(net, Example((x,)), how) for how in ("meta", "real"))
    assert [str(node.target) for node in meta.graph.nodes] == [str(node.target) for node in real.graph.nodes]
    numbers = [a for node in meta.graph.nodes for a in node.args if isinstance(a, (int, float))]
    assert numbers == [a for node in real.graph.nodes for a in node.args if isinstance(a, (int, float))]
    assert meta.shapes == real.shapes


def test_sizes_and_masks_that_inputs_give_are_known_on_meta() -> None:
    """The numbers in an index tensor, and how many entries a mask selects."""

    def body(m: Any, x: Any, sizes: Any) -> Any:
        first, second = m.fc(x).split(sizes.tolist())
        kept = m.fc(x)[x > 0]
        y = m.fc(x).clone()
        y[x < 0] = 0.0
        return first.sum() + second[0], kept, y

    example = Example((values(0, 3, 4), torch.tensor([1, 2])))
    found = replays(Small(body, fc=nn.Linear(4, 4)), example, Example((values(0, 3, 4), torch.tensor([1, 2]))))
    assert found.how == "meta"
    assert found.shapes[found.graph.output_node().args[0][1].name] == (int((values(0, 3, 4) > 0).sum()),)


def test_indices_written_as_lists_and_kept_off_the_device_are_known_on_meta() -> None:
    order = torch.tensor([3, 1, 0])

    def body(m: Any, x: Any) -> Any:
        y = m.fc(x)[:, [2, 0, 1, 3]][..., order]
        y[[0, 2]] = 0.0
        return y[1:] * x[:, :3][[True, False, True, True]]

    example = Example((values(0, 4, 5),))
    assert replays(Small(body, fc=nn.Linear(5, 4)), example, Example((values(1, 4, 5),))).how == "meta"


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.fc(x)[:, [2, 0, 1, 3]],
        lambda m, x: m.fc(x)[[True, False, True, True]],
        lambda m, x: m.fc(x)[x[:, :4] > 0],
        lambda m, x: m.fc(x).split(torch.tensor([1, 3], device=x.device).tolist()),
        lambda m, x: m.fc(x) if x.sum() > 0 else m.fc(-x),
        lambda m, x: m.fc(x) * int(x.argmax()),
    ],
)
def test_a_run_on_meta_makes_the_calls_of_a_real_one(body: Any) -> None:
    net, example = Small(body, fc=nn.Linear(5, 4)), Example((values(0, 4, 5),))
    meta, real = (record(net, example, how) for how in ("meta", "real"))
    assert meta.calls == real.calls
    calls = [[str(node.target) for node in found.graph.nodes if node.op == "call_function"] for found in (meta, real)]
    assert calls[0] == calls[1]


def test_hooks_that_a_forward_registers_are_gone_afterwards() -> None:
    def body(m: Any, x: Any) -> Any:
        m.fc.register_forward_hook(lambda module, args, result: result * 2)
        return m.fc(x)

    net = Small(body, fc=nn.Linear(4, 4))
    capture(net, Example((values(0, 3, 4),)))
    assert not net.fc._forward_hooks


def test_a_tensor_made_from_numbers_keeps_them_on_meta() -> None:
    net = Small(
        lambda m, x: m.fc(x) * torch.tensor([1.0, 2.0, 0.0, -1.0], device=x.device) + x.new_tensor([[3.0]]),
        fc=nn.Linear(4, 4),
    )
    assert replays(net, Example((values(0, 3, 4),)), Example((values(1, 3, 4),))).how == "meta"


def test_control_flow_that_looks_at_shapes_runs_on_meta_tensors() -> None:
    model = Small(lambda m, x: m.a(x) if x.shape[0] > 2 else x, a=nn.Linear(4, 4))
    assert replays(model, Example((values(0, 3, 4),)), Example((values(1, 3, 4),))).how == "meta"


def test_a_run_on_real_tensors_leaves_buffers_and_random_state_alone() -> None:
    def body(m: Any, x: Any) -> Any:
        m.count += 1
        noise = torch.rand(x.shape, device=x.device)
        return m.fc(x) + noise if float(m.fc(x).sum()) > -1e9 else x

    model = Small(body, fc=nn.Linear(4, 4))
    model.register_buffer("count", torch.zeros(1))
    state = torch.get_rng_state()
    assert capture(model, Example((values(0, 3, 4),))).how == "real"
    assert model.count.item() == 0.0 and torch.equal(torch.get_rng_state(), state)


def test_a_model_on_the_meta_device_that_looks_at_values_cannot_be_captured() -> None:
    with torch.device("meta"):
        model = Small(lambda m, x: m.a(x) if m.a(x).sum() > 0 else x, a=nn.Linear(4, 4))
    with pytest.raises(CaptureError, match="on the meta device and its forward needs values"):
        capture(model, Example((values(0, 3, 4),)))


def test_a_forward_that_raises_names_its_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(5, 5)))
    with pytest.raises(ForwardError, match=r"module '1\.0'"):
        capture(model, Example((values(0, 3, 4),)))


def test_a_forward_without_tensors_cannot_be_captured() -> None:
    with pytest.raises(CaptureError, match="returned no tensor"):
        capture(Small(lambda m, x: "done", a=nn.Linear(1, 1)), Example((values(0, 3, 4),)))


# Linear growth


class Chain(nn.Module):
    """x ← x + b(relu(a(x))), so many times, as a model of weights without modules."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        for index in range(blocks):
            self.register_parameter(f"a{index}", nn.Parameter(torch.zeros(2, 2)))
            self.register_parameter(f"b{index}", nn.Parameter(torch.zeros(2, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self._parameters
        for index in range(self.blocks):
            inner = nn.functional.linear(x, weights[f"a{index}"]).relu()
            x = x + nn.functional.linear(inner, weights[f"b{index}"])
        return x


class Tower(nn.Module):
    """Blocks within blocks: the branch of each holds the next one."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        for index in range(blocks):
            self.register_parameter(f"a{index}", nn.Parameter(torch.zeros(2, 2)))
            self.register_parameter(f"b{index}", nn.Parameter(torch.zeros(2, 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, waiting = self._parameters, []
        for index in range(self.blocks):
            waiting.append(x)
            x = nn.functional.linear(x, weights[f"a{index}"]).relu()
        for index in reversed(range(self.blocks)):
            x = waiting[index] + nn.functional.linear(x, weights[f"b{index}"])
        return x


class Counted(tuple[tuple[int, ...], ...]):
    """The sources of all terms, which count every look at those of one."""

    visits: Visits

    def __new__(cls, values: tuple[tuple[int, ...], ...], visits: Visits) -> Counted:
        made = super().__new__(cls, values)
        made.visits = visits
        return made

    def __getitem__(self, index: Any) -> Any:
        self.visits.count += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for value in super().__iter__():
            self.visits.count += 1
            yield value


class Visits:
    """Counts how often the sources of a term are asked for: the steps that the analysis takes in the graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        made: dict[int, tuple[Dataflow, Counted]] = {}  # with the flow, whose id no other may take

        own = Dataflow.__dict__["sources"].func

        def sources(flow: Dataflow) -> Counted:
            if id(flow) not in made:
                made[id(flow)] = flow, Counted(own(flow), self)
            return made[id(flow)][1]

        monkeypatch.setattr(Dataflow, "sources", property(sources))
        monkeypatch.setattr(Dataflow, "addends", self._counting(Dataflow.addends))
        monkeypatch.setattr(
            idfx.analysis.zero_rules.ZeroRules,
            "by_kind",
            self._counting(idfx.analysis.zero_rules.ZeroRules.by_kind),
        )

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.count += 1
            return function(*args)

        return counted

    def of(self, found: Capture) -> int:
        self.count = 0
        build_structure(found)
        return self.count


def captured(net: type[Any], blocks: int) -> Capture:
    return capture(net(blocks), Example((torch.ones(1, 2),)))


@pytest.mark.parametrize("net", [Chain, Tower])
def test_the_analysis_visits_each_node_a_fixed_number_of_times(net: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    visits = Visits(monkeypatch)
    small, large = visits.of(captured(net, 50)), visits.of(captured(net, 400))
    assert 0 < large <= 8 * small * 1.05


@pytest.mark.slow
def test_a_thousand_blocks_and_ten_thousand_cost_the_same_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = captured(Chain, 1_000), captured(Chain, 10_000)
    with monkeypatch.context() as patch:
        visits = Visits(patch)
        assert visits.of(large) <= 10 * visits.of(small) * 1.01
    times: dict[int, list[float]] = {1_000: [], 10_000: []}
    for _ in range(2):
        for blocks, found in ((1_000, small), (10_000, large)):
            start = time.process_time()
            structure = build_structure(found)
            times[blocks].append(time.process_time() - start)
            assert len(structure.joins) == blocks and all(join.zeroable for join in structure.joins)
    assert statistics.median(times[10_000]) < 10 * 2.5 * statistics.median(times[1_000])


class Momentum(nn.Module):
    """A frozen encoder that follows another one in its forward, by a write in place or by new data."""

    def __init__(self, replace: bool) -> None:
        super().__init__()
        self.replace, self.online, self.target = replace, nn.Linear(4, 4), nn.Linear(4, 4)
        self.target.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                if self.replace:
                    slow.data = slow.data * 0.9 + fast.data * 0.1
                else:
                    slow.mul_(0.9).add_(fast, alpha=0.1)
        return x + self.online(x) - self.target(x)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("how", ["meta", "real"])
def test_parameters_that_a_forward_updates_are_as_before(replace: bool, how: str) -> None:
    net = Momentum(replace)
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in net.named_parameters()}
    record(net, Example((values(0, 3, 4),)), how)
    for name, parameter in net.named_parameters():
        assert parameter is before[name][0] and torch.equal(parameter, before[name][1])
