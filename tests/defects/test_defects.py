"""Every planted defect is found at its place, and the same model without it has no error."""

from __future__ import annotations

import pytest
from defect import Defect, audited
from defect_real import REAL
from defect_small import SMALL

from idfx.core.findings import Audit

_AUDITS: dict[object, Audit] = {}


def healthy(case: Defect) -> Audit:
    """The audit of the model without the defect, each model once."""
    key = getattr(case.model, "__name__", case.name)
    if key not in _AUDITS:
        _AUDITS[key] = audited(case.healthy)
    return _AUDITS[key]


def marked(cases: list[Defect], *marks: pytest.MarkDecorator) -> list[object]:
    return [pytest.param(case, id=case.name, marks=marks) for case in cases]


@pytest.mark.parametrize("case", [*marked(SMALL), *marked(REAL, pytest.mark.slow)])
def test_a_defect_is_found_at_its_place(case: Defect) -> None:
    audit = audited(case.made)
    told = [(f.severity, f.metric, f.parameter) for f in audit.at_least("warning")]
    assert case.findings(audit), told
    assert not case.findings(healthy(case))


def twins(cases: list[Defect]) -> dict[str, Defect]:
    return {getattr(case.model, "__name__", case.name): case for case in cases}


@pytest.mark.parametrize("case", twins(SMALL).values(), ids=twins(SMALL))
def test_a_healthy_model_has_no_error(case: Defect) -> None:
    assert healthy(case).at_least("error") == ()


@pytest.mark.slow
@pytest.mark.parametrize("case", twins(REAL).values(), ids=twins(REAL))
def test_a_healthy_real_model_has_no_error(case: Defect) -> None:
    assert healthy(case).at_least("error") == ()


def test_the_set_is_what_it_says() -> None:
    assert len(SMALL) >= 40 and len(REAL) >= 15
    assert len({case.name for case in (*SMALL, *REAL)}) == len(SMALL) + len(REAL)
    assert all(bool(case.why) == (case.severity != "error") for case in (*SMALL, *REAL))
    assert all(case.spoil or case.options for case in (*SMALL, *REAL))
