"""Audits → GitHub Actions annotations, which appear next to the code of a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from idfx.core.findings import Audit, Finding

_COMMANDS = {"info": "notice", "warning": "warning", "error": "error"}


def audits(found: Sequence[tuple[str, Audit]]) -> str:
    """Return a workflow command for each finding, which points to the Python file of the model if there is one.

    Source: GitHub's documentation, "Workflow commands for GitHub Actions".

    Args:
        found: each audit with its label, which begins with its SPEC.
    """
    return "\n".join(annotation(label, one) for label, audit in found for one in audit.findings)


def annotation(label: str, found: Finding) -> str:
    """Return one workflow command.

    Example:
        >>> annotation("timm:x", Finding("error", "dead", "w", "block", 1, 0, "no gradient: 100%", "Open it."))
        '::error title=idfx dead%3A w::timm:x: no gradient: 100%25 (in block). Open it.'
    """
    spec = label.split(" ", 1)[0]
    path, separator, _ = spec.rpartition(":")
    file = f"file={_property(path)}," if separator and path.endswith(".py") and Path(path).is_file() else ""
    title = f"idfx {found.metric}: {found.parameter or found.site}"
    text = f"{label}: {found.message} (in {found.site}). {found.remedy}"
    return f"::{_COMMANDS[found.severity]} {file}title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
