"""The description of a machine that accompanies measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from idfx.core.versions import versions as installed

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


def machine(device: str) -> dict[str, Any]:
    """Return the processor, its cores, the memory in GiB, the system, and the GPU if it is the device."""
    info, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    names = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in names if "model name" in line), platform.processor())
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()}
    if memory.exists():
        found["memory"] = round(int(memory.read_text().split()[1]) / 2**20, 1)
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def versions() -> dict[str, str]:
    """Return the versions of idfx, Python and the installed packages that affect the numbers."""
    return installed(PACKAGES)
