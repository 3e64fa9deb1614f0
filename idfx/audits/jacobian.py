"""Singular values of the input-output Jacobian, and of each block's."""

from __future__ import annotations

import math
from collections.abc import Iterator

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Measure, Spectrum
from idfx.measuring.spectrum import spectrum

WHOLE = 56
BLOCK = 12
EXACT = 16
LARGE = 100.0

_LARGE = "Scale the branch down or close it (idinit, fixup, skipinit), or normalise it."


@metric("jacobian", batch=True)
def jacobian(subject: AuditContext) -> Iterator[Finding | Measure | Spectrum]:
    """Singular values of the Jacobian of the model and of each residual block: criticality chi, and isometry.

    Definition: J = ∂ outputs / ∂ inputs at one sample (or at the batch, if the user gave one), with the statistics of
    batch normalisations fixed to those of the batch. Inputs are the floating-point ones and the looked-up rows of
    tables; for a block, J is taken from its fork to its join. chi is the mean of the squared singular values: the
    growth of the square of a small random change. The spread is their standard deviation over their mean: 0 for an
    isometry, whatever its scale. docs/spectra.md describes the method and its errors.

    Unit: ratios. Threshold: chi of a block above 100 (warning): after ten such blocks, squares overflow float32.
    Everything else is measured and not judged, because pooling and heads shrink a model's Jacobian by design.

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning", ICLR 2014;
    Pennington, Schoenholz and Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry", NeurIPS
    2017. The threshold is ours.
    """
    passes = subject.linearisation
    trial = subject.trial
    assert trial is not None
    found = spectrum(passes.whole(), "", seed=trial.seed, products=WHOLE, out_of_time=trial.out_of_time)
    yield found
    yield from _told(found)
    blocks: list[Spectrum] = []
    for join in trial.point.joins:
        if trial.out_of_time():
            break
        block = passes.block(join)
        if block is None:
            continue
        one = spectrum(
            block, join.name, seed=trial.seed, products=BLOCK, exact_below=EXACT, out_of_time=trial.out_of_time
        )
        blocks.append(one)
        yield one
        if one.mean_square > LARGE:
            told = f"the mean square of its singular values is {one.mean_square:.3g} ± {one.mean_square_error:.2g}"
            name = next((end.parameter for end in join.ends), (*join.branch, "")[0])
            yield Finding("warning", "jacobian", name, join.name, one.mean_square, LARGE, told, _LARGE)
    yield from _blocks(blocks, len(trial.point.joins), sum(one.products for one in (found, *blocks)))


def _told(found: Spectrum) -> Iterator[Measure]:
    yield Measure("jacobian", "largest singular value", found.largest)
    yield Measure("jacobian", "  at most above it", found.largest_error)
    yield Measure("jacobian", "smallest singular value", found.smallest)
    yield Measure("jacobian", "  at most below it", found.smallest_error)
    yield Measure("jacobian", "chi (mean square)", found.mean_square)
    yield Measure("jacobian", "  standard error", found.mean_square_error)
    yield Measure("jacobian", "spread", found.spread)
    yield Measure("jacobian", "products", found.products)
    if not found.complete:
        yield Measure("jacobian", "cut short", "the budget ran out")
    if found.note:
        yield Measure("jacobian", "note", found.note)


def _blocks(blocks: list[Spectrum], joins: int, products: int) -> Iterator[Measure]:
    finite = [one for one in blocks if math.isfinite(one.mean_square)]
    if joins:
        yield Measure("jacobian", "blocks measured", f"{len(blocks)} of {joins}")
    if finite:
        yield Measure("jacobian", "chi of the blocks, smallest", min(one.mean_square for one in finite))
        yield Measure("jacobian", "chi of the blocks, largest", max(one.mean_square for one in finite))
        yield Measure("jacobian", "spread of the blocks, largest", max(one.spread for one in finite))
    yield Measure("jacobian", "products in all", products)
