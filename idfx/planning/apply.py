"""Plan → weights, in place and on their device; the only writer of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from idfx.capture.wrappers import unwrap
from idfx.core.errors import PlanError
from idfx.core.records import Plan
from idfx.fills import check_fill, fill_
from idfx.planning.checkpoints import Checkpoint, fitting, load_
from idfx.planning.scalars import add_scalars_, check_scalars
from idfx.planning.spectral_norm import refresh_

if TYPE_CHECKING:
    from idfx.building.build import Built


def check(model: nn.Module, plan: Plan, checkpoint: Checkpoint | None = None) -> None:
    """Return if the plan can be applied to the model as a whole.

    Args:
        model: any module; wrappers are looked through.
        plan: made for this model.
        checkpoint: what the plan loads from, if it does.

    Raises:
        PlanError: parameters that only one of the two has, other shapes, unknown fills or arguments; or the checkpoint
            is missing or does not have what the plan loads.
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
            ("of another shape", changed),
        )
        if names
    ]
    if found:
        raise PlanError(
            f"plan for {plan.model}: made for another model; {'; '.join(found)}. "
            "Make a plan for this one with `idfx plan`."
        )
    checked = set()  # blocks repeat themselves, and a fill takes its arguments whatever the parameter is called
    for name, decision in plan.decisions.items():
        tensor = parameters[name]
        if tensor.is_meta:
            raise PlanError(
                f"{name}: on the meta device; expected memory to write to. Call model.to_empty(device=...) first."
            )
        kind = decision.fill, repr(decision.arguments), tensor.shape, tensor.dtype
        if kind not in checked:
            check_fill(decision, tuple(tensor.shape), tensor.dtype, plan.seed)
            checked.add(kind)
    fitting(model, checkpoint, plan.loaded)
    check_scalars(unwrap(model), plan.scalars)


def apply_(model: nn.Module, plan: Plan, checkpoint: Checkpoint | None = None) -> nn.Module:
    """Return the model with the plan's decisions written into its parameters.

    What the plan loads is copied from the checkpoint, and with it the buffers that the checkpoint has in the same
    shape. Everything is checked before anything is written. Parameters keep their identity, device, dtype,
    requires_grad, gradients and hooks; those that the plan keeps are not touched. Of the buffers, those in which a
    spectral norm remembers a weight follow it. Learned scalars of the plan are added through
    torch.nn.utils.parametrize; `fold_` multiplies them in again.

    Args:
        model: any module; wrappers are looked through.
        plan: made for this model.
        checkpoint: as `idfx.read_checkpoint` gives it, if the plan loads from one.

    Raises:
        PlanError, UsageError: as in `check`; the model is as it was.
    """
    check(model, plan, checkpoint)
    parameters = dict(unwrap(model).named_parameters())
    for name, decision in plan.decisions.items():
        fill_(parameters[name], decision.fill, decision.arguments, parameter=name, seed=plan.seed)
    if checkpoint is not None:
        load_(model, checkpoint, plan.loaded)
    refresh_(unwrap(model), plan.decisions)
    axes = {
        name: (decision.arguments.get("layout") or {}).get("out_axis", 0) for name, decision in plan.decisions.items()
    }
    add_scalars_(model, plan.scalars, axes)
    return model


def apply_built_(built: Built, plan: Plan, checkpoint: Checkpoint | None = None) -> nn.Module:
    """Return a model that was just built with a plan written into it; draws that the plan overwrites are never made.

    Args:
        built: with its draws pending; none is afterwards.
        plan, checkpoint: as in `apply_`.

    Raises:
        PlanError, UsageError: as in `check`; nothing is written, and the draws are still pending.
    """
    check(built.model, plan, checkpoint)
    built.pending.discard(built.model, [*plan.decisions, *plan.loaded])
    built.pending.materialize(built.model)
    return apply_(built.model, plan, checkpoint)
