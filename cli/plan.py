"""`idfx plan`: what would be written and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .limits import limited
from .options import given_scheme, model_options, output_options, scheme_options
from .session import Progress, build_and_read


@click.command("plan")
@model_options
@scheme_options
@click.option("-o", "--output", default=None, metavar="FILE", help="Write the plan as JSON, to be edited.")
@output_options
def command(scheme: str, output: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show what would be written into each parameter and why; no weight is touched.

    \b
    Example:
      idfx plan timm:resnet50 -o plan.json
    """
    from idfx.files import check_writable, write_text
    from idfx.planning import make_plan, to_json

    scheme, given = given_scheme(scheme, options)
    if output is not None:
        check_writable(Path(output))
    with Progress(quiet).shown() as progress, limited(progress, options):
        _, structure = build_and_read(progress, **options)
    plan = make_plan(structure, scheme, options["seed"], **given)
    for note in plan.notes:
        progress.remark(note)
    if output is not None:
        write_text(output, to_json(plan))
    if as_json:
        click.echo(to_json(plan), nl=False)
        return
    from idfx.report import terminal

    click.echo(terminal.plan(plan, options["spec"]))
