"""`idfx analyze`: the structure of a model, from its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..limits import limited
from ..options import model_options, output_options
from ..session import Progress, build_and_read


@click.command("analyze")
@model_options
@click.option("--dot", default=None, metavar="FILE", help="Also write a Graphviz drawing of weights and joins.")
@click.option(
    "--graph",
    default=None,
    metavar="FILE",
    help="Also write the data flow with the results of the analysis: .graphml, .json or .dot.",
)
@output_options
def command(dot: str | None, graph: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Show stems, residual branches, non-square layers and unknown operators.

    \b
    Example:
      idfx analyze timm:resnet50
    """
    from idfx.core.files import check_writable, write_text

    if graph is not None:
        from idfx.report.graph import writer

        write_graph = writer(Path(graph))
    for path in (dot, graph):
        if path is not None:
            check_writable(Path(path))
    with Progress(quiet).shown() as progress, limited(progress, options):
        _, structure = build_and_read(progress, **options)
    from idfx.report import json as json_report
    from idfx.report import terminal

    if dot is not None:
        from idfx.report import dot as dot_report

        write_text(dot, dot_report.structure(structure))
    if graph is not None:
        write_text(graph, write_graph(structure.graph))
    click.echo(json_report.structure(structure) if as_json else terminal.structure(structure, options["spec"]))
