"""Xavier (Glorot): random weights whose variance is a compromise between the forward and the backward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.schemes.kaiming import NONLINEARITIES, SPREADS, gain_of, spread
from idfx.schemes.scheme import Keep, beside, check_choice, fans, is_weight, scheme


@dataclass(frozen=True)
class Options:
    """The options of Xavier initialisation: `distribution` of the entries, and `nonlinearity`, as for kaiming."""

    distribution: str = "uniform"
    nonlinearity: str = "linear"

    def __post_init__(self) -> None:
        check_choice("distribution", self.distribution, SPREADS)
        check_choice("nonlinearity", self.nonlinearity, NONLINEARITIES)


def glorot(
    parameter: ParameterInfo, role: Role, distribution: str = "uniform", gain: float = 1.0, why: str = ""
) -> Decision:
    """Return Glorot's decision for a weight: standard deviation gain · √(2 / (fan-in + fan-out))."""
    fan_in, fan_out = fans(parameter, role)
    reason = f"a weight has the standard deviation {gain:.4g} · √(2 / ({fan_in} + {fan_out})) (Glorot and Bengio){why}"
    return spread(parameter, role, distribution, math.sqrt(2.0 / (fan_in + fan_out)), reason, gain)


@scheme("xavier", Options)
def decide(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Xavier: random weights of variance 2 / (fan-in + fan-out) (Glorot and Bengio, 2010), biases 0, norms 1.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS
    2010; torch.nn.init.xavier_uniform_ and xavier_normal_. Deviation: the fans are those of the matrix that idfx
    identifies.
    """
    if is_weight(role):
        return glorot(parameter, role, options.distribution, gain_of(options.nonlinearity, role))
    return beside(parameter, role)
