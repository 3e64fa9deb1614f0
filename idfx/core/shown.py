"""Records that show themselves: as HTML in a notebook, and as tables of pandas."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas


class Shown:
    """A record with views; these are found by name when one is asked for, so that a record depends on none of them."""

    def _repr_html_(self) -> str:
        """Return the record as HTML: one line that sums it up, and its tables."""
        html: str = _views().html(self)
        return html

    def to_pandas(self, table: str | None = None) -> pandas.DataFrame:
        """Return one of the record's tables.

        Args:
            table: its name; the first one by default. `Structure` has "weights", "joins" and "sums", `Plan`
                "parameters", `Certificate` "joins", `Report` "parameters" and "joins", `Audit` "findings", "measures"
                and "parameters".

        Raises:
            UsageError: an unknown table, or pandas is not installed.
        """
        found: pandas.DataFrame = _views().frame(self, table)
        return found


def _views() -> Any:
    return importlib.import_module("idfx.report.notebook")
