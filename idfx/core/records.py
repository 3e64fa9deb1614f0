"""The frozen records that the stages exchange; no behaviour beyond accessors, no torch at import.

    Capture → Structure → Plan → Certificate → Report

Each stage takes the record of the previous stage and returns its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from idfx.core.captured import FACTS as FACTS
from idfx.core.captured import Capture as Capture
from idfx.core.captured import Example as Example
from idfx.core.captured import GraphFacts as GraphFacts
from idfx.core.captured import NodeFacts as NodeFacts
from idfx.core.captured import ParameterInfo as ParameterInfo
from idfx.core.captured import first_names as first_names
from idfx.core.captured import not_writable_reason as not_writable_reason
from idfx.core.roles import RoleName
from idfx.core.shown import Shown

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Layout:
    """How to interpret the tensor of a weight as matrices of shape (D_out, D_in).

    `out_axis` counts outputs and `in_axis` inputs; each of `tap_axes` (kernel positions) multiplies D_in. With
    `groups` > 1 there is one matrix per group; `grouped` is the axis ("out" or "in") along which the groups are
    concatenated (a convolution splits its outputs, a transposed convolution its inputs). Each of `batch_axes` counts
    independent matrices (experts). `parts` matrices are stacked along the outputs of each (fused q, k, v). If `in_axis`
    is None, D_in consists of taps only. If several axes count outputs (heads, and the features of each) or inputs,
    `out_rest` and `in_rest` are the axes within an index of `out_axis` and `in_axis`, slowest first.

    Example:
        >>> Layout(out_axis=0, in_axis=1, tap_axes=(2, 3)).matrix((64, 32, 3, 3))
        (64, 288)
        >>> Layout(out_axis=0, in_axis=1, tap_axes=(2,), groups=4).matrix((8, 1, 5))
        (2, 5)
        >>> Layout(out_axis=1, in_axis=0, out_rest=(2,)).matrix((512, 8, 64))
        (512, 512)
    """

    out_axis: int = 0
    in_axis: int | None = 1
    tap_axes: tuple[int, ...] = ()
    groups: int = 1
    grouped: str = "out"
    batch_axes: tuple[int, ...] = ()
    parts: int = 1
    out_rest: tuple[int, ...] = ()
    in_rest: tuple[int, ...] = ()

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The axes that count outputs, slowest first."""
        return (self.out_axis, *self.out_rest)

    @property
    def in_axes(self) -> tuple[int, ...]:
        """The axes that count inputs, without taps, slowest first."""
        return self.in_rest if self.in_axis is None else (self.in_axis, *self.in_rest)

    def outputs(self, shape: tuple[int, ...]) -> int:
        """Return the number of outputs of a weight of this shape, over all groups and parts."""
        return math.prod(shape[axis] for axis in self.out_axes)

    def inputs(self, shape: tuple[int, ...]) -> int:
        """Return the number of inputs of a weight of this shape, without taps."""
        return math.prod(shape[axis] for axis in self.in_axes)

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return (D_out, D_in) of one of the matrices in a weight of this shape."""
        rows, columns = self.outputs(shape) // self.parts, self.inputs(shape)
        if self.grouped == "out":
            rows //= self.groups
        else:
            columns //= self.groups
        for axis in self.tap_axes:
            columns *= shape[axis]
        return rows, columns


class End(NamedTuple):
    """A parameter, or some of its outputs, that makes a residual branch zero when it is zero.

    `rows` are half-open ranges of the weight's outputs; None means all outputs. `added` is the number that the model
    adds to the parameter: a scale of 1 + w makes the branch zero at w = −1.
    """

    parameter: str
    rows: tuple[tuple[int, int], ...] | None = None
    added: float = 0.0


@dataclass(frozen=True)
class WeightUse:
    """An operator that contracts data with a parameter; `layout` is None if the parameter is not a plain matrix."""

    name: str
    operator: str
    module: str
    step: int
    parameter: str
    layout: Layout | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Join:
    """A sum of data, and how its operands relate to the fork that they come from.

    `kind` is the kind of the shortcut: "identity" (moves only), "resampled" (pooled, padded, sliced), "scaled" (a
    constant, a scale or a normalisation) or "projection" (a weight). `shortcut` and `branch` name the parameters of the
    weight uses on either side. The branch is zero if the `ends` are, together with `zeroed_biases` (biases and shifts
    after the ends). `scales` are the scale parameters between an end and the join. `zeroable` means that the ends exist
    and reach the outputs through this join only; otherwise `reason` says why not. `step` and `operand` locate the join
    in a run: the sum is call number `step`, and its shortcut is that operand. `parent` is the join whose branch
    contains this one. `end_steps` are the calls that use the ends, and `gain` bounds the factor by which the operators
    after them, except the scales, multiply; None if the graph gives no bound. `carries` means that the inputs reach the
    join even if every branch is closed. `part` is set for a sum written as a reduction over stacked values: the axis of
    the operand, and the indices of the shortcut along it. `zeroed` is set if the call makes the shortcut of its operand
    (x · (1 − t) in lerp): the call gives the shortcut if this other argument is 0. `fork_node` is the graph node whose
    value is the fork.
    """

    name: str
    kind: str
    module: str
    fork: str
    shortcut: tuple[str, ...]
    branch: tuple[str, ...]
    ends: tuple[End, ...]
    scales: tuple[str, ...]
    zeroed_biases: tuple[str, ...]
    zeroable: bool
    reason: str
    step: int
    operand: int
    end_steps: tuple[int, ...] = ()
    gain: float | None = None
    parent: str | None = None
    carries: bool = True
    part: tuple[int, tuple[int, ...]] | None = None
    zeroed: int | None = None
    fork_node: str = ""

    @property
    def exclusive(self) -> bool:
        """Whether the ends reach the outputs through this join alone, by which alone they make it zeroable."""
        return self.zeroable


@dataclass(frozen=True)
class Sum:
    """A sum of data that is no residual join: what it is instead, and the reason.

    `kind` is "parallel", "fusion", "modulation", "index", "unused", "gate", "elementwise", "difference" or
    "straight-through"; `fork` is the value that all its operands are made of, "" where there is none.
    """

    name: str
    kind: str
    module: str
    fork: str
    reason: str
    step: int


@dataclass(frozen=True)
class Role:
    """The role of a parameter, with its evidence.

    `name` is the role, and may be given as a plain string; `traits` are further properties ("query", "gate",
    "depthwise", ...), each with its evidence. `gates` are the rows of each gate of a recurrent layer, by the name of
    the gate. `added` is the number that the model adds to the parameter before it acts, as in a scale of 1 + w.
    """

    name: RoleName
    evidence: str
    layout: Layout | None = None
    rows: tuple[tuple[int, int], ...] | None = None
    sites: tuple[str, ...] = ()
    traits: Mapping[str, str] = field(default_factory=dict)
    activation: str = ""
    gates: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    added: float = 0.0

    def __post_init__(self) -> None:
        if type(self.name) is not RoleName:  # the plain word
            object.__setattr__(self, "name", RoleName(self.name))  # type: ignore[call-arg]


@dataclass(frozen=True)
class Unknown:
    """An operator that idfx does not know, and where it is used."""

    operator: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Structure(Shown):
    """What the graph of a model says about its parameters.

    `joins` are the residual joins, in order of execution; `sums` are the other sums of data, each with the reason why
    it is not a join. `roles` has every parameter; `role_overrides` has those whose role the user has set. `analysis`
    has further results for later stages (`idfx.analysis.record`). `training` is the structure of the path in training
    mode, if that uses parameters that the example leaves out in evaluation mode.
    """

    model: str
    parameters: Mapping[str, ParameterInfo]
    sites: tuple[WeightUse, ...]
    joins: tuple[Join, ...]
    sums: tuple[Sum, ...]
    roles: Mapping[str, Role]
    unknown: tuple[Unknown, ...]
    capture: Capture = field(repr=False, compare=False)
    role_overrides: Mapping[str, str] = field(default_factory=dict)
    analysis: Any = field(default=None, repr=False, compare=False)
    training: Structure | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def first_names(self) -> Mapping[str, str]:
        """The first name of each parameter, by every name that it has."""
        return first_names(self.parameters)

    @functools.cached_property
    def graph(self) -> nx.DiGraph[str]:
        """The data flow as a `networkx.DiGraph` for questions of your own, made when it is first asked for.

        A node for each term and an edge for each operand and gate; docs/structure.md lists the attributes.
        """
        graph: nx.DiGraph[str] = self.analysis.graph(self)
        return graph


@dataclass(frozen=True)
class Decision:
    """What is written into one parameter, and why.

    `fill` and `arguments` name a function of `idfx.fills` and its keyword arguments, plain JSON values.
    """

    parameter: str
    fill: str
    arguments: Mapping[str, Any]
    reason: str
    evidence: str = ""


@dataclass(frozen=True)
class Scalar:
    """A learned scalar that a plan adds to a model: it multiplies the branch of a join at its end.

    `on` are the weights and scales that close the branch, and the biases and shifts after them; each is multiplied by
    the same scalar through torch.nn.utils.parametrize, so the model's code does not change.
    """

    join: str
    value: float
    on: tuple[End, ...]


@dataclass(frozen=True)
class Plan(Shown):
    """A decision for each parameter that is written, and a reason for each one that is kept.

    `loaded` has the parameters taken from a checkpoint, each with the name of its file. `roles` are the roles that the
    user has set; the certificate checks the model against them. `scalars` are added to the model.
    """

    model: str
    scheme: str
    seed: int
    options: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    decisions: Mapping[str, Decision] = field(repr=False)
    kept: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    scalars: tuple[Scalar, ...] = ()
    loaded: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class JoinCheck:
    """One residual join in a run: how far its output is from its shortcut.

    `deviation` is max|output − shortcut| / max|shortcut|, with the largest of its own and the outer shortcuts. `status`
    is "identity", "deviates", "open" if the structure says that the branch cannot be zeroed, "unclaimed" if it could be
    but the plan does not close it, or "unseen" if the shortcut exists only inside an operator.
    """

    join: str
    kind: str
    deviation: float
    tolerance: float
    status: str


@dataclass(frozen=True)
class Growth:
    """How a model into which a checkpoint was loaded relates to the checkpoint's model.

    `blocks` are the joins that the plan closes: those of added blocks. `fresh` are the parameters and buffers outside
    them that affect the outputs and do not come from the checkpoint; `unplaced` are tensors of the checkpoint that the
    model does not take; `altered` are those of the blocks whose shortcut is not an identity. If all three are empty,
    the model without the branches of these blocks is, judging by the weights, the checkpoint's model, and `difference`
    is max|output − its output| / max|its output|; None if this was not or could not be measured. The weights do not
    reveal other differences in the code: a factor after a sum, or one that depends on the depth.

    `widened` and `longer` are tensors whose units were copied and tables with new rows. With them, the checkpoint's
    model is the model's code with the checkpoint's own tensors; `preserved` is the difference without the added blocks,
    on old tokens, and `place` says where the two part or why they cannot be compared.
    """

    blocks: tuple[str, ...]
    fresh: tuple[str, ...]
    difference: float | None
    unplaced: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    longer: tuple[str, ...] = ()
    preserved: float | None = None
    place: str = ""


@dataclass(frozen=True)
class StartCheck:
    """The signal and the gradients of a start, beside those of the author's start.

    `sizes` holds the root mean square at each join and output, `author_sizes` those of the author's start (empty if it
    is not known), and `lost` the places whose size lies outside a factor of 1000 around 1 and the author's. A gradient
    gets to `reached` parameters within `steps` steps of training; `blocked` are those that get none although they do in
    the author's start, and `missing` those that get none in either, or whose author's start is not known. `changed` is
    the relative change of the outputs against the author's start, where parameters are frozen and the others add
    nothing there. `refusal` says why nothing could be observed.
    """

    sizes: Mapping[str, float]
    author_sizes: Mapping[str, float]
    lost: tuple[str, ...]
    reached: int
    steps: int
    blocked: tuple[str, ...]
    missing: tuple[str, ...]
    changed: float | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Certificate(Shown):
    """The results of two runs of the initialised model: `finite` outputs, and `distinct` outputs for distinct inputs.

    `distinct` is None if the features at the joins differ but the outputs do not, as with a class token that only
    branches starting at zero connect to the input, or with a weight of zeros, which the first step of training moves.
    It is also None if the example has no other values to take (a single token). `failures` describes what failed.
    `growth` is set if a checkpoint was loaded, `start` unless only the joins were compared. `remark` says what was not
    certified: other paths of the forward, say.
    """

    checks: tuple[JoinCheck, ...]
    finite: bool
    distinct: bool | None
    failures: tuple[str, ...]
    growth: Growth | None = None
    start: StartCheck | None = None
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def certified(self) -> int:
        """The number of joins whose output equals their shortcut."""
        return sum(check.status == "identity" for check in self.checks)

    @property
    def worst(self) -> JoinCheck | None:
        """The zeroable join with the largest deviation from its shortcut, or None if there is none."""
        closed = [check for check in self.checks if check.status in ("identity", "deviates")]
        return max(closed, key=lambda check: check.deviation, default=None)


@dataclass(frozen=True)
class Report(Shown):
    """The results of `init_`: structure, plan and certificate."""

    structure: Structure
    plan: Plan
    certificate: Certificate | None
