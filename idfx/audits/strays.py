"""Weights that no optimiser sees."""

from __future__ import annotations

from collections.abc import Iterator

from idfx.analysis.strays import strays as found_strays
from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.core.findings import Finding

_REGISTER = "Put layers in nn.ModuleList or nn.ModuleDict, and tensors in nn.Parameter or register_buffer."
_BEFORE = "Make the layer once, in the constructor; a fixed random matrix belongs in a buffer."


@metric("strays")
def strays(subject: AuditContext) -> Iterator[Finding]:
    """Weights that the forward multiplies by and that are no parameters of the model.

    Definition: (a) trainable tensors that the forward uses and that are neither parameters nor buffers of the model:
    layers in a Python list, a parameter in a dict. (b) Random tensors that the forward draws and contracts data with:
    layers made in the forward. Noise that is added or multiplied elementwise is not meant.

    Unit: entries. Threshold: 0 (warning): no optimiser sees them, and no state dict contains them. Some models keep a
    frozen network out of their state dict in this way on purpose.

    Source: torch.nn.Module, on how parameters are registered.
    """
    for stray in found_strays(subject.flow, subject.model):
        size = 1
        for side in stray.shape:
            size *= side
        what = "the forward draws it anew in each call" if stray.drawn else "the model does not list it as a parameter"
        told = f"the forward uses a weight of shape {list(stray.shape)}, but {what}"
        remedy = _BEFORE if stray.drawn else _REGISTER
        site = stray.module or subject.structure.model
        yield Finding("warning", "strays", stray.name, site, size, 0, told, remedy)
