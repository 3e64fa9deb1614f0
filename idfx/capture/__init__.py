"""Model → torch.fx graph of the operators that one forward pass calls."""

from idfx.capture.tracing import capture, replay, tensors_in

__all__ = ["capture", "replay", "tensors_in"]
