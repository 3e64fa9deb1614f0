"""An extension of griffe, which makes the API pages: the section `Example:` of our docstrings is its `Examples:`."""

from __future__ import annotations

from typing import Any

import griffe


class Sections(griffe.Extension):
    """Renames the section before the docstring is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename it in the docstring of an object that was just read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
