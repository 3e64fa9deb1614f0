"""What idfx uses of torch that torch does not promise to keep: every such name is here and nowhere else.

Where a release of torch lacks what the recording of operators needs, `missing` says so, and models are captured by
`torch.export` instead (`idfx.capture.tracing`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "PreDispatchMode",
    "TorchDispatchMode",
    "eager",
    "has_memory",
    "is_composite",
    "is_transformed",
    "lazy_graph_module",
    "memory",
    "missing",
    "operators_unseen",
    "plain_tensors",
    "pytree",
    "resolve_overload",
    "stored",
    "transforms_active",
    "without_modes",
]

_PreDispatchBase: type
plain_tensors: Any = contextlib.nullcontext  # tensors as they are, whatever class and mode they are of
try:
    from torch._C import DispatchKey
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode as _PreDispatchBase
    from torch.utils._python_dispatch import _disable_current_modes as without_modes

    operators_unseen = torch._C._DisablePythonDispatcher
    plain_tensors = torch._C.DisableTorchFunction
    is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
    _interpreters = torch._C._functorch.peek_interpreter_stack
    _resolve = torch._C._jit_resolve_packet
    _PRE_DISPATCH = DispatchKey.PreDispatch
    missing = ""
except (ImportError, AttributeError) as error:  # pragma: no cover - a torch that is not out yet
    missing = f"torch {torch.__version__} does not let operators be recorded as idfx does it ({error})"
    _PreDispatchBase = TorchDispatchMode


class PreDispatchMode(_PreDispatchBase):  # type: ignore[misc]
    """A dispatch mode above autograd and decomposition, so that `linear` is one call on every device.

    The base class is there because torch accepts no other kind of mode on the PreDispatch key; none of its behaviour is
    used. A subclass defines `__torch_dispatch__`.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=_PRE_DISPATCH)  # type: ignore[no-untyped-call]
        self._python_dispatcher: Any = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and looking for it would import the compiler

    def __enter__(self) -> PreDispatchMode:
        self._python_dispatcher = enable_python_dispatcher()
        self._python_dispatcher.__enter__()
        TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        TorchDispatchMode.__exit__(self, *exception)  # type: ignore[no-untyped-call]
        self._python_dispatcher.__exit__(*exception)


def is_operator(target: object) -> bool:
    """Return whether what a node of a graph calls is an operator of torch, and not a function of Python."""
    return isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator))


def transforms_active() -> bool:
    """Return whether a transform of torch.func (vmap, grad) is running, inside of which operators are not seen."""
    return _interpreters() is not None


def is_higher_order(target: object) -> bool:
    """Return whether an operator takes functions: torch.cond, say."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def dense_kernel(target: Any) -> Any:
    """Return the Python function that a higher-order operator stands for on plain tensors, None if it has none."""
    return target.py_kernels.get(DispatchKey.CompositeExplicitAutograd)


@contextlib.contextmanager
def below_transforms(mode: TorchDispatchMode) -> Iterator[None]:
    """Pass operators to a mode once the transforms of torch.func have turned them into plain ones."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_PRE_DISPATCH)), mode:
        yield


def resolve_overload(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the overload of an operator that a call means.

    Raises:
        RuntimeError: none takes these arguments.

    Example:
        >>> str(resolve_overload(torch.ops.aten.mul, (torch.ones(1), 3), {}))
        'aten.mul.Tensor'
    """
    return getattr(packet, _resolve(packet._qualified_op_name, *args, **kwargs) or "default")


def is_composite(overload: Any) -> bool:
    """Return whether an operator is made of others for autograd as well, and may copy what its schema calls a view."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CompositeImplicitAutograd"))


def memory(tensor: torch.Tensor) -> int:
    """Return a number for the memory that a tensor lies in; its identity if it has none of its own (sparse, vmap)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def has_memory(tensor: torch.Tensor) -> bool:
    """Return whether a tensor lies in memory of its own kind: a sparse one, say, does not."""
    return bool(torch._C._has_storage(tensor))


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """Return the entries that a tensor stores: those of a sparse one as a vector, any other as it is.

    Example:
        >>> stored(torch.eye(2).to_sparse())
        tensor([1., 1.])
    """
    if tensor.layout == torch.strided:
        return tensor
    return tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Let compiled code and checkpoints run as ordinary Python, and flex_attention on any device.

    The compiler is loaded only by a forward that compiles something itself.
    """
    with contextlib.ExitStack() as stack:
        checkpoints = sys.modules.get("torch.utils.checkpoint")
        if checkpoints is not None:
            stack.enter_context(mock.patch.object(checkpoints, "CheckpointFunction", _Checkpoint))
        flex = sys.modules.get("torch.nn.attention.flex_attention")
        if flex is not None and hasattr(flex, "_validate_device"):
            stack.enter_context(mock.patch.object(flex, "_validate_device", lambda *tensors: None))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(_not_compiled())
            yield
            return
        compile_ = torch.compile

        def compiled(*args: Any, **kwargs: Any) -> Any:
            torch.compile = compile_
            stack.enter_context(_not_compiled())
            return compile_(*args, **kwargs)

        stack.enter_context(mock.patch.object(torch, "compile", compiled))
        yield


class _Checkpoint:
    """A reentrant checkpoint as plain code; torch's own hides what is inside from autograd until the backward pass."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        """Return function(*args), cut off from gradients if no argument has any, as in torch."""
        follow = any(isinstance(value, torch.Tensor) and value.requires_grad for value in args)
        with torch.set_grad_enabled(torch.is_grad_enabled() and follow):
            return function(*args)


@contextlib.contextmanager
def _not_compiled() -> Iterator[None]:
    import torch._dynamo

    before = torch._dynamo.eval_frame._stance
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch._dynamo.eval_frame._set_stance(before)


def lazy_graph_module(root: dict[str, Any], graph: torch.fx.Graph, name: str) -> torch.fx.GraphModule:
    """Return a GraphModule whose Python code is generated when it is first asked for, where torch offers that."""
    try:
        from torch.fx._lazy_graph_module import _LazyGraphModule
    except ImportError:  # pragma: no cover - torch has always had it since 2.3
        return torch.fx.GraphModule(root, graph, name)
    return _LazyGraphModule(root, graph, name)
