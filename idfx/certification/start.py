"""A model's values → its start: the size of the signal at each join and output, and which parameters get a gradient.

The captured graph runs on the example. Zeros may block the gradient of other parameters for a step: a closed branch, or
the columns of a wide identity. So the parameters are moved along their own gradient, as an optimiser would move them,
and the graph runs again, until no further parameter gets one. The model does not change.

Neither statistics of a batch normalisation are those of training: running statistics that nothing has updated let
signals grow and saturate gates, and with those of a single image the mean over its pixels, which is all that a global
pooling sees, is 0. So what fails with the first is tried with the second.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idfx.capture.tracing import another
from idfx.capture.wrappers import unwrap
from idfx.core.errors import AuditError, PeerError, shortened
from idfx.core.records import FACTS, Example, StartCheck, Structure
from idfx.measuring.replay import Replay
from idfx.planning.scalars import source_of
from idfx.sharding.layout import is_sharded, local
from idfx.sharding.together import anywhere, together, whole

STEPS = 4  # the most steps of training that are taken
RANGE = 1e3  # the factor around 1, and around the author's start, within which the signal must lie
SAME = 1e-4  # the change of the outputs, relative to the largest, up to which they count as unchanged
_MOVE = 1e-2  # the root mean square of a step


@dataclass(frozen=True)
class Start:
    """A start, as observed on the example.

    `sizes` holds the root mean square at each output ("output", "output 2") and, by name, at each join that the inputs
    reach past all branches. `steps` holds the step, from 1 on, in which each trainable parameter of the graph first
    gets a gradient, and None for those that get none. `neutral` is set if parameters are frozen and the others add
    nothing to the outputs: doubling them changes none of the `outputs`, as with adapters that start at zero. `refusal`
    says why the graph could not be run.
    """

    sizes: Mapping[str, float]
    steps: Mapping[str, int | None]
    refusal: str = ""
    neutral: bool = False
    outputs: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)


class _Run(NamedTuple):
    """What is run, and whether batch normalisations use the statistics of the batch."""

    model: nn.Module
    structure: Structure
    example: Example
    batch: bool = False


@dataclass
class _Pass:
    """What one run of the graph with gradients shows."""

    sizes: dict[str, float] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    outputs: tuple[Tensor, ...] = ()


def observe_start(model: nn.Module, structure: Structure) -> Start:
    """Return the start that a model's values make.

    Args:
        model: with its values, on any device; it is not changed.
        structure: of the model, with the example to run.

    Example:
        >>> import torch, idfx
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
        >>> _ = torch.nn.init.zeros_(model[1].weight)
        >>> found = observe_start(model, idfx.analyze(model, (torch.ones(1, 4),)))
        >>> found.steps, found.sizes
        ({'0.weight': 2, '1.weight': 1}, {'output': 0.0})
    """
    model = unwrap(model)
    read = {
        structure.first_names.get(node.meta[FACTS].name) for node in structure.capture.graph.find_nodes(op="get_attr")
    }
    wanted = [name for name, own in model.named_parameters() if own.requires_grad and name in read]
    try:
        with together(model.parameters()):
            return _observed(model, structure, wanted)
    except (AuditError, PeerError) as error:
        return Start({}, {}, str(error).partition(";")[0])
    except Exception as error:  # an operator without a derivative, or memory for one run but not for its gradient
        return Start({}, {}, f"{type(error).__name__}: {shortened(error)}")


def _observed(model: nn.Module, structure: Structure, wanted: Sequence[str]) -> Start:
    """The start of an unwrapped model."""
    example = structure.capture.example
    first = _one_pass(_Run(model, structure, example))
    found = Start(first.sizes, {name: 1 if name in first.reached else None for name in wanted}, outputs=first.outputs)
    for one, batch in ((example, False), (another(example), False), (example, True)):
        if one is not None and suspicious(found):  # an example of zeros, for one, reaches nothing
            found = _kinder(found, _Run(model, structure, one, batch), wanted)
    return replace(found, neutral=_neutral(model, structure, first.outputs))


def _kinder(found: Start, run: _Run, wanted: Sequence[str]) -> Start:
    """What was found, or what another run finds where that is better."""
    seen = _one_pass(run, keep=True)
    sizes = {place: min(size, seen.sizes.get(place, size), key=_distance) for place, size in found.sizes.items()}
    steps = _steps(run, wanted, seen)
    return replace(found, sizes=sizes, steps={n: steps[n] if step is None else step for n, step in found.steps.items()})


def _distance(size: float) -> float:
    """How far a size is from 1, on a logarithmic scale."""
    return abs(math.log(size)) if size and math.isfinite(size) else math.inf


def _steps(run: _Run, wanted: Sequence[str], seen: _Pass) -> dict[str, int | None]:
    """The step in which each parameter first gets a gradient, given the first pass of a run."""
    steps: dict[str, int | None] = dict.fromkeys(wanted)
    moved: dict[str, Tensor] = {}
    for step in range(1, STEPS + 1):
        steps.update({name: step for name in wanted if steps[name] is None and name in seen.reached})
        if step == STEPS or None not in steps.values() or not _move(moved, seen):
            break
        seen = _one_pass(run, moved, keep=True)
    return steps


def _neutral(model: nn.Module, structure: Structure, outputs: Sequence[Tensor]) -> bool:
    """Whether some parameters are frozen, and doubling the others does not change the outputs."""
    own = dict(model.named_parameters())
    doubled = {name: value.detach().clone() for name, value in own.items() if value.requires_grad}
    if len(doubled) in (0, len(own)):
        return False
    for value in doubled.values():
        local(value).mul_(2)
    again = Replay(model, structure.capture).run(structure.capture.example, buffers={}, moved=doubled)
    return change(again, outputs) <= SAME


def _one_pass(run: _Run, moved: Mapping[str, Tensor] | None = None, keep: bool = False) -> _Pass:
    """Run the graph forwards and backwards.

    Args:
        run: what to run.
        moved: values in place of the model's own parameters.
        keep: keep the gradients.

    Raises:
        AuditError: the graph could not be run, or no output carries a gradient.
    """
    seen, structure = _Pass(), run.structure
    capture = structure.capture
    joins = {join.step: join.name for join in structure.joins if join.carries}  # no branch that starts near zero
    replay = Replay(run.model, capture)

    def after(node: torch.fx.Node, value: Any) -> Any:
        name = joins.get(capture.steps.get(node.name, -1))
        if name is not None and isinstance(value, Tensor):
            seen.sizes[name] = _root_mean_square(value)
        return value

    outputs = replay.run(run.example, after, wanted="parameters", buffers=None if run.batch else {}, moved=moved)
    seen.outputs = tuple(output.detach().clone() for output in outputs)
    for number, output in enumerate(outputs, 1):
        seen.sizes["output" if number == 1 else f"output {number}"] = _root_mean_square(output)
    for name, leaf in replay.parameters.items():
        if leaf.requires_grad:
            hook = functools.partial(_note, seen, name, keep)
            leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    loss = _loss(outputs)
    if loss is None:
        raise AuditError(f"{capture.model}: no output carries a gradient; expected one that depends on the parameters.")
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise AuditError(
            f"{capture.model}: the backward pass raised {shortened(error)}; expected gradients."
        ) from error
    return seen


def _loss(outputs: Sequence[Tensor]) -> Tensor | None:
    """A fixed random combination of all entries of the outputs."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for output in outputs:
        if output.requires_grad and output.numel():
            drawn = torch.randn(output.shape, generator=generator).to(output.device)
            parts.append((output.float() * drawn).sum())
    return torch.stack(parts).sum() if parts else None


def _note(seen: _Pass, name: str, keep: bool, leaf: Tensor) -> None:
    """Note the gradient of a parameter, and free it unless it is asked for."""
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    held = local(gradient)
    found = bool((held[:1] if held.dim() else held).any()) or bool(held.any())  # usually the first row decides
    if not (anywhere(found) if is_sharded(gradient) else found):
        return
    seen.reached.add(name)
    value = leaf.detach()
    if keep and gradient.shape == value.shape:
        seen.gradients[name], seen.values[name] = gradient, value


def _move(moved: dict[str, Tensor], seen: _Pass) -> bool:
    """Move the parameters along their gradient, which is freed; return whether there are any."""
    found = bool(seen.gradients)
    for name in list(seen.gradients):
        gradient = seen.gradients.pop(name)
        size = _root_mean_square(whole(gradient, name))
        moved[name] = seen.values.pop(name).clone()
        local(moved[name]).sub_(local(gradient) * (_MOVE / size if size else 0.0))
    return found


def _root_mean_square(tensor: Tensor) -> float:
    """The root mean square of the entries, 0 if there are none; entries below the square root of the smallest count."""
    read = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if not read.numel() or read.is_nested or not read.is_floating_point():
        return 0.0
    read = read.detach().float()
    largest = float(read.abs().max())
    if not largest or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(read / largest)) / math.sqrt(read.numel())


def compare(now: Start, author: Start | None) -> StartCheck:
    """Return what a start is, beside the author's.

    Args:
        now: the start of the initialised model.
        author: that of the same model with its author's values, or None if these are not known.

    Example:
        >>> compare(Start({"output": 1e-9}, {"w": 1}), Start({"output": 0.5}, {"w": 1})).lost
        ('output',)
    """
    known = author if author is not None and not author.refusal else None
    lost = [place for place, size in now.sizes.items() if _lost(size, known.sizes.get(place) if known else None)]
    missing = [name for name, step in now.steps.items() if step is None]
    blocked = [name for name in missing if known is not None and known.steps.get(source_of(name)) is not None]
    frozen = known is not None and known.neutral
    taken = max((step for step in now.steps.values() if step is not None), default=0)
    return StartCheck(
        sizes=dict(now.sizes),
        author_sizes=dict(known.sizes) if known else {},
        lost=tuple(lost) if known else (),
        reached=len(now.steps) - len(missing),
        steps=taken,
        blocked=tuple(blocked),
        missing=tuple(name for name in missing if name not in blocked),
        changed=change(now.outputs, known.outputs) if known and frozen else None,
        refusal=now.refusal,
    )


def change(now: Sequence[Tensor], then: Sequence[Tensor]) -> float:
    """Return the largest change of a tensor, relative to its largest entry before; infinite if a tensor was 0."""
    largest = 0.0
    for a, b in zip(now, then, strict=True):
        if a.numel() and not torch.equal(a, b):
            size = float(b.abs().max())
            largest = max(largest, float((a - b).abs().max()) / size if size else math.inf)
    return largest


def suspicious(now: Start) -> bool:
    """Whether a start must be compared with the author's: a size out of range, or a parameter without a gradient."""
    return anywhere(any(_lost(size, None) for size in now.sizes.values()) or None in now.steps.values())


def _lost(size: float, author: float | None) -> bool:
    """Whether a size lies neither within a factor of 1000 of 1 nor of the author's, nor between the two.

    A size of exactly 0 is left to the comparison of the outputs: heads of zeros are usual.
    """
    if not size or author == 0.0 or (author is not None and not math.isfinite(author)):
        return False
    bounds = (1.0,) if author is None else (1.0, author)
    return not min(bounds) / RANGE <= size <= max(bounds) * RANGE


def start_failures(check: StartCheck) -> list[str]:
    """Return what is wrong with a start, beside the author's.

    Example:
        >>> start_failures(compare(Start({"output": 1e-9}, {}), Start({"output": 0.5}, {})))
        ["the signal at output has a root mean square of 1e-09, in the author's start 0.5; at most 1000 times apart"]
    """
    failures = []
    if check.lost:
        place = check.lost[0]
        failures.append(
            f"the signal at {place} has a root mean square of {check.sizes[place]:.3g}, in the author's start "
            f"{check.author_sizes.get(place, math.nan):.3g}; at most {RANGE:.0f} times apart"
        )
    if check.blocked:
        more = f" and {len(check.blocked) - 1} more" if len(check.blocked) > 1 else ""
        failures.append(
            f"no gradient gets to {check.blocked[0]}{more} within {STEPS} steps, in the author's start one does"
        )
    if check.changed is not None and check.changed > SAME:
        failures.append(f"the outputs change by {check.changed:.2g}, although the frozen parameters alone make them")
    return failures
