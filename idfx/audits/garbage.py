"""Kept tensors that hold memory which nobody wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from idfx.audits.run import examine
from idfx.audits.tables import LARGE
from idfx.capture.wrappers import unwrap
from idfx.core.errors import PlanError
from idfx.core.records import Plan, Structure
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
