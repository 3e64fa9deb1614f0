"""The page of an audit, opened in a browser."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idfx.audits.run import audit
from idfx.core.files import write_text
from idfx.report.html import check_plotly, page


def show(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    path: str | Path | None = None,
    browser: bool = True,
    **options: Any,
) -> Path:
    """Audit a model as it is, and open the page: findings, the drawing of the structure, plots and tables.

    Args:
        model, example_inputs, example_kwargs, options: as in `audit`, with the same errors.
        path: where to write the page; a new temporary file by default.
        browser: whether to open it.

    Returns:
        The path of the page, one HTML file that needs no network.

    Example:
        >>> where = show(nn.Linear(4, 2), (torch.randn(8, 4),), browser=False)
        >>> where.suffix, where.read_text()[:15]
        ('.html', '<!doctype html>')
    """
    if options.get("batch", True):
        check_plotly()
    found = audit(model, example_inputs, example_kwargs, **options)
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="idfx-")) / f"{found.model}.html"
    write_text(path, page([(found.model, found)], ""))
    where = Path(path).resolve()
    if browser:
        webbrowser.open(where.as_uri())
    return where
