"""A widened model × the checkpoint's own tensors → how far the two are apart, and where they part.

The model's code is run with the checkpoint's tensors in place of those that grew: this is the checkpoint's model, as
far as the code does not fix a width. If the outputs differ, both runs are compared call by call: along an axis that is
longer, unit j of the wide value must equal unit j mod n of the narrow one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import nn

from idfx.capture.interpreter import OnCall
from idfx.capture.nested import map_example, tensors_in
from idfx.certification.certificate import run_once
from idfx.certification.start import change
from idfx.core.errors import ForwardError
from idfx.core.records import Capture, Example, Structure
from idfx.ops.semantics import operator_name
from idfx.planning.checkpoints import state_of
from idfx.planning.widening import Grown
from idfx.sharding.layout import is_sharded

Rows = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Narrower:
    """Outputs of the checkpoint's model and the difference to those of the wide one; `place` is where they part."""

    outputs: Sequence[torch.Tensor] | None
    difference: float | None
    place: str


def compare_narrower(
    model: nn.Module, structure: Structure, grown: Grown, wide: Sequence[torch.Tensor], calls: Callable[[], OnCall]
) -> Narrower:
    """Return how far a model is from the model with the checkpoint's own tensors.

    Args:
        model: with the grown tensors.
        structure: of the model.
        grown: what grew.
        wide: outputs of the model on `old_tokens`.
        calls: makes what receives the calls of a run, for instance one that leaves out added blocks.
    """
    capture = structure.capture
    if capture.tracer == "export" or any(map(is_sharded, model.parameters())):
        return Narrower(None, None, "a model that is sharded or comes from torch.export runs with its own shapes only")
    state = state_of(model)
    instead = {
        name: before.detach().to(device=state[name].device, dtype=state[name].dtype)
        for name, before in grown.before.items()
        if structure.first_names.get(name, name) == name or structure.first_names[name] not in grown.before
    }
    example = old_tokens(capture.example, grown)
    try:
        narrow = run_once(model, capture, example, _fitting(calls()), instead)
    except ForwardError as error:
        told = error.raised or str(error)
        return Narrower(None, None, f"the model's code does not run with the checkpoint's shapes: {told}")
    kept = without_new(wide, narrow, grown.rows)
    if kept is None:
        shapes = [" and ".join(str(list(tensor.shape)) for tensor in outputs) for outputs in (wide, narrow)]
        return Narrower(None, None, f"its outputs are {shapes[0]}, those of the checkpoint's model {shapes[1]}")
    if not all(bool(tensor.isfinite().all()) for tensor in (*kept, *narrow)):
        return Narrower(None, None, "outputs are not finite")
    difference = change(kept, narrow)
    if difference <= tolerance(model):
        return Narrower(narrow, difference, "")
    narrow_calls = _Calls(_fitting(calls()), _data_calls(capture))
    run_once(model, capture, example, narrow_calls.on_call, instead)
    wide_calls = _Calls(calls(), _data_calls(capture), narrow_calls.seen, grown.rows, tolerance(model))
    run_once(model, capture, example, wide_calls.on_call)
    return Narrower(narrow, difference, _shown(capture, wide_calls.first))


def _fitting(inner: OnCall) -> OnCall:
    """Give operators the arguments that follow from the shapes of their weights, but that modules keep as numbers.

    A convolution has as many groups as its input has times the channels that its weight reads; a layer normalisation
    has the shape of its scale.
    """

    def on_call(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        name, given = operator_name(func), list(args)
        if name in ("aten.conv1d", "aten.conv2d", "aten.conv3d") and len(given) > 6:
            given[6] = given[0].shape[-given[1].dim() + 1] // given[1].shape[1]
        elif name == "aten.layer_norm" and len(given) > 2 and given[2] is not None:
            given[1] = list(given[2].shape)
        return inner(func, given, kwargs)

    return on_call


def tolerance(model: nn.Module) -> float:
    """Return the difference that rounding explains, relative to the largest output: 1e-4 in float32.

    On a GPU it is 0.01, because convolutions round to the ten bits of TF32 there.
    """
    kinds = {(own.dtype, own.device.type) for own in model.parameters() if own.is_floating_point()}
    rounding = (max(torch.finfo(kind).eps, 1e-5 if device == "cuda" else 0.0) for kind, device in kinds)
    return min(0.05, 1000 * max(rounding, default=1e-7))


def old_tokens(example: Example, grown: Grown) -> Example:
    """Return an example whose whole numbers are rows of the shortest table of the checkpoint, modulo its length."""
    rows = min((old for old, _ in grown.rows), default=0)

    def folded(tensor: torch.Tensor) -> torch.Tensor:
        whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
        return tensor.remainder(rows) if whole and tensor.numel() and int(tensor.max()) >= rows else tensor

    return map_example(example, folded) if rows and grown.longer else example


def without_new(wide: Sequence[torch.Tensor], narrow: Sequence[torch.Tensor], rows: Rows) -> list[torch.Tensor] | None:
    """Return outputs without the entries of new rows; None if their shapes still differ from the narrow ones."""
    if len(wide) != len(narrow):
        return None
    kept = []
    for own, before in zip(wide, narrow, strict=True):
        if own.dim() == before.dim() and own.dim() and (before.shape[-1], own.shape[-1]) in rows:
            own = own[..., : before.shape[-1]]
        if own.shape != before.shape:
            return None
        kept.append(own)
    return kept


@dataclass
class _Calls:
    """Keeps the results of calls that depend on the inputs, or compares them with those of another run."""

    inner: OnCall
    steps: frozenset[int]
    other: dict[int, list[torch.Tensor]] | None = None
    rows: Rows = frozenset()
    tolerance: float = 0.0
    seen: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    first: int | None = None
    calls: int = 0

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        step, self.calls = self.calls, self.calls + 1
        result = self.inner(func, args, kwargs)
        if step not in self.steps or self.first is not None:
            return result
        own = [tensor.detach() for tensor in tensors_in(result) if tensor.is_floating_point()]
        if self.other is None:
            self.seen[step] = [tensor.clone() for tensor in own]
        elif step not in self.other or not self._alike(own, self.other[step]):
            self.first = step
        return result

    def _alike(self, wide: list[torch.Tensor], narrow: list[torch.Tensor]) -> bool:
        if len(wide) != len(narrow):
            return False
        return all(map(self._copies, wide, narrow))

    def _copies(self, wide: torch.Tensor, narrow: torch.Tensor) -> bool:
        """Whether the wide value consists of copies of units of the narrow one."""
        if wide.dim() != narrow.dim():
            return False
        for axis, (many, few) in enumerate(zip(wide.shape, narrow.shape, strict=True)):
            if (few, many) in self.rows:
                wide = wide.narrow(axis, 0, few)
            elif many != few:
                if not 0 < few < many:
                    return False
                narrow = narrow.index_select(axis, torch.arange(many, device=narrow.device) % few)
        return not wide.numel() or change([wide], [narrow]) <= self.tolerance


def _data_calls(capture: Capture) -> frozenset[int]:
    """The operator calls whose results depend on the inputs."""
    data: set[torch.fx.Node] = set()
    for node in capture.graph.nodes:
        if node.op == "placeholder" or any(before in data for before in node.all_input_nodes):
            data.add(node)
    return frozenset(capture.steps.get(node.name, -1) for node in data) - {-1}


def _shown(capture: Capture, step: int | None) -> str:
    """The operator and the module of a call."""
    node = next((node for node in capture.graph.nodes if capture.steps.get(node.name, -1) == step), None)
    if step is None or node is None:
        return "the outputs"
    where = capture.modules.get(node.name, "")
    return f"{operator_name(node.target)} in {where or 'the forward of the model'}"
