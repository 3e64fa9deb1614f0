"""Identity initialisation for any PyTorch model; start with `init_` or `analyze`.

Names are imported on first use, so that `import idfx` loads neither torch nor anything else that is heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from idfx.core.moved import install
from idfx.core.version import __version__

if TYPE_CHECKING:
    from idfx.analysis.analyze import analyze
    from idfx.api import init_, masks, plan, read_plan
    from idfx.audits.run import audit
    from idfx.building.build import load
    from idfx.certification.certificate import certify
    from idfx.core.errors import CertificateError, IdfxError
    from idfx.core.findings import Audit, Finding
    from idfx.core.records import Certificate, Plan, Report, Structure
    from idfx.ops.semantics import operator
    from idfx.planning.apply import apply_
    from idfx.planning.checkpoints import read_checkpoint
    from idfx.planning.difference import diff
    from idfx.planning.export import save
    from idfx.planning.rewrite import rewrite
    from idfx.planning.scalars import fold_
    from idfx.planning.without_norms import without_norms
    from idfx.report.show import show

_HOMES = {
    "CertificateError": "idfx.core.errors",
    "IdfxError": "idfx.core.errors",
    "Audit": "idfx.core.findings",
    "Certificate": "idfx.core.records",
    "Finding": "idfx.core.findings",
    "Plan": "idfx.core.records",
    "Report": "idfx.core.records",
    "Structure": "idfx.core.records",
    "analyze": "idfx.analysis.analyze",
    "apply_": "idfx.planning.apply",
    "audit": "idfx.audits.run",
    "certify": "idfx.certification.certificate",
    "diff": "idfx.planning.difference",
    "fold_": "idfx.planning.scalars",
    "init_": "idfx.api",
    "load": "idfx.building.build",
    "masks": "idfx.api",
    "operator": "idfx.ops.semantics",
    "plan": "idfx.api",
    "read_checkpoint": "idfx.planning.checkpoints",
    "read_plan": "idfx.api",
    "rewrite": "idfx.planning.rewrite",
    "save": "idfx.planning.export",
    "show": "idfx.report.show",
    "without_norms": "idfx.planning.without_norms",
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
    "rewrite",
    "save",
    "show",
    "without_norms",
]

install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'idfx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
