"""Plan → weights, in place and on their device; the only module that writes parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from idfx.capture.wrappers import unwrap
from idfx.core.errors import PlanError
from idfx.core.records import Plan
from idfx.fills import check_fill, fill_
from idfx.planning.checkpoints import Checkpoint, fitting, load_
from idfx.planning.scalars import add_scalars_, check_scalars
from idfx.planning.spectral_norm import refresh_, spectral
from idfx.planning.written import forget_freed, remember
from idfx.sharding.layout import indices, is_sharded

if TYPE_CHECKING:
    from idfx.building.build import Built


def check(model: nn.Module, plan: Plan, checkpoint: Checkpoint | None = None) -> None:
    """Check that the whole plan can be applied to the model; raise PlanError otherwise.

    Args:
        model: any module; it is unwrapped.
        plan: made for this model.
        checkpoint: that the plan loads from, if any.

    Raises:
        PlanError: the parameters or shapes of plan and model differ, a fill or its arguments are unknown, or the
            checkpoint is missing or lacks what the plan loads.
        UsageError: a parameter that cannot be written.
    """
    parameters = dict(unwrap(model).named_parameters())
    planned = {*plan.decisions, *plan.kept, *plan.loaded}
    missing = [name for name in planned if name not in parameters]
    extra = [name for name in parameters if name not in planned]
    changed = [
        f"{name} is {list(parameters[name].shape)} in the model and {list(plan.shapes[name])} in the plan"
        for name in sorted(planned - set(missing))
        if tuple(parameters[name].shape) != plan.shapes[name]
    ]
    found = [
        f"{label}: {', '.join(sorted(names)[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (
            ("not in the model", missing),
            ("not in the plan", extra),
            ("with different shapes", changed),
        )
        if names
    ]
    if found:
        raise PlanError(
            f"plan for {plan.model}: made for another model; {'; '.join(found)}. "
            "Make a plan for this model with `idfx plan`."
        )
    checked = set()  # blocks repeat, and the check does not depend on the parameter's name
    for name, decision in plan.decisions.items():
        tensor = parameters[name]
        if tensor.is_meta:
            raise PlanError(
                f"{name}: on the meta device; expected memory to write to. Call model.to_empty(device=...) first, "
                "and plan with overwrite_deliberate=True, because that memory holds anything."
            )
        kind = decision.fill, repr(decision.arguments), tensor.shape, tensor.dtype
        if kind not in checked:
            check_fill(decision, tuple(tensor.shape), tensor.dtype, plan.seed)
            checked.add(kind)
    fitting(model, checkpoint, plan.loaded)
    check_scalars(unwrap(model), plan.scalars)
    _check_shards(unwrap(model), plan, parameters)


def _check_shards(model: nn.Module, plan: Plan, parameters: Mapping[str, Tensor]) -> None:
    """Check that this process can write its shards of DTensors; raise PlanError otherwise."""
    sharded = {name: tensor for name, tensor in parameters.items() if is_sharded(tensor)}
    if sharded and plan.scalars:
        raise PlanError(
            f"plan for {plan.model}: scheme {plan.scheme!r} adds learned scalars, whose gradients nothing would sum "
            "over the processes; expected a scheme without them. Initialise before sharding, or choose another scheme."
        )
    for name in (name for name in sharded if name not in plan.kept):
        indices(sharded[name], name)
    estimated = [name for name in spectral(model) if name in sharded and name not in plan.kept]
    if estimated:
        raise PlanError(
            f"{estimated[0]}: a spectral norm estimates it from the whole weight, and it is sharded; expected a whole "
            "one. Keep it (--keep NAME), or initialise before sharding."
        )


def apply_(model: nn.Module, plan: Plan, checkpoint: Checkpoint | None = None) -> nn.Module:
    """Write the plan's decisions into the parameters of the model, and return the model.

    Each process writes its own shard of a DTensor, without communication: on every mesh, the shards together are what
    one process would write. Parameters that the plan loads are copied from the checkpoint, together with the buffers
    that the checkpoint has in the same shape. Everything is checked before anything is written. Parameters keep their
    identity, device, dtype, requires_grad, gradients and hooks; those that the plan keeps are not touched. Buffers of a
    spectral norm are updated to the new weight. Learned scalars of the plan are added through
    torch.nn.utils.parametrize; `fold_` multiplies them into the weights.

    Args:
        model: any module; it is unwrapped.
        plan: made for this model.
        checkpoint: from `idfx.read_checkpoint`, if the plan loads from one.

    Raises:
        PlanError, UsageError: as in `check`; the model is unchanged.
    """
    check(model, plan, checkpoint)
    forget_freed()
    parameters = dict(unwrap(model).named_parameters())
    for name, decision in plan.decisions.items():
        remember(fill_(parameters[name], decision.fill, decision.arguments, parameter=name, seed=plan.seed))
    if checkpoint is not None:
        load_(model, checkpoint, plan.loaded)
    refresh_(unwrap(model), plan.decisions)
    axes = {
        name: (decision.arguments.get("layout") or {}).get("out_axis", 0) for name, decision in plan.decisions.items()
    }
    add_scalars_(model, plan.scalars, axes)
    return model


def apply_built_(built: Built, plan: Plan, checkpoint: Checkpoint | None = None) -> nn.Module:
    """Write a plan into a newly built model and return it; random draws that the plan overwrites are never made.

    Args:
        built: the model with its draws pending; afterwards none is pending.
        plan, checkpoint: as in `apply_`.

    Raises:
        PlanError, UsageError: as in `check`; nothing is written, and the draws are still pending.
        ResourceError: the values do not fit in memory; the same.
    """
    check(built.model, plan, checkpoint)
    built.pending.check_room(built.model)
    built.pending.discard(built.model, [*plan.decisions, *plan.loaded])
    built.pending.materialize(built.model)
    return apply_(built.model, plan, checkpoint)
