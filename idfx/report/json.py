"""Records → JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from idfx.core.findings import Audit
from idfx.core.records import Certificate, Report, Structure
from idfx.core.version import __version__
from idfx.planning.difference import Difference
from idfx.planning.explain import Explanation
from idfx.planning.export import SavedFile, digest


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in ("capture", "analysis")
        }
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no infinity
    return value


def _text(value: Any) -> str:
    return json.dumps({"idfx_version": __version__, **_plain(value)}, indent=2, ensure_ascii=False, allow_nan=False)


def structure(found: Structure) -> str:
    """Return a structure as JSON: joins, sums, sites, roles, unknown operators, and the method of capture."""
    capture = {
        "how": found.capture.how,
        "nodes": len(found.capture.graph.nodes),
        "calls": found.capture.calls,
    }
    return _text({**_plain(found), "captured": capture})


def certificate(found: Certificate | None) -> Any:
    """Return a certificate as plain JSON values, or null."""
    if found is None:
        return None
    return {**_plain(found), "passed": found.passed, "certified": found.certified, "joins": len(found.checks)}


def init(report: Report, spec: str, saved: SavedFile) -> str:
    """Return the result of `idfx init` as JSON."""
    made = report.plan
    return _text(
        {
            "spec": spec,
            "model": made.model,
            "scheme": made.scheme,
            "seed": made.seed,
            "options": dict(made.options),
            "plan_sha256": digest(made),
            "parameters": {"written": len(made.decisions), "kept": len(made.kept), "loaded": len(made.loaded)},
            "notes": list(made.notes),
            "unknown": _plain(report.structure.unknown),
            "certificate": certificate(report.certificate),
            "file": {"path": str(saved.path), "bytes": saved.bytes, "tensors": saved.tensors},
        }
    )


def differences(found: Sequence[Difference]) -> str:
    """Return the differences between two sides as JSON."""
    return _text({"same": all(one.status == "same" for one in found), "parameters": list(found)})


def explanation(found: Explanation) -> str:
    """Return an explanation as JSON."""
    return _text(found)


def audit(found: Audit) -> str:
    """Return an audit as JSON, as `idfx audit --schema` describes it."""
    return _text(_audit(found))


def audits(found: Sequence[tuple[str, Audit]]) -> str:
    """Return several audits as JSON, each with its label."""
    return _text({"audits": [{"label": label, **_audit(one)} for label, one in found]})


def _audit(found: Audit) -> dict[str, Any]:
    plain: dict[str, Any] = _plain(found)
    parameters = [{**_plain(one), "ratio": _plain(one.ratio)} for one in found.parameters]
    return {"model": found.model, "verdict": found.verdict, **plain, "parameters": parameters}
