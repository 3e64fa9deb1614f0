"""A forward that runs is never blamed on its inputs, and idfx says what it cannot read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import idfx
from idfx.core.errors import CaptureError, ForwardError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block whose branch is a function of the module and of the normalised input."""

    def __init__(self, branch: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.branch(self, self.norm(x)))

    def inner(self, y: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(y)))


def _nested(m: Block, y: Tensor) -> Tensor:
    return torch.cat(list(m.inner(torch.nested.nested_tensor([y[:2], y[2:]])).unbind()))


def _jagged(m: Block, y: Tensor) -> Tensor:
    pieces = torch.nested.nested_tensor([y[:1], y[1:]], layout=torch.jagged)
    return torch.cat(list(m.inner(pieces).unbind()))


def _nested_with_gradients(m: Block, y: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        raise RuntimeError("gradients, please")
    return _nested(m, y)


def _training(m: Block, y: Tensor) -> Tensor:
    if not m.training:
        raise RuntimeError("call generate() instead")
    return m.inner(y)


@pytest.mark.parametrize(
    ("branch", "words"),
    [
        (_nested, r"plain forward runs on these inputs, but.* at aten\._nested_tensor_from_tensor_list"),
        (_jagged, r"plain forward runs on these inputs, but.* its own forward after aten\.\w+"),
        (
            _nested_with_gradients,
            r"runs on these inputs with gradients, but.* at aten\._nested_tensor_from_tensor_list",
        ),
        (_training, r"runs on these inputs in training mode alone: in evaluation mode.*generate\(\) instead"),
    ],
)
def test_a_forward_that_runs_without_idfx_is_not_blamed(branch: Any, words: str) -> None:
    model = Block(branch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(X)
    for call in (idfx.analyze, idfx.init_, idfx.audit):
        with pytest.raises(CaptureError, match=words) as caught:
            call(model, (X,))
        assert caught.value.exit_code == 3 and "suitable inputs" not in str(caught.value)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_forward_that_does_not_run_is() -> None:
    with pytest.raises(ForwardError, match=r"module 'b'.*Give suitable inputs"):
        idfx.analyze(Block(lambda m, y: m.b(y[:, :3])), (X,))


def test_the_trial_of_a_plain_forward_leaves_no_trace() -> None:
    def body(m: Any, y: Tensor) -> Tensor:
        m.a.weight.data.add_(1)
        m.count += 1
        m.late = nn.Linear(8, 8)
        return _nested(m, y)

    model = Block(body)
    model.register_buffer("count", torch.zeros(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(CaptureError):
        idfx.analyze(model, (X,))
    now = model.state_dict()
    assert now.keys() == before.keys() and all(torch.equal(before[name], value) for name, value in now.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_takes_no_other_values_is_initialised() -> None:
    def body(m: Any, y: Tensor) -> Tensor:
        if not y.is_meta and not torch.equal(y, m.known):
            raise ValueError("other values than those that I know")
        return m.inner(y)

    model = Block(body)
    model.known = model.norm(X).detach()
    certificate = idfx.init_(model, (X,)).certificate
    assert certificate is not None and certificate.passed and certificate.distinct is None


@pytest.mark.parametrize("layout", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_a_sparse_buffer_is_read_and_judged(layout: Callable[[Tensor], Tensor]) -> None:
    def model(values: Tensor) -> Block:
        made = Block(lambda m, y: m.b(m.links @ torch.relu(m.a(y))))
        made.register_buffer("links", layout(values))
        return made

    sound = model(torch.eye(4))
    assert [end.parameter for join in idfx.analyze(sound, (X,)).joins for end in join.ends] == ["b.weight"]
    assert idfx.audit(sound, (X,)).at_least("warning") == ()
    certificate = idfx.init_(sound, (X,)).certificate
    assert certificate is not None and certificate.passed
    found = idfx.audit(model(torch.eye(4) * torch.inf), (X,), only=["finite"]).at_least("error")
    assert [(finding.metric, finding.parameter) for finding in found] == [("finite", "links")]


def _learning(model: nn.Module) -> set[str]:
    model(X).sum().backward()
    return {name for name, own in model.named_parameters() if own.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpoint_cuts_what_it_cuts_in_training(reentrant: bool, frozen: bool) -> None:
    """A reentrant checkpoint whose inputs have no gradient leaves its weights without one."""
    model = Block(lambda m, y: checkpoint(m.inner, y, use_reentrant=reentrant))
    if frozen:
        model.norm.requires_grad_(False)
    found = idfx.audit(model, (X,), only=["cut"])
    wanted = {name for name, own in model.named_parameters() if own.requires_grad} - _learning(model)
    assert {finding.parameter for finding in found.findings} == wanted
    assert bool(wanted) == (reentrant and frozen)
