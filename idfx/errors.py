"""What can go wrong, as one family of exceptions.

Every message reads `<subject>: <what was found>; <what was expected>. <what to do next>`. The command line
prints it on one line and exits with the class's `exit_code`; a script catches `IdfxError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idfx.records import Report


class IdfxError(Exception):
    """Base of every error that idfx raises on purpose; exit code 2 on the command line."""

    exit_code = 2


class UsageError(IdfxError):
    """The request cannot be understood: an unknown name, contradictory options, an unusable path."""


class SourceError(IdfxError):
    """A model could not be built from its specification, or its example input is missing or wrong."""


class ForwardError(IdfxError):
    """The model raised in its own forward; the message names the module and repeats the model's words."""


class ResourceError(IdfxError):
    """Memory or time ran out; the message says at what, and nothing is wrong with the inputs."""


class CaptureError(IdfxError):
    """The model ran but could not be captured as a graph; exit code 3."""

    exit_code = 3


class StructureError(IdfxError):
    """The graph asks for contradictory things of one parameter, or for what the structure does not have."""


class PlanError(IdfxError):
    """A plan is malformed, of an unknown version, or made for another model."""


class CertificateError(IdfxError):
    """The initialised model does not start as the plan claims; exit code 1. `report` holds the details, if any."""

    exit_code = 1
    report: Report | None = None


class AuditError(IdfxError):
    """Something of an audit cannot be measured on this model; the rest of the audit can."""


class ExportError(IdfxError):
    """A file could not be written; nothing of it exists."""
