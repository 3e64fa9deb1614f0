"""The subject of an audit: structure, tensors, and numbers about them, each computed once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.graph import before
from idfx.analysis.queries import StructureQueries
from idfx.analysis.structure import build_structure
from idfx.capture.nested import UncopiedError
from idfx.capture.tracing import record
from idfx.core.errors import AuditError, CaptureError, ForwardError
from idfx.core.findings import Finding, Observation, Severity
from idfx.core.records import End, Example, Layout, ParameterInfo, Role, Structure
from idfx.fills.folding import Folding, matrices_of
from idfx.measuring.batches import enlarged
from idfx.measuring.jacobian import Linearisation
from idfx.measuring.trial import BatchRun
from idfx.ops.kinds import Kind
from idfx.ops.semantics import operator_name
from idfx.schemes.scheme import GAINS, fans, is_weight

SAMPLE = 16_384  # entries of a tensor in a sample
CLOSED = 0.01  # a factor that lets no more than 1 part in 10,000 of the variance through


@dataclass(frozen=True)
class AuditContext:
    """A model that is audited.

    `tensors` are its parameters, each under its first name, its buffers, and tensors that are attributes of a module.
    `unwritten` is the number of uninitialised entries by tensor; None if idfx did not build the model and cannot know.
    `trial` is the batch to run, or None.
    """

    model: nn.Module = field(repr=False)
    structure: Structure
    network: StructureQueries = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    unwritten: Mapping[str, int] | None = None
    trial: BatchRun | None = None
    _kept: dict[tuple[str, str], float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def flow(self) -> Dataflow:
        """The data flow of the captured forward pass."""
        return self.network.flow

    @property
    def observation(self) -> Observation:
        """The results of the batch.

        Raises:
            AuditError: there is no batch, its graph cannot be run, or the budget ran out.
        """
        return self._observed[0]

    @functools.cached_property
    def _observed(self) -> tuple[Observation, Mapping[str, Tensor]]:
        if self.trial is None:
            raise AuditError(f"{self.structure.model}: no batch was run; expected one. Leave out --batch none.")
        with torch.enable_grad():
            return self.trial.observe(self.model)

    @functools.cached_property
    def linearisation(self) -> Linearisation:
        """The forward pass of the point at which derivatives are taken; raises as `observation` does."""
        observed, trial = self._observed, self.trial
        assert trial is not None
        flow = self.flow if trial.point is self.structure else None
        with torch.enable_grad():
            return trial.linearise(self.model, flow, observed[1])

    def rms(self, name: str) -> float:
        """Return the root mean square of a tensor; NaN or Inf if it contains one."""
        return self._once("rms", name, self._rms)

    def _rms(self, name: str) -> float:
        tensor = self.tensors[name]
        if not tensor.numel():
            return 0.0
        found = float(torch.linalg.vector_norm(_computable(tensor))) / math.sqrt(tensor.numel())
        if math.isfinite(found) and (found or not bool(tensor.any())):
            return found
        return float(torch.linalg.vector_norm((tensor.abs() if tensor.is_complex() else tensor).double())) / math.sqrt(
            tensor.numel()
        )  # squares may overflow

    def is_zero(self, name: str) -> bool:
        """Return whether every entry of a tensor is zero."""
        return self.rms(name) == 0 and not bool(self.tensors[name].any())

    def is_finite(self, name: str) -> bool:
        """Return whether all entries of a tensor are finite."""
        return bool(self._once("finite", name, self._finite))

    def _finite(self, name: str) -> bool:
        return math.isfinite(self.rms(name)) or bool(torch.isfinite(self.tensors[name]).all())

    def _once(self, what: str, name: str, compute: Callable[[str], float]) -> float:
        if (what, name) not in self._kept:
            self._kept[what, name] = compute(name)
        return self._kept[what, name]

    def weights(self) -> Iterator[tuple[ParameterInfo, Role]]:
        """Yield the weights whose matrix is known and finite, and that act on the data directly.

        This excludes weights that are first normalised or multiplied by another parameter, because the data does not
        see their own values.
        """
        for name, info in self.structure.parameters.items():
            role = self.structure.roles[name]
            if is_weight(role) and name not in self._computed and self.sound(name):
                yield info, role

    def normalised(self) -> Iterator[tuple[ParameterInfo, Role]]:
        """Yield the weights whose matrix is known and finite, but whose own size has no effect."""
        for name, info in self.structure.parameters.items():
            role = self.structure.roles[name]
            if is_weight(role) and name in self._computed and self.sound(name):
                yield info, role

    def embeddings(self) -> Iterator[tuple[ParameterInfo, Role]]:
        """Yield the trainable tables that an input indexes, each with a role whose matrix has a row for each entry."""
        for name, info in self.structure.parameters.items():
            role = self.structure.roles[name]
            if role.name == "embedding" and len(info.shape) == 2 and info.requires_grad and self.sound(name):
                yield info, replace(role, layout=role.layout or Layout())

    def values(self) -> Iterator[tuple[ParameterInfo, Role]]:
        """Yield the trainable positions and tokens that are finite."""
        for name, info in self.structure.parameters.items():
            role = self.structure.roles[name]
            if role.name in ("position", "token") and info.requires_grad and info.shape and self.sound(name):
                yield info, role

    def recurrent(self) -> Iterator[tuple[ParameterInfo, Role]]:
        """Yield the weights of recurrent layers whose matrix is known and finite."""
        for name, info in self.structure.parameters.items():
            role = self.structure.roles[name]
            if role.name == "recurrent" and role.layout is not None and name not in self._computed and self.sound(name):
                yield info, role

    def in_expression(self, name: str) -> bool:
        """Return whether a parameter acts through an expression of fixed values alone, such as 1 + w."""
        return name in self._computed

    def sound(self, name: str) -> bool:
        """Return whether a tensor has entries, and all are floating-point and finite."""
        tensor = self.tensors[name]
        return tensor.numel() > 0 and tensor.is_floating_point() and self.is_finite(name)

    @functools.cached_property
    def unreached(self) -> tuple[str, ...]:
        """The parameters with entries that have no path to an output, as far as the graph can tell."""
        from idfx.audits.gradient_flow import reaching

        reached, roles = {self.first_name(name) for name in reaching(self.flow)}, self.structure.roles
        hidden = {name for name, role in roles.items() if role.name == "unresolved" and not role.sites}
        names = (name for name in self.structure.parameters if name not in reached and name not in hidden)
        return tuple(name for name in names if self.tensors[name].numel())

    @functools.cached_property
    def training(self) -> AuditContext | None:
        """The same model on the path that its forward takes in training mode; None if that cannot be read."""
        for example in (self.structure.capture.example, *(batch for batch, _ in self._pairs())):
            for how in ("meta", "real"):
                try:
                    found = record(self.model, example, how, training=True)
                except (ForwardError, CaptureError, UncopiedError):
                    continue
                structure = build_structure(found)
                return AuditContext(
                    self.model, structure, StructureQueries(structure), self.tensors, self.unwritten, self.trial
                )
        return None

    def _pairs(self) -> Iterator[tuple[Example, str]]:
        """The example with two samples, because a normalisation in training mode takes more than one."""
        yield from enlarged(self.structure.capture.example, 2)

    @functools.cached_property
    def _computed(self) -> frozenset[str]:
        """The parameters in expressions that do more than rearrange a single parameter."""
        flow = self.flow
        plain = (Kind.PARAMETER, Kind.MOVE, Kind.CONCAT)
        made = (p for p, term in enumerate(flow.terms) if term.parametric and not term.data and term.kind not in plain)
        inside = (flow.terms[position] for position in before(flow.term_graph, made))
        return frozenset(self.first_name(flow.capture.parameters[t.node]) for t in inside if t.kind is Kind.PARAMETER)

    def first_name(self, name: str) -> str:
        """Return the first name of a parameter that may have several."""
        return self.structure.first_names[name]

    def alias(self, name: str) -> str:
        """Return the first name of a parameter, or "" for anything else."""
        return self.structure.first_names.get(name, "")

    def ratio(self, info: ParameterInfo, role: Role) -> float:
        """Return the root mean square of a weight, times √fan-in, over the gain of the function that follows.

        A constant below 1 that directly multiplies its output is included. At 1, a layer preserves the mean square of
        independent inputs, because each output is a sum of fan-in terms.
        """
        size = self.rms(info.name) * self._behind[0].get(info.name, 1.0)
        return size * math.sqrt(fans(info, role)[0]) / gain(role)

    def matrices(self, name: str) -> Tensor:
        """Return a weight as its matrices, (count, D_out, D_in); it may be a view of the parameter."""
        return matrices_of(self.tensors[name], self.structure.roles[name].layout or Layout())

    def is_closed(self, end: End) -> bool:
        """Return whether an end lets almost nothing through (`CLOSED`)."""
        name = self.first_name(end.parameter)
        role, tensor = self.structure.roles[name], self.tensors[name]
        columns = role.layout.matrix(tuple(tensor.shape))[1] if role.layout is not None else 1
        if end.added:
            return bool((_computable(tensor) + end.added).square().mean() <= CLOSED**2)
        if not end.rows:
            return self.rms(name) * math.sqrt(columns) <= CLOSED
        tensor = Folding(role.layout, tuple(tensor.shape)).outputs_first(tensor) if role.layout is not None else tensor
        parts = (_computable(tensor[start:stop]) for start, stop in end.rows)
        return all(bool(part.square().mean() * columns <= CLOSED**2) for part in parts)

    def biased(self, name: str) -> bool:
        """Return whether a constant, non-zero bias is added to the output of a weight."""
        return any(map(self._is_constant, self._behind[1].get(name, ())))

    def _is_constant(self, name: str) -> bool:
        values = self.tensors[name].flatten()
        return bool(values.numel()) and bool(values[0]) and bool((values == values[0]).all())

    @functools.cached_property
    def _behind(self) -> tuple[Mapping[str, float], Mapping[str, set[str]]]:
        from idfx.audits.outputs import behind

        return behind(self.flow, self.first_name)

    @functools.cached_property
    def closing(self) -> frozenset[str]:
        """The ends of residual branches, and the parameters between an end and its join."""
        from idfx.analysis.structure import end_at_scales

        found: set[str] = set()
        for structure in (self.structure, end_at_scales(self.structure)):
            for join in structure.joins:
                found.update(map(self.first_name, (*(end.parameter for end in join.ends), *join.scales)))
        return frozenset(found)

    def padding(self, name: str) -> Tensor:
        """Return the rows of a table that its look-ups themselves name as padding, as indices."""
        rows = sorted(self._padding.get(name, set()))
        return torch.tensor(rows, dtype=torch.long, device=self.tensors[name].device)

    @functools.cached_property
    def _padding(self) -> Mapping[str, set[int]]:
        found: dict[str, set[int]] = {}
        for node in self.flow.nodes.values():
            if node.op == "call_function" and operator_name(node.target) == "aten.embedding":
                name = self.alias(self.flow.capture.parameters.get(getattr(node.args[0], "name", ""), ""))
                row = node.args[2] if len(node.args) > 2 else node.kwargs.get("padding_idx", -1)
                if name and isinstance(row, int) and row >= 0:
                    found.setdefault(name, set()).add(row)
        return found

    @functools.cached_property
    def cutting(self) -> frozenset[str]:
        """The parameters of zeros that the inputs do not get past on their way to an output.

        With such a parameter alone at zero, no output depends on an input any more; or some output does not, and a
        weight behind sees only zeros. The last weights of branches and of the model may start at zero.
        """
        from idfx.audits.gradient_flow import carried

        def cuts(*names: str) -> bool:
            left, behind = carried(self.flow, names, self.first_name)
            return not left or (behind and left != whole)

        whole, _ = carried(self.flow, (), self.first_name)
        roles = self.structure.roles
        usable = (name for name, role in roles.items() if not role.name.is_last and self.sound(name))
        zeros = [name for name in usable if self.is_zero(name)]
        shifts = [name for name in zeros if roles[name].name.is_shift]
        factors = [name for name in zeros if roles[name].name.multiplies] if whole and cuts(*zeros) else []
        return frozenset(name for name in factors if cuts(name, *shifts))

    def place(self, name: str) -> str:
        """Return where a parameter or buffer is used: its residual block, or otherwise its operator or module."""
        join, role = self.network.around(name), self.structure.roles.get(name)
        if join is not None:
            return join.name
        return role.sites[0] if role is not None and role.sites else name.rpartition(".")[0] or self.structure.model

    def finding(
        self, severity: Severity, metric: str, name: str, value: float, threshold: float, message: str, remedy: str
    ) -> Finding:  # fmt: skip
        """Return a finding at a parameter or buffer."""
        return Finding(severity, metric, name, self.place(name), float(value), float(threshold), message, remedy)


def gain(role: Role) -> float:
    """Return the gain of the function after a weight; 1 if torch.nn.init does not list it.

    Example:
        >>> round(gain(Role("inner", "", activation="aten.relu")), 3)
        1.414
    """
    return GAINS.get(role.activation.removeprefix("aten."), 1.0)


def sample(tensor: Tensor) -> Tensor:
    """Return at most `SAMPLE` entries of a tensor, evenly spaced, in double precision.

    Example:
        >>> sample(torch.ones(300, 300)).numel() <= SAMPLE
        True
    """
    flat = tensor.detach().reshape(-1)
    stride = -(-flat.numel() // SAMPLE) if flat.numel() else 1
    stride += stride > 1 and stride % 2 == 0  # an odd stride visits all columns if their number is even
    return flat[::stride].double()


def _computable(tensor: Tensor) -> Tensor:
    """Return half precision and integers as float32, so that squares do not overflow."""
    plain = tensor.is_complex() or tensor.dtype in (torch.float32, torch.float64)
    return tensor if plain else tensor.float()
