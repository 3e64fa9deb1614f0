"""The house: imports run downwards, and the layers of pyproject.toml name every package."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_imports_run_downwards() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_that_runs_upwards_is_found(tmp_path: Path) -> None:
    """With the floors upside down, nearly every import does."""
    floors = ", ".join(f'"{layer}"' for layer in reversed(CONTRACT["layers"]))
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_packages = ["idfx", "idfx_cli"]\n'
        f'[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\nlayers = [{floors}]\n'
    )
    done = lint(tmp_path)
    assert done.returncode == 1 and "idfx.core is not allowed to import idfx" not in done.stdout
    assert "idfx.capture is not allowed to import idfx.core" in done.stdout


def test_every_package_has_its_floor() -> None:
    named = {name for layer in CONTRACT["layers"] for name in layer.split(" | ")}
    packages = {f"idfx.{path.parent.name}" for path in (ROOT / "idfx").glob("*/__init__.py")}
    assert named == packages | {"idfx_cli", "idfx.api"}
    assert {path.name for path in (ROOT / "idfx").glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}


@pytest.mark.parametrize("line", ["import idfx", "import idfx_cli.main"])
def test_nothing_heavy_is_imported_before_it_is_needed(line: str) -> None:
    heavy = {"torch", "networkx", "timm", "torchvision", "rich", "numpy", "pydantic", "plotly"}
    program = f"{line}; import sys; print(*sorted({heavy!r} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Counts what is imported for types alone, and inside of functions, too."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "idfx").rglob("*.py")}
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                graph.add_edges_from((module, name) for name in {node.module, *named} & files.keys())
    assert graph.number_of_edges() > 300
    assert list(nx.simple_cycles(graph)) == []
