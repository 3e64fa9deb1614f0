"""`idfx explain`: everything about one parameter."""

from __future__ import annotations

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


@click.command("explain")
@model_options
@click.argument("parameter")
@scheme_options
@override_options
@output_options
def command(parameter: str, scheme: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show the role of a parameter, its sites, the decision with its reason, and the first rows of its matrix.

    \b
    Example:
      idfx explain timm:resnet50 layer1.0.conv3.weight
    """
    from idfx.planning.make import make_plan

    scheme, given = given_scheme(scheme, options)
    words = given_overrides(options)
    with Progress(quiet).shown() as progress, limited(progress, options):
        built, structure = build_and_read(progress, **options)
    plan, _ = words.on(make_plan(structure, scheme, options["seed"], **given), structure, built.model)
    from idfx.planning.explain import explain
    from idfx.report import json as json_report
    from idfx.report import terminal

    found = explain(structure, plan, parameter)
    click.echo(json_report.explanation(found) if as_json else terminal.explanation(found))
