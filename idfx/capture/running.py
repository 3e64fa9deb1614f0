"""One observed forward pass, whose errors are reported in terms of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from idfx.capture.inputs import misfit
from idfx.capture.isolation import KeptParameters, undisturbed
from idfx.capture.module_path import ModulePath
from idfx.core.errors import ForwardError, IdfxError, ResourceError, out_of_memory, shortened
from idfx.ops.semantics import operator_name


def run(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    on_call: Callable[[Any, Sequence[Any], dict[str, Any]], Any],
    path: ModulePath,
    grad: bool = False,
    training: bool = False,
) -> Any:
    """Return the output of one forward pass with `tensors` in place of the parameters and buffers of the same names.

    Raises:
        ForwardError: the model raised; the message names the module in whose forward it did.
    """
    from idfx.capture.dispatch import HigherOrderCalls, OperatorCalls  # not every version of torch supports it

    kept = KeptParameters(model)
    now = ["", ""]  # an operator, and whether it still runs

    def watched(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        now[:] = operator_name(func), "at"
        kept.before(func, args, kwargs)
        result = on_call(func, args, kwargs)
        now[1] = "after"
        return result

    with undisturbed(model, grad, training), path.follow(model):
        try:
            with HigherOrderCalls(watched), OperatorCalls(watched):
                return torch.func.functional_call(model, tensors, tuple(args), kwargs)
        except IdfxError:
            raise
        except Exception as error:
            where = f"module {path.current!r}" if path.current else "its own forward"
            operator = f" {now[1]} {now[0]}" if now[0] else ""
            raise _told(error, model, args, kwargs, where, operator) from error
        finally:
            kept.put_back()


def _told(
    error: Exception, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], where: str, operator: str
) -> IdfxError:
    """What a forward raised, in terms of the model."""
    if out_of_memory(error):
        return ResourceError(
            f"{type(model).__name__}: out of memory in {where} on {_shapes(args, kwargs)}"
            f" ({shortened(error)}); expected enough memory for the computation."
            " Use smaller inputs, a smaller --dtype or another --device."
        )
    words = " ".join(str(error).split())
    words = words if len(words) <= 300 else words[:297] + "..."
    hint = "Give suitable inputs: --input-shape on the command line, example_inputs in Python."
    if isinstance(error, TypeError):
        hint = misfit(model, args, kwargs) or hint
    elif isinstance(error, RecursionError):
        hint = "Expected a forward that ends: see whether it calls itself, or raise sys.setrecursionlimit."
    full = words if words.endswith((".", "!", "?")) else f"{words}."
    told = ForwardError(
        f"{type(model).__name__}: forward raised {type(error).__name__} in {where} on {_shapes(args, kwargs)}: "
        f"{full} {hint}"
    )
    told.raised = f"{type(error).__name__} in {where}{operator} ({words.rstrip('.')})"
    return told


def _shapes(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Describe the inputs of a forward."""

    def shape(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype)[6:]} {list(value.shape)}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(shape, value))}]"
        return type(value).__name__

    named = [f"{name}={shape(value)}" for name, value in kwargs.items()]
    return f"inputs ({', '.join([*map(shape, args), *named])})"
