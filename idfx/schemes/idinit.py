"""IDInit: every layer starts as an identity, every residual branch near zero.

Source: Pan, Wang, Wu, Wang, Zhang, Xu, "IDInit: A Universal and Stable Initialization Method for Neural Network
Training", ICLR 2025, arXiv 2503.04626. Decisions that the paper leaves open are marked as ours; docs/method.md gives
the reasons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from idfx.analysis.queries import StructureQueries
from idfx.analysis.rows import ranges
from idfx.analysis.scores import score_factor
from idfx.core.errors import UsageError
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.core.registry import did_you_mean
from idfx.core.roles import RoleName
from idfx.schemes.scheme import GAINS, Keep, check_choice, check_flag, check_number, odd_bias, scheme, with_layout

LOOSEN = ("diagonal", "dense", "none")
ORDERS = ("auto", "channel", "tap", "centre")
DEPTHWISE = ("auto", "identity", "keep")

# Properties that the paper does not mention, of weights that it otherwise covers.
_OURS = {
    "grouped": "one matrix per group",
    "depthwise": "one matrix per channel",
    "gating": "it only gates other values",
}

_KEEP = {
    "embedding": "a table of looked-up rows does not map inputs to outputs; its own values are kept (ours)",
    "offset": "an offset that is added to the data is not a layer; its own values are kept (ours)",
    "token": "a token next to the data is not a layer; its own values are kept (ours)",
    "scale": "a scale that ends no residual branch keeps its own values (ours)",
    "position": "a position is not a layer; its own values are kept (ours)",
    "attention bias": "a bias of attention scores is not a layer; its own values are kept (ours)",
    "fixed": "it makes a value that is independent of the input, like a learned query; its own values are kept (ours)",
    "unused": "the forward pass does not use it",
    "unresolved": "it is a weight whose matrix idfx cannot read; its own values are kept",
    "other": "idfx has no rule for how it acts on the data; its own values are kept",
}


@dataclass(frozen=True)
class Options:
    """The options of IDInit.

    `tau`: entry of the identity, a number or "gain" for the gain of the activation that follows. `eps`: entry of the
    zero-preserving matrix; 0 makes it zero. `loosen`: which entries get noise N(0, eps_tau²). `conv_order`: the order
    of the columns of a kernel; "auto" is "channel" in residual branches, which was best with BatchNorm, and "centre"
    elsewhere, where shifting by each layer would move the signal off the image (docs/method.md). `depthwise`: depthwise
    kernels as identities ("identity") or kept ("keep"); "auto" keeps those inside branches, where identities cost
    accuracy (docs/evidence.md). `published`: queries, gates and heads as identities, and stacked identities everywhere
    and undivided, as the paper reads literally; a plain vision transformer does not learn from it (docs/schemes.md).
    """

    tau: float | str = 1.0
    eps: float = 1e-6
    loosen: str = "diagonal"
    eps_tau: float = 1e-6
    conv_order: str = "auto"
    depthwise: str = "auto"
    published: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.tau, str):
            if self.tau != "gain":
                hint = did_you_mean(self.tau, ("gain",)) or " Write --tau 1."
                raise UsageError(f"tau {self.tau!r}; expected a number or gain.{hint}")
        else:
            check_number("tau", self.tau)
            if self.tau == 0:
                raise UsageError("tau 0; expected a number that is not 0, or 'gain'. Write --tau 1.")
        for name in ("eps", "eps_tau"):
            check_number(name, getattr(self, name), 0.0, such_as="1e-6")
        check_choice("loosen", self.loosen, LOOSEN)
        check_choice("conv_order", self.conv_order, ORDERS)
        check_choice("depthwise", self.depthwise, DEPTHWISE)
        check_flag("published", self.published)


def _order(role: Role, options: Options) -> tuple[str, str]:
    """The kernel order, and the reason unless the user set it."""
    if role.layout is not None and role.layout.grouped == "in":
        return "centre", "; a transposed kernel is filled from its centre (ours)"
    if options.conv_order != "auto":
        return options.conv_order, ""
    if role.name.in_branch:
        return "channel", ""
    return "centre", "; outside branches a kernel is filled from its centre, which does not shift (ours)"


def _identity(parameter: ParameterInfo, role: Role, options: Options) -> tuple[dict[str, Any], str]:
    """The arguments of an identity, and the reason unless the user set them."""
    gain = GAINS.get(role.activation.removeprefix("aten."), 1.0)
    tau = gain if options.tau == "gain" else float(options.tau)
    why = f"; tau is the gain of {role.activation or 'no activation'}" if options.tau == "gain" else ""
    copies = 1.0 if options.published else _copies(parameter, role)
    if copies > 1:
        why += f"; tau is divided by √{copies:g}, so that {copies:g} stacked identities pass on what one does (ours)"
    return {"tau": tau / math.sqrt(copies), "loosen": options.loosen, "eps_tau": options.eps_tau}, why


def _copies(parameter: ParameterInfo, role: Role) -> float:
    """How many identities are stacked in one matrix inside a branch; 1 unless it widens a value that it passes on."""
    several = {"query", "key", "value"} & role.traits.keys()  # matrices of their own, one below the other
    if role.layout is None or role.name != "inner" or several or "gating" in role.traits:
        return 1.0
    rows, columns = role.layout.matrix(parameter.shape)
    return max(1.0, rows / columns) if columns else 1.0


def _attending(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | None:
    """A weight that makes queries: near zero, because each normalised token has the score √D_head with itself.

    Source: ours. Near-zero queries: Yang et al., "Tensor Programs V", 2022, arXiv 2203.03466, appendix D.2.
    """
    if options.published or not role.traits.keys() & {"query", "key"} or not role.name.is_weight:
        return None
    factor = score_factor(network, parameter.name)
    if factor is None:
        return None
    if factor.undone:
        return _directions(parameter, role, options, factor.rows)
    rows, reason = factor.rows, "a factor of attention scores starts near zero, so that all places count alike (ours)"
    if rows is not None and role.name == "end":
        ending = {row for start, stop in role.rows or ((0, 0),) for row in range(start, stop)}
        chosen = {row for start, stop in rows for row in range(start, stop)}
        rows = ranges(ending | chosen)
        reason = f"the last weight of a residual branch starts near zero (paper); {reason}"
    eps = options.eps or Options.eps  # it closes nothing, and exact zeros would keep the gradient from the other factor
    options = replace(options, eps=math.sqrt(eps) if factor.both else eps)  # so that the product of the factors is eps
    assert role.layout is not None
    height, columns = role.layout.matrix(parameter.shape)
    if rows is None and role.name != "end" and height > columns:
        reason += "; drawn, because rows would repeat and heads be alike"
        return Decision(parameter.name, "normal", {"std": options.eps}, reason, role.evidence)
    return _weight(parameter, replace(role, rows=rows), options, True, reason)


def _directions(
    parameter: ParameterInfo, role: Role, options: Options, rows: tuple[tuple[int, int], ...] | None
) -> Decision | None:
    """Queries whose size a normalisation takes out: drawn, because near zero does not act, and only directions count.

    Source: ours. The identity would give each normalised token its largest score with itself.
    """
    assert role.layout is not None
    if role.name == "end" or role.layout.tap_axes:
        return None
    std = 1 / math.sqrt(role.layout.matrix(parameter.shape)[1])
    reason = "a normalisation behind it takes out the size of the queries, so their directions are drawn (ours)"
    if rows is None:
        return Decision(parameter.name, "normal", {"std": std}, reason, role.evidence)
    identity, why = _identity(parameter, role, options)
    arguments = with_layout({"std": std, "rows": [list(part) for part in rows], **identity}, role)
    reason += f", its other rows are the identity (ours){why}"
    return Decision(parameter.name, "idic_normal", arguments, reason, role.evidence)


def _routing(parameter: ParameterInfo, role: Role, options: Options) -> Decision | None:
    """A router of experts, near zero; None for other weights, and if the matrix is not known."""
    if options.published or role.name != "inner" or "router" not in role.traits or role.layout is None:
        return None
    options = replace(options, eps=options.eps or Options.eps)  # it closes nothing, and equal scores have no ranks
    reason = "a router starts near zero, so that the experts that it chooses count alike (ours)"
    return _weight(parameter, role, options, True, reason)


def _drawn(parameter: ParameterInfo, role: Role, options: Options) -> Decision | None:
    """A weight for which the identity is no start that trains: drawn, as large as one identity."""
    if options.published or role.layout is None:
        return None
    rows, columns = role.layout.matrix(parameter.shape)
    features = columns // math.prod(parameter.shape[axis] for axis in role.layout.tap_axes)
    said = _not_identity(role, rows, columns, features)
    if said is None:
        return None
    tau = _identity(parameter, replace(role, name=RoleName.MAIN_STEM), options)[0]["tau"]
    if role.name == "head":
        return Decision(parameter.name, "orthogonal", with_layout({"gain": tau}, role), said, role.evidence)
    return Decision(parameter.name, "normal", {"std": tau / math.sqrt(max(rows, columns))}, said, role.evidence)


def _not_identity(role: Role, rows: int, columns: int, features: int) -> str | None:
    """Why a weight is drawn, by its role and its numbers of outputs, inputs and features; None if it is not."""
    if {"query", "key", "depthwise"} & role.traits.keys():
        return None
    if role.name == "inner" and "gate" in role.traits:
        return "its output multiplies another value; drawn, because the product of two equal values has a mean (ours)"
    if role.name == "head" and rows < features:
        return f"the head has orthonormal rows: an identity would read {rows} of {features} features (ours)"
    steers = {"value", "gating"} & role.traits.keys()
    if role.name in ("input stem", "main stem", "transition") and rows >= 2 * columns and not steers:
        return f"a weight of the {role.name} that widens {columns} to {rows} is drawn: copies would stay alike (ours)"
    return None


def _weight(parameter: ParameterInfo, role: Role, options: Options, zero: bool, reason: str) -> Decision:
    assert role.layout is not None
    kernel = bool(role.layout.tap_axes)
    arguments: dict[str, Any] = {}
    if zero:
        arguments["eps"] = options.eps
    kept = zero and role.rows is not None and "depthwise" in role.traits and options.depthwise != "identity"
    if zero and role.rows is not None:
        arguments["rows"] = [list(rows) for rows in role.rows]
        others = "only mix neighbours, and keep their own values" if kept else "as the identity"
        reason += f", its other rows {others} (ours)"
    if not zero or (role.rows is not None and not kept):
        identity, why = _identity(parameter, role, options)
        arguments |= identity
        reason += why
    if kernel:
        arguments["order"], why = _order(role, options)
        reason += why
    arguments = with_layout(arguments, role)
    both = zero and role.rows is not None and not kept
    fill = "idic_idizc" if both else ("idiz" if zero else "idi") + ("c" if kernel else "")
    return Decision(parameter.name, fill, arguments, reason, role.evidence)


def _keeps_depthwise(role: Role, options: Options) -> bool:
    """Whether a weight is a depthwise kernel that is kept."""
    if "depthwise" not in role.traits or not role.name.is_weight or options.depthwise == "identity":
        return False
    return options.depthwise == "keep" or role.name == "inner"


def _recurrent(parameter: ParameterInfo, role: Role, options: Options) -> Decision | Keep:
    """A recurrent layer: the candidate is an identity, gates ignore the input, and the forget gate is nearly open.

    Source: ours. Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear units",
    2015, arXiv 1504.00941, for identities; Gers, Schmidhuber and Cummins, "Learning to forget", 2000, and Jozefowicz,
    Zaremba and Sutskever, "An empirical exploration of recurrent network architectures", 2015, for the forget bias.
    """
    gates = {name: rows for name, rows in role.gates.items() if name != "candidate"}
    if role.layout is not None and gates:
        reason = f"the weights of the {', '.join(gates)} gates start near zero, equal for every input (ours)"
        return _weight(parameter, replace(role, rows=tuple(gates.values())), options, True, reason)
    if role.layout is not None:
        reason = "a weight of a recurrent layer starts as the identity (ours, after Le et al., 2015)"
        return _weight(parameter, role, options, False, reason)
    if "forget" in gates and "input bias" in role.traits:
        arguments = {"rows": [list(gates["forget"])], "inside": 1.0, "value": 0.0}
        reason = "a 1 in one of its two biases starts the forget gate nearly open (ours, after Gers et al., 2000)"
        return Decision(parameter.name, "piecewise_constant", arguments, reason, role.evidence)
    if role.gates:
        reason = "a bias of 0 adds nothing to the identity (ours)"
        return Decision(parameter.name, "constant", {"value": 0.0}, reason, role.evidence)
    return Keep(f"{role.evidence}; its own values are kept (ours)")


@scheme("idinit", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """IDInit: identity everywhere, near zero at the end of every residual branch (Pan et al., ICLR 2025).

    Source: arXiv 2503.04626. Paper: IDI/IDIC for main-stem weights and inner weights of branches, IDIZ/IDIZC for the
    last weight of a branch. Ours: 0 for biases and shifts, 1 for norm and branch scales, eps for a scale at the end of
    a branch; projection shortcuts and the head as main stem; depthwise kernels inside branches kept; unless
    `published`, queries and routers near zero, tau / √copies inside branches, values N(0, tau² / max(D_out, D_in)) for
    gates, and outside of branches where there would be two copies or more, orthonormal rows for a head that narrows,
    and biases drawn in an odd model; recurrent layers gate by gate; bilinear forms as products; everything else kept.
    """

    def constant(value: float, reason: str) -> Decision:
        return Decision(parameter.name, "constant", {"value": value}, reason, role.evidence)

    if role.name == "end" and role.layout is None:
        return constant(0.0, "the last weight of a residual branch, which is not a plain matrix, starts at zero (ours)")
    if "normalised" in role.traits and role.layout is not None:
        return Keep("it is divided by norms of slices that the identity leaves zero; its own values are kept (ours)")
    if (attending := _attending(parameter, role, network, options)) is not None:
        return attending
    if role.name == "end":
        return _weight(
            parameter,
            role,
            options,
            True,
            "the last weight of a residual branch starts near zero (paper)",
        )
    if _keeps_depthwise(role, options):
        reason = "a depthwise kernel only mixes neighbours, and an identity mixes none; its own values are kept (ours)"
        return Keep(reason)
    if (drawn := _routing(parameter, role, options) or _drawn(parameter, role, options)) is not None:
        return drawn
    if role.name in ("main stem", "transition", "inner"):
        where = "a residual branch" if role.name == "inner" else "the main stem"
        said = [_OURS[trait] for trait in role.traits if trait in _OURS]
        source = f"paper; {', '.join(said)}: ours" if said else "paper"
        return _weight(parameter, role, options, False, f"a weight inside {where} starts as the identity ({source})")
    if role.name in ("input stem", "head", "projection shortcut"):
        reason = f"the {role.name} is a weight of the main stem and starts as the identity (ours)"
        return _weight(parameter, role, options, False, reason)
    if role.name == "end scale":
        return constant(options.eps, "the branch ends at this scale, which starts near zero (ours)")
    if role.name in ("norm scale", "branch scale", "gain"):
        return constant(1.0, f"a {role.name} of 1 preserves the identity, or the zero before it (ours)")
    if not options.published and (odd := odd_bias(parameter, role, network)) is not None:
        return odd
    if role.name.is_shift:
        return constant(0.0, f"a {role.name} of 0 adds nothing to the identity (ours)")
    if role.name == "recurrent":
        return _recurrent(parameter, role, options)
    if role.name == "bilinear form":
        identity, why = _identity(parameter, role, options)
        reason = f"a bilinear form starts as the identity in each argument if the other is all ones (ours){why}"
        return Decision(parameter.name, "bilinear", identity, reason, role.evidence)
    return Keep(_KEEP.get(role.name, f"idinit has no rule for the role {role.name!s}; its own values are kept"))
