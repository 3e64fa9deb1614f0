"""The fills against a double loop over the definition, and themselves on shards, strides and threads."""

import hashlib
import itertools
import math
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from idfx.core.errors import PlanError, UsageError
from idfx.core.records import Layout
from idfx.fills import fill_, fills
from idfx.fills.folding import Folding
from idfx.fills.geometry import Shard
from idfx.fills.matrices import Matrices, Target

EPS = 0.25
TAU = 1.5
CENTRE = {  # the taps from the centre outwards, written out by hand
    (1,): [0],
    (3,): [1, 0, 2],
    (4,): [1, 0, 2, 3],
    (1, 1): [0],
    (2, 2): [0, 1, 2, 3],
    (2, 3): [1, 0, 2, 4, 3, 5],
    (3, 3): [4, 1, 3, 5, 7, 0, 2, 6, 8],
    (3, 3, 3): [
        *[13, 4, 10, 12, 14, 16, 22],
        *[1, 3, 5, 7, 9, 11, 15, 17, 19, 21, 23, 25],
        *[0, 2, 6, 8, 18, 20, 24, 26],
    ],
}


def reference_idi(outputs, inputs, tau=TAU):
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
    for m in range(outputs):
        for j in range(inputs):
            if (m - j) % inputs == 0:
                matrix[m, j] = tau
    return matrix


def reference_idiz(outputs, inputs, eps=EPS):
    matrix = reference_idi(outputs, inputs, eps)
    if inputs == 1:
        for m in range(outputs):
            matrix[m, 0] = eps if m % 2 == 0 else -eps
    elif outputs < inputs:
        matrix[:, outputs:] = reference_idi(outputs, inputs - outputs, -eps)
    else:
        for m in range(outputs):
            matrix[m, (m + 1) % inputs] = -eps
    return matrix


REFERENCE = {"idi": reference_idi, "idic": reference_idi, "idiz": reference_idiz, "idizc": reference_idiz}
ARGUMENTS = {
    "idi": {"tau": TAU, "loosen": "none"},
    "idic": {"tau": TAU, "loosen": "none"},
    "idiz": {"eps": EPS},
    "idizc": {"eps": EPS},
}


def kernel(matrix, inputs, taps, order):
    """A matrix (rows, inputs * taps) as the kernel (rows, inputs, *taps) that it stands for."""
    rows = len(matrix)
    if order == "channel":
        return matrix.reshape(rows, inputs, *taps)
    by_tap = matrix.reshape(rows, -1, inputs)
    if order == "centre":
        by_tap = by_tap[:, [CENTRE[taps].index(tap) for tap in range(by_tap.shape[1])]]
    return by_tap.permute(0, 2, 1).reshape(rows, inputs, *taps)


def filled(shape, name, arguments=None, *, dtype=torch.float64, parameter="w", seed=0):
    tensor = torch.full(shape, float("nan"), dtype=dtype)
    assert fill_(tensor, name, arguments, parameter=parameter, seed=seed) is tensor
    return tensor


SHAPES = [(4, 4), (7, 3), (8, 2), (3, 7), (3, 6), (3, 5), (1, 1), (1, 2), (1, 5), (5, 1), (2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["idi", "idiz", "idic", "idizc"])
def test_matrices(shape, name):
    assert torch.equal(filled(shape, name, ARGUMENTS[name]), REFERENCE[name](*shape))


def test_zero_preserving_by_hand():
    tall = [[1, -1, 0], [0, 1, -1], [-1, 0, 1], [1, -1, 0]]
    wide = [[1, 0, -1, 0, 0], [0, 1, 0, -1, 0]]
    wider = [[1, -1, 0]]
    crowded = [[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1]]
    for rows in (tall, wide, wider, crowded, [[1], [-1], [1]]):
        matrix = torch.tensor(rows, dtype=torch.float64)
        assert torch.equal(filled(matrix.shape, "idiz", {"eps": 1.0}), matrix)


@pytest.mark.parametrize("order", ["channel", "tap", "centre"])
@pytest.mark.parametrize("name", ["idic", "idizc"])
@pytest.mark.parametrize("taps", list(CENTRE))
@pytest.mark.parametrize(
    ("outputs", "inputs", "groups"),
    [(4, 4, 1), (30, 2, 1), (3, 8, 1), (6, 4, 2), (12, 3, 3), (5, 5, 5), (8, 4, 4)],
)
def test_convolutions(order, name, taps, outputs, inputs, groups):
    rows, per_group = outputs // groups, inputs // groups
    matrix = REFERENCE[name](rows, per_group * len(CENTRE[taps]))
    expected = torch.cat([kernel(matrix, per_group, taps, order)] * groups)
    layout = Layout(tap_axes=tuple(range(2, 2 + len(taps))), groups=groups)
    for spelled in (layout, asdict(layout)):
        arguments = {**ARGUMENTS[name], "order": order, "layout": spelled}
        assert torch.equal(filled(expected.shape, name, arguments), expected)


@pytest.mark.parametrize("order", ["channel", "tap", "centre"])
@pytest.mark.parametrize("name", ["idic", "idizc"])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(order, name, groups):
    """The kernel is (c_in, c_out / g, *taps), and the groups split c_in."""
    inputs, rows, taps = 6, 4, (2, 3)
    matrix = REFERENCE[name](rows, inputs // groups * 6)
    expected = torch.cat([kernel(matrix, inputs // groups, taps, order).transpose(0, 1)] * groups)
    layout = Layout(out_axis=1, in_axis=0, tap_axes=(2, 3), groups=groups, grouped="in")
    arguments = {**ARGUMENTS[name], "order": order, "layout": layout}
    assert torch.equal(filled(expected.shape, name, arguments), expected)


@pytest.mark.parametrize("name", ["idi", "idiz"])
def test_parts_and_experts(name):
    one = REFERENCE[name](4, 6)
    fused = filled((12, 6), name, {**ARGUMENTS[name], "layout": {"parts": 3}})
    assert torch.equal(fused, torch.cat([one, one, one]))
    layout = {"batch_axes": [0], "in_axis": 1, "out_axis": 2}
    experts = filled((5, 6, 4), name, {**ARGUMENTS[name], "layout": layout})
    assert torch.equal(experts, torch.stack([one.T] * 5))
    layout = {"batch_axes": [0], "in_axis": 2, "out_axis": 1, "parts": 2}
    assert torch.equal(
        filled((2, 8, 6), name, {**ARGUMENTS[name], "layout": layout}),
        torch.stack([torch.cat([one, one])] * 2),
    )


@pytest.mark.parametrize("name", ["idi", "idiz"])
def test_heads_are_one_matrix(name):
    """Outputs or inputs counted by two axes, in either order of the axes: the matrix of a linear layer, put there."""
    matrix = REFERENCE[name](6, 4)
    heads = filled((4, 2, 3), name, {**ARGUMENTS[name], "layout": {"out_axis": 1, "in_axis": 0, "out_rest": [2]}})
    assert torch.equal(heads, matrix.T.reshape(4, 2, 3))
    turned = filled((3, 4, 2), name, {**ARGUMENTS[name], "layout": {"out_axis": 2, "in_axis": 1, "out_rest": [0]}})
    assert torch.equal(turned, matrix.T.reshape(4, 2, 3).permute(2, 0, 1))
    matrix = REFERENCE[name](4, 6)
    joined = filled((2, 4, 3), name, {**ARGUMENTS[name], "layout": {"out_axis": 1, "in_axis": 0, "in_rest": [2]}})
    assert torch.equal(joined, matrix.reshape(4, 2, 3).permute(1, 0, 2))


def test_rows_of_heads():
    """Outputs 1 to 8 of three heads of three: the end of one, all of one, the beginning of one."""
    expected = reference_idi(9, 4)
    expected[1:8] = reference_idiz(7, 4)
    arguments = {"rows": [[1, 8]], "eps": EPS, "tau": TAU, "loosen": "none", "layout": {"in_axis": 2, "out_rest": [1]}}
    assert torch.equal(filled((3, 3, 4), "idic_idizc", arguments).flatten(0, 1), expected)
    arguments["rows"] = [[4, 5]]
    expected = reference_idi(9, 4)
    expected[4:5] = reference_idiz(1, 4)
    assert torch.equal(filled((3, 3, 4), "idic_idizc", arguments).flatten(0, 1), expected)


def test_inputs_of_taps_alone():
    layout = {"in_axis": None, "tap_axes": [1], "groups": 2}
    weight = filled((4, 3), "idic", {"loosen": "none", "order": "centre", "layout": layout})
    assert weight.tolist() == [[0, 1, 0], [1, 0, 0]] * 2


def test_rows():
    whole = reference_idi(8, 3)
    expected = whole.clone()
    expected[1:3] = reference_idiz(2, 3)
    expected[5:8] = reference_idiz(3, 3)
    rows = [[1, 3], [5, 8]]
    arguments = {"rows": rows, "eps": EPS, "tau": TAU, "loosen": "none"}
    assert torch.equal(filled((8, 3), "idic_idizc", arguments), expected)
    assert torch.equal(filled((8, 3), "idic_idizc", {**arguments, "rows": []}), whole)
    only = filled((8, 3), "idiz", {"rows": rows, "eps": EPS})
    inside = [1, 2, 5, 6, 7]
    assert torch.equal(only[inside], expected[inside])
    assert only[[0, 3, 4]].isnan().all(), "rows outside are not touched"


def test_rows_are_cut_by_groups():
    """Outputs 2..6 of two groups of four are the last two of one group and the first two of the other."""
    expected = torch.cat([reference_idi(4, 6)] * 2)
    expected[2:4] = expected[4:6] = reference_idiz(2, 6)
    expected = torch.cat([kernel(half, 2, (3,), "tap") for half in expected.split(4)])
    layout = {"tap_axes": [2], "groups": 2}
    arguments = {"rows": [[2, 6]], "eps": EPS, "tau": TAU, "loosen": "none", "order": "tap", "layout": layout}
    assert torch.equal(filled((8, 2, 3), "idic_idizc", arguments), expected)


@given(outputs=st.integers(1, 40), inputs=st.integers(1, 40))
def test_what_the_definitions_promise(outputs, inputs):
    identity = filled((outputs, inputs), "idi", {"loosen": "none"})
    assert (identity != 0).sum(1).eq(1).all()
    assert torch.linalg.matrix_rank(identity) == min(outputs, inputs), "padding leaves no direction out"
    zero = filled((outputs, inputs), "idiz", {"eps": EPS})
    if inputs > 1:
        assert zero.sum(1).eq(0).all()
        assert (zero != 0).sum(1).eq(2).all()
        assert zero.square().mean(), "not dead"


# The noise: from Python integers, as in test_noise, and by its statistics.


def python_normal(seed, name, index):
    z = int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "little")
    z = (z + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    z = z ^ (z >> 31)
    size = stats.norm.isf((2 * (z // 2**11 % 2**52) + 1) / 2**54)
    return -size if z >= 2**63 else size


@pytest.mark.parametrize("loosen", ["diagonal", "dense"])
def test_noise_is_numbered_by_place(loosen):
    """Entry (i, j, k) of a (6, 2, 3) weight has noise number 6i + 3j + k, whatever its group."""
    arguments = {
        "tau": TAU,
        "loosen": loosen,
        "eps_tau": 0.01,
        "order": "tap",
        "layout": {"tap_axes": [2], "groups": 3},
    }
    weight = filled((6, 2, 3), "idic", arguments, parameter="c.weight", seed=9)
    plain = filled((6, 2, 3), "idic", {**arguments, "loosen": "none"})
    noise = torch.tensor([python_normal(9, "c.weight", at) for at in range(36)]).view(6, 2, 3) * 0.01
    expected = plain + (noise if loosen == "dense" else noise * (plain != 0))
    assert torch.allclose(weight, expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize("loosen", ["diagonal", "dense"])
def test_noise_has_the_distribution_that_was_asked_for(loosen):
    shape = (40000, 3) if loosen == "diagonal" else (300, 400)
    arguments = {"tau": 2.0, "loosen": loosen, "eps_tau": 0.5}
    loose, plain = (filled(shape, "idi", {**arguments, "loosen": how}) for how in (loosen, "none"))
    noise = (loose - plain)[plain != 0] if loosen == "diagonal" else loose - plain
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 0.5).cdf).pvalue > 1e-3
    if loosen == "diagonal":
        assert (loose[plain == 0] == 0).all()


def test_default_loosening_keeps_replicas_apart_where_the_dtype_can():
    single, half = (filled((64, 4), "idi", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert single.unique(dim=0).shape[0] > 40, "some meet: float32 has about 20 numbers to a deviation"
    assert half.unique(dim=0).shape[0] == 4
    dense = filled((64, 4), "idi", {"loosen": "dense"}, dtype=torch.bfloat16)
    assert dense.unique(dim=0).shape[0] == 64


def test_name_and_seed_choose_the_noise():
    one, same = filled((4, 4), "idi"), filled((4, 4), "idi")
    assert torch.equal(one, same)
    assert not torch.equal(one, filled((4, 4), "idi", parameter="v"))
    assert not torch.equal(one, filled((4, 4), "idi", seed=1))


# Shards, strides, threads, order: none of them may show.

CASES = [
    ("idi", {"layout": {"batch_axes": [1, 2], "in_axis": 3}}),
    ("idi", {"loosen": "dense", "layout": {"out_axis": 3, "batch_axes": [0, 1], "in_axis": 2, "parts": 2}}),
    ("idic", {"order": "centre", "layout": {"tap_axes": [2, 3], "groups": 2}}),
    (
        "idic",
        {
            "order": "tap",
            "layout": {"out_axis": 1, "in_axis": 0, "tap_axes": [2, 3], "groups": 2, "grouped": "in"},
        },
    ),
    ("idizc", {"order": "channel"}),
    ("idizc", {"order": "centre", "rows": None, "layout": {"out_axis": 3, "in_axis": 0, "tap_axes": [2, 1]}}),
    ("idic_idizc", {"rows": [[1, 2]], "order": "tap", "loosen": "dense"}),
    ("idi", {"loosen": "dense", "layout": {"out_axis": 3, "out_rest": [0], "in_axis": 2, "in_rest": [1], "parts": 2}}),
    ("idizc", {"order": "tap", "layout": {"out_rest": [2, 3], "tap_axes": [1], "in_axis": None, "groups": 2}}),
    ("idic_idizc", {"rows": [[1, 2]], "loosen": "dense", "layout": {"out_rest": [1], "in_axis": 2, "batch_axes": [3]}}),
    (
        "idic",
        {"layout": {"out_axis": 1, "out_rest": [3], "in_axis": 0, "in_rest": [2], "groups": 2, "grouped": "in"}},
    ),
    ("constant", {"value": 0.1}),
    ("piecewise_constant", {"rows": [[0, 1], [1, 2]], "inside": 0.3, "value": -0.1, "axis": 3}),
]


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_a_shard_is_the_slice(case, data):
    name, arguments = case
    sizes = [data.draw(st.integers(1, 4)) * (2 if axis in (0, 3) else 1) for axis in range(4)]
    if name in ("idi", "idic", "idic_idizc"):
        arguments = {**arguments, "eps_tau": 0.1}
    full = filled(sizes, name, arguments)
    starts = [data.draw(st.integers(0, size)) for size in sizes]
    stops = [data.draw(st.integers(start, size)) for start, size in zip(starts, sizes, strict=True)]
    part = full[tuple(map(slice, starts, stops))]
    shard = torch.full_like(part, float("nan"))
    fill_(shard, name, arguments, parameter="w", seed=0, shard=Shard(tuple(sizes), tuple(starts)))
    assert torch.equal(shard, part)


@pytest.mark.parametrize(("name", "arguments"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_strides_do_not_show(name, arguments, dtype):
    shape = (4, 3, 5, 6)
    plain = filled(shape, name, arguments, dtype=dtype)
    around = torch.full((8, 3, 7, 6), 7.0, dtype=dtype)
    views = [
        torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last),
        torch.empty(6, 5, 3, 4, dtype=dtype).permute(3, 2, 1, 0),
        around[::2, :, 1:6],
    ]
    for view in views:
        strides = view.stride()
        fill_(view, name, arguments, parameter="w", seed=0)
        assert torch.equal(view, plain)
        assert view.stride() == strides
    around[::2, :, 1:6] = 7
    assert around.eq(7).all(), "nothing is written outside the view"


def test_dense_blocks_do_not_show(monkeypatch):
    """Several blocks along each axis, against one."""
    whole = filled((3, 7, 11), "idic", {"loosen": "dense", "eps_tau": 0.1})
    for most in (1, 5, 11, 30, 100):
        monkeypatch.setattr("idfx.fills.matrices._BLOCK", {"cpu": most})
        assert torch.equal(filled((3, 7, 11), "idic", {"loosen": "dense", "eps_tau": 0.1}), whole)


def test_threads_order_and_global_state_do_not_show():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = [filled((300, 400), "idi", {"loosen": "dense"}, parameter=name) for name in "ab"]
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        second = [filled((300, 400), "idi", {"loosen": "dense"}, parameter=name) for name in "ba"]
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, first, reversed(second)))
    assert torch.equal(torch.get_rng_state(), before)


def test_values_are_rounded_once_from_float64():
    exact = filled((40, 30), "idi", {"loosen": "dense", "tau": 0.1, "eps_tau": 0.1})
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(
            filled((40, 30), "idi", {"loosen": "dense", "tau": 0.1, "eps_tau": 0.1}, dtype=dtype),
            exact.to(dtype),
        )


def test_a_parameter_stays_itself():
    weight = torch.nn.Parameter(torch.randn(4, 4))
    pointer = weight.data_ptr()
    assert fill_(weight, "idiz", {}, parameter="w", seed=0) is weight
    assert (weight.requires_grad, weight.is_leaf, weight.data_ptr()) == (True, True, pointer)
    (weight @ torch.ones(4)).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3), (3, 2, 0)])
@pytest.mark.parametrize(
    ("name", "arguments"), [("idic", {"loosen": "dense"}), ("idizc", {}), ("idic_idizc", {"rows": []})]
)
def test_nothing_to_fill(shape, name, arguments):
    assert filled(shape, name, arguments).shape == shape


def test_constant():
    assert filled((), "constant", {"value": 2}).item() == 2
    assert filled((2, 3), "constant", {"value": -0.5}).eq(-0.5).all()


def test_stepped():
    assert filled((5,), "piecewise_constant", {"rows": [[1, 3]], "inside": 1}).tolist() == [0, 1, 1, 0, 0]
    columns = filled((2, 3), "piecewise_constant", {"rows": [[0, 1], [2, 3]], "inside": 2, "value": -1, "axis": 1})
    assert columns.tolist() == [[2, -1, 2]] * 2
    assert filled((2,), "piecewise_constant", {"rows": [], "inside": 1, "value": 0.5}).tolist() == [0.5, 0.5]


def reference_bilinear(outputs, first, second):
    form = torch.zeros(outputs, first, second, dtype=torch.float64)
    for m in range(outputs):
        for i in range(first):
            for j in range(second):
                if (m - i) % first == 0 and (m - j) % second == 0:
                    form[m, i, j] = TAU
    return form


@settings(max_examples=100, deadline=None)
@given(sizes=st.tuples(*[st.integers(0, 5)] * 3), loosen=st.sampled_from(["none", "diagonal", "dense"]), data=st.data())
def test_bilinear_forms_and_their_shards(sizes, loosen, data):
    arguments = {"tau": TAU, "loosen": loosen, "eps_tau": 0.1}
    full, expected = filled(sizes, "bilinear", arguments), reference_bilinear(*sizes)
    if loosen != "none" and full.numel():
        noise = torch.tensor([python_normal(0, "w", at) for at in range(full.numel())]).view(sizes) * 0.1
        expected = expected + (noise if loosen == "dense" else noise * (expected != 0))
    assert torch.allclose(full, expected, rtol=0, atol=1e-7)
    starts = [data.draw(st.integers(0, size)) for size in sizes]
    stops = [data.draw(st.integers(start, size)) for start, size in zip(starts, sizes, strict=True)]
    part = full[tuple(map(slice, starts, stops))]
    shard = torch.full_like(part, float("nan"))
    fill_(shard, "bilinear", arguments, parameter="w", seed=0, shard=Shard(tuple(sizes), tuple(starts)))
    assert torch.equal(shard, part)


def test_bilinear_forms_do_not_show_strides():
    around = torch.full((5, 4, 6), 7.0)
    view = around.permute(2, 0, 1)[::2]
    fill_(view, "bilinear", {"loosen": "dense"}, parameter="w", seed=0)
    assert torch.equal(view, filled((3, 5, 4), "bilinear", {"loosen": "dense"}, dtype=torch.float32))
    assert around[..., 1::2].eq(7).all()


# What is refused, and that nothing has been written then.

ONES = "expected counts from 1. Write 1 for none."
ERRORS = [
    ("idi", {"tua": 1}, (2, 2),
     "w: argument 'tua'; expected one of tau, loosen, eps_tau, layout. Did you mean tau?"),
    ("constant", {}, (2,), "w: no value; fill 'constant' requires it. Add it to the arguments."),
    ("idi", {"tau": float("nan")}, (2, 2), "w: tau nan; expected a finite number. Write one such as 1.0."),
    ("idiz", {"eps": "1"}, (2, 2), "w: eps '1'; expected a finite number. Write one such as 1.0."),
    ("idiz", {"eps": True}, (2, 2), "w: eps True; expected a finite number. Write one such as 1.0."),
    ("idiz", {"eps": 1e-60}, (2, 2),
     "w: eps 1e-60 rounds to 0.0 in torch.float32; "
     "expected a number that the dtype can represent. Choose another eps or dtype."),
    ("constant", {"value": 1e60}, (2, 2),
     "w: value 1e+60 rounds to inf in torch.float32; expected a number that the dtype can represent. "
     "Choose another value or dtype."),
    ("idi", {"eps_tau": -1}, (2, 2), "w: eps_tau -1; expected a finite standard deviation. Write 1e-6 or 0."),
    ("idi", {"loosen": "diag"}, (2, 2),
     "w: loosen 'diag'; expected one of dense, diagonal, none. Did you mean diagonal?"),
    ("idic", {"order": "x"}, (2, 2, 3),
     "w: order 'x'; expected one of centre, channel, tap. Write one of them."),
    ("idi", {}, (2, 2, 3),
     "w: taps along axes (2,) of (2, 2, 3); expected none. "
     "Use the corresponding fill that ends in c, which has an order of taps."),
    ("idi", {}, (2,), "w: layout: none, for shape (2,); expected one below two axes. Give its axes."),
    ("idi", {"layout": 3}, (2, 2), "w: layout: 3; expected a Layout or its fields. Write {} for (out, in)."),
    ("idi", {"layout": {"group": 2}}, (2, 2),
     "w: layout: field 'group'; "
     "expected one of out_axis, in_axis, tap_axes, groups, grouped, batch_axes, parts, "
     "out_rest, in_rest. Did you mean groups, grouped?"),
    ("idi", {"layout": {}}, (2, 2, 3),
     "w: layout: axes (0, 1) for shape (2, 2, 3); "
     "expected each axis once. Name them as out, in, tap or batch."),
    ("idi", {"layout": {"tap_axes": 2}}, (2, 2, 3),
     "w: layout: tap_axes 2; expected a list of axes. Write [] for none."),
    ("idi", {"layout": {"out_axis": {}}}, (2, 2),
     "w: layout: axes ({}, 1) for shape (2, 2); "
     "expected each axis once. Name them as out, in, tap or batch."),
    ("idi", {"layout": {"grouped": "inn"}}, (2, 2),
     "w: layout: grouped 'inn'; expected one of out, in. Did you mean in?"),
    ("idi", {"layout": {"groups": 0}}, (2, 2), f"w: layout: {{'groups': 0, 'parts': 1}}; {ONES}"),
    ("idi", {"layout": {"groups": 2}}, (3, 2),
     "w: layout: {'groups': 2, 'parts': 1} along 'out' of shape (3, 2); "
     "expected divisors. Correct the counts."),
    ("idiz", {"rows": [[2, 1]]}, (2, 2),
     "w: rows [[2, 1]]; expected increasing ranges [start, stop] within [0, 2]. Correct them."),
    ("piecewise_constant", {"rows": [[0, 3]], "inside": 1.0}, (2,),
     "w: rows [[0, 3]]; expected increasing ranges [start, stop] within [0, 2]. Correct them."),
    ("piecewise_constant", {"rows": [], "inside": 1.0, "axis": 1}, (2,),
     "w: axis 1 for shape (2,); expected one of its axes. Write 0."),
    ("bilinear", {}, (2, 2), "w: shape (2, 2); expected (out, in1, in2). Use idi for a matrix."),
    ("bilinear", {"loosen": "diag"}, (2, 2, 2),
     "w: loosen 'diag'; expected one of dense, diagonal, none. Did you mean diagonal?"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "shape", "message"), ERRORS)
def test_refusals(name, arguments, shape, message):
    tensor = torch.full(shape, 7.0)
    with pytest.raises(PlanError) as error:
        fill_(tensor, name, arguments, parameter="w", seed=0)
    assert str(error.value) == message
    assert tensor.eq(7).all()


@pytest.mark.parametrize(
    "rows", [3, [1, 2], [[0, 1, 2]], [[0, 3]], [[-1, 1]], [[0, 2], [1, 2]], [["a", "b"]], [[0.5, 1]]]
)
def test_rows_that_are_none(rows):
    for name in ("idiz", "idic_idizc"):
        with pytest.raises(PlanError, match="expected increasing ranges"):
            filled((2, 2), name, {"rows": rows})


def test_calls_that_cannot_be_followed():
    with pytest.raises(UsageError, match=r"fill 'idis': unknown; .* Did you mean idi"):
        fill_(torch.empty(2, 2), "idis", parameter="w", seed=0)
    with pytest.raises(UsageError, match=r"w: dtype torch.int8; expected a real floating-point dtype\. Leave it out"):
        fill_(torch.zeros(2, 2, dtype=torch.int8), "idi", parameter="w", seed=0)
    with pytest.raises(UsageError, match=r"w: on the meta device; expected memory to write to\. Call to_empty"):
        fill_(torch.empty(2, 2, device="meta"), "idi", parameter="w", seed=0)
    with pytest.raises(UsageError, match=r"w: Shard\(.*\) of shape \(2, 2\); expected a part of the full tensor"):
        fill_(torch.empty(2, 2), "idi", parameter="w", seed=0, shard=Shard((4, 2), (3, 0)))
    with pytest.raises(UsageError, match=r"seed: 'x'; expected an integer"):
        fill_(torch.empty(2, 2), "idi", parameter="w", seed="x")


def test_every_fill_is_documented():
    for name in fills:
        for section in ("Args:", "Raises:", "Source:", "Example:"):
            assert section in fills[name].__doc__, (name, section)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "arguments"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_cuda_has_the_same_bytes(name, arguments, dtype):
    shape = (64, 3, 5, 66)
    here = filled(shape, name, arguments, dtype=dtype)
    there = torch.full(shape, 7.0, dtype=dtype, device="cuda")
    fill_(there, name, arguments, parameter="w", seed=0)
    assert torch.equal(there.cpu(), here)
    shard = torch.empty(7, 2, 5, 9, dtype=dtype, device="cuda")
    fill_(shard, name, arguments, parameter="w", seed=0, shard=Shard(shape, (5, 1, 0, 31)))
    assert torch.equal(shard.cpu(), here[5:12, 1:3, :, 31:40])


def test_orders_differ_where_they_should():
    """3 x 3, 64 to 64: eight input channels are read in one order, all of them in the two others."""
    read = {
        order: int(filled((64, 64, 3, 3), "idic", {"order": order}).ne(0).sum((0, 2, 3)).ne(0).sum())
        for order in ("channel", "tap", "centre")
    }
    assert read == {"channel": 8, "tap": 64, "centre": 64}
    taps = {
        order: filled((64, 64, 3, 3), "idic", {"order": order}).ne(0).sum((0, 1)).flatten().nonzero().flatten().tolist()
        for order in ("channel", "tap", "centre")
    }
    assert taps == {"channel": list(range(9)), "tap": [0], "centre": [4]}


@pytest.mark.parametrize("order", ["channel", "tap", "centre"])
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(tap_axes=(2, 3)), (6, 4, 3, 3)),
        (Layout(tap_axes=(2,), groups=2), (6, 4, 5)),
        (Layout(1, 0, tap_axes=(2, 3), groups=2, grouped="in"), (4, 3, 3, 2)),
        (Layout(2, 1, batch_axes=(0,), parts=3), (5, 4, 6)),
        (Layout(1, 0, out_rest=(2,)), (4, 2, 3)),
    ],
)
def test_a_weight_is_its_matrices_and_back(layout: Layout, shape: tuple[int, ...], order: str) -> None:
    weight = torch.arange(math.prod(shape)).view(shape)
    folding = Folding(layout, shape, order)
    matrices = folding.matrices(weight)
    assert matrices.shape[1:] == layout.matrix(shape) and sorted(matrices.flatten().tolist()) == [
        *range(weight.numel())
    ]
    assert torch.equal(folding.weight(matrices), weight)
    column = torch.arange(matrices.shape[2])
    channel, tap = folding.channel_and_tap(column)
    taps = [weight.stride(axis) for axis in layout.tap_axes]
    steps = torch.tensor(
        [sum(a * s for a, s in zip(at, taps, strict=True)) for at in itertools.product(*map(range, folding.kernel))]
    )
    assert torch.equal(matrices[0, 0] - weight.flatten()[0], channel * weight.stride(layout.in_axes[0]) + steps[tap])


LAYOUTS = [
    ((6, 4), Layout()),
    ((3, 6, 4), Layout(batch_axes=(0,), out_axis=2, in_axis=1, parts=2)),
    ((2, 3, 4, 5), Layout(batch_axes=(1, 0), out_axis=2, in_axis=3)),
    ((8, 2, 3, 3), Layout(tap_axes=(2, 3), groups=4)),
    ((8, 3, 3), Layout(out_axis=1, in_axis=0, tap_axes=(2,), groups=4, grouped="in")),
    ((6, 2, 4), Layout(out_axis=0, in_axis=2, out_rest=(1,), parts=4)),
    ((4, 3, 2), Layout(out_axis=0, in_axis=1, in_rest=(2,), groups=2, grouped="in")),
    ((4, 5), Layout(out_axis=0, in_axis=None, tap_axes=(1,))),
]


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
@pytest.mark.parametrize("order", ["channel", "centre", "tap"])
def test_matrices_are_written_where_the_folding_puts_them(shape, layout, order):
    """One at a time, and those that lie in none of the shard are not made."""
    folding = Folding(layout, shape, order)
    stack = torch.arange(1.0, math.prod(shape) + 1).double().reshape(folding.count, *folding.size)
    whole = folding.weight(stack).float()
    for cut in (0, shape[0] // 2):
        tensor, made = torch.zeros(shape[0] - cut, *shape[1:]), []
        place = Shard(shape, (cut, *[0] * (len(shape) - 1)))
        matrices = Matrices(Target(tensor, "w", 0, place), layout, order)
        matrices.put_(lambda number, made=made: made.append(number) or stack[number])
        assert torch.equal(tensor, whole[cut:])
        held = {number for number in range(folding.count) if bool(torch.isin(stack[number], tensor).any())}
        assert sorted(made) == sorted(held)


@pytest.mark.parametrize(("fill", "arguments"), [
    ("orthogonal", {}), ("orthogonal", {"rows": [[1, 2]], "std": 0.1}), ("hadamard", {}), ("givens", {"density": 0.1}),
    ("mirrored", {"inputs": True, "outputs": True}),
    ("mimetic", {"pair": "a", "parts": ["query"], "heads": 10}),
])  # fmt: skip
def test_a_fill_of_ten_thousand_million_entries_is_checked_without_memory(fill, arguments):
    program = (
        "import resource, time; from idfx.core.records import Decision; from idfx.fills import check_fill\n"
        "check_fill(Decision('w', 'constant', {'value': 1.0}, ''), (2, 2), 'float32', 0)\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
        f"check_fill(Decision('w', {fill!r}, {arguments!r}, ''), (10**5, 10**5), 'float32', 0)\n"
        "print(time.process_time() - start < 1 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


def test_rows_that_are_drawn_among_orthogonal_ones_are_the_same_in_every_shard():
    arguments = {"rows": [[1, 4]], "std": 0.1}
    whole = fill_(torch.empty(8, 6), "orthogonal", arguments, parameter="w", seed=0)
    plain = fill_(torch.empty(8, 6), "orthogonal", parameter="w", seed=0)
    assert torch.equal(whole[4:], plain[4:]) and torch.equal(whole[0], plain[0])
    assert 0.03 < whole[1:4].std() < 0.2 and not torch.equal(whole[1:4], plain[1:4])
    for first, last in ((0, 3), (2, 8), (5, 6)):
        part = torch.empty(last - first, 6)
        fills["orthogonal"](Target(part, "w", 0, Shard((8, 6), (first, 0))), **arguments)
        assert torch.equal(part, whole[first:last])
    with pytest.raises(PlanError):
        fill_(torch.empty(8, 6), "orthogonal", {"rows": [[1, 9]]}, parameter="w", seed=0)
