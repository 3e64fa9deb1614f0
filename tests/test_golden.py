"""The plan of a few telling models, one sorted line per parameter, against tests/golden.

The files in tests/golden/published are those of the paper's matrices, `published=true`.

Rewrite them with `pytest tests/test_golden.py --rewrite-golden -n 0`, and read the difference before it is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import idfx

GOLDEN = Path(__file__).parent / "golden"

MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 32, "num_classes": 10},
    "convnext_atto": {"depths": (1, 1, 2, 1), "num_classes": 10},
    "swinv2_tiny_window8_256": {
        "img_size": 64,
        "window_size": 4,
        "depths": (1, 1, 2, 1),
        "embed_dim": 24,
        "num_heads": (1, 2, 3, 4),
        "num_classes": 10,
    },
}


def lines(structure: idfx.Structure, plan: idfx.Plan) -> list[str]:
    """Name, shape, role, and the fill with its arguments or "kept"."""
    found = []
    for name, info in structure.parameters.items():
        decision = plan.decisions.get(name)
        shape = "×".join(map(str, info.shape)) or "scalar"
        what = "kept"
        if decision is not None:
            what = f"{decision.fill} {json.dumps(decision.arguments, sort_keys=True)}"
        found.append(f"{name}  {shape}  {structure.roles[name].name}  {what}")
    return sorted(found)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_plan_is_the_golden_one(name: str, published: bool, rewrite_golden: bool) -> None:
    model = timm.create_model(name, **MODELS[name])
    size = MODELS[name].get("img_size", 64)
    structure = idfx.analyze(model, (torch.zeros(1, 3, size, size),))
    found = lines(structure, idfx.plan(structure, published=published))
    path = GOLDEN / ("published" if published else "") / f"{name}.txt"
    if rewrite_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(found) + "\n", encoding="utf-8")
        pytest.skip(f"{path.name} rewritten")
    expected = path.read_text(encoding="utf-8").splitlines()
    assert found == expected
    assert len(found) == len(list(model.parameters()))


def test_every_golden_file_has_its_model() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(MODELS)
