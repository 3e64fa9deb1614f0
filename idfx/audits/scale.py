"""Weights, biases and norm scales compared with the size that preserves a signal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from idfx.audits.likeness import made_from
from idfx.audits.metric import metric
from idfx.audits.outputs import factor_before, factor_behind
from idfx.audits.subject import AuditContext, gain
from idfx.core.findings import Finding, Severity
from idfx.core.records import ParameterInfo, Role
from idfx.schemes.scheme import fans

LARGE = 4.0
TOO_LARGE = 10.0
SMALL = 0.01
TOO_SMALL = 1e-4
NOTHING = 1e-6  # of an embedding
SHRUNK = 0.6  # of the size that the expert's own fan gives
SAME = 0.03  # relative difference of two deviations that count as equal
FAR = 100.0  # for additive parameters and learned scales: error; a tenth of it: warning

_TOO_LARGE = "Divide it by the root of its fan-in (kaiming, xavier), or add a normalisation after it."
_SMALL = "None if it should start closed; otherwise draw it with the deviation gain / √fan-in."
_FAN = "None if mode=fan_out is intended; otherwise check the axis of the inputs (Conv1D of transformers, groups)."
_BIAS = "Nothing, if intended; most schemes start biases at 0."
_NORM = "Nothing, if intended; norm scales usually start at 1."
_FREE_REMEDY = "Draw it with a deviation of 0.02 to 1; start a learned scale at 1 or below."
_CUT = "Set it to 1."
_TIED = "Draw the table with a deviation of 0.02 or 1 / √width; a factor of √width after the look-up makes up for it."
_COUNTED = "Draw each expert by itself, by its own fan: torch.nn.init takes the first two axes for outputs and inputs."


@metric("scale")
def scale(subject: AuditContext) -> Iterator[Finding]:
    """Weights too large or too small for their fan-in and activation; non-zero biases, norm scales other than 1.

    Definition: r = rms(W) · √fan-in / gain: the root mean square of a weight over the value at which a layer preserves
    the mean square of independent inputs. The fan-in is that of the matrix in use (of one group, expert or fused part,
    with the actual inputs, whatever the layout of the tensor); the gain is that of the following function (√2 for ReLU;
    1 if torch.nn.init has none). Weights that are normalised or multiplied by another parameter before use are not
    judged; a constant below 1 that directly multiplies the output (Swiftformer's queries) is included.

    Unit: r, a ratio. Thresholds: r > 4 (warning), r > 10 (error): mean squares grow a hundredfold in one layer. r <
    0.01 (warning; not for ends of branches or heads, nor for zeros that the inputs get around): not an error, because
    normalisations compensate for small weights; truncated normals of 0.02 give 0.02 to 4 at fan-ins from 1 to 40,000. A
    non-zero r below 1e-4 is an error: mean squares fall below the eps of a following normalisation (1e-5 to 1e-12);
    except if a constant bias takes over (gMLP's gates) and for gating weights. For an embedding the threshold is an rms
    of 1e-6, because RWKV deliberately draws its own with 1e-4. A weight whose deviation is gain / √fan-out, within the
    precision of the sample, with gain 1, √2 or 1/√3, and does not match fan-in, if the two differ by half or more, is
    reported as such (info; a warning above r = 4). A weight of several matrices (experts, heads) whose deviation
    matches in the same way a fan that counts several of them, by which it is too small, is a warning, unless weights
    with other fans have the same deviation. An embedding that is tied to the output weight is also judged as that
    weight, with the constants directly before and after it. Non-zero biases and norm scales other than 1 are reported
    (info). A norm scale that is below 1e-4 and closes no block, or 0 throughout and lets no input past, is an error
    (the metric `dead` reports one that keeps gradients from others); one above 4 or 10 is judged like a weight, and one
    that is used as 1 + w is not judged. Biases, embeddings, positions, tokens and learned scales: root mean square
    above 10 (warning) and 100 (error), because no fan-in divides them; learned temperatures reach 10 (Swin v2), and
    logit scales 4.6 (CLIP). For biases of attention scores, the deviation from their mean is used.

    Source: LeCun et al., "Efficient backprop", 1998; He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    for info, role in (*subject.weights(), *subject.recurrent()):
        if role.layout is not None:
            yield from _weight(subject, info, role)
    yield from _tied(subject)
    for name, role in subject.structure.roles.items():
        if subject.sound(name):
            yield from _beside(subject, name, role)


def _tied(subject: AuditContext) -> Iterator[Finding]:
    """Yield the findings for embeddings that are also output weights, and too large for that."""
    flow = subject.flow
    known = {info.name: info for info, _ in subject.embeddings()}
    steps = {flow.step(at): at for at, term in enumerate(flow.terms) if term.kind == "contract" and term.tag != "table"}
    for site in subject.structure.sites:
        info = known.get(subject.first_name(site.parameter))
        if info is None or site.layout is None or site.step not in steps:
            continue
        fan_in, position = site.layout.matrix(info.shape)[1], steps[site.step]
        factor = factor_before(flow, position) * factor_behind(flow, position)
        ratio = subject.rms(info.name) * factor * math.sqrt(fan_in)
        if ratio > LARGE:
            severity, bound = _large(ratio)
            told = (
                f"as the weight of {site.name}, to which it is tied, its root mean square {subject.rms(info.name):.3g}"
            )
            told += f" is {ratio:.3g} times 1 / √{fan_in}"
            yield subject.finding(severity, "scale", info.name, ratio, bound, told, _TIED)


def _beside(subject: AuditContext, name: str, role: Role) -> Iterator[Finding]:
    """Yield the findings for a parameter that is not a weight."""
    rms = subject.rms(name)
    severity, bound = _far(_spread(subject.tensors[name]) if role.name == "attention bias" else rms)
    told = f"{role.name} of root mean square {rms:.3g}"
    if role.name == "norm scale":
        yield from () if subject.in_expression(name) else _norm(subject, name, rms)
    elif role.name.is_shift and rms:
        message = f"a {role.name} of root mean square {rms:.3g}"
        yield subject.finding(severity or "info", "scale", name, rms, bound, message, _BIAS)
    elif role.name.is_free and severity:
        yield subject.finding(severity, "scale", name, rms, bound, told, _FREE_REMEDY)
    elif role.name == "embedding" and 0 < rms < NOTHING:
        yield subject.finding("error", "scale", name, rms, NOTHING, told, _FREE_REMEDY)


def _spread(tensor: Tensor) -> float:
    """The deviation from the mean, because a softmax ignores what is added to all scores."""
    return float(tensor.double().std(correction=0))


def _far(rms: float) -> tuple[Severity | None, float]:
    """The severity of a size that no fan-in divides, or None, and its threshold."""
    return ("error", FAR) if rms > FAR else ("warning", FAR / 10) if rms > FAR / 10 else (None, 0)


def _large(size: float) -> tuple[Severity, float]:
    """The severity of a size that is too large, and its threshold."""
    return ("error", TOO_LARGE) if size > TOO_LARGE else ("warning", LARGE)


def _weight(subject: AuditContext, info: ParameterInfo, role: Role) -> Iterator[Finding]:
    ratio, closing = subject.ratio(info, role), role.name.is_last
    asked = f"{gain(role):.3g} / √{fans(info, role)[0]}"
    told = f"its root mean square {subject.rms(info.name):.3g} is {ratio:.3g} times {asked}"
    other = _fan_out(subject, info, role)
    if counted := _experts_in_fan(subject, info, role):
        yield subject.finding("warning", "scale", info.name, ratio, LARGE, f"{told}; it is {counted}", _COUNTED)
    elif other:
        message = f"{told}; it is {other}"
        yield subject.finding("warning" if ratio > LARGE else "info", "scale", info.name, ratio, LARGE, message, _FAN)
    elif ratio > LARGE:
        severity, bound = _large(ratio)
        yield subject.finding(severity, "scale", info.name, ratio, bound, told, _TOO_LARGE)
    elif 0 < ratio < TOO_SMALL and not closing and "gating" not in role.traits and not subject.biased(info.name):
        yield subject.finding("error", "scale", info.name, ratio, TOO_SMALL, told, _SMALL)
    elif ratio < SMALL and not closing and (ratio or info.name in subject.cutting):
        yield subject.finding("warning", "scale", info.name, ratio, SMALL, told, _SMALL)


def _fan_out(subject: AuditContext, info: ParameterInfo, role: Role) -> str:
    """The deviation of a weight in terms of fan-out, if it matches; otherwise ""."""
    fan_in, fan_out = fans(info, role)
    made = made_from(subject.rms(info.name), fan_in, fan_out, subject.tensors[info.name].numel())
    if made is None or made[0] != "fan-out" or max(fan_in, fan_out) < 1.5 * min(fan_in, fan_out):
        return ""
    return f"{made[1]:.3g} / √{fan_out}, of fan-out"


def _experts_in_fan(subject: AuditContext, info: ParameterInfo, role: Role) -> str:
    """The deviation of a stack of matrices in terms of a fan that counts several, if it matches; otherwise ""."""
    layout, rms, size = role.layout, subject.rms(info.name), subject.tensors[info.name].numel()
    own = fans(info, role)
    if not rms or layout is None or layout.tap_axes or len(info.shape) < 3 or made_from(rms, *own, size) is not None:
        return ""
    count = math.prod(info.shape[axis] for axis in layout.batch_axes)
    inner = math.prod(info.shape[2:])
    counted = (info.shape[1] * inner, info.shape[0] * inner), (count * own[0], count * own[1])
    for pair in counted if not _shares_deviation(subject, info, own[0]) else ():
        made = made_from(rms, *pair, size)
        if made is not None and rms * math.sqrt(own[0]) < SHRUNK * made[1]:
            fan = {"fan-in": pair[0], "fan-out": pair[1]}.get(made[0], sum(pair) / 2)
            return f"{made[1]:.3g} / √{fan:g}, a fan that counts several matrices"
    return ""


def _shares_deviation(subject: AuditContext, info: ParameterInfo, fan_in: int) -> bool:
    """Whether a single matrix with another fan-in has the same deviation, so that both are drawn with a fixed one."""
    rms = subject.rms(info.name)
    single = ((other, role) for other, role in subject.weights() if len(other.shape) == 2)
    others = ((other, role) for other, role in single if fans(other, role)[0] != fan_in)
    sizes = ((subject.rms(other.name), subject.tensors[other.name].numel()) for other, _ in others)
    return any(abs(size / rms - 1) < max(SAME, 3 / math.sqrt(2 * count)) for size, count in sizes)


def _norm(subject: AuditContext, name: str, rms: float) -> Iterator[Finding]:
    """Yield the findings for the scale of a normalisation."""
    told, closing = f"a norm scale of root mean square {rms:.3g}", name in subject.closing
    if rms > LARGE:
        severity, bound = _large(rms)
        yield subject.finding(severity, "scale", name, rms, bound, told, _CUT)
    elif 0 < rms < TOO_SMALL and not closing:
        yield subject.finding("error", "scale", name, rms, TOO_SMALL, told, _CUT)
    elif name in subject.cutting:
        message = "it is 0 throughout, and no input gets past it"
        yield subject.finding("error", "scale", name, 0, 1, message, _CUT)
    elif rms and not bool((subject.tensors[name] == 1).all()):
        yield subject.finding("info", "scale", name, rms, 1, told, _NORM)
