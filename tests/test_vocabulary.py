"""Kinds of terms and roles: one table each, which the documentation shows, and rules that torch's operators follow."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torchvision  # noqa: F401 (registers its operators)

from idfx.core.records import Role
from idfx.core.roles import GIVEN, WEIGHTS, RoleName
from idfx.ops.kinds import Kind
from idfx.ops.semantics import OPERATORS, OpSemantics

STRUCTURE = Path(__file__).parents[1] / "docs" / "structure.md"


def table(header: str) -> list[list[str]]:
    """The rows of a table of docs/structure.md, by its header."""
    lines = STRUCTURE.read_text().splitlines()
    start = lines.index(header) + 2
    stop = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:stop]]


def test_documentation_shows_the_kinds() -> None:
    shown = table("| kind | zero when | passes its operand on |")
    assert shown == [[kind, kind.zero.value, kind.does] for kind in Kind if kind.does]


def test_a_kind_is_its_word() -> None:
    assert Kind.SUM == "sum" and f"{Kind.SUM}" == "sum" and repr(Kind.SUM) == "'sum'" and {"sum": 1}[Kind.SUM] == 1


def test_an_operator_may_say_its_kind_by_word() -> None:
    assert OpSemantics("pool", ()).kind is Kind.POOL  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shuffle"):
        OpSemantics("shuffle", ())  # type: ignore[arg-type]


DOES = {
    Kind.MOVE: lambda x, y: x.flip(-1),
    Kind.MIX: lambda x, y: x.mean(-1, keepdim=True).expand_as(x),
    Kind.POOL: lambda x, y: torch.nn.functional.max_pool1d(x, 3, 1, 1),
    Kind.SCALE: lambda x, y: x * 3,
    Kind.NORM: lambda x, y: torch.nn.functional.layer_norm(x, x.shape[-1:]),
    Kind.MAP: lambda x, y: x.tanh(),
    Kind.GATE: lambda x, y: x.sigmoid(),
    Kind.PRODUCT: lambda x, y: x * y,
    Kind.CONTRACT: lambda x, y: x @ y.mT @ y,
    Kind.SUM: lambda x, y: x + y,
    Kind.CONCAT: lambda x, y: torch.cat((x, y), -1),
}


@pytest.mark.parametrize("kind", DOES)
def test_kinds_do_with_zeros_what_their_rules_say(kind: Kind) -> None:
    one, none = torch.rand(2, 4, 4) + 0.5, torch.zeros(2, 4, 4)
    several = kind in (Kind.PRODUCT, Kind.CONTRACT, Kind.SUM, Kind.CONCAT)
    for zeros in [(a, b) for a in (True, False) for b in (True, False)] if several else [(True,), (False,)]:
        x, y = ([none if zero else one for zero in zeros] * 2)[:2]
        assert bool((DOES[kind](x, y) == 0).all()) == kind.vanishes(zeros)


@pytest.mark.parametrize("kind", DOES)
def test_kinds_mix_entries_where_their_rules_say(kind: Kind) -> None:
    x = torch.rand(1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: DOES[kind](x, torch.rand(1, 4, 4).double()), x)
    assert bool((jacobian.flatten(3).ne(0).sum(-1) > 1).any()) == (kind.mixes and kind is not Kind.POOL)


def test_documentation_shows_the_roles() -> None:
    assert table("| role | of a weight |") == [[name, name.meaning] for name in WEIGHTS]
    others = [[name, name.meaning] for name in RoleName if name not in WEIGHTS]
    assert table("| role | of another parameter |") == others


def test_a_role_is_its_word() -> None:
    role = Role("norm shift", "")  # type: ignore[arg-type]
    assert role.name is RoleName.NORM_SHIFT and role.name == "norm shift" and repr(role.name) == "'norm shift'"
    assert json.loads(json.dumps({"role": role.name})) == {"role": "norm shift"}
    assert pickle.loads(pickle.dumps(role)) == role and pickle.loads(pickle.dumps(role)).name is role.name
    with pytest.raises(ValueError, match="shifty"):
        Role("shifty", "")  # type: ignore[arg-type]


def test_roles_fall_into_the_groups_that_their_meaning_says() -> None:
    assert {"bias", "norm shift", "branch shift"} == {name for name in RoleName if name.is_shift}
    assert {"end", "end scale"} == {name for name in RoleName if name.ends_branch}
    assert {"recurrent", "bilinear form", "unresolved", "unused"} == {*RoleName} - {*GIVEN}
    assert {"input stem", "main stem", "transition"} == {name for name in RoleName if name.is_stem}
    values = {"embedding", "position", "offset", "token", "attention bias"}
    assert values | {"branch scale", "end scale", "scale", "gain"} == {name for name in RoleName if name.is_free}


# Operators that some releases of torch do not have, by the oldest that does not.
MISSING = {"2.6": {"aten._fused_rms_norm", "aten._grouped_mm"}}


def test_every_operator_is_one_of_torch() -> None:
    spaces = {name: getattr(torch.ops, name) for name in ("aten", "prims", "torchvision")}
    missing = {name for name in OPERATORS if not hasattr(spaces[name.partition(".")[0]], name.partition(".")[2])}
    assert missing == MISSING.get(".".join(torch.__version__.split(".")[:2]), missing & set().union(*MISSING.values()))
