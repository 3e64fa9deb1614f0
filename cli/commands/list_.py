"""`idfx list`: lists registered schemes, fills, sources, operators and metrics."""

from __future__ import annotations

import json

import click

from ..options import output_options


@click.command("list")
@click.argument("what", type=click.Choice(["schemes", "fills", "sources", "operators", "audits"]))
@output_options
def command(what: str, as_json: bool, quiet: bool) -> None:
    """List schemes, fills for plans, sources of models, operators known to idfx, or metrics of audits.

    \b
    Example:
      idfx list schemes
    """
    from idfx.report.catalogue import catalogue

    rows = catalogue(what)
    if as_json:
        click.echo(json.dumps([{"name": name, "summary": summary} for name, summary in rows], indent=2))
        return
    from idfx.report import terminal

    click.echo(terminal.catalogue(rows))
