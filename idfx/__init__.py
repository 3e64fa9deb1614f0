"""Identity initialisation for any PyTorch model; `init_` and `analyze` are the ways in.

Names are imported on first use, so that `import idfx` loads neither torch nor anything else that is heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from idfx._version import __version__

if TYPE_CHECKING:
    from idfx.api import analyze, init_, masks, plan, read_plan
    from idfx.apply import apply_
    from idfx.auditing import audit
    from idfx.building import load
    from idfx.certification import certify
    from idfx.checkpoints import read_checkpoint
    from idfx.difference import diff
    from idfx.errors import CertificateError, IdfxError
    from idfx.export import save
    from idfx.findings import Audit, Finding
    from idfx.ops.term import operator
    from idfx.records import Certificate, Plan, Report, Structure
    from idfx.scalars import fold_

_HOMES = {
    "CertificateError": "idfx.errors",
    "IdfxError": "idfx.errors",
    "Audit": "idfx.findings",
    "Certificate": "idfx.records",
    "Finding": "idfx.findings",
    "Plan": "idfx.records",
    "Report": "idfx.records",
    "Structure": "idfx.records",
    "analyze": "idfx.api",
    "apply_": "idfx.apply",
    "audit": "idfx.auditing",
    "certify": "idfx.certification",
    "diff": "idfx.difference",
    "fold_": "idfx.scalars",
    "init_": "idfx.api",
    "load": "idfx.building",
    "masks": "idfx.api",
    "operator": "idfx.ops.term",
    "plan": "idfx.api",
    "read_checkpoint": "idfx.checkpoints",
    "read_plan": "idfx.api",
    "save": "idfx.export",
}

__all__ = [
    "Audit",
    "Certificate",
    "CertificateError",
    "Finding",
    "IdfxError",
    "Plan",
    "Report",
    "Structure",
    "__version__",
    "analyze",
    "apply_",
    "audit",
    "certify",
    "diff",
    "fold_",
    "init_",
    "load",
    "masks",
    "operator",
    "plan",
    "read_checkpoint",
    "read_plan",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'idfx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
