"""Modules under their names before 0.2, such as `idfx.records`, for packages that import them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MOVED = {
    "idfx.errors": "idfx.core.errors",
    "idfx.findings": "idfx.core.findings",
    "idfx.geometry": "idfx.fills.geometry",
    "idfx.matrices": "idfx.fills.matrices",
    "idfx.network": "idfx.analysis.queries",
    "idfx.ops.term": "idfx.ops.semantics",
    "idfx.records": "idfx.core.records",
    "idfx.registry": "idfx.core.registry",
    "idfx.structure": "idfx.analysis.structure",
}
_RENAMED = {
    "Look": "MetricFn",
    "Network": "StructureQueries",
    "Site": "WeightUse",
    "Subject": "AuditContext",
    "Term": "OpSemantics",
    "analyse": "build_structure",
    "untouchable": "not_writable_reason",
}


class OldNames(MetaPathFinder, Loader):
    """Finds a module that has moved, and warns with its new name."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(fullname, self) if fullname in _MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        home = _MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is {home} since idfx 0.2", DeprecationWarning, stacklevel=2)

        def attribute(name: str) -> Any:
            found = importlib.import_module(home)
            try:
                return getattr(found, _RENAMED.get(name, name))
            except AttributeError as error:
                raise AttributeError(f"module {home!r} has no attribute {name!r}") from error

        vars(module)["__getattr__"] = attribute


def install() -> None:
    """Let Python find modules under their former names; repeated calls have no effect."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())


def names() -> Mapping[str, str]:
    """Return the new name of each module that has moved."""
    return dict(_MOVED)
