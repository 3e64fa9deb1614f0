"""The versions that idfx supports, each in an environment of its own: `nox` before a release, see docs/releasing.md."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nox
import nox.project

nox.options.error_on_missing_interpreters = False  # such a session is skipped, and nox says why

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
TOOLS = {"test", "release", "docs"}  # extras of what tests and documents idfx, and not of what it uses
FAST = (
    "tests/test_capture.py",
    "tests/test_graph_module.py",
    "tests/test_structure.py",
    "tests/test_hard_cases.py",
    "tests/test_fills.py",
    "tests/test_schemes.py",
)
PLAIN = "not browser and not slow and not cuda"


def oldest_releases() -> Iterator[str]:
    """Yield each package that idfx uses, pinned to the lower bound in pyproject.toml."""
    extras = PROJECT["project"]["optional-dependencies"]
    used = [*PROJECT["project"]["dependencies"], *(one for name in extras.keys() - TOOLS for one in extras[name])]
    for requirement in sorted(used):
        bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if bound is None:
            raise ValueError(
                f"pyproject.toml: {requirement}; expected NAME>=VERSION, the oldest release that is tested."
            )
        yield "{}=={}".format(*bound.groups())


def check(session: nox.Session, *pins: str) -> None:
    """Run the main command and the tests: the fast part if `fast` is given, everything without a browser otherwise."""
    session.install("-e", ".[test]", *pins)
    session.run("pip", "freeze", "--exclude-editable")
    session.run(".ci/main-command", external=True)
    session.run("pytest", "-m", PLAIN, *(FAST if "fast" in session.posargs else ()))


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The oldest Python and the oldest release of everything that idfx uses."""
    constraints = Path(session.create_tmp()) / "oldest.txt"
    constraints.write_text("\n".join(oldest_releases()))
    check(session, "-c", str(constraints))


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest release of everything, with every Python."""
    check(session)


@nox.session
def wheel(session: nox.Session) -> None:
    """The main command from a wheel, where the source is out of sight, and what an index of packages checks."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(".", f"{folder}/source", ignore=shutil.ignore_patterns(".git", ".nox", "build", "*.egg-info"))
        session.install("build", "twine")
        session.run("python", "-m", "build", "--outdir", folder, f"{folder}/source", silent=True)
        session.run("twine", "check", "--strict", *map(str, Path(folder).glob("idfx-*")))
        (built,) = Path(folder).glob("*.whl")
        session.install(str(built))
        session.run(".ci/main-command", external=True)


@nox.session(python=PYTHONS[0])
def site(session: nox.Session) -> None:
    """The documentation site, in build/site; a dead link is an error."""
    session.install("-e", ".[docs,lightning,transformers]")
    session.run("mkdocs", "build", "--strict")
