"""Generated residual programs are read as they were put together, and start as their shortcuts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from programs import Form, Net, Record, Spec, forms, inputs, programs, spec
from small_models import initialised_with_zeros
from torch import nn

import idfx
from idfx.core.records import Join, Structure

modest = settings(  # shrinking a program takes minutes; the first failing one is small enough to read
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


def analyze(net: Net) -> Structure:
    x, context = inputs()
    return idfx.analyze(net, (x,), {"context": context})


def expected(net: Net) -> list[tuple[Any, ...]]:
    """What the program says of its own sums."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    paths = {id(module): path for path, module in net.named_modules()}

    def named(parameters: tuple[nn.Parameter, ...]) -> frozenset[str]:
        return frozenset(names[id(parameter)] for parameter in parameters)

    records = net.observe(*inputs())
    number = {id(record): index for index, record in enumerate(records)}
    return [
        (
            paths[id(record.block)],
            record.kind,
            record.cut is not None,
            *(
                (frozenset(),) * 3
                if record.cut is None
                else (named(record.cut.ends), named(record.cut.zeroed_biases), named(record.cut.scales))
            ),
            None if record.parent is None else number[id(record.parent)],
        )
        for record in records
    ]


def found(structure: Structure) -> list[tuple[Any, ...]]:
    number = {join.name: index for index, join in enumerate(structure.joins)}
    return [
        (
            join.module,
            join.kind,
            join.zeroable,
            frozenset(end.parameter for end in join.ends),
            frozenset(join.zeroed_biases),
            frozenset(join.scales),
            None if join.parent is None else number[join.parent],
        )
        for join in structure.joins
    ]


def state(net: Net) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name].reshape(-1), b[name].reshape(-1)) for name in a)


def deviates(record: Record) -> bool:
    return not torch.equal(record.output, record.shortcut)


@modest
@given(programs)
def test_joins_kinds_and_ends_are_those_of_the_program(described: Spec) -> None:
    net = Net(described)
    structure = analyze(net)
    assert found(structure) == expected(net)
    assert structure.unknown == ()
    assert set(structure.roles) == dict(net.named_parameters()).keys()


@modest
@given(programs, forms)
def test_how_a_program_is_written_down_changes_nothing(described: Spec, form: Form) -> None:
    plain, other = Net(described), Net(described, form)
    first, second = analyze(plain), analyze(other)
    names = dict(zip(dict(plain.named_parameters()), dict(other.named_parameters()), strict=True))
    assert found(second) == expected(other)
    planned, again = idfx.plan(first), idfx.plan(second)
    assert {names[name] for name in planned.kept} == set(again.kept)
    for name, decision in planned.decisions.items():
        matching = again.decisions[names[name]]
        assert (decision.fill, decision.arguments) == (matching.fill, matching.arguments), name
        assert first.roles[name].name == second.roles[names[name]].name


@modest
@given(programs, forms)
def test_training_mode_and_half_precision_change_nothing(described: Spec, form: Form) -> None:
    net = Net(described, form)
    wanted = found(analyze(net))
    assert found(analyze(net.train())) == wanted
    assert all(module.training for module in net.modules())
    x, context = inputs()
    halved = net.eval().to(torch.bfloat16)
    structure = idfx.analyze(halved, (x.to(torch.bfloat16),), {"context": context.to(torch.bfloat16)})
    assert found(structure) == wanted


@modest
@given(programs, forms)
def test_analysis_leaves_no_trace(described: Spec, form: Form) -> None:
    net = Net(described, form).train()
    net(*inputs()).sum().backward()
    before, gradients = state(net), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    identities = {name: (id(p), p.data_ptr(), p.requires_grad, p._version) for name, p in net.named_parameters()}
    torch.manual_seed(3)
    randoms = torch.get_rng_state(), random.getstate()
    idfx.plan(analyze(net))
    assert torch.equal(torch.get_rng_state(), randoms[0]) and random.getstate() == randoms[1]
    assert same_state(state(net), before)
    assert {n: (id(p), p.data_ptr(), p.requires_grad, p._version) for n, p in net.named_parameters()} == identities
    assert same_state({n: p.grad for n, p in net.named_parameters() if p.grad is not None}, gradients)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert torch.is_grad_enabled()


def silence(net: Net, joins: list[Join]) -> None:
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for join in joins:
            assert all(end.rows is None for end in join.ends)
            for name in (*(end.parameter for end in join.ends), *join.zeroed_biases):
                parameters[name].zero_()


@modest
@given(programs)
def test_ends_at_zero_make_every_sum_its_shortcut(described: Spec) -> None:
    """The truth test: no fill, no plan, no certificate; zeros written by hand and compared by the program itself."""
    net = Net(described)
    structure = analyze(net)
    assert any(deviates(record) for record in net.observe(*inputs(7)))  # or else the test below says nothing
    before = state(net)
    for index, join in enumerate(structure.joins):
        if join.zeroable:
            net.load_state_dict(before)
            silence(net, [join])
            assert not deviates(net.observe(*inputs(7))[index]), join
    net.load_state_dict(before)
    silence(net, [join for join in structure.joins if join.zeroable])
    for join, record in zip(structure.joins, net.observe(*inputs(7)), strict=True):
        assert not (join.zeroable and deviates(record)), join


@modest
@given(programs)
def test_initialised_with_eps_zero_every_block_is_its_shortcut(described: Spec) -> None:
    net = Net(described)
    x, context = inputs()
    report = initialised_with_zeros(net, (x,), {"context": context})
    assert report.certificate is not None
    checks = {check.join: check for check in report.certificate.checks}
    records = net.observe(x, context)
    for join, record in zip(report.structure.joins, records, strict=True):
        if join.zeroable:
            assert (checks[join.name].deviation, checks[join.name].status) == (0.0, "identity")
            assert not deviates(record)
        else:
            assert checks[join.name].status == "open"


def open_nest(described: Spec) -> bool:
    """Whether a block stands last in a branch, where its own shortcut is almost zero too."""
    return (described.kind == "nested" and not described.get("closed")) or any(map(open_nest, described.parts))


@modest
@given(programs.filter(lambda described: not open_nest(described)))
def test_initialised_by_default_the_certificate_passes(described: Spec) -> None:
    net = Net(described)
    x, context = inputs()
    certificate = idfx.init_(net, (x,), {"context": context}).certificate
    assert certificate is not None and certificate.passed


def test_a_block_that_stands_last_in_a_branch_is_certified_too() -> None:
    mlp = spec("mlp", norm=False, position=True, bias=True, last=False, hidden=6, activation="relu")
    net = Net(spec("net", spec("block", spec("nested", spec("block", mlp), closed=False)), dim=4))
    x, context = inputs()
    certificate = idfx.init_(net, (x,), {"context": context}).certificate
    assert certificate is not None and certificate.passed


@modest
@given(programs)
def test_a_plan_is_applied_once_and_for_all(described: Spec) -> None:
    net = Net(described)
    plan = idfx.plan(analyze(net), seed=5)
    before = state(net)
    parameters = dict(net.named_parameters())
    assert {*plan.decisions, *plan.kept} == set(parameters) and not {*plan.decisions} & {*plan.kept}
    idfx.apply_(net, plan)
    once = state(net)
    idfx.apply_(net, plan)
    assert same_state(state(net), once)
    for name in before.keys() - plan.decisions.keys():
        assert same_bits(once[name].reshape(-1), before[name].reshape(-1)), name
    assert all(parameter is dict(net.named_parameters())[name] for name, parameter in parameters.items())


@pytest.mark.parametrize("times", [1, 2])
def test_the_programs_know_their_own_truth(times: int) -> None:
    """The smallest program, against names written down by hand."""
    mlp = spec("mlp", norm=True, position=False, bias=True, last=False, hidden=6, activation="relu")
    net = Net(spec("net", spec("block", mlp, times=times), dim=4))
    one = ("block0", "identity", True, {"block0.branch.second.weight"}, {"block0.branch.second.bias"}, set(), None)
    assert expected(net) == [one] * times
