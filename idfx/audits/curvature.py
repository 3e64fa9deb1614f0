"""The largest eigenvalue of the Hessian of a loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Measure
from idfx.measuring.curvature import largest_eigenvalue
from idfx.measuring.hessian import hessian

PRODUCTS = 40


@metric("curvature", batch=True, on_request=True)
def curvature(subject: AuditContext) -> Iterator[Measure]:
    """Largest eigenvalue of the Hessian of a loss, and the largest stable step of gradient descent; on request.

    Definition: the Hessian of the loss of the batch with respect to all trainable parameters. The loss is cross-entropy
    with random classes if the first output has the shape (samples, classes), otherwise the mean squared error to
    standard normal targets. The largest stable step is 2 / λ, above which plain gradient descent diverges on the
    quadratic model of the loss; a step for training is a fraction of it, and an optimiser that rescales gradients has a
    different limit. Method: Lanczos on Hessian-vector products.

    Unit: loss over squared parameter. Threshold: none.

    Source: LeCun, Simard and Pearlmutter, "Automatic learning rate maximization by on-line estimation of the Hessian's
    eigenvectors", NIPS 1992; Cohen et al., "Gradient descent on neural networks typically occurs at the edge of
    stability", ICLR 2021.
    """
    subject.observation  # noqa: B018  # report a graph that cannot be run only once
    trial = subject.trial
    assert trial is not None
    with torch.enable_grad():
        found, words = hessian(subject.model, trial.whole, trial.seed, trial.out_of_time)
    value = largest_eigenvalue(found, seed=trial.seed, products=PRODUCTS, out_of_time=trial.out_of_time)
    yield Measure("curvature", "loss", words)
    yield Measure("curvature", "largest eigenvalue", value.largest)
    yield Measure("curvature", "  at most above it", value.largest_error)
    yield Measure("curvature", "smallest eigenvalue", value.smallest)
    yield Measure("curvature", "  at most below it", value.smallest_error)
    if value.largest > 0:
        yield Measure("curvature", "largest stable step", 2 / value.largest)
    yield Measure("curvature", "products", value.products)
    if value.note:
        yield Measure("curvature", "note", value.note)
    if not value.complete:
        yield Measure("curvature", "cut short", "the budget ran out")
