"""Kaiming (He): random weights that preserve the variance of the signal through ReLUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.scheme import GAINS, Keep, beside, check_choice, fans, is_weight, scheme

SPREADS = ("normal", "uniform")
NONLINEARITIES = ("auto", *GAINS)


@dataclass(frozen=True)
class Options:
    """The options of Kaiming initialisation.

    `mode`: which fan. `distribution`: of the entries. `nonlinearity`: whose gain, "auto" for the function that follows.
    """

    mode: str = "fan_in"
    distribution: str = "normal"
    nonlinearity: str = "relu"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("fan_in", "fan_out"))
        check_choice("distribution", self.distribution, SPREADS)
        check_choice("nonlinearity", self.nonlinearity, NONLINEARITIES)


def spread(
    parameter: ParameterInfo, role: Role, distribution: str, std: float, reason: str, factor: float = 1.0
) -> Decision:
    """Return the decision for random entries with this standard deviation, times a factor."""
    value = std * factor
    name = {"std": value} if distribution == "normal" else {"bound": math.sqrt(3.0) * value}
    return Decision(parameter.name, distribution, dict(name), reason, role.evidence)


def gain_of(nonlinearity: str, role: Role) -> float:
    """Return the gain of a nonlinearity, or of the function that follows a weight."""
    name = role.activation.removeprefix("aten.") if nonlinearity == "auto" else nonlinearity
    return GAINS.get(name, 1.0)


def he(
    parameter: ParameterInfo, role: Role, mode: str = "fan_in", distribution: str = "normal",
    nonlinearity: str = "relu", factor: float = 1.0, why: str = "",
) -> Decision:  # fmt: skip
    """Return He's decision for a weight: standard deviation gain / √fan, times a factor."""
    fan_in, fan_out = fans(parameter, role)
    fan = fan_in if mode == "fan_in" else fan_out
    gain = gain_of(nonlinearity, role)
    reason = f"a weight has the standard deviation {gain:.4g} / √{fan} ({mode}; He et al.){why}"
    return spread(parameter, role, distribution, gain / math.sqrt(fan), reason, factor)


@scheme("kaiming", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Kaiming: random weights of standard deviation gain / √fan (He et al., 2015), biases 0, norms 1.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015; torch.nn.init.kaiming_normal_ and
    kaiming_uniform_. Deviation: the fan is that of the matrix that idfx identifies, of one group and with the actual
    inputs; torch.nn.init derives it from the shape alone.
    """
    if is_weight(role):
        return he(parameter, role, options.mode, options.distribution, options.nonlinearity)
    return beside(parameter, role)
