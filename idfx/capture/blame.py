"""Who is at fault when a forward cannot be read: the model and its inputs, or idfx because the plain one passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from idfx.capture.isolation import KeptParameters, restored, undisturbed
from idfx.capture.nested import map_example
from idfx.core.errors import CaptureError, ForwardError, IdfxError
from idfx.core.records import Example
from idfx.core.torch_private import stored


def at_fault(
    model: nn.Module, example: Example, error: ForwardError, with_gradients: ForwardError | None = None
) -> IdfxError:
    """Return the error to raise for a forward that raised while idfx watched it.

    Args:
        model: without wrappers; it is run on the example without idfx, and is as before afterwards.
        example: its inputs.
        error: what it raised.
        with_gradients: what it raised with gradients on, if that was tried too.

    Returns:
        `error` if the plain forward raises as well, and a CaptureError if it passes.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return error
    name = type(model).__name__
    for words, way, raised in (
        ("", undisturbed, error.raised),
        (" with gradients", _differentiating, (with_gradients or error).raised),
    ):
        if _passes(model, example, way):
            return CaptureError(
                f"{name}: the plain forward runs on these inputs{words}, but idfx cannot read it: it raised {raised}; "
                "expected plain operators on plain tensors. Write this part with others, or try another tracer "
                "(--tracer export on the command line, tracer='export' in Python)."
            )
    if _passes(model, example, restored):
        mode = "training mode" if model.training else "the modes that it is in"
        return CaptureError(
            f"{name}: the forward runs on these inputs in {mode} alone: in evaluation mode, it raised {error.raised}; "
            "expected one that runs in evaluation mode, in which idfx reads it. Let it run there as well."
        )
    return error


def _differentiating(model: nn.Module) -> AbstractContextManager[None]:
    return undisturbed(model, grad=True)


def _passes(model: nn.Module, example: Example, way: Callable[[nn.Module], AbstractContextManager[None]]) -> bool:
    """Whether the forward passes, run without idfx; parameters, buffers and attributes are as before."""
    kept = KeptParameters(model)
    before = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        given = map_example(example, torch.clone)
        with restored(model), way(model):
            model(*given.args, **given.kwargs)
    except Exception:
        return False
    finally:
        kept.put_back()
        with torch.no_grad():
            for tensor, values in before:
                if not torch.equal(stored(tensor), stored(values)):
                    tensor.copy_(values)
    return True
