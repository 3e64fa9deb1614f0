"""Writes the gallery: a page of each model, and docs/gallery.md with a row of each.

    python docs/gallery/make.py            # all; a few minutes
    python docs/gallery/make.py timm:resnet50

With models given, only their pages and rows are made anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MODELS = (
    "timm:resnet50",
    "timm:convnext_tiny",
    "timm:efficientnet_b0",
    "timm:vit_base_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:mixer_b16_224",
    "torchvision:fasterrcnn_resnet50_fpn",
    "transformers:bert",
    "transformers:gpt2",
    "transformers:t5",
)
HERE = Path(__file__).parent
PAGE = HERE.parent / "gallery.md"
HEAD = """# Gallery

Ten well-known models as their authors initialise them: each page is what `idfx audit SPEC --batch none --html FILE`
writes, with the findings, a drawing of the structure, and the table of parameters. `python docs/gallery/make.py` makes
this page and those.

| model | parameters | residual joins | can be closed | errors | warnings | page |
| --- | --- | --- | --- | --- | --- | --- |
"""


def file_of(spec: str) -> str:
    """Return the file name of a model's page."""
    return f"{spec.replace(':', '-')}.html"


def row(spec: str) -> str:
    """Make the page of a model, and return its row."""
    program = [sys.executable, "-m", "idfx"]
    told = subprocess.run([*program, "analyze", spec, "--json"], check=True, capture_output=True, text=True)
    structure = json.loads(told.stdout)
    audit = subprocess.run(
        [*program, "audit", spec, "--batch", "none", "--json", "--html", str(HERE / file_of(spec))],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    findings = [found["severity"] for found in json.loads(audit.stdout)["findings"]]
    sizes = [1] * len(structure["parameters"])
    for number, info in enumerate(structure["parameters"].values()):
        for side in info["shape"]:
            sizes[number] *= side
    closed = sum(join["zeroable"] for join in structure["joins"])
    facts = (sum(sizes), len(structure["joins"]), closed, findings.count("error"), findings.count("warning"))
    cells = (f"`{spec}`", *(f"{fact:,}" for fact in facts), f"[open](gallery/{file_of(spec)})")
    return f"| {' | '.join(cells)} |"


def rows() -> dict[str, str]:
    """Return the rows of the page as it is, by model."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def main() -> None:
    """Make the rows of the models that are given, or of all."""
    given = sys.argv[1:] or MODELS
    found = rows() | {spec: row(spec) for spec in given}
    PAGE.write_text(HEAD + "".join(f"{found[spec]}\n" for spec in MODELS if spec in found), encoding="utf-8")


if __name__ == "__main__":
    main()
