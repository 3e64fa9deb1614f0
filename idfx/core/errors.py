"""The exceptions of idfx.

Every message reads `<subject>: <what was found>; <what was expected>. <what to do next>`. The command line prints it on
one line and exits with the `exit_code` of the class; a script catches `IdfxError`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idfx.core.records import Report


class IdfxError(Exception):
    """Base class of every error that idfx raises deliberately; exit code 2 on the command line."""

    exit_code = 2


class UsageError(IdfxError):
    """The request cannot be understood: an unknown name, contradictory options, an unusable path."""


class SourceError(IdfxError):
    """A model could not be built from its specification, or its example input is missing or wrong."""


class ForwardError(IdfxError):
    """The model raised in its own forward; the message names the module and quotes the model's error.

    `raised` is what it raised, and where: the module and the operator. `made` is the bytes of all that was computed.
    """

    raised: str = ""
    made: int = 0


class ResourceError(IdfxError):
    """Memory or time ran out; the message names the stage. The inputs are not at fault."""


class CaptureError(IdfxError):
    """The model ran but could not be captured as a graph; exit code 3."""

    exit_code = 3


class StructureError(IdfxError):
    """The graph makes contradictory demands on a parameter, or demands something that the structure does not have."""


class PlanError(IdfxError):
    """A plan is malformed, has an unknown version, or was made for another model."""


class CertificateError(IdfxError):
    """The initialised model does not start as the plan claims; exit code 1. `report` has the details, if available."""

    exit_code = 1
    report: Report | None = None


class AuditError(IdfxError):
    """Part of an audit cannot be measured on this model; the rest can."""


class PeerError(IdfxError):
    """Another process that holds shards of the model stopped; the message has its error."""


class ExportError(IdfxError):
    """A file could not be written; no part of it exists."""


def shortened(error: BaseException, limit: int = 200) -> str:
    """Return the type and the first line of an error.

    Example:
        >>> shortened(ValueError("too wide\\nby far"))
        'ValueError: too wide'
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, from any library, means that memory ran out."""
    told = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "out of memory" in told
        or "can't allocate memory" in told
        or "not enough memory" in told
        or "std::bad_alloc" in told
        or told == "[enforce fail a"  # torch's own message, truncated because memory ran out
    )
