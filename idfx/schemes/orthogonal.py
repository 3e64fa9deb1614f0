"""Orthogonal matrices, and delta-orthogonal kernels, whose convolution itself preserves norms."""

from __future__ import annotations

from dataclasses import dataclass

from idfx.analysis.queries import StructureQueries
from idfx.core.errors import UsageError
from idfx.core.records import Decision, ParameterInfo, Role
from idfx.core.registry import did_you_mean
from idfx.schemes.kaiming import gain_of
from idfx.schemes.scheme import Keep, beside, check_number, is_weight, scheme, with_layout


@dataclass(frozen=True)
class Options:
    """`gain`: a factor, or "auto" for the gain of the function that follows."""

    gain: float | str = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.gain, str):
            if self.gain != "auto":
                hint = did_you_mean(self.gain, ("auto",)) or " Write 1."
                raise UsageError(f"gain {self.gain!r}; expected a number or auto.{hint}")
        else:
            check_number("gain", self.gain)

    def value(self, role: Role) -> float:
        """The factor for one weight."""
        return gain_of("auto", role) if isinstance(self.gain, str) else self.gain


def _decide(parameter: ParameterInfo, role: Role, options: Options, taps: str, reason: str) -> Decision | Keep:
    if not is_weight(role):
        return beside(parameter, role)
    assert role.layout is not None
    arguments: dict[str, object] = {"gain": options.value(role)}
    if role.layout.tap_axes:
        arguments["taps"] = taps
    return Decision(parameter.name, "orthogonal", with_layout(arguments, role), reason, role.evidence)


@scheme("orthogonal", Options)
def orthogonal(parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options) -> Decision | Keep:
    """Orthogonal: rows or columns of every weight are orthonormal (Saxe et al., 2014), biases 0, norms 1.

    Source: Saxe, McClelland and Ganguli, ICLR 2014; torch.nn.init.orthogonal_. A kernel is one matrix (c_out, c_in ·
    taps). Ours: one matrix for each group and expert.
    """
    return _decide(parameter, role, options, "all", "its rows or its columns are orthonormal (Saxe et al.)")


@scheme("delta-orthogonal", Options)
def delta_orthogonal(
    parameter: ParameterInfo, role: Role, network: StructureQueries, options: Options
) -> Decision | Keep:
    """Delta-orthogonal: an orthogonal matrix at the centre of every kernel (Xiao et al., 2018), biases 0, norms 1.

    Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington, ICML 2018, algorithm 1, which requires c_out ≥ c_in.
    Deviation: with fewer outputs, the rows are orthonormal. Weights without taps are orthogonal.
    """
    reason = "an orthogonal matrix at the centre of the kernel makes the convolution preserve norms (Xiao et al.)"
    return _decide(parameter, role, options, "centre", reason)
