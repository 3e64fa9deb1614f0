"""Model → torch.fx graph of the operators that one forward pass calls."""

from idfx.capture.nested import tensors_in
from idfx.capture.tracing import capture, replay

__all__ = ["capture", "replay", "tensors_in"]
