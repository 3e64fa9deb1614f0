"""How much memory is free, and whether what is about to be written fits: Linux kills a process that writes more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from idfx.core.errors import ResourceError
from idfx.core.torch_private import memory, stored

_SMALL = 2**28  # what every machine has free that has loaded the libraries
_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}


def available() -> int | None:
    """Return the bytes that this process may still write to, None where the system does not tell.

    The smaller of what the kernel calls available and what the control group of the process leaves.
    """
    found = [*_system(), *_group()]
    return min(found) if found else None


def _system() -> Iterator[int]:
    """MemAvailable of Linux, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _group() -> Iterator[int]:
    """What each limit of the control group leaves; pages of files that can be dropped do not count as used."""
    for folder in (_GROUPS, _GROUPS / "memory"):
        for limit, used in _LIMITS.items():
            try:
                words = (folder / limit).read_text(), (folder / used).read_text()
                cached = sum(
                    int(line.split()[1])
                    for line in (folder / "memory.stat").read_text().splitlines()
                    if line.startswith(("inactive_file ", "total_inactive_file "))
                )
            except OSError:
                continue
            if words[0].strip().isdigit():
                yield max(0, int(words[0]) - int(words[1]) + cached)


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the entries of tensors in main memory; those that share memory count once.

    Example:
        >>> both = torch.ones(2, 3)
        >>> size_of([both, both[0], torch.empty(5, device="meta")])
        24
    """
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.device.type == "cpu":
            held = stored(tensor)
            sizes[memory(tensor)] = max(sizes.get(memory(tensor), 0), held.numel() * held.element_size())
    return sum(sizes.values())


def check_room(subject: str, needed: int, what: str) -> None:
    """Check that so many bytes can be written.

    Args:
        subject: the beginning of the message.
        needed: the bytes.
        what: what takes them.

    Raises:
        ResourceError: more than the memory that is available.
    """
    free = available() if needed > _SMALL else None
    if free is not None and needed > free:
        raise ResourceError(
            f"{subject}: {what} {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are available; expected "
            "enough. Use a smaller --dtype (bfloat16), smaller inputs or a smaller model (fewer layers or experts by "
            "--model-arg, tiny=true of transformers)."
        )
