"""What the values of each weight resemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from idfx.audits.likeness import Closeness, distances, looks_like, made_from, scheme
from idfx.audits.metric import metric
from idfx.audits.subject import CLOSED, AuditContext, gain
from idfx.core.findings import Measure, WeightFingerprint
from idfx.core.records import ParameterInfo, Role
from idfx.schemes.scheme import fans


@metric("identity")
def identity(subject: AuditContext) -> Iterator[Measure | WeightFingerprint]:
    """Number of weights that resemble identities, closed ends, orthogonal or random matrices; measured, not judged.

    Definition: the first kind that applies, from up to 16 rows and 16,384 entries: "zero"; "constant" (all entries
    equal); "identity" (one entry of each row holds 0.99 of its squared length, as in IDI and IDIC); "almost zero" (rms
    · √fan-in is at most 0.01, as in IDIZ and IDIZC); "orthogonal" (rows, or columns if they are fewer, with equal
    lengths and at right angles to 1e-3); by the kurtosis of the entries "uniform" (1.8 ± 0.15), "truncated normal"
    (2.36 ± 0.15, cut at two deviations) and "normal" (3 ± 0.3); "few entries" (below 256); "other".

    For each weight also its distances from an identity, from zero, from an orthogonal matrix and from a normal
    distribution, and the scheme that writes such values: by its kind and, for random weights, by the fan and the gain
    that match its deviation (`WeightFingerprint`).

    Unit: weights; relative distances. Threshold: none.

    Source: Pan et al., "IDInit", ICLR 2025, for IDI and IDIZ; the kurtosis values are exact for the three
    distributions.
    """
    found = [_likeness(subject, info, role) for info, role in subject.weights()]
    yield from found
    for name, count in Counter(one.kind for one in found).most_common():
        yield Measure("identity", name, count)


def _likeness(subject: AuditContext, info: ParameterInfo, role: Role) -> WeightFingerprint:
    ratio, name = subject.ratio(info, role), info.name
    if subject.is_zero(name):
        return WeightFingerprint(name, "zero", scheme("zero", None), 1.0, 0.0, 1.0, 1.0)
    look = Closeness.at(subject.matrices(name))
    kind = looks_like(look, closed=ratio <= CLOSED)
    made = made_from(subject.rms(name), *fans(info, role), subject.tensors[name].numel())
    one, turned, drawn = distances(look)
    return WeightFingerprint(name, kind, scheme(kind, made), one, ratio * gain(role), turned, drawn)
