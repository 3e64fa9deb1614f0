"""How many defects the audit finds that nobody planted by hand: every kind of damage to tensors drawn at random.

python docs/measurements/defects.py --share 0.2
python docs/measurements/defects.py --planted

Each tensor of the healthy models of tests/defects is damaged in turn in each way that makes sense for it, or a share of
these pairs. Found: an error, or a warning, names the tensor. False: an error that names neither it nor what it starves.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DEFECTS = Path(__file__).resolve().parents[2] / "tests" / "defects"


def one(value: float) -> Callable[[Tensor], Tensor]:
    """One entry."""
    return lambda old: old.flatten().index_fill(0, torch.tensor(old.numel() // 2), value).view_as(old)


def thin(old: Tensor) -> Tensor:
    """Rank 1."""
    flat = old.flatten(1)
    new = torch.randn(flat.shape[0], 1) @ torch.randn(1, flat.shape[1])
    return (new * flat.norm() / new.norm()).view_as(old)


def is_matrix(tensor: Tensor, buffer: bool) -> bool:
    """Whether a tensor is a parameter with at least 4 rows and columns."""
    return not buffer and tensor.dim() > 1 and min(tensor.shape[0], tensor[0].numel()) >= 4


def is_vector(tensor: Tensor, buffer: bool) -> bool:
    """Whether a tensor is a parameter of one axis."""
    return not buffer and tensor.dim() == 1


Damage = tuple[Callable[[Tensor, bool], bool], Callable[[Tensor], Any]]
DAMAGES: dict[str, Damage] = {
    "one NaN": (lambda t, buffer: True, one(float("nan"))),
    "one Inf": (lambda t, buffer: True, one(float("inf"))),
    "a matrix times 100": (is_matrix, lambda old: old * 100),
    "a matrix times 1e-7": (is_matrix, lambda old: old * 1e-7),
    "a matrix of one constant": (is_matrix, lambda old: torch.full_like(old, 0.1)),
    "a matrix of rank 1": (is_matrix, thin),
    "a matrix of deviation 20": (is_matrix, lambda old: torch.randn_like(old) * 20),
    "a vector of -1000": (is_vector, lambda old: torch.full_like(old, -1e3)),
    "a vector of +1000": (is_vector, lambda old: torch.full_like(old, 1e3)),
    "a buffer of used memory": (lambda t, buffer: buffer, lambda old: torch.randn_like(old) * 1e20),
}


def cases(share: float) -> Iterator[tuple[str, str, str]]:
    """Yield model, tensor and damage; some of them, the same each time."""
    import defect_models
    from defect_small import SMALL

    draws = random.Random(0)
    for model in dict.fromkeys(case.model.__name__ for case in SMALL):
        module = getattr(defect_models, model)()[0]
        parameters = {name for name, _ in module.named_parameters()}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            for damage, (applies, _) in DAMAGES.items():
                floating = tensor.dtype in (torch.float32, torch.float64)
                fits = floating and tensor.numel() > 1 and applies(tensor, name not in parameters)
                if fits and draws.random() < share:
                    yield model, name, damage


def planted() -> None:
    """Print recall and precision of the defects that were planted by hand, a batch run too."""
    from defect import audited
    from defect_real import REAL
    from defect_small import SMALL

    for name, cases in (("small", SMALL), ("real", REAL)):
        found = sum(bool(case.findings(audited(case.made))) for case in cases)
        twins = {getattr(case.model, "__name__", case.name): case for case in cases}
        false = sum(bool(audited(case.healthy).at_least("error")) for case in twins.values())
        print(f"{name}: recall {found} of {len(cases)}, precision {found} of {found + false}", end="; ")
        print(f"{false} of {len(twins)} healthy models have an error", flush=True)


def main() -> None:
    """Damage, audit, and count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.2, help="of the pairs of tensor and damage")
    parser.add_argument("--missed", action="store_true", help="print each one that is not found as an error")
    parser.add_argument("--planted", action="store_true", help="count those of tests/defects instead")
    given = parser.parse_args()
    sys.path.insert(0, str(DEFECTS))
    if given.planted:
        planted()
        return
    import defect_models
    from defect import audited, into

    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in DAMAGES}
    for model, name, damage in cases(given.share):

        def make(model: str = model, name: str = name, damage: str = damage) -> Any:
            torch.manual_seed(0)
            made = getattr(defect_models, model)()
            with torch.no_grad():
                into(name, DAMAGES[damage][1])(made[0])
            return made

        audit = audited(make, batch=False)
        here = [found.severity for found in audit.at_least("warning") if found.parameter == name]
        elsewhere = [found for found in audit.at_least("error") if found.parameter != name]
        verdict = "error" if "error" in here else "warning" if here else "missed"
        counts[damage].update((verdict, "all", *(["elsewhere"] if elsewhere else [])))
        if given.missed and verdict != "error":
            print(f"{verdict}: {damage}: {model} {name}", flush=True)
    print(
        "| damage | tensors | found as an error | as a warning | missed | errors elsewhere |\n|---|---|---|---|---|---|"
    )
    for damage, count in counts.items():
        cells = (count[key] for key in ("all", "error", "warning", "missed", "elsewhere"))
        print(f"| {damage} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
