"""The documentation is true: its Python runs and prints what it says, and its commands and links exist.

The ```python blocks of a file share one namespace and one fresh folder, in a process of their own; a ```text block
right behind one is what it prints. None is skipped.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from idfx_cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

RUNNER = """
import contextlib, io, json, sys
namespace = {"__name__": "__main__"}
for line, source in json.load(sys.stdin):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\\n" * line + source, sys.argv[1], "exec"), namespace)
    print(json.dumps(printed.getvalue()))
"""


def blocks(path: Path) -> list[tuple[str, str, int]]:
    """Return language, text and line of each block."""
    text = path.read_text()
    found = [(m[1], m[2], text.count("\n", 0, m.start(2))) for m in BLOCK.finditer(text)]
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(found), f"{path.name}: a block is not closed"
    return found


WITH_PYTHON = [path for path in FILES if any(language == "python" for language, _, _ in blocks(path))]


@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.name)
def test_python_runs_and_prints_what_stands_below_it(path: Path, tmp_path: Path) -> None:
    found = blocks(path)
    sources = [(line, text) for language, text, line in found if language == "python"]
    command = [sys.executable, "-c", RUNNER, str(path)]
    run = subprocess.run(command, input=json.dumps(sources), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    printed = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(printed) == len(sources)
    following = dict(zip(found, [*found[1:], None], strict=True))
    for output, block in zip(printed, (b for b in found if b[0] == "python"), strict=True):
        after = following[block]
        expected = after[1] if after is not None and after[0] == "text" else ""
        assert output == expected, f"{path.name}, line {block[2]}"


def commands(path: Path) -> list[list[str]]:
    """Return the idfx commands in the shell blocks of a file."""
    lines = (line for language, text, _ in blocks(path) if language == "sh" for line in text.splitlines())
    words = (shlex.split(part) for line in lines for part in line.split("&&"))
    return [found for found in words if found[0] == "idfx"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_exist_with_their_options(path: Path) -> None:
    for command in commands(path):
        depth = 3 if command[1] == "bench" else 2
        run = CliRunner().invoke(cli, [*command[1:depth], "--help"])
        assert run.exit_code == 0, command
        offered = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", run.output))
        for word in command[depth:]:
            assert not word.startswith("-") or word.split("=")[0] in offered, (command, word)


def test_readme_opens_with_the_two_commands_and_every_command_is_listed() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    first = blocks(ROOT / "README.md")[0][1].splitlines()
    assert first == [
        "pip install -e . && idfx init timm:resnet50 -o weights.pt",
        'pip install -e ".[test]" && pytest',
    ]
    for name in cli.commands or cli.list_commands(None):  # type: ignore[arg-type]
        assert f"| `idfx {name}" in text, name
    names = [[name] for name in cli.list_commands(None)] + [["bench", name] for name in ("speed", "train", "zoo")]  # type: ignore[arg-type]
    helps = "".join(CliRunner().invoke(cli, [*words, "--help"]).output for words in names)
    for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)):
        assert option in helps or option == "--help", option


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def test_the_map_of_the_files_is_complete() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition("Tests mirror")[0]
    package = ROOT / "idfx"
    folders = [path for path in package.iterdir() if (path / "__init__.py").exists()]
    assert [path.name for path in folders if f"`{path.name}/`" not in text] == []
    staged = (
        "core",
        "capture",
        "analysis",
        "building",
        "planning",
        "certification",
    )  # the others hold one file an item
    own = [path for name in staged for path in (package / name).glob("[!_]*.py")] + [*package.glob("*.py")]
    assert [path.name for path in own if f"`{path.name}`" not in text] == []
    known = {path.name for path in package.rglob("*.py")}
    named = re.findall(r"`(?:[a-z]+/)*(\w+\.py)`", text)
    assert [name for name in named if name not in known] == []
