"""The example scripts: each initialises its model, certifies every block of it, and learns.

Each runs in a process of its own, for fewer steps than as a script, on one thread: two that wait for each other on a
busy machine take ten times as long.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "examples.md"
CERTIFICATE = re.compile(r"^(\d+) of (\d+) blocks start as their shortcut; worst (\S+)$", re.M)
NUMBERS = re.compile(r"\d+\.\d+(e[-+]\d+)?")

# The residual blocks that a person counts, and the largest entry of an end, eps.
BLOCKS = {
    "train_timm": (4 * 2, 1e-6),  # 4 layers of attention and MLP
    "train_torchvision": (4 * 2, 1e-4),  # likewise
    "train_transformers": (3 * 2, 1e-6),  # 3 layers
    "train_lightning": (6, 1e-6),  # 6 blocks
}


def shown(script: str) -> str:
    """Return the text that the page shows below the command of a script."""
    block = rf"^```sh\npython docs/examples/{script}\.py\n```\n\n```text\n(.*?)^```$"
    found = re.search(block, PAGE.read_text(), re.M | re.S)
    assert found is not None, script
    return found[1]


@pytest.mark.parametrize("script", BLOCKS)
def test_an_example_certifies_every_block_and_learns(script: str) -> None:
    code = f"import runpy; runpy.run_path('docs/examples/{script}.py')['main'](40)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    blocks, eps = BLOCKS[script]
    found = CERTIFICATE.search(done.stdout)
    assert found is not None and (int(found[1]), int(found[2])) == (blocks, blocks)
    assert float(found[3]) <= 10 * eps
    losses = [float(value) for value in re.findall(r"^(?:before|after): +loss (\d+\.\d+), accuracy", done.stdout, re.M)]
    assert len(losses) == 2 and losses[1] < 0.95 * losses[0]
    assert NUMBERS.sub("#", done.stdout) == NUMBERS.sub("#", shown(script))


def test_the_page_has_every_script() -> None:
    scripts = {path.stem for path in (ROOT / "docs" / "examples").glob("train_*.py")}
    assert scripts == set(BLOCKS) == set(re.findall(r"^python docs/examples/(\w+)\.py$", PAGE.read_text(), re.M))
    assert all(f"[{script}.py](examples/{script}.py)" in PAGE.read_text() for script in scripts)
