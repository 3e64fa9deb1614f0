"""Running a model's forward without leaving a trace, with every ATen operator call in view.

The only module that touches torch's private dispatch interface. Operators are seen before autograd and
before decomposition (the PreDispatch key), so that `linear` is one call on every device.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch._C import DispatchKey
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from idfx.capture.foreach import single_calls
from idfx.capture.inputs import misfit
from idfx.core.errors import CaptureError, ForwardError, IdfxError, ResourceError, UsageError, out_of_memory, shortened


class OperatorCalls(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that hands each operator call to `on_call(operator, args, kwargs) -> result`.

    A call on lists of tensors is handed over entry by entry.

    The base class is there because torch accepts no other kind of mode on the PreDispatch key; none of its
    behaviour is used.
    """

    def __init__(self, on_call: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> None:
        TorchDispatchMode.__init__(self, _dispatch_key=DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self._on_call = on_call

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and looking for it would import the compiler

    def __enter__(self) -> OperatorCalls:
        TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        TorchDispatchMode.__exit__(self, *exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operator is made of need not be seen, and runs faster where Python does not look.
        with torch._C._DisablePythonDispatcher():
            if func is torch.ops.aten.lift_fresh.default:  # the same tensor; some releases call it on no meta tensor
                return func(*args)
            calls = single_calls(func, args, kwargs or {})
            if calls is None:
                return self._on_call(func, args, kwargs or {})
            results = [self._on_call(*call) for call in calls]
            return results if func._schema.returns else None


class Watcher(Protocol):
    """Who is asked about what operators do not tell."""

    def hidden(self, values: Any) -> None:
        """Hear of the arguments of what runs under a transform of torch.func, whose operators are not seen."""

    def numbers(self, tensor: torch.Tensor) -> list[Any] | None:
        """Return the numbers in a meta tensor as lists, None if nobody knows them."""

    def on_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a meta tensor that stands for one with values, for torch would make one out of sight."""


class FunctionCalls(TorchFunctionMode):
    """Sees what operators do not tell; `numbers` is what a tensor is being made from at the moment.

    On the meta device torch itself forgets it at once.
    """

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.numbers: Any = None
        self._watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self._watcher.hidden((args, options))
        elif func in _INDEXING and args[0].is_meta:
            args = (args[0], self._known(args[1]), *args[2:])
        elif func is torch.Tensor.tolist and args[0].is_meta:
            found = self._watcher.numbers(args[0].resolve_conj().resolve_neg())  # as with values at hand
            return func(*args) if found is None else found
        elif func in _MAKING:
            given = args[1:] if func is torch.Tensor.new_tensor else args
            before, self.numbers = self.numbers, given[0] if given else options.get("data")
            try:
                return func(*args, **options)
            finally:
                self.numbers = before
        return func(*args, **options)

    def _known(self, index: Any) -> Any:
        """An index of which the watcher knows every tensor: torch would make and move one out of sight."""
        if isinstance(index, tuple):
            return tuple(self._known(item) for item in index)
        if isinstance(index, list) and index and all(isinstance(item, int) for item in index):
            with _disable_current_modes():
                index = torch.tensor(index)
        return self._watcher.on_meta(index) if isinstance(index, torch.Tensor) and not index.is_meta else index


_MAKING = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.Tensor.new_tensor})
_INDEXING = frozenset({torch.Tensor.__getitem__, torch.Tensor.__setitem__})


class ModulePath:
    """The path of the module whose forward is running, kept by global hooks that leave the model untouched."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack = [""]

    @property
    def current(self) -> str:
        """Path of the innermost running module; "" for the model itself."""
        return self._stack[-1]

    @property
    def entered(self) -> bool:
        """Whether a forward is running."""
        return len(self._stack) > 1

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1]))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()

    @contextlib.contextmanager
    def follow(self) -> Iterator[ModulePath]:
        """Keep `current` up to date inside the block; after an exception it still names where it was raised."""
        enter = nn_module.register_module_forward_pre_hook(self._enter)
        leave = nn_module.register_module_forward_hook(self._leave)
        _followed.append(self)
        try:
            yield self
        finally:
            _followed.remove(self)
            enter.remove()
            leave.remove()


_followed: list[ModulePath] = []


def running_module() -> str | None:
    """Return the path of the module whose forward is running, "" for the model's own; None if none is."""
    return _followed[-1].current if _followed and _followed[-1].entered else None


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
        raise UsageError(f"model: {kind} was given; expected a torch.nn.Module. Pass the model itself.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules and type(model).__name__ == "OptimizedModule":
            model = model.get_submodule("_orig_mod")
        else:
            return model


@contextlib.contextmanager
def _restored_random_state(model: nn.Module) -> Iterator[None]:
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Let compiled modules and functions run as ordinary Python."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    before = torch._dynamo.eval_frame._stance
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch._dynamo.eval_frame._set_stance(before)


@contextlib.contextmanager
def _restored_attributes(model: nn.Module) -> Iterator[None]:
    """Put back what a forward keeps in its modules: cached biases, masks, counters. Parameters are not copied."""
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if type(value) in (dict, list, set, OrderedDict)
    ]
    try:
        yield
    finally:
        for live, kept in before:
            if live.keys() != kept.keys() or any(live[name] is not kept[name] for name in kept):
                live.clear()
                live.update(kept)
        for value, kept_value in contents:
            if isinstance(value, list):
                value[:] = kept_value
            else:
                value.clear()
                value.update(kept_value)


class _Parameters:
    """Puts back parameters that a forward writes to (a momentum encoder): one is copied when it is about to change."""

    def __init__(self, model: nn.Module) -> None:
        with torch._C.DisableTorchFunction():  # where memory lies is asked, and nothing of what is in it
            self._memory = [(parameter, parameter.untyped_storage()) for parameter in model.parameters()]
            self._form = [(p.storage_offset(), p.size(), p.stride()) for p, _ in self._memory]
        self._own = {storage._cdata: parameter for parameter, storage in self._memory}
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Copy what an operator is about to write to, if it is a parameter."""
        if func._schema.is_mutable:
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta:
                        own = self._own.pop(tensor.untyped_storage()._cdata, None)
                        if own is not None:
                            self._copies.append((own, own.detach().clone()))

    def put_back(self) -> None:
        """Let all be as it was."""
        for (parameter, storage), form in zip(self._memory, self._form, strict=True):
            with torch._C.DisableTorchFunction():
                moved = parameter.untyped_storage()._cdata != storage._cdata
            if moved:
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device).set_(storage, *form)
        with torch.no_grad():
            for own, copy in self._copies:
                own.copy_(copy)


@contextlib.contextmanager
def undisturbed(model: nn.Module, grad: bool = False) -> Iterator[None]:
    """Evaluation mode without gradients (unless asked for), autocast, fused fast paths or compilation.

    All is as before afterwards, attributes that the forward sets (caches, for instance) included.

    Training flags are set and restored module by module, because a model may override `train()`.
    """
    training = [module for module in model.modules() if module.training]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    autocast = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_restored_random_state(model))
        stack.enter_context(_restored_attributes(model))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(_eager())
        for kind in autocast:
            stack.enter_context(torch.autocast(kind, enabled=False))
        for module in training:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module in training:
                module.training = True


def run(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    on_call: Callable[[Any, Sequence[Any], dict[str, Any]], Any],
    path: ModulePath,
    grad: bool = False,
) -> Any:
    """Return the output of one forward pass with `tensors` in place of the parameters and buffers so named.

    Raises:
        ForwardError: the model raised; the message names the module in whose forward it did.
    """
    kept = _Parameters(model)

    def watched(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        kept.before(func, args, kwargs)
        return on_call(func, args, kwargs)

    with undisturbed(model, grad), path.follow():
        try:
            with enable_python_dispatcher(), OperatorCalls(watched):
                return torch.func.functional_call(model, tensors, tuple(args), kwargs)
        except IdfxError:
            raise
        except Exception as error:
            where = f"module {path.current!r}" if path.current else "its own forward"
            if out_of_memory(error):
                raise ResourceError(
                    f"{type(model).__name__}: out of memory in {where} on {_shapes(args, kwargs)}"
                    f" ({shortened(error)}); expected room for what it computes."
                    " Use smaller inputs, a smaller --dtype or another --device."
                ) from error
            if "not registered" in str(error) and OperatorCalls.__name__ in str(error):
                raise CaptureError(
                    f"{type(model).__name__}: forward calls an operator for control flow (torch.cond, for instance) in "
                    f"{where}, inside of which operators are not seen; expected Python's own. Write an if or a loop."
                ) from error
            words = " ".join(str(error).split())
            words = words if len(words) <= 300 else words[:297] + "..."
            words += "" if words.endswith((".", "!", "?")) else "."
            hint = "Give inputs that it takes: --input-shape on the command line, example_inputs in Python."
            if isinstance(error, TypeError):
                hint = misfit(model, args, kwargs) or hint
            raise ForwardError(
                f"{type(model).__name__}: forward raised {type(error).__name__} in {where} on {_shapes(args, kwargs)}: "
                f"{words} {hint}"
            ) from error
        finally:
            kept.put_back()


def _shapes(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """Say what a forward was called with."""

    def shape(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype)[6:]} {list(value.shape)}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(shape, value))}]"
        return type(value).__name__

    named = [f"{name}={shape(value)}" for name, value in kwargs.items()]
    return f"inputs ({', '.join([*map(shape, args), *named])})"
