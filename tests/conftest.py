"""Options of the test run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from idfx_cli.main import main


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write the files in tests/golden anew instead of comparing with them",
    )


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--rewrite-golden"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[[str | list[str]], tuple[int, str, str]]:
    """Run the program in this process: exit code, stdout, stderr."""

    def call(line: str | list[str]) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(line.split() if isinstance(line, str) else line)
        out, err = capfd.readouterr()
        return int(exit_.value.code or 0), out, err

    return call
