"""Model → torch.fx graph of the operators that one forward pass calls."""

from idfx.capture.nested import tensors_in
from idfx.capture.tracing import TRACERS, capture, replay

__all__ = ["TRACERS", "capture", "replay", "tensors_in"]
