"""What idfx runs with, for a report of a problem."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from idfx.core.versions import versions

NEEDED = ("torch", "torchvision", "timm", "networkx", "pydantic", "numpy", "click", "safetensors", "rich")
EXTRAS = {
    "report": ("plotly",),
    "notebook": ("pandas",),
    "transformers": ("transformers",),
    "bench": ("scikit-learn", "matplotlib", "scipy"),
    "lightning": ("lightning",),
}
GROUPS = ("idfx.schemes", "idfx.audits")  # entry points that extend idfx


def environment() -> dict[str, Any]:
    """Return versions, extras, devices, threads, what this torch lacks, and extensions, as JSON.

    Example:
        >>> environment()["devices"][0]
        'cpu'
    """
    import torch

    from idfx.core.torch_private import missing

    extra = [package for packages in EXTRAS.values() for package in packages]
    found = versions((*NEEDED, *extra))
    extensions = [
        f"{point.group}: {point.name} = {point.value}"
        for group in GROUPS
        for point in importlib.metadata.entry_points(group=group)
    ]
    return {
        "versions": found,
        "extras": {name: all(package in found for package in packages) for name, packages in EXTRAS.items()},
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "devices": ["cpu", *map(torch.cuda.get_device_name, range(torch.cuda.device_count()))],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "tracer": f"export: {missing}" if missing else "record",
        "extensions": extensions,
    }
