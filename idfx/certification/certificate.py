"""Weights × structure → certificate: runs the model and compares every residual join with its shortcut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from idfx.analysis.role_overrides import override_roles, with_scale_ends
from idfx.analysis.structure import build_structure
from idfx.capture.blame import at_fault
from idfx.capture.interpreter import OnCall
from idfx.capture.module_path import ModulePath
from idfx.capture.nested import map_example, tensors_in
from idfx.capture.running import run
from idfx.capture.tracing import another, record, replay
from idfx.capture.wrappers import unwrap
from idfx.certification.lost import fingerprint, lost_at
from idfx.core.errors import CertificateError, ForwardError, IdfxError, shortened
from idfx.core.records import Capture, Certificate, End, Example, Join, JoinCheck, Structure
from idfx.fills.folding import Folding
from idfx.ops.semantics import operator_name
from idfx.sharding.layout import is_sharded
from idfx.sharding.together import all_of, is_alone, of_first, together, whole


class _OtherPathError(CertificateError):
    """The run makes different operator calls from the captured run."""


class _Seen(NamedTuple):
    """The observations at one join: max|output − shortcut|, max|shortcut|, and the relative rounding of a sum."""

    difference: float
    size: float
    rounding: float


@dataclass
class _Observer:
    """Observes the calls of joins and of their ends; `expected` is the operator of each.

    `inputs` is the largest absolute input entry of the call of an end, by step. `held` keeps every result while the run
    lasts, as a recording does: a backward pass inside a forward adds in place to what nobody else holds.
    """

    joins: dict[int, Join]
    ends: frozenset[int]
    expected: dict[int, str]
    strict: bool = True
    held: list[Any] | None = None
    deviations: dict[str, _Seen] = field(default_factory=dict)
    inputs: dict[int, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    calls: int = 0

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = self._observe(func, args, kwargs)
        if self.held is not None:
            self.held.append(result)
        return result

    def _observe(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        step, self.calls = self.calls, self.calls + 1
        join = self.joins.get(step)
        if join is None and step not in self.ends:
            return func(*args, **kwargs)
        if operator_name(func) != self.expected[step]:
            if self.strict:
                raise _OtherPathError
            self.joins, self.ends = {}, frozenset()
            return func(*args, **kwargs)
        if step in self.ends:
            self.inputs[step] = max((_size(tensor) for tensor in tensors_in((args, kwargs))), default=0.0)
        if join is None:
            return func(*args, **kwargs)
        shortcut = shortcut_of(join, func, args, kwargs)
        result = func(*args, **kwargs)
        rounding = torch.finfo(result.dtype).eps if result.is_floating_point() or result.is_complex() else 0.0
        self.deviations[join.name] = _Seen(_deviation(result, shortcut), _size(shortcut), rounding)
        self.sums[join.name] = fingerprint(result)
        return result


def shortcut_of(join: Join, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the shortcut of a join, given the call of its sum, before the call is made."""
    shortcut: torch.Tensor = args[join.operand]
    if join.part is not None:
        alone: torch.Tensor = func(_alone(shortcut, *join.part), *args[1:], **kwargs)
        return alone
    if join.zeroed is not None:
        given = [torch.zeros_like(one) if at == join.zeroed else one for at, one in enumerate(args)]
        given[0] = given[0].clone() if func._schema.is_mutable else given[0]
        made: torch.Tensor = func(*given, **kwargs)
        return made
    return shortcut.clone() if func._schema.is_mutable else shortcut


def _alone(stack: torch.Tensor, axis: int, indices: Sequence[int]) -> torch.Tensor:
    """Stacked values along an axis, with all but some replaced by zeros."""
    alone = torch.zeros_like(stack)
    for index in indices:
        alone.select(axis, index).copy_(stack.select(axis, index))
    return alone


def _size(tensor: torch.Tensor) -> float:
    """max|tensor|, 0 if there is none."""
    counts = tensor.numel() and not tensor.is_nested and (tensor.is_floating_point() or tensor.is_complex())
    return float(tensor.detach().abs().max()) if counts else 0.0


def _deviation(result: torch.Tensor, shortcut: torch.Tensor) -> float:
    """max|result − shortcut|, 0 if and only if they are equal and finite."""
    if torch.equal(result, shortcut.expand_as(result)):
        return 0.0 if bool(torch.isfinite(result).all()) else math.inf
    difference = (result - shortcut).abs().max().item()
    return difference if math.isfinite(difference) else math.inf


def _second(model: nn.Module, structure: Structure, held: bool) -> tuple[Example, list[torch.Tensor], _Observer] | None:
    """Run another example of the same form; if the model rejects its integers, run one with the original integers.

    None if there is no other, or if the model rejects it as well.
    """
    for integers in (True, False):
        changed = another(structure.capture.example, integers)
        if changed is None:
            return None
        try:
            return changed, *_observed(model, structure, changed, strict=False, held=held)
        except ForwardError:  # the values are drawn, and not the caller's
            continue
    return None


def run_once(
    model: nn.Module,
    capture: Capture,
    example: Example,
    on_call: OnCall,
    instead: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> list[torch.Tensor]:
    """Return the floating-point outputs of one run on copies of buffers and inputs; `on_call` receives every call.

    `instead` are values for parameters and buffers by name, of any shape that the forward can use.

    This runs the model itself; or the graph if it comes from torch.export, whose calls differ from the model's, or if
    parameters are DTensors, which the graph gathers one by one.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    copies: dict[int, torch.Tensor] = {}  # one per buffer, even if it has several names
    buffers = {
        name: copies.setdefault(id(buffer), buffer.clone())
        for name, buffer in model.named_buffers(remove_duplicate=False)
    }
    given = map_example(example, lambda tensor: tensor.detach().clone().to(device))
    if any(map(is_sharded, model.parameters())):
        result: Any = _gathering(model, capture, given, on_call)
    elif capture.tracer == "export":
        result = replay(capture, model, given.args, given.kwargs, on_call)
    else:
        tensors = {**buffers, **instead}
        result = run(model, tensors, given.args, dict(given.kwargs), on_call, ModulePath(model), capture.grad)
    return [tensor for tensor in tensors_in(result) if tensor.is_floating_point()]


def _gathering(model: nn.Module, capture: Capture, given: Example, on_call: OnCall) -> list[torch.Tensor]:
    """Run the graph together with the processes that hold the other shards."""
    with together(model.parameters()):
        try:
            return replay(capture, model, given.args, given.kwargs, on_call)
        except IdfxError:
            raise
        except Exception as error:
            raise ForwardError(
                f"{capture.model}: running its graph raised {shortened(error)}; expected it to run as the model does. "
                "Give inputs whose values the forward accepts."
            ) from error


def certify(model: nn.Module, structure: Structure, eps: float | Mapping[str, float] = 1e-6) -> Certificate:
    """Run the model twice and check that every residual join equals its shortcut and that the signal gets through.

    A join passes if d = max|output − shortcut| / max|shortcut| is within a bound (with the shortcut of an outer block,
    if that is larger). The bound is 0 if the ends are 0. Otherwise a row of an end holds eps and −eps, so its output is
    at most 2 · eps · h for inputs of at most h, which the run measures; the operators after it multiply by at most g
    (`Join.gain`) and its scales by s, and the sum rounds:

        d ≤ min(Σ 2 · eps · h · g · s / max|shortcut| + rounding, ∛eps), summed over the ends.

    If the graph gives no g, the bound is ∛eps: eps divided by the square root of eps^(4/3), the smallest epsilon that a
    normalisation after an end may have.

    A model whose parameters are DTensors is certified by all its processes together, on the inputs of the first one:
    its graph is run, with each weight gathered when it is needed.

    Args:
        model: the initialised model, on any device.
        structure: of this model, with the example used for its capture.
        eps: the size of the near-zero entries of the scheme; by parameter, if they differ. A join with an end that is
            missing there is not claimed to be closed.

    Raises:
        ForwardError: the model raised.
        CaptureError: the model raised only while it was watched.
        CertificateError: two runs on the same inputs take different paths.
        PeerError: another process failed.
    """
    model = unwrap(model)
    with together(model.parameters()):
        return worst(_certified(model, on_same_inputs(structure), eps))


def worst(found: Certificate) -> Certificate:
    """Return one certificate for all processes that act together: the first that failed, or the first."""
    certificates = all_of(found, "the certificate")
    return next((one for one in certificates if not one.passed), certificates[0])


def on_same_inputs(structure: Structure) -> Structure:
    """Return a structure with the example of the first of the processes that act together, on this one's devices."""
    if is_alone():
        return structure
    own = structure.capture.example
    devices = iter([tensor.device for tensor in tensors_in((own.args, dict(own.kwargs)))])
    shared = of_first(map_example(own, lambda tensor: tensor.detach().cpu()))
    placed = map_example(shared, lambda tensor: tensor.to(next(devices)))
    return replace(structure, capture=replace(structure.capture, example=placed))


def _certified(model: nn.Module, structure: Structure, eps: float | Mapping[str, float]) -> Certificate:
    """The certificate of an unwrapped model."""
    remark, held = "", False
    try:
        first, seen = _observed(model, structure)
    except _OtherPathError:  # values, a cache or the device changed the path: read the one that this run takes
        planned, structure = structure, read_again(model, structure)
        if _claims(planned) != _claims(structure):
            remark = (
                f"the path of the forward depends on values: certified on the path of this example, which has "
                f"{len(structure.joins)} joins; the structure has {len(planned.joins)}"
            )
        first, seen, held = _observed_again(model, structure)
    again = _second(model, structure, held)
    verdict = _Verdict(model, structure, seen if again is None else _telling(seen, again[2]), eps)
    checks = tuple(verdict.check(join) for join in structure.joins)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in first)
    if again is None:
        return Certificate(checks, finite, None, tuple(_failures(checks, finite)), remark=remark)
    changed, second, other = again
    finite = finite and all(bool(torch.isfinite(tensor).all()) for tensor in second)
    if not first or any(not torch.equal(a, b) for a, b in zip(first, second, strict=False)):
        return Certificate(checks, finite, True, tuple(_failures(checks, finite)), remark=remark)
    lost = [join for join in structure.joins if join.carries and seen.sums.get(join.name) == other.sums.get(join.name)]
    if seen.sums and not lost:
        return Certificate(checks, finite, None, tuple(_failures(checks, finite)), remark=remark)
    loss = lost_at(model, structure, changed, lost[0].step if lost else None) if finite else None
    what = f"the same features at the join {lost[0].name}" if lost else "the same output"
    told = f"two different inputs give {what}: the signal is lost {f'in {loss}' if loss else 'on the way'}"
    if loss is not None and loss.zeros is not None:  # an optimiser moves it in its first step
        return Certificate(checks, finite, None, tuple(_failures(checks, finite)), remark=_joined(remark, told))
    return Certificate(checks, finite, False, tuple(_failures(checks, finite, told)), remark=remark)


def _observed_again(model: nn.Module, structure: Structure) -> tuple[list[torch.Tensor], _Observer, bool]:
    """Observe a run on the path that was just recorded, and say whether its results had to be held for that."""
    try:
        return *_observed(model, structure), False
    except _OtherPathError:
        pass
    try:
        return *_observed(model, structure, held=True), True
    except _OtherPathError as error:
        raise CertificateError(
            f"{structure.model}: two runs on the same inputs take different paths; expected the same operators in "
            "each. Fix what the forward depends on: a counter outside the model, a clock, or random numbers."
        ) from error


def _joined(*parts: str) -> str:
    """Remarks as one line."""
    return "; ".join(filter(None, parts))


def _telling(seen: _Observer, other: _Observer) -> _Observer:
    """The observations of the first run, or of the second if every shortcut was zero in the first."""
    silent = seen.deviations and all(not found.size for found in seen.deviations.values())
    return other if silent and seen.deviations.keys() == other.deviations.keys() else seen


def _observed(
    model: nn.Module, structure: Structure, example: Example | None = None, strict: bool = True, held: bool = False
) -> tuple[list[torch.Tensor], _Observer]:
    """Run an example and return the floating-point outputs and the observations at the joins.

    Without `strict`, observation stops if the run takes a different path. `held` is as in `_Observer`.
    """
    capture = structure.capture
    watched = {join.step: join for join in structure.joins if join.operand >= 0}
    ends = frozenset(step for join in structure.joins if join.gain is not None for step in join.end_steps)
    calls = (n for n in capture.graph.nodes if n.op == "call_function" and hasattr(n.target, "_schema"))
    names = {capture.steps[n.name]: operator_name(n.target) for n in calls}
    observer = _Observer(watched, ends, names, strict, [] if held else None)
    try:
        outputs = run_once(model, capture, example or capture.example, observer.on_call)
    except ForwardError as error:
        raise error if example else at_fault(model, capture.example, error) from error
    observer.held = None
    if strict and observer.calls != capture.calls:
        raise _OtherPathError
    return outputs, observer


def read_again(model: nn.Module, structure: Structure) -> Structure:
    """Return the structure of the path that a run on the model's own values takes.

    A join may end at weights or at scales, whichever the plan closes it by: it is read in the same way again.
    """
    capture = record(model, structure.capture.example, "real", structure.capture.grad)
    again = override_roles(build_structure(capture), structure.role_overrides)
    planned = _claims(structure)
    near = {join.name: join for join in with_scale_ends(again).joins}
    joins = (near[join.name] if planned.get(join.name) == _closing(near[join.name]) else join for join in again.joins)
    return replace(again, joins=tuple(joins))


def _closing(join: Join) -> tuple[object, bool]:
    """What a plan claims of a join."""
    return join.ends, join.zeroable


def _claims(structure: Structure) -> dict[str, tuple[object, bool]]:
    """What a plan claims of each join, by name."""
    return {join.name: _closing(join) for join in structure.joins}


class _Verdict:
    """Judges joins by the observations."""

    def __init__(
        self, model: nn.Module, structure: Structure, seen: _Observer, eps: float | Mapping[str, float]
    ) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._first_names = structure.first_names
        self._roles = structure.roles
        self._joins = {join.name: join for join in structure.joins}
        self._seen, self._inputs, self._eps = seen.deviations, seen.inputs, eps

    def check(self, join: Join) -> JoinCheck:
        if join.name not in self._seen:
            return JoinCheck(join.name, join.kind, math.nan, math.nan, "unseen")
        difference, size, rounding = self._seen[join.name]
        parent = join.parent
        while parent is not None:  # a block inside a closed branch has a near-zero shortcut
            size = max(size, self._seen[parent].size if parent in self._seen else 0.0)
            parent = self._joins[parent].parent
        deviation = difference / size if size else math.inf if difference else 0.0
        eps = [self._claimed(end) for end in join.ends]
        claimed = [entry for entry in eps if entry is not None]
        if not join.zeroable or len(claimed) < len(eps):
            return JoinCheck(join.name, join.kind, deviation, math.inf, "unclaimed" if join.zeroable else "open")
        tolerance = 0.0
        if max(claimed) and not all(map(self._exactly_zero, join.ends)):
            tolerance = min(self._bound(join, max(claimed), size) + rounding, math.cbrt(max(claimed)))
        status = "identity" if deviation <= tolerance else "deviates"
        return JoinCheck(join.name, join.kind, deviation, tolerance, status)

    def _claimed(self, end: End) -> float | None:
        """The claimed size of the entries of an end."""
        return self._eps.get(self._first_names[end.parameter]) if isinstance(self._eps, Mapping) else self._eps

    def _bound(self, join: Join, eps: float, size: float) -> float:
        """The bound on a branch with such ends, relative to the shortcut; infinite if unknown."""
        if join.gain is None or not size or any(step not in self._inputs for step in join.end_steps):
            return math.inf
        scales = math.prod(max(1.0, _size(whole(self._parameters[scale], scale))) for scale in join.scales)
        return sum(2 * eps * self._inputs[step] for step in join.end_steps) * join.gain * scales / size

    def _exactly_zero(self, end: End) -> bool:
        weight = whole(self._parameters[end.parameter], end.parameter).detach()
        if not weight.dim():
            return not bool(weight)
        role = self._roles.get(end.parameter)
        if end.rows is not None and role is not None and role.layout is not None:
            weight = Folding(role.layout, tuple(weight.shape)).outputs_first(weight)
        for start, stop in end.rows or ((0, weight.shape[0]),):
            part = weight[start:stop]
            if bool(part[:1].any()) or bool(part.any()):  # usually the first row decides
                return False
        return True


def _failures(checks: Sequence[JoinCheck], finite: bool, lost: str = "") -> list[str]:
    failures = [
        f"join {check.join} deviates from its shortcut by {check.deviation:.3g} (at most {check.tolerance:.3g})"
        for check in checks
        if check.status == "deviates"
    ]
    if not finite:
        failures.append("the output holds NaN or Inf")
    elif lost:
        failures.append(lost)
    return failures
