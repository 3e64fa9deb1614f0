"""The Python interface: what `init_` and `analyze` leave alone, what they write, and what they refuse."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import idfx
from idfx.capture.wrappers import unwrap
from idfx.core.errors import CaptureError, CertificateError, IdfxError, PlanError, SourceError, UsageError
from idfx.planning.file import from_json, to_json

WIDTH = 8


class BatchNormNet(nn.Module):
    """A stem, one residual block and a head, with buffers that training would change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.norm0 = nn.BatchNorm2d(WIDTH)
        self.conv1 = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * WIDTH)
        self.conv2 = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = torch.relu(self.norm0(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(y)))
        return self.head(self.dropout(x.mean((2, 3))))


class Transformer(nn.Module):
    """One block as in ViT, attention from torch itself, with its fused fast path."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Tied(nn.Module):
    """A language model whose output weight is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.block = Block()
        self.out = nn.Linear(WIDTH, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(self.block(self.embedding(tokens)))


class Block(nn.Module):
    """x + b(relu(a(x)))."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Counting(Block):
    """Writes to one buffer in place and replaces another, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return super().forward(x - self.mean)


class Drawing(Block):
    """Draws from all three random states in forward."""

    def forward(self, x):
        noise = torch.rand_like(x) + float(np.random.rand()) + random.random()
        return super().forward(x + 0.1 * noise)


class Caching(Block):
    """Keeps what its first forward computed, on the device of its first input."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: torch.Tensor | None = None
        self.table: dict[int, torch.Tensor] = {}
        self.lengths: list[int] = []

    def forward(self, x):
        if self.positions is None:
            self.positions = torch.ones(x.shape[1], device=x.device, dtype=x.dtype)
        if x.shape[1] not in self.table:
            self.table[x.shape[1]] = torch.ones(x.shape[1], device=x.device, dtype=x.dtype)
        self.lengths.append(x.shape[1])
        return super().forward(x * self.positions * self.table[x.shape[1]])


def _image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)


def _rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)


def _sequence() -> torch.Tensor:
    return torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0))


def _frozen() -> nn.Module:
    model = BatchNormNet()
    for parameter in (*model.stem.parameters(), *model.norm0.parameters()):
        parameter.requires_grad_(False)
    model.norm0.eval()
    return model


def _hooked() -> nn.Module:
    model = Block()
    model.a.register_forward_hook(lambda module, args, result: result * 2)
    model.b.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model.register_full_backward_hook(lambda module, before, after: None)
    model.a.weight.register_hook(lambda gradient: gradient * 2)
    return model


@contextlib.contextmanager
def _without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _normed(wrap: Any) -> nn.Module:
    model = Block()
    with _without_warnings():
        wrap(model.a)
        wrap(model.b)
    return model


MODELS = {
    "batch norm": lambda: (BatchNormNet(), _image()),
    "channels last": lambda: (BatchNormNet().to(memory_format=torch.channels_last), _image()),
    "partly frozen": lambda: (_frozen(), _image()),
    "evaluation": lambda: (BatchNormNet().eval(), _image()),
    "mixed modes": lambda: (_modes(BatchNormNet()), _image()),
    "attention": lambda: (Transformer(), _sequence()),
    "attention, evaluation": lambda: (Transformer().eval(), _sequence()),
    "tied": lambda: (Tied(), torch.tensor([[1, 2, 2, 5]])),
    "bfloat16": lambda: (BatchNormNet().bfloat16(), _image(torch.bfloat16)),
    "float16": lambda: (Block().half(), _rows(torch.float16)),
    "float64": lambda: (Block().double(), _rows(torch.float64)),
    "data parallel": lambda: (nn.DataParallel(BatchNormNet()), _image()),
    "compiled": lambda: (torch.compile(BatchNormNet(), backend=_never), _image()),
    "compiled in place": lambda: (_compiled_in_place(), _image()),
    "compiled in DataParallel": lambda: (nn.DataParallel(torch.compile(Block(), backend=_never)), _rows()),
    "hooks": lambda: (_hooked(), _rows()),
    "draws in forward": lambda: (Drawing(), _rows()),
    "writes to buffers": lambda: (Counting(), _rows()),
    "caches": lambda: (Caching(), _rows()),
    "weight_norm hook": lambda: (_normed(nn.utils.weight_norm), _rows()),
    "weight_norm": lambda: (_normed(nn.utils.parametrizations.weight_norm), _rows()),
    "spectral_norm hook": lambda: (_normed(nn.utils.spectral_norm), _rows()),
    "spectral_norm": lambda: (_normed(nn.utils.parametrizations.spectral_norm), _rows()),
}


def _never(graph: Any, inputs: Any) -> Any:
    raise AssertionError("idfx set off a compilation")


def _compiled_in_place() -> nn.Module:
    model = BatchNormNet()
    model.compile(backend=_never)
    return model


def _modes(model: nn.Module) -> nn.Module:
    model.train()
    model.norm1.eval()
    model.dropout.eval()
    return model


def _with_gradients(model: nn.Module) -> nn.Module:
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, number)
    return model


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def _tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Everything about a tensor but its values."""
    about = (id(tensor), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.data_ptr())
    return (*about, tensor.requires_grad, tensor.is_leaf, id(tensor.grad) if tensor.is_leaf else None)


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model but the values of its parameters."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        about: dict[str, Any] = {"module": id(module), "class": type(module), "training": module.training}
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules") or isinstance(value, dict):
                about[key] = {part: id(item) for part, item in value.items()}
            elif isinstance(value, (list, set)):
                about[key] = copy.copy(value)
            else:
                about[key] = id(value)
        found[name] = about
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[f"{name}: parameter"] = _tensor(parameter)
        found[f"{name}: gradient"] = None if parameter.grad is None else _bits(parameter.grad)
        found[f"{name}: hooks"] = dict(parameter._backward_hooks or {})
    for name, buffer in model.named_buffers(remove_duplicate=False):
        found[f"{name}: buffer"] = (_tensor(buffer), _bits(buffer), buffer._version)
    return found


def _values(model: nn.Module) -> dict[str, Any]:
    named = model.named_parameters(remove_duplicate=False)
    return {name: (_bits(parameter), parameter._version) for name, parameter in named}


def _surroundings() -> dict[str, Any]:
    """Global settings and random states."""
    hooks = nn.modules.module
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "autocast": [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill memory": torch.utils.deterministic.fill_uninitialized_memory,
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "mkldnn": torch.backends.mkldnn.enabled,
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "stance": dataclasses.astuple(dynamo._stance) if dynamo else None,
        "modes": len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
        "function modes": torch._C._len_torch_function_stack(),
        "hooks": [len(getattr(hooks, name)) for name in dir(hooks) if name.startswith("_global_") and "hooks" in name],
        "recursion": sys.getrecursionlimit(),
        "warnings": list(warnings.filters),
        "excepthook": sys.excepthook,
        "path": list(sys.path),
        "torch state": _bits(torch.get_rng_state()),
        "numpy state": repr(np.random.get_state()),
        "python state": random.getstate(),
    }


def _same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == []


@pytest.fixture(autouse=True, scope="module")
def _torch_has_loaded_what_it_loads_on_first_use():
    """torch imports sympy with the first operator that it decomposes, and sympy adds a filter of warnings."""
    idfx.analyze(BatchNormNet(), (_image(),))


@pytest.mark.parametrize("name", MODELS)
def test_analyze_changes_nothing_at_all(name):
    model, inputs = MODELS[name]()
    _with_gradients(model)
    given = inputs.clone()
    before, values, around = _state(model), _values(model), _surroundings()
    structure = idfx.analyze(model, (inputs,))
    _same(before, _state(model))
    _same(values, _values(model))
    _same(around, _surroundings())
    assert torch.equal(inputs, given)
    assert structure.joins


@pytest.mark.parametrize(
    "name",
    [*MODELS],
)
def test_init_leaves_all_but_the_values_of_the_decided_parameters(name):
    model, inputs = MODELS[name]()
    _with_gradients(model)
    given = inputs.clone()
    before, values, around = _state(model), _values(model), _surroundings()
    report = idfx.init_(model, (inputs,), seed=3)
    if not name.startswith("spectral_norm"):  # which remembers the weight in buffers that follow it
        _same(before, _state(model))
    _same(around, _surroundings())
    assert torch.equal(inputs, given)
    own = dict(unwrap(model).named_parameters())
    assert {*report.plan.decisions, *report.plan.kept} == {*own}
    ids = {label: id(parameter) for label, parameter in own.items()}
    kept = {ids[label] for label in report.plan.kept}
    after = _values(model)
    for label, parameter in model.named_parameters(remove_duplicate=False):
        assert id(parameter) not in kept or values[label] == after[label], label
    assert report.certificate is not None and report.certificate.passed
    closed = [join for join in report.structure.joins if join.zeroable]
    assert report.certificate.certified == len(closed)
    assert len(closed) == 0 if name.startswith("spectral_norm") else len(closed) == len(report.structure.joins) > 0


@pytest.mark.parametrize(
    "name",
    ["batch norm", "attention", "compiled", "bfloat16", "caches", "weight_norm hook"],
)
def test_an_initialised_model_trains(name):
    model, inputs = MODELS[name]()
    idfx.init_(model, (inputs,))
    inner = unwrap(model).train()
    inner._compiled_call_impl = None
    optimiser = torch.optim.SGD(inner.parameters(), lr=0.1)
    inner(inputs).float().pow(2).mean().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in inner.parameters())
    optimiser.step()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in inner.parameters())


@pytest.mark.parametrize("tensor", ["a.weight", "b.bias"])
def test_a_write_is_seen_by_autograd(tensor):
    """Who saved a weight for backward before `init_` must not get a silently wrong gradient."""
    model = Block()
    before = dict(model.named_parameters())[tensor]._version
    idfx.init_(model, (_rows(),))
    assert dict(model.named_parameters())[tensor]._version > before


CONTEXTS = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "sdpa": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "default float64": lambda: _default_dtype(torch.float64),
    "default device": lambda: torch.device("cpu"),
    "warnings are errors": lambda: _warnings_as_errors(),
    "deterministic": lambda: _deterministic(),
    "fast path off": lambda: _fast_path_off(),
}


@contextlib.contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def _fast_path_off():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("build", [Transformer, BatchNormNet], ids=["attention", "batch norm"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_the_context_of_the_caller_stays_and_changes_no_bit(context, build):
    torch.manual_seed(0)
    model, inputs = build(), _image() if build is BatchNormNet else _sequence()
    plain = copy.deepcopy(model)
    idfx.init_(plain, (inputs,), seed=5)
    with CONTEXTS[context]():
        around, before = _surroundings(), _state(model)
        report = idfx.init_(model, (inputs,), seed=5)
        _same(around, _surroundings())
        _same(before, _state(model))
    assert report.certificate is not None and report.certificate.passed
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_a_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        model, inputs = Block(), _rows()
        idfx.init_(model, (inputs,), loosen="none")
        assert torch.equal(model.a.weight, torch.eye(WIDTH))


@pytest.mark.parametrize("failing", ["forward", "certificate", "plan"])
def test_everything_is_as_before_after_an_error_too(failing):
    model = BatchNormNet()
    plan = None
    if failing == "plan":
        plan = idfx.plan(idfx.analyze(Block(), (_rows(),)))
    if failing == "certificate":
        model.norm2.bias.requires_grad_(False).fill_(1.0)
    inputs = torch.ones(1, 7) if failing == "forward" else _image()
    before, values, around = _state(model), _values(model), _surroundings()
    with pytest.raises(IdfxError):
        idfx.init_(model, (inputs,), plan=plan)
    _same(before, _state(model))
    _same(around, _surroundings())
    if failing != "certificate":
        _same(values, _values(model))


def test_ties_stay_ties():
    model = Tied()
    idfx.init_(model, (torch.tensor([[1, 2, 2, 5]]),))
    assert model.out.weight is model.embedding.weight


def test_wrappers_and_modes_change_no_decision():
    """A wrapped, training, half-frozen-and-thawed model is planned as the bare one is."""
    bare = idfx.plan(idfx.analyze(BatchNormNet().eval(), (_image(),)))
    for wrap in (nn.DataParallel, nn.Module.train, lambda m: torch.compile(m, backend=_never)):
        wrapped = wrap(BatchNormNet())
        plan = idfx.plan(idfx.analyze(wrapped, (_image(),)))
        assert to_json(plan) == to_json(bare)
        idfx.apply_(wrapped, bare)


def test_a_frozen_parameter_is_kept_with_its_reason():
    model = _frozen()
    report = idfx.init_(model, (_image(),))
    assert "frozen" in report.plan.kept["stem.weight"]
    assert "stem.weight" not in report.plan.decisions


def test_a_model_on_meta_is_analysed_and_apply_says_what_to_do():
    with torch.device("meta"):
        model = BatchNormNet()
    inputs = torch.empty(2, 3, 6, 6, device="meta")
    structure = idfx.analyze(model, (inputs,))
    assert [join.ends[0].parameter for join in structure.joins] == ["conv2.weight"]
    plan = idfx.plan(structure)
    with pytest.raises(PlanError, match=r"meta device; .*to_empty\(device=\.\.\.\)"):
        idfx.apply_(model, plan)
    real = model.to_empty(device="cpu")
    for buffer in real.buffers():
        buffer.zero_()
    idfx.apply_(real, plan)
    assert bool(torch.isfinite(real(_image()).detach()).all())


def test_a_model_on_meta_takes_inputs_with_values():
    with torch.device("meta"):
        model = BatchNormNet()
    assert idfx.analyze(model, (_image(),)).joins


def test_a_model_on_meta_whose_forward_looks_at_values_is_refused():
    class Looks(Block):
        def forward(self, x):
            return super().forward(x) if float(super().forward(x).sum()) > 0 else x

    with torch.device("meta"):
        model = Looks()
    with pytest.raises(CaptureError, match="build it on a real device"):
        idfx.analyze(model, (torch.ones(1, WIDTH),))


# What may be left out


def test_example_inputs_may_be_a_tensor_keywords_or_derived():
    class Named(Block):
        example_input_array = torch.ones(2, WIDTH)

    one = to_json(idfx.plan(idfx.analyze(Named())))
    assert one == to_json(idfx.plan(idfx.analyze(Named(), torch.ones(2, WIDTH))))
    assert one == to_json(idfx.plan(idfx.analyze(Named(), example_kwargs={"x": torch.ones(2, WIDTH)})))
    report = idfx.init_(Named(), example_inputs=(), example_kwargs={"x": torch.ones(2, WIDTH)})
    assert report.certificate is not None and report.certificate.certified == 1


def test_no_example_input_is_one_clear_error():
    with pytest.raises(SourceError, match=r"Block: no example input.*expected x, which .*example_inputs=\(x,\)"):
        idfx.analyze(Block())


def test_the_signature_of_the_issue():
    report = idfx.init_(
        Block(), example_inputs=(_rows(),), example_kwargs={}, scheme="idinit", seed=0, tau=1.0, eps=1e-6,
        loosen="diagonal", conv_order="tap", certify=True,
    )  # fmt: skip
    join = report.structure.joins[0]
    assert (join.kind, join.exclusive, join.shortcut, join.branch) == ("identity", True, (), ("a.weight", "b.weight"))
    assert [end.parameter for end in join.ends] == ["b.weight"]
    decision = report.plan.decisions["b.weight"]
    assert decision.fill == "idiz" and decision.arguments["eps"] == 1e-6 and decision.reason
    assert idfx.init_(Block(), (_rows(),), certify=False).certificate is None


def test_every_public_name_is_there():
    assert {name for name in idfx.__all__ if not hasattr(idfx, name)} == set()
    assert set(dir(idfx)) >= {"load", "analyze", "plan", "apply_", "certify", "init_", "save"}
    with pytest.raises(AttributeError, match="no attribute 'initialise'"):
        _ = idfx.initialise


# The numbers, from the definitions


def _identity(rows: int, columns: int, tau: float = 1.0) -> list[list[float]]:
    """IDI_tau: W[m, j] = tau where m ≡ j (mod D_in)."""
    return [[tau if (m - j) % columns == 0 else 0.0 for j in range(columns)] for m in range(rows)]


def _zero_preserving(rows: int, columns: int, eps: float) -> list[list[float]]:
    """IDIZ_eps: IDI_eps, and IDI_{-eps} beside it, or −eps at the next column."""
    matrix = _identity(rows, columns, eps)
    if rows < columns:
        right = _identity(rows, columns - rows, -eps)
        return [row[:rows] + right[m] for m, row in enumerate(matrix)]
    for m in range(rows):
        matrix[m][(m + 1) % columns] -= eps
    return matrix


def _kernel_matrix(weight: torch.Tensor, order: str) -> torch.Tensor:
    """A kernel as the matrix (c_out, taps · c_in) of one group, by its three readings."""
    if order == "channel":
        return weight.reshape(weight.shape[0], -1)
    taps = [(i, j) for i in range(weight.shape[2]) for j in range(weight.shape[3])]
    if order == "centre":
        middle = [(size - 1) // 2 for size in weight.shape[2:]]
        taps.sort(key=lambda tap: sum((at - centre) ** 2 for at, centre in zip(tap, middle, strict=True)))
    return torch.cat([weight[:, :, i, j] for i, j in taps], 1)


@pytest.mark.parametrize("order", ["channel", "tap", "centre"])
def test_the_matrices_of_a_small_model_equal_the_definitions(order):
    model, eps, tau = BatchNormNet(), 0.25, 0.5
    idfx.init_(model, (_image(),), loosen="none", eps=eps, tau=tau, conv_order=order, certify=False)
    stem, conv1 = _kernel_matrix(model.stem.weight, order), _kernel_matrix(model.conv1.weight, order)
    assert stem.tolist() == _identity(WIDTH, 27, tau)  # wide
    assert conv1.tolist() == _identity(2 * WIDTH, 9 * WIDTH, tau)
    for group in model.conv2.weight.chunk(2):  # one matrix per group
        matrix = _kernel_matrix(group, order)
        assert matrix.tolist() == _zero_preserving(WIDTH // 2, 9 * WIDTH, eps)
        assert matrix.sum(1).tolist() == [0.0] * (WIDTH // 2)
    assert torch.allclose(model.head.weight @ model.head.weight.T, tau**2 * torch.eye(5), atol=1e-6)  # ours: it narrows
    assert model.stem.bias.tolist() == [0.0] * WIDTH and model.head.bias.tolist() == [0.0] * 5
    for norm in (model.norm0, model.norm1, model.norm2):
        assert bool((norm.weight == 1).all()) and bool((norm.bias == 0).all())


def test_linear_layers_that_are_square_tall_wide_and_one_column():
    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square, self.tall, self.wide = nn.Linear(3, 3), nn.Linear(3, 7), nn.Linear(7, 3)
            self.narrow, self.back = nn.Linear(3, 1), nn.Linear(1, 3)

        def forward(self, x):
            x = x + self.wide(torch.relu(self.tall(self.square(x))))
            x = x + self.back(torch.relu(self.narrow(x)))
            return x + self.square(x)

    model = Shapes()
    idfx.init_(model, (torch.randn(2, 3),), loosen="none", eps=0.5, certify=False)
    assert torch.allclose(model.tall.weight, torch.tensor(_identity(7, 3)) / (7 / 3) ** 0.5)  # ours: an isometry
    idfx.init_(model, (torch.randn(2, 3),), loosen="none", eps=0.5, certify=False, published=True)
    assert model.tall.weight.tolist() == _identity(7, 3)
    assert model.wide.weight.tolist() == _zero_preserving(3, 7, 0.5)
    assert model.narrow.weight.tolist() == _identity(1, 3)
    # One column has no second: ours is a sign that alternates by row.
    assert model.back.weight.tolist() == [[0.5], [-0.5], [0.5]]


def test_a_square_end_takes_its_second_column_by_turns():
    model = Block(4)
    idfx.init_(model, (torch.randn(2, 4),), eps=0.5, certify=False, loosen="none")
    assert model.b.weight.tolist() == _zero_preserving(4, 4, 0.5)


def test_the_loosening_is_normal_noise_on_the_diagonal_alone():
    model = nn.Sequential(nn.Linear(64, 8192), nn.ReLU(), nn.Linear(8192, 4))
    model.double()
    idfx.init_(model, (torch.randn(1, 64).double(),), certify=False, published=True)
    weight = model[0].weight.detach()
    mask = torch.tensor(_identity(8192, 64)).bool()
    assert not bool(weight[~mask].any())
    noise = (weight[mask] - 1.0) / 1e-6
    assert abs(float(noise.mean())) < 4 / 8192**0.5
    assert abs(float(noise.std()) - 1) < 4 / (2 * 8192) ** 0.5
    assert len(noise.unique()) == len(noise)


def test_dense_loosening_reaches_every_entry_of_an_identity():
    model = Block()
    idfx.init_(model, (_rows(),), loosen="dense", certify=False)
    noise = model.a.weight.detach() - torch.eye(WIDTH)
    assert bool((noise != 0).all()) and float(noise.abs().max()) < 6e-6


def test_tau_may_be_the_gain_of_the_activation():
    model = Block()
    idfx.init_(model, (_rows(),), tau="gain", loosen="none", certify=False)
    assert model.a.weight[0, 0].item() == pytest.approx(nn.init.calculate_gain("relu"))


@pytest.mark.parametrize("name", ["batch norm", "attention", "tied", "bfloat16"])
def test_the_same_seed_gives_the_same_values_and_another_seed_another_loosening(name):
    (first, inputs), (second, _), (third, _) = (MODELS[name]() for _ in range(3))
    for name, parameter in first.named_parameters():  # what is kept must not tell them apart
        for other in (second, third):
            dict(other.named_parameters())[name].data.copy_(parameter.data)
    reports = [idfx.init_(model, (inputs,), seed=seed) for model, seed in ((first, 7), (second, 7), (third, 8))]
    same = {n: torch.equal(p, dict(second.named_parameters())[n]) for n, p in first.named_parameters()}
    other = {n for n, p in first.named_parameters() if not torch.equal(p, dict(third.named_parameters())[n])}
    assert all(same.values())
    decisions = reports[0].plan.decisions
    loosened = {n for n, decision in decisions.items() if decision.arguments.get("loosen") == "diagonal"}
    drawn = {n for n, decision in decisions.items() if decision.fill in ("normal", "orthogonal")}
    assert other == drawn | (set() if next(first.parameters()).dtype == torch.bfloat16 else loosened)
    assert loosened


def test_half_precision_says_that_it_rounds_the_loosening_away():
    for name, dtype in (("bfloat16", "bfloat16"), ("float16", "float16")):
        model, inputs = MODELS[name]()
        report = idfx.init_(model, (inputs,))
        assert any(dtype in note and "exact copies" in note for note in report.plan.notes)
    assert idfx.init_(Block(), (_rows(),)).plan.notes == ()


def test_applying_twice_equals_once():
    model = BatchNormNet()
    plan = idfx.plan(idfx.analyze(model, (_image(),)), seed=4)
    idfx.apply_(model, plan)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    assert idfx.apply_(model, plan) is model
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


# The certificate


@pytest.mark.parametrize("eps", [0, 0.0])
@pytest.mark.parametrize("name", ["batch norm", "attention", "tied", "bfloat16", "weight_norm", "hooks"])
def test_with_eps_0_every_block_is_its_shortcut_exactly(name, eps):
    model, inputs = MODELS[name]()
    certificate = idfx.init_(model, (inputs,), eps=eps).certificate
    assert certificate is not None
    assert [(check.deviation, check.tolerance) for check in certificate.checks] == [(0.0, 0.0)] * len(
        certificate.checks
    )


def _certify(model: nn.Module, inputs: torch.Tensor, **options: Any) -> idfx.Certificate:
    structure = idfx.analyze(model, (inputs,))
    idfx.apply_(model, idfx.plan(structure, **options))
    return idfx.certify(model, structure)


def test_a_bias_behind_the_end_is_found():
    model = BatchNormNet()
    structure = idfx.analyze(model, (_image(),))
    idfx.apply_(model, idfx.plan(structure))
    assert idfx.certify(model, structure).passed
    with torch.no_grad():
        model.norm2.bias.fill_(1.0)
    found = idfx.certify(model, structure)
    (check,) = found.checks
    assert (check.status, found.certified, found.passed) == ("deviates", 0, False)
    assert found.worst is check and check.deviation > check.tolerance
    assert [failure for failure in found.failures if check.join in failure and "deviates" in failure]


class Followed(nn.Module):
    """x + what follows a linear end, with everything about its size known: h = 3, max|x| = 5 after the first layer."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.end, self.behind = nn.Linear(4, 4, bias=False), behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.behind(self.end(x.clamp(-3, 3)))


class Halved(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x


# Behind the end: the most that it multiplies by, worked out on paper.
BEHIND = {
    "nothing": (nn.Identity(), 1.0),
    "a factor": (Halved(), 1.0),  # by which the entries are divided
    "a layer norm": (nn.LayerNorm(4, eps=1e-4), 2 / 1e-2),
    "an RMS norm": (nn.RMSNorm(4, eps=1e-6), 2 / 1e-3),
    "a batch norm": (nn.BatchNorm1d(4, eps=1e-2).eval(), 2 / 1e-1),
}


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("eps", [1e-7, 1e-5])
def test_the_bound_follows_from_eps_and_the_norms_behind_the_end(name, eps):
    behind, most = BEHIND[name]
    model = Followed(behind).eval()
    certificate = idfx.init_(model, (torch.tensor([[5.0, -2.0, 0.5, 1.0]]),), eps=eps).certificate
    assert certificate is not None
    (check,) = certificate.checks
    expected = 2 * eps * 3 * most / 5 + torch.finfo(torch.float32).eps
    assert check.tolerance == pytest.approx(min(expected, eps ** (1 / 3)), rel=1e-5)
    assert check.status == "identity"


@pytest.mark.parametrize("behind", [nn.Sigmoid(), nn.GELU()])
def test_where_the_graph_tells_no_bound_it_is_the_cube_root_of_eps(behind):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.end(x) * behind(self.other(x))

    certificate = idfx.init_(Gated(), (torch.randn(2, 4),)).certificate
    assert certificate is not None
    assert [check.tolerance for check in certificate.checks] == pytest.approx([1e-2])


def test_an_end_a_hundred_times_too_large_is_found_where_nothing_enlarges_it():
    model = Block()
    report = idfx.init_(model, (_rows(),))
    (end,) = report.structure.joins[0].ends
    with torch.no_grad():
        model.get_parameter(end.parameter).mul_(100)
    found = idfx.certify(model, report.structure)
    assert found.checks[0].status == "deviates" and found.checks[0].deviation < 1e-2


def test_a_block_whose_end_the_plan_keeps_is_reported_and_fails_nothing():
    model = Block()
    structure = idfx.analyze(model, (_rows(),))
    plan = idfx.plan(structure)
    (end,) = structure.joins[0].ends
    decisions = {name: decision for name, decision in plan.decisions.items() if name != end.parameter}
    edited = dataclasses.replace(plan, decisions=decisions, kept={**plan.kept, end.parameter: "by hand"})
    certificate = idfx.init_(model, (_rows(),), plan=edited).certificate
    assert certificate is not None and certificate.passed
    assert [(check.status, check.deviation > 1e-2) for check in certificate.checks] == [("unclaimed", True)]


def test_with_eps_0_a_branch_of_any_size_deviates():
    model = Block()
    structure = idfx.analyze(model, (_rows(),))
    idfx.apply_(model, idfx.plan(structure, eps=0.0))
    with torch.no_grad():
        model.b.bias.fill_(1e-6)
    found = idfx.certify(model, structure, eps=0.0)
    assert not found.passed and 0 < found.checks[0].deviation < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_found(value):
    model = BatchNormNet()
    structure = idfx.analyze(model, (_image(),))
    idfx.apply_(model, idfx.plan(structure))
    with torch.no_grad():
        model.head.weight[0, 0] = value
    found = idfx.certify(model, structure)
    assert (found.finite, found.passed) == (False, False)
    assert any("NaN or Inf" in failure for failure in found.failures)


def test_nan_inside_a_block_is_no_identity():
    model = Block()
    structure = idfx.analyze(model, (_rows(),))
    idfx.apply_(model, idfx.plan(structure))
    with torch.no_grad():
        model.a.weight[0, 0] = float("nan")
    found = idfx.certify(model, structure)
    assert found.checks[0].status == "deviates" and not found.finite


def _with_a_stem_of_zeros(trains: bool) -> idfx.Certificate:
    model = BatchNormNet()
    structure = idfx.analyze(model, (_image(),))
    idfx.apply_(model, idfx.plan(structure))
    with torch.no_grad():
        model.stem.weight.zero_()
    model.stem.weight.requires_grad_(trains)
    return idfx.certify(model, structure)


def test_a_stem_of_zeros_that_no_step_moves_loses_the_signal():
    found = _with_a_stem_of_zeros(trains=False)
    assert (found.finite, found.distinct, found.passed) == (True, False, False)
    assert found.failures[0].endswith("the signal is lost in aten.conv2d in module 'stem'")


def test_a_stem_of_zeros_that_the_first_step_moves_is_told():
    found = _with_a_stem_of_zeros(trains=True)
    assert (found.finite, found.distinct, found.passed) == (True, None, True)
    assert "in aten.conv2d in module 'stem', whose stem.weight is 0" in found.remark


def test_random_numbers_in_forward_are_no_signal():
    """The two runs draw the same numbers, so that only the input can tell their outputs apart."""

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.fc(torch.rand_like(x)) + 0 * x

    model = Deaf()
    structure = idfx.analyze(model, (_rows(),))
    assert not idfx.certify(model, structure).distinct


@pytest.mark.parametrize("inputs", [torch.zeros(2, WIDTH), torch.ones(2, WIDTH), torch.zeros(1, WIDTH)])
def test_the_second_input_differs_whatever_the_first_one_is(inputs):
    assert idfx.init_(Block(), (inputs,)).certificate is not None


@pytest.mark.parametrize(
    "tokens",
    [
        [[1, 2, 2, 5]],
        [[1, 2, 3]],
        [[0, 0, 0]],
        [[10]],
    ],
)
def test_the_second_input_of_tokens_differs_too(tokens):
    assert idfx.init_(Tied(), (torch.tensor(tokens),)).certificate is not None


def test_a_forward_that_takes_another_path_in_every_run_is_told_in_words():
    class Alternates(Block):
        runs = 0

        def forward(self, x):
            type(self).runs += 1
            for _ in range(self.runs):
                x = x + 0
            return super().forward(x)

    with pytest.raises(
        CertificateError, match=r"^Alternates: two runs on the same inputs take different paths; expect"
    ):
        idfx.init_(Alternates(), (_rows(),))


def test_the_error_carries_the_report():
    model = BatchNormNet()
    model.norm2.bias.requires_grad_(False).fill_(1.0)
    with pytest.raises(CertificateError, match=r"BatchNormNet: join .* deviates") as caught:
        idfx.init_(model, (_image(),))
    report = caught.value.report
    assert report is not None and report.certificate is not None and report.certificate.failures
    assert report.certificate.checks[0].status == "deviates"


def test_certify_leaves_everything_alone():
    model = _with_gradients(BatchNormNet())
    structure = idfx.analyze(model, (_image(),))
    before, values, around = _state(model), _values(model), _surroundings()
    idfx.certify(model, structure)
    _same(before, _state(model))
    _same(values, _values(model))
    _same(around, _surroundings())


def test_an_example_of_zeros_proves_nothing_so_another_one_is_run():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.fc2(self.fc1(x))

    model = Plain()
    report = idfx.init_(model, (torch.zeros(2, WIDTH),))
    assert report.certificate.certified == 1 and report.certificate.checks[0].deviation > 0
    with torch.no_grad():
        model.fc2.weight.add_(1.0)
    assert idfx.certify(model, report.structure).checks[0].status == "deviates"


def test_an_open_join_is_neither_certified_nor_a_failure():
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return x + torch.softmax(torch.relu(self.fc(x)).cumsum(-1), -1)

    report = idfx.init_(Open(), (_rows(),))
    assert report.certificate is not None
    assert [check.status for check in report.certificate.checks] == ["open"]
    assert (report.certificate.certified, report.certificate.passed) == (0, True)
    assert report.structure.joins[0].reason


# The plan as a file, edited by hand


def _plan(**options: Any) -> tuple[nn.Module, idfx.Plan]:
    model = BatchNormNet()
    return model, idfx.plan(idfx.analyze(model, (_image(),)), **options)


@pytest.mark.parametrize("name", ["batch norm", "attention", "tied", "bfloat16", "partly frozen", "weight_norm"])
def test_a_plan_survives_json(name):
    model, inputs = MODELS[name]()
    plan = idfx.plan(idfx.analyze(model, (inputs,)), seed=2**70)
    again = from_json(to_json(plan))
    assert to_json(again) == to_json(plan)
    twin = copy.deepcopy(model)
    idfx.apply_(model, plan)
    idfx.apply_(twin, again)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_plan_is_read_from_a_file(tmp_path):
    _, plan = _plan(seed=9)
    path = tmp_path / "plan.json"
    path.write_text(to_json(plan))
    assert to_json(idfx.read_plan(path)) == to_json(plan) == to_json(idfx.read_plan(str(path)))


def test_an_edited_decision_is_what_is_written():
    model, plan = _plan(loosen="none")
    document = json.loads(to_json(plan))
    entries = document["parameters"]
    entries["conv2.weight"]["arguments"]["eps"] = 0.5
    entries["head.weight"] = {"shape": entries["head.weight"]["shape"], "keep": "mine"}
    entries["norm0.bias"] = {"shape": [WIDTH], "fill": "constant", "arguments": {"value": 3}}
    head = model.head.weight.detach().clone()
    edited = from_json(json.dumps(document))
    assert edited.kept["head.weight"] == "mine" and edited.decisions["norm0.bias"].reason == "by hand"
    idfx.apply_(model, edited)
    assert torch.equal(model.head.weight, head)
    assert model.norm0.bias.tolist() == [3.0] * WIDTH
    assert model.conv2.weight.max().item() == 0.5 and model.conv2.weight.min().item() == -0.5


def test_init_takes_a_plan():
    model, plan = _plan(loosen="none", seed=3, eps=0.0)
    other = BatchNormNet()
    report = idfx.init_(other, (_image(),), plan=plan)
    idfx.apply_(model, plan)
    assert report.plan == plan
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def _edit(change: Any) -> str:
    document = json.loads(to_json(_plan()[1]))
    change(document)
    return json.dumps(document)


MALFORMED = {
    "no JSON": (lambda: "{", r"plan: Expecting .*expected JSON"),
    "NaN": (lambda: '{"idfx_plan": NaN}', r"plan: idfx_plan is nan, which no weight can hold"),
    "NaN in an entry": (
        lambda: _edit(lambda d: d["parameters"]["conv2.weight"]["arguments"].update(eps=math.nan)),
        r"plan: parameters → conv2.weight → arguments → eps is nan",
    ),
    "too large a number": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"]["arguments"].update(value=12345)).replace(
            "12345", "1e999"
        ),
        r"parameters → head.bias → arguments → value is inf",
    ),
    "twice": (lambda: _edit(lambda d: None)[:-1] + ', "seed": 1}', r"the entry 'seed' occurs twice"),
    "sizes": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].update(shape=["5"])),
        r"plan: parameters → head.bias → shape → 0 is '5'; expected a whole number",
    ),
    "a misspelt word": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].update(argument={})),
        r"head.bias: unknown key 'argument'; expected shape, fill, arguments, reason, evidence. Did you mean arguments",
    ),
    "no object": (lambda: "[]", r"plan version None; expected 1"),
    "version": (lambda: _edit(lambda d: d.update(idfx_plan=2)), r"plan version 2; expected 1"),
    "no parameters": (lambda: _edit(lambda d: d.pop("parameters")), r"plan: parameters is missing; expected a value"),
    "seed": (lambda: _edit(lambda d: d.update(seed="0")), r"plan: seed is '0'; expected a whole number"),
    "entry": (
        lambda: _edit(lambda d: d["parameters"].update(x=1)),
        r"parameters → x is 1; expected an object with exactly one of fill, keep and load",
    ),
    "shape": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].pop("shape")),
        r"parameters → head.bias → shape is missing; expected a value",
    ),
    "neither": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].pop("fill")),
        r"head.bias is an object with shape, arguments, reason, evidence; expected an object with exactly one of",
    ),
    "both": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].update(keep="")),
        r"head.bias is an object with shape, fill, .*keep; expected an object with exactly one of fill, keep and load",
    ),
    "fill": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].update(fill=1)),
        r"head.bias → fill is 1; expected text",
    ),
    "arguments": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].update(arguments=[1])),
        r"head.bias → arguments is \[1\]; expected an object",
    ),
    "notes": (lambda: _edit(lambda d: d.update(notes=3)), r"plan: notes is 3; expected a list"),
    "a note": (lambda: _edit(lambda d: d.update(notes=["a", 3])), r"plan: notes → 1 is 3; expected text"),
    "a misspelt key": (lambda: _edit(lambda d: d.update(role={})), r"plan: unknown key 'role'; .*Did you mean roles"),
    "a fill that is none": (
        lambda: _edit(lambda d: d["parameters"]["head.bias"].update(fill="keep")),
        r"head.bias → fill is 'keep'; expected a fill \(to keep it, write \"keep\"",
    ),
    "no ends": (
        lambda: _edit(lambda d: d.update(scalars=[{"join": "a", "value": 0, "on": []}])),
        r"scalars → 0 → on is \[\]; expected 1 or more entries",
    ),
    "half a range": (
        lambda: _edit(
            lambda d: d.update(scalars=[{"join": "a", "value": 0, "on": [{"parameter": "b", "rows": [[1]]}]}])
        ),
        r"scalars → 0 → on → 0 → rows → 0 is \[1\]; expected 2 or more entries",
    ),
}


@pytest.mark.parametrize(
    "name",
    [*MALFORMED],
)
def test_a_malformed_plan_is_refused(name):
    make, message = MALFORMED[name]
    with pytest.raises(PlanError, match=message):
        from_json(make())


def test_a_plan_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere.json: No such file.*idfx plan SPEC -o"):
        idfx.read_plan(tmp_path / "nowhere.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(PlanError, match="expected a plan"):
        idfx.read_plan(tmp_path / "binary.json")
    with pytest.raises(PlanError, match="expected a plan"):
        idfx.read_plan(tmp_path)


def _decide(name: str, fill: str, **arguments: Any) -> Any:
    def change(document: dict[str, Any]) -> None:
        document["parameters"][name] |= {"fill": fill, "arguments": arguments}

    return change


def _rename(document: dict[str, Any]) -> None:
    entries = document["parameters"]
    entries["tail.bias"] = entries.pop("head.bias")


def _reshape(document: dict[str, Any]) -> None:
    document["parameters"]["head.bias"]["shape"] = [6]


# All of these are about the last parameter, or show on it last: what came before must not be written.
INAPPLICABLE = {
    "another model": (_rename, r"not in the model: tail.bias; not in the plan: head.bias"),
    "another shape": (_reshape, r"with different shapes: head.bias is \[5\] in the model and \[6\] in the plan"),
    "fill": (_decide("head.bias", "constnat", value=0), r"fill 'constnat': unknown.*Did you mean constant"),
    "argument": (_decide("head.bias", "constant", valeu=0), r"valeu.*value"),
    "missing argument": (_decide("head.bias", "constant"), r"head.bias: no value; fill 'constant' requires it"),
    "no number": (_decide("head.bias", "constant", value="x"), r"head.bias"),
    "too large": (_decide("head.bias", "constant", value=1e300), r"head.bias"),
    "eps": (_decide("head.weight", "idiz", eps="small"), r"head.weight"),
    "eps that rounds to 0": (_decide("head.weight", "idiz", eps=1e-300), r"head.weight"),
    "loosen": (_decide("head.weight", "idi", loosen="diagnal"), r"diagnal.*diagonal"),
    "eps_tau": (_decide("head.weight", "idi", eps_tau=-1), r"eps_tau -1"),
    "order": (_decide("conv2.weight", "idizc", order="center"), r"center.*centre"),
    "layout": (_decide("conv2.weight", "idizc", layout={"groups": 3}), r"conv2.weight"),
    "axis": (_decide("head.weight", "idi", layout={"out_axis": 7}), r"head.weight"),
    "rows": (_decide("head.weight", "idiz", rows=[[3, 99]]), r"head.weight: rows"),
    "one dimension": (_decide("head.bias", "idi"), r"head.bias"),
}


@pytest.mark.parametrize("name", INAPPLICABLE)
def test_a_plan_with_one_bad_entry_writes_nothing(name):
    change, message = INAPPLICABLE[name]
    model = BatchNormNet()
    edited = from_json(_edit(change))
    before, values = _state(model), _values(model)
    with pytest.raises((PlanError, UsageError), match=message):
        idfx.apply_(model, edited)
    _same(values, _values(model))
    _same(before, _state(model))


@pytest.mark.parametrize(
    ("fill", "arguments"), [("constnat", {"value": 1}), ("constant", {"value": "x"}), ("constant", {}), ("idi", {})]
)
def test_a_bad_entry_for_a_parameter_without_axes_writes_nothing(fill, arguments):
    class Scaled(Block):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            return x + self.scale * self.b(torch.relu(self.a(x)))

    model = Scaled()
    document = json.loads(to_json(idfx.plan(idfx.analyze(model, (_rows(),)))))
    entry = document["parameters"].pop("scale")
    document["parameters"]["scale"] = {"shape": entry["shape"], "fill": fill, "arguments": arguments}
    values = _values(model)
    with pytest.raises((PlanError, UsageError)):
        idfx.apply_(model, from_json(json.dumps(document)))
    _same(values, _values(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "idinti"}, "Did you mean idinit"),
        ({"epsilon": 1.0}, "Did you mean eps"),
        ({"tau": 0}, "tau 0"),
        ({"tau": "gian"}, "Did you mean gain"),
        ({"tau": float("inf")}, "tau inf"),
        ({"eps": -1.0}, "eps -1.0"),
        ({"eps": True}, "eps True"),
        ({"loosen": "diag"}, "Did you mean diagonal"),
        ({"conv_order": "center"}, "Did you mean centre"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_written(options, message):
    model = Block()
    values = _values(model)
    with pytest.raises(UsageError, match=message):
        idfx.init_(model, (_rows(),), **options)
    _same(values, _values(model))


def test_whole_numbers_that_only_fit_as_they_are_stay_in_the_second_run() -> None:
    """A grid of sizes makes no sense mirrored; the floating input is changed alone."""

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
            return x + self.fc(x.view(*grid.tolist(), 4)).view_as(x)

    report = idfx.init_(Grid(), (torch.randn(4, 4), torch.tensor([1, 2, 2])))
    assert report.certificate is not None and report.certificate.passed and report.certificate.distinct
