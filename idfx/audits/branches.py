"""Residual branches that do not start near zero."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import CLOSED, AuditContext
from idfx.core.findings import Finding, Measure
from idfx.core.records import Join

DOUBLINGS = 10

_KEEP = "None if they should start open; to start closed, use idinit, zero-gamma, fixup, skipinit or rezero."
_EXPLODES = "Close them (fixup, skipinit, rezero, idinit), or normalise each branch."


@metric("branches")
def branches(subject: AuditContext) -> Iterator[Finding | Measure]:
    """Residual branches that do not start near zero, and the resulting growth of the variance.

    Definition: a branch is closed if each of its ends, or one of the scales after them, lets through at most a factor
    of 0.01 (1e-4 of the variance); for a weight this factor is rms · √fan-in. The metric counts open branches, and
    those L among them that are in no other branch. In a model that normalises, each of the L is assumed to add the
    variance of a fresh signal, which gives 1 + L; without any normalisation, each is assumed to double it, which gives
    2^L. This is a prediction from the graph: nothing is run, and a normalisation of the stem itself is not deducted.

    Unit: branches. Threshold: none for models that normalise (info); L ≥ 10 for others (warning), where the variance
    grows a thousandfold.

    Source: De and Smith, "Batch normalization biases residual blocks towards the identity function in deep networks",
    NeurIPS 2020; Zhang, Dauphin and Ma, "Fixup initialization", ICLR 2019, section 2.
    """
    joins = subject.structure.joins
    open_ = [join for join in joins if not is_closed(subject, join)]
    stem = [join for join in open_ if join.parent is None]
    plain = not subject.flow.normalises
    growth = 2.0 ** min(len(stem), 1000) if plain else 1.0 + len(stem)
    yield Measure("branches", "closed", len(joins) - len(open_))
    yield Measure("branches", "open", len(open_))
    yield Measure("branches", "open in the main stem", len(stem))
    yield Measure("branches", "predicted growth of variance", growth)
    if not open_:
        return
    first = (stem or open_)[0]
    name = first.ends[0].parameter if first.ends else (*first.branch, "")[0]
    explodes = plain and len(stem) >= DOUBLINGS
    told = f"{len(open_)} of {len(joins)} residual branches start open, {len(stem)} of them in the main stem; the"
    told += f" predicted growth of the variance is {growth:.3g}-fold" + (", without normalisation" if plain else "")
    yield Finding(
        "warning" if explodes else "info", "branches", name, first.name, len(stem), DOUBLINGS if plain else 0, told,
        _EXPLODES if explodes else _KEEP,
    )  # fmt: skip


def is_closed(subject: AuditContext, join: Join) -> bool:
    """Return whether a residual branch starts near zero.

    Args:
        subject: what is audited.
        join: of its structure.
    """
    if join.ends and all(subject.is_closed(end) for end in join.ends):
        return True
    return any(subject.rms(subject.first_name(name)) <= CLOSED for name in join.scales)
