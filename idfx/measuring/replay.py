"""Runs a captured graph on real tensors, with gradients; the model itself is neither run nor changed.

Batch normalisations use the statistics of the batch, as in the first step of training, although the graph was captured
in evaluation mode; dropout stays off. The statistics can be stored, and a later run can use them in place of the
running statistics, so that samples do not affect each other.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from idfx.capture.graph import flat
from idfx.capture.interpreter import GraphInterpreter, Leaf
from idfx.capture.nested import tensors_in
from idfx.capture.wrappers import unwrap
from idfx.core.errors import AuditError
from idfx.core.records import FACTS, Capture, Example
from idfx.ops.semantics import operator_name
from idfx.sharding.gradients import Gathering

Before = Callable[[torch.fx.Node, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[torch.fx.Node, Any], Any]
Call = Callable[[torch.fx.Node, tuple[Any, ...], dict[str, Any]], Any]

_TRAINING = 5  # the argument of aten.batch_norm that selects the statistics


class OutOfTimeError(AuditError):
    """The budget ran out."""


@dataclass
class Replay:
    """Runs a captured graph.

    `parameters` are separate leaves on the model's memory, by first name; `inputs` are those of the last run.
    `statistics` are the means and variances that the batch normalisations used, by the name of the running ones, with
    "#1", "#2" for further calls of a shared normalisation.
    """

    model: nn.Module
    capture: Capture
    seed: int = 0
    out_of_time: Callable[[], bool] = lambda: False
    parameters: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    gathering: Gathering = field(default_factory=Gathering)

    def run(
        self,
        example: Example,
        after: After = lambda node, value: value,
        *,
        before: Before = lambda node, args, kwargs: None,
        wanted: str = "",
        twice: bool = False,
        buffers: Mapping[str, Tensor] | None = None,
        moved: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the floating-point outputs.

        Args:
            example: inputs of the captured form.
            after: receives each operator's node with its value, before anything overwrites it, and returns the value to
                continue with.
            before: receives each operator's node with its arguments, before it is called.
            wanted: compute gradients for "parameters", "inputs", or "" for neither.
            twice: whether the gradients are differentiated again.
            buffers: tensors in place of the model's own, by name; batch normalisations then use these.
            moved: values in place of the model's own parameters, by first name.

        Raises:
            AuditError: an operator raised.
            OutOfTimeError: the budget ran out.
        """
        leaf = self._leaves(example, wanted, {**(buffers or {}), **(moved or {})})
        calls: Counter[str] = Counter()

        def call(node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.out_of_time():
                raise OutOfTimeError("the budget ran out during a pass")
            assert callable(node.target)
            function = node.target
            if operator_name(node.target) == "aten.batch_norm" and not args[_TRAINING]:
                mean, variance = _running(node, calls)
                if buffers is not None:
                    args = (*args[:3], buffers.get(mean, args[3]), buffers.get(variance, args[4]), *args[5:])
                    function = _affine
                elif args[0].numel() > args[0].shape[1]:  # a single number has no variance
                    self._keep(mean, variance, args[0].detach())
                    args = (*args[:3], None, None, True, *args[6:])
            before(node, args, kwargs)
            with _differentiable_twice(node) if twice else nullcontext():
                value = function(*args, **kwargs)
            return after(node, value)

        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        with _seeded(self.seed), torch.set_grad_enabled(bool(wanted)), self.gathering.saving(self.model.parameters()):
            try:
                outputs = _Watched(self.capture.graph, leaf, device, call).run()
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                first = str(error).strip().splitlines()[0]
                raise AuditError(
                    f"{self.capture.model}: replaying its graph raised {first}; expected it to run as the model does. "
                    "Leave out the metrics of a batch (--batch none)."
                ) from error
        return [output for output in flat(outputs) if output.is_floating_point()]

    def _leaves(self, example: Example, wanted: str, given: Mapping[str, Tensor]) -> Callable[[torch.fx.Node], Any]:
        """The leaves of the graph: inputs in order, parameters, copies of buffers and constants."""
        model = unwrap(self.model)
        made: dict[int, Tensor] = {}

        named: dict[str, Tensor] = {}
        for name, own in model.named_buffers(remove_duplicate=False):
            if id(own) not in made:
                made[id(own)] = given.get(name, own).clone()
            named[name] = made[id(own)]
        for name, own in model.named_parameters(remove_duplicate=False):
            if id(own) not in made:
                made[id(own)] = (
                    given.get(name, own).detach().requires_grad_(wanted == "parameters" and own.requires_grad)
                )
                self.parameters[name] = made[id(own)]
            named[name] = made[id(own)]
        device = next((tensor.device for tensor in named.values()), torch.device("cpu"))
        self.inputs = [
            tensor.detach().clone().to(device) for tensor in tensors_in((example.args, dict(example.kwargs)))
        ]
        for tensor in self.inputs:
            tensor.requires_grad_(wanted == "inputs" and tensor.is_floating_point())
        waiting = iter(self.inputs)

        def leaf(node: torch.fx.Node) -> Any:
            if node.op == "placeholder":
                value = next(waiting)
                return value.clone() if value.requires_grad else value  # a forward may write to its inputs
            if node.name in self.capture.constants:
                return self.capture.constants[node.name].to(device, copy=True)
            name = node.meta[FACTS].name
            if name not in named:
                raise AuditError(
                    f"{self.capture.model}: the forward made {node.name} out of sight; expected its values. "
                    "Leave out the metrics of a batch (--batch none)."
                )
            return self.gathering.whole(named[name], name)

        return leaf

    def _keep(self, mean: str, variance: str, value: Tensor) -> None:
        """Store the statistics of a batch normalisation as it uses them, with the biased variance."""
        axes = [axis for axis in range(value.dim()) if axis != 1]
        found = torch.var_mean(value.float(), axes, correction=0)
        self.statistics[variance], self.statistics[mean] = (one.to(value.dtype) for one in found)


class _Watched(GraphInterpreter):
    """Passes each operator call to a function."""

    def __init__(self, graph: torch.fx.Graph, leaf: Leaf, device: torch.device, call: Call) -> None:
        super().__init__(graph, leaf, device)
        self._call = call

    def call(self, node: torch.fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._call(node, args, kwargs)


def _running(node: torch.fx.Node, calls: Counter[str]) -> tuple[str, str]:
    """The names of the mean and the variance of a batch normalisation, numbered from its second call on."""
    mean, variance = (one.meta[FACTS].name if isinstance(one, torch.fx.Node) else str(one) for one in node.args[3:5])
    number = calls[mean]
    calls[mean] += 1
    return (f"{mean}#{number}", f"{variance}#{number}") if number else (mean, variance)


def _affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, training: bool,
    momentum: float, eps: float, cudnn: bool,
) -> Tensor:  # fmt: skip
    """A batch normalisation with fixed statistics as a product and a sum, which are cheap to differentiate."""
    factor = (variance + eps).rsqrt()
    factor = factor if weight is None else factor * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * factor.reshape(shape) + shift.reshape(shape)


@contextmanager
def _differentiable_twice(node: torch.fx.Node) -> Iterator[None]:
    """Prevent an operator inside the block from using kernels without a second derivative."""
    name = operator_name(node.target)
    with ExitStack() as stack:
        if name == "aten.scaled_dot_product_attention":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        elif name == "aten.lstm":
            stack.enter_context(warnings.catch_warnings(action="ignore"))  # of settings of devices that are not there
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        yield
