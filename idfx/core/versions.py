"""The versions that a result depends on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from idfx.core.version import __version__


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of idfx, of Python, and of the packages that are installed; imports none of them.

    Example:
        >>> [*versions(["no-such-package"])]
        ['idfx', 'python']
    """
    found = {"idfx": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
