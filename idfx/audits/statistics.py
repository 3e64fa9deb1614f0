"""Running means and variances that are impossible for data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from idfx.audits.folding import Folding
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding, Severity
from idfx.ops.semantics import operator_name

FAR = 1e3
DEAF = 1e-4
TINY = 0.01  # of eps
_WITH = frozenset({"batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "instance_norm"})

_REMEDY = "Reset them (running mean 0, running variance 1), or load the statistics with the weights."


@metric("statistics")
def statistics(subject: AuditContext) -> Iterator[Finding]:
    """Running statistics that are impossible for data: variances of 0 or below, means far from 0.

    Definition: for each normalisation with running statistics, the channels whose variance is negative, whose variance
    is 0 or below a hundredth of eps, whose factor 1/√(var + eps) is at most 1e-4, or whose mean is more than 1000
    deviations √(var + eps) from 0. Also channels whose mean is not 0 although every variance is exactly 1, or whose
    mean is not 0 or variance not 1 although torch's own layer has counted no batch.

    Unit: channels. Thresholds: a single negative variance is an error, because its root is NaN. The others are an error
    from half of the channels (a variance of 0 multiplies by 1/√eps, usually 316; a factor of 1e-4 leaves only the
    shift), and a warning below that, because single channels of trained networks can be constant. Statistics that no
    start has are a warning: batches change both numbers and the count, but converted checkpoints may lack the count.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """
    folding, flow = Folding(subject), subject.flow
    for node in flow.nodes.values():
        name = operator_name(node.target).removeprefix("aten.") if node.op == "call_function" else ""
        if name not in _WITH or len(node.args) < 8 or not all(map(folding.is_fixed, node.args[3:5])):
            continue
        given: Any = node.args
        mean, variance = folding.value(given[3]), folding.value(given[4])
        names = [(*folding.leaves(place), "")[0] for place in given[3:5]]
        if mean is not None and variance is not None and all(names):
            impossible = list(_judged(subject, names, mean.double(), variance.double(), float(given[7])))
            yield from impossible or _unlike_a_start(subject, names, mean, variance)


def _judged(subject: AuditContext, names: list[str], mean: Tensor, variance: Tensor, eps: float) -> Iterator[Finding]:
    deviation = (variance.clamp(min=0) + eps).sqrt()
    checks = (
        (names[1], variance < 0, "a negative variance", True),
        (names[1], variance == 0, "a variance of 0", False),
        (names[1], (variance > 0) & (variance < TINY * eps), f"a variance far below eps, {eps:g}", False),
        (names[1], (1 / deviation <= DEAF) & variance.isfinite(), f"a variance that leaves at most {DEAF:g}", False),
        (names[0], (mean.abs() > FAR * deviation) & mean.isfinite(), f"a mean {FAR:g} deviations from 0", False),
    )
    for name, found, what, always in checks:
        if count := int(torch.as_tensor(found).sum()):
            severity: Severity = "error" if always or 2 * count >= variance.numel() else "warning"
            message = f"{count:,} of its {variance.numel():,} channels have {what}"
            yield subject.finding(severity, "statistics", name, count, 0, message, _REMEDY)


def _unlike_a_start(subject: AuditContext, names: list[str], mean: Tensor, variance: Tensor) -> Iterator[Finding]:
    """Yield the finding for statistics that neither a start nor training leaves behind."""
    moved, spread = mean != 0, variance != 1
    if _uncounted(subject, names[0]):
        shown, why = moved | spread, "the layer has counted no batch"
    elif not bool(spread.any()):
        shown, why = moved, "every variance is exactly 1"
    else:
        return
    if count := int(shown.sum()):
        name = names[0] if bool(moved.any()) else names[1]
        message = f"{count:,} of its {mean.numel():,} channels are not at 0 (variance: 1), although {why}"
        yield subject.finding("warning", "statistics", name, count, 0, message, _REMEDY)


def _uncounted(subject: AuditContext, mean: str) -> bool:
    """Whether a running mean belongs to a layer of torch that counts its batches and has counted none."""
    for path, module in subject.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and f"{path}.running_mean".lstrip(".") == mean:
            counted = module.num_batches_tracked
            return counted is not None and not int(counted)
    return False
