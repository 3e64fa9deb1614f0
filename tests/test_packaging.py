"""What is installed: every file of the tree, dependencies with a lower bound each, an import that loads no torch."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from idfx_cli.main import cli

import idfx

ROOT = Path(__file__).parent.parent
EXTRAS = ("bench", "transformers", "lightning")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def files(folder: Path) -> dict[str, bytes]:
    """The files in a folder and below it, without what Python caches, by their path."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_wheel_holds_every_file_of_both_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("idfx", "cli"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "idfx = idfx_cli.main:main" in archive.read(entry_points).decode()
    packages = {"idfx": ROOT / "idfx", "idfx_cli": ROOT / "cli"}
    assert held == {f"{name}/{path}": text for name, folder in packages.items() for path, text in files(folder).items()}


def test_every_dependency_has_a_lower_bound_and_nothing_else() -> None:
    extras = PROJECT["optional-dependencies"]
    used = [*PROJECT["dependencies"], *(one for name in ("report", "notebook", *EXTRAS) for one in extras[name])]
    assert [name for name in used if not re.fullmatch(r"[\w.-]+>=\d+(\.\d+)+", name)] == []


def test_importing_idfx_warns_of_nothing_and_loads_no_torch() -> None:
    code = "import sys, idfx; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_citation_the_action_and_the_hook_name_what_there_is() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == idfx.__version__
    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    (line,) = (step["run"] for step in action["runs"]["steps"] if "idfx audit" in step["run"])
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    offered = CliRunner().invoke(cli, ["audit", "--help"]).output
    assert hook["entry"] == "idfx audit" and not hook["pass_filenames"]
    assert [word for word in line.split() if word.startswith("--") and word not in offered] == []
    used = {step["env"][name] for step in action["runs"]["steps"] for name in step.get("env", {})}
    assert used == {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]}


def test_a_page_without_plotly_says_so_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "plotly" else find(name, *more)
    )
    command = ["audit", "torch.nn:Linear", "--model-arg", "in_features=4", "--model-arg", "out_features=4"]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, [*command, "--input-shape", "2,4", "--html", str(page)])
    assert "pip install 'idfx[report]'" in str(done.exception) and not page.exists()
    done = CliRunner().invoke(cli, [*command, "--input-shape", "2,4", "--batch", "none", "--html", str(page)])
    assert done.exception is None and page.exists()
