"""A model whose values do not fit in memory is refused before they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import idfx
import idfx.core.memory
from idfx.building.build import build
from idfx.capture.tracing import capture
from idfx.core.errors import ResourceError
from idfx.core.memory import available, check_room, size_of
from idfx.core.records import Example
from idfx.planning.apply import apply_built_

X = torch.ones(2, 64)
WIDE = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 20000), nn.Linear(20000, 64)

    def forward(self, x):
        y = self.up(x)
        return x + self.down(y) if READS and float(y.sum()) < 1e9 else x + self.down(y)

example_inputs = (torch.ones(2, 64),)
"""


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with 8 MB, which the weights of `WIDE` (10 MB) do not fit in."""
    monkeypatch.setattr(idfx.core.memory, "_SMALL", 0)
    monkeypatch.setattr(idfx.core.memory, "available", lambda: 8_000_000)
    yield


def _file(folder: Path, reads: bool) -> str:
    (folder / "wide.py").write_text(WIDE.replace("READS", str(reads)))
    return f"{folder / 'wide.py'}:Wide"


def test_a_model_that_needs_real_tensors_stays_on_meta_if_they_do_not_fit(room: None, tmp_path: Path) -> None:
    built = build(_file(tmp_path, reads=True), device="cpu")
    assert built.example is not None
    words = r"Wide: it does not run on meta tensors \(.*aten\.\w+.*takes at least 0\.0 GiB.*Use a smaller --dtype"
    with pytest.raises(ResourceError, match=words):
        capture(built.model, built.example, lambda: built.pending.materialize(built.model))
    assert "up.weight" in built.pending.names(built.model)


def test_a_model_that_does_not_is_analysed_but_not_written(room: None, tmp_path: Path) -> None:
    built = build(_file(tmp_path, reads=False), device="cpu")
    assert built.example is not None
    structure = idfx.analyze(built.model, built.example.args)
    assert structure.capture.how == "meta"
    plan = idfx.plan(structure)
    with pytest.raises(ResourceError, match="its values take"):
        apply_built_(built, plan)
    assert {"up.weight", "down.weight"} <= built.pending.names(built.model)
    with pytest.raises(ResourceError, match="its values take"):
        idfx.load(_file(tmp_path, reads=False))


def test_a_model_in_memory_needs_only_what_its_forward_makes(room: None) -> None:
    class Reading(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.width = nn.Linear(64, 64), width

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            large = y.repeat(1, self.width)
            return x + y if float(large.sum()) < 1e9 else x

    assert idfx.analyze(Reading(10), (X,)).capture.how == "real"
    with pytest.raises(ResourceError, match="run on real ones takes at least"):
        idfx.analyze(Reading(20_000), (X,))  # 2 · 64 · 20,000 · 4 bytes = 10 MB


def test_what_is_available_is_what_linux_and_the_control_group_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = available()
    monkeypatch.setattr(idfx.core.memory, "_GROUPS", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 500\n")
    assert available() == 2500 and (free is None or free > 2500)
    (tmp_path / "memory.max").write_text("max\n")
    assert available() != 2500


def test_sizes_count_memory_once() -> None:
    tied = nn.Linear(4, 4, bias=False)
    assert size_of([*tied.parameters(), tied.weight[0], torch.empty(9, device="meta"), torch.eye(3).to_sparse()]) == 76
    check_room("small", 1, "it takes")


def test_an_operator_that_takes_its_type_on_a_device_alone_stays_on_meta() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.experts = nn.Linear(64, 4), nn.Parameter(torch.randn(4, 64, 64) / 8)

        def forward(self, x: Tensor) -> Tensor:
            chosen = self.router(x).argmax(-1)
            order = chosen.argsort()
            counts = torch.histc(chosen.float(), bins=4, min=0, max=3)
            found = torch._grouped_mm(x[order], self.experts, offs=counts.cumsum(0).to(torch.int32))
            return x + found[order.argsort()]

    model = Experts()
    found = capture(model, Example((X,)))
    assert found.how == "meta"
    assert {str(node.meta["val"].dtype) for node in found.graph.nodes if "grouped_mm" in node.name} == {"torch.float32"}
    assert [end.parameter for join in idfx.analyze(model, (X,)).joins for end in join.ends] == ["experts"]
    certificate = idfx.init_(model, (X,)).certificate
    assert certificate is not None and certificate.passed
