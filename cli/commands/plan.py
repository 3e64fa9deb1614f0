"""`idfx plan`: shows what would be written, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..limits import limited
from ..options import (
    given_overrides,
    given_scheme,
    model_options,
    output_options,
    override_options,
    scheme_options,
)
from ..session import Progress, build_and_read


def _show_schema(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        from idfx.planning.form import schema

        click.echo(json.dumps(schema(), indent=2))
        ctx.exit()


@click.command("plan")
@model_options
@scheme_options
@override_options
@click.option("-o", "--output", default=None, metavar="FILE", help="Write the plan as editable JSON.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_schema,
    help="Print the JSON Schema of plans and exit.",
)
@click.option("-v", "--verbose", is_flag=True, help="Name all options of the scheme, defaults too.")
@output_options
def command(scheme: str, output: str | None, verbose: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show what would be written into each parameter, and why; no weight is touched.

    \b
    Example:
      idfx plan timm:resnet50 -o plan.json
    """
    from idfx.core.files import check_writable, write_text
    from idfx.planning.file import to_json
    from idfx.planning.make import make_plan

    scheme, given = given_scheme(scheme, options)
    if output is not None:
        check_writable(Path(output))
    words = given_overrides(options)
    with Progress(quiet).shown() as progress, limited(progress, options):
        built, structure = build_and_read(progress, **options)
    plan, _ = words.on(make_plan(structure, scheme, options["seed"], **given), structure, built.model)
    for note in plan.notes:
        progress.remark(note)
    if output is not None:
        write_text(output, to_json(plan))
    if as_json:
        click.echo(to_json(plan), nl=False)
        return
    from idfx.report import terminal

    click.echo(terminal.plan(plan, options["spec"], verbose))
