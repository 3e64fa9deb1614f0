"""The documentation site: it builds without a dead link, and its pages need no network."""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By

import idfx

ROOT = Path(__file__).parent.parent


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without the Python objects that it may name."""


def pages() -> list[str]:
    """The pages in the navigation, as HTML files."""

    def walk(item: object) -> list[str]:
        if isinstance(item, str):
            return [item]
        values = item.values() if isinstance(item, dict) else item
        return [page for value in values for page in walk(value)]

    found = walk(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    return [str(Path(page).with_suffix(".html")) for page in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # a link that leads nowhere is a warning, and strict makes it an error
    return folder


def test_every_document_has_a_page(site: Path) -> None:
    listed = {*pages()}
    assert {
        str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in (ROOT / "docs").glob("*.md")
    } == listed
    assert [page for page in listed if not (site / page).is_file()] == []


def test_the_api_page_has_every_public_function_with_its_example(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    names = [
        name for name in idfx.__all__ if callable(getattr(idfx, name)) and not isinstance(getattr(idfx, name), type)
    ]
    assert [name for name in names if not re.search(rf'id="idfx\.[a-z_.]*\.{name}"', text)] == []
    assert "Examples:" in text and "&gt;&gt;&gt; " in text and "Example:</p>" not in text


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address at which this machine serves the site; browsers let no search run in a page from a file."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and reports none of it."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.browser
def test_pages_open_without_a_network_or_a_complaint(served: str, chromium: webdriver.Chrome) -> None:
    chromium.get_log("browser")
    for page in ("index.html", "tutorial.html", "api.html", "gallery.html", "evidence.html"):
        chromium.get(served + page)
        assert chromium.find_element(By.TAG_NAME, "h1").text
        asked = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [address for address in asked if not address.startswith((served, "data:", "blob:"))] == []
        broken = "return [...document.images].filter(image => image.complete && !image.naturalWidth).map(i => i.src)"
        assert chromium.execute_script(broken) == []
    assert [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.browser
def test_the_search_finds_a_page(served: str, chromium: webdriver.Chrome) -> None:
    chromium.get(served + "index.html?q=certificate")
    chromium.implicitly_wait(10)
    assert chromium.find_element(By.CSS_SELECTOR, ".md-search-result__item")
