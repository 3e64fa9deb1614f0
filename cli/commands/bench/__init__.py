"""`idfx bench`: measurements of how schemes train and how fast idfx is."""

from __future__ import annotations

import click

from ...discovery import Commands


@click.command("bench", cls=Commands, package=__name__)
def command() -> None:
    """Measure how models train from each scheme, and how fast idfx is.

    \b
    Example:
      idfx bench train --suite digits -o results
      idfx bench speed
    """
