"""Kept tensors that hold memory which nobody wrote."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn

from idfx.audits.run import examine
from idfx.audits.tables import LARGE
from idfx.capture.wrappers import unwrap
from idfx.core.errors import PlanError
from idfx.core.records import FACTS, Plan, Structure
from idfx.core.torch_private import stored
from idfx.sharding.layout import is_sharded, local
from idfx.sharding.together import all_of


def refuse_garbage(model: nn.Module, structure: Structure, plan: Plan) -> None:
    """Check that no parameter or buffer that a plan leaves as it is holds garbage, as after `to_empty`.

    Garbage is what the metrics `finite` and `tables` call an error, and parameters with entries above 10⁶ in size.
    Memory that happens to hold usual numbers, or zeros, cannot be told from values.

    Args:
        model: before the plan is applied; tensors on the meta device are not judged.
        structure: of the model.
        plan: to be applied.

    Raises:
        PlanError: a tensor holds garbage; the message names it.
    """
    suspects = {name: size for name, size in _sizes(model, plan) if not size <= LARGE}
    if not suspects:
        return
    broken = {found.parameter for found in examine(model, structure, ("finite", "tables")).at_least("error")}
    wrong = [name for name in suspects if name in broken or name in structure.parameters]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise PlanError(
            f"{structure.model}: {wrong[0]}{more}: the plan keeps it, but it holds NaN, Inf or numbers up to "
            f"{suspects[wrong[0]]:.3g}, such as memory that nobody wrote (to_empty); expected values. Initialise it "
            "first (reset_parameters, a checkpoint), or write it: --set 'NAME=normal(std=0.02)'."
        )


def refuse_unwritten(
    model: nn.Module, structure: Structure, plan: Plan, unwritten: Mapping[str, int], loaded: Collection[str] = ()
) -> None:
    """Check that no parameter or buffer that a plan leaves as it is holds memory that nobody wrote.

    A buffer counts if it is saved or if the forward reads it: a cache that a forward fills is neither.

    Args:
        model: that idfx has built.
        structure: of the model.
        plan: to be applied.
        unwritten: the number of unwritten entries by name (`idfx.building.unwritten`).
        loaded: the names in a checkpoint, whose buffers are loaded, too.

    Raises:
        PlanError: a tensor holds such memory; the message names it.
    """
    own = unwrap(model)
    buffers = {*own.state_dict(), *_read(structure)}.difference(plan.shapes, loaded)
    wrong = [name for name in unwritten if name in plan.kept or name in buffers]
    if not wrong:
        return
    name = wrong[0]
    tensor = dict((*own.named_parameters(), *own.named_buffers()))[name]
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    fill = (
        f", or fill it (--set '{name}=1' or '{name}=normal(std=0.02)')"
        if name in plan.kept and tensor.requires_grad
        else ""
    )
    raise PlanError(
        f"{structure.model}: {name}{more}: the plan keeps it, but nobody wrote {unwritten[name]:,} of its "
        f"{tensor.numel():,} entries (torch.empty), so they differ from run to run; expected values. Write them in the "
        f"constructor (torch.zeros, torch.nn.init), load them (--from FILE){fill}."
    )


def _read(structure: Structure) -> Iterator[str]:
    """Yield the names of the tensors of the model that a forward reads."""
    for path in (structure, structure.training):
        for node in path.capture.graph.nodes if path is not None else ():
            if node.op == "get_attr":
                yield node.meta[FACTS].name


def _sizes(model: nn.Module, plan: Plan) -> Iterator[tuple[str, float]]:
    """Yield the largest entry in size of each floating-point tensor that a plan leaves as it is."""
    own = unwrap(model)
    tensors: Iterator[tuple[str, Tensor]] = iter((*own.named_parameters(), *own.named_buffers()))
    for name, whole in tensors:
        tensor = stored(local(whole.detach()))
        left = name not in plan.decisions and name not in plan.loaded
        if left and tensor.is_floating_point() and whole.numel() and not tensor.is_meta:
            low, high = (float(end) for end in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
            size = math.nan if math.isnan(low) else max(-low, high)
            sizes = all_of(size) if is_sharded(whole) else [size]
            yield name, max(sizes, key=lambda one: math.inf if math.isnan(one) else one)
