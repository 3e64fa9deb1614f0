"""`idfx doctor`: what a report of a problem needs: versions, devices, memory, and extensions."""

from __future__ import annotations

import json

import click

from ..options import output_options


@click.command("doctor")
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """Show the versions, devices and extensions that idfx runs with, and what is missing.

    \b
    Example:
      idfx doctor --json
    """
    from idfx.report import terminal
    from idfx.report.environment import environment

    found = environment()
    click.echo(json.dumps(found, indent=2) if as_json else terminal.environment(found))
