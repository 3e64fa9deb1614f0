"""`idfx audit`: what is wrong with the weights and the structure of a model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .limits import limited
from .options import model_options, output_options
from .session import Progress, build_and_read, build_only

if TYPE_CHECKING:
    from torch import nn

    from idfx.checkpoints import Checkpoint
    from idfx.findings import Audit
    from idfx.records import Structure


@click.command("audit")
@model_options
@click.option("--weights", default=None, metavar="FILE", help="Audit these weights: a state dict, never unpickled.")
@click.option("--only", default="", metavar="METRIC,...", help="Apply these metrics alone (see `idfx list audits`).")
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "error"]),
    default="error",
    show_default=True,
    help="The least severity of a finding that makes the exit code 1.",
)
@click.option("--html", default=None, metavar="FILE", help="Also write a page with drawing, plots and tables.")
@output_options
def command(
    weights: str | None, only: str, fail_on: str, html: str | None, as_json: bool, quiet: bool, **options: Any
) -> int:
    """Look for what is wrong with the weights and the structure of a model; no data is run through it.

    \b
    Example:
      idfx audit timm:resnet50
      idfx audit timm:resnet50 --weights weights.pt --fail-on warning
    """
    from idfx.auditing import check, examine
    from idfx.checkpoints import read_checkpoint
    from idfx.files import check_writable
    from idfx.unwritten import filled, unwritten

    metrics = [name.strip() for name in only.split(",") if name.strip()]
    check(metrics)
    if html is not None:
        check_writable(Path(html))
    checkpoint = read_checkpoint(weights) if weights is not None else None
    with Progress(quiet).shown() as progress, limited(progress, options):
        built, structure = build_and_read(progress, filled(), **options)
        progress.step("draw weights")
        built.pending.settle(built.model)
        found = unwritten(built.model, lambda: _drawn(options))
        if checkpoint is not None:
            loaded = _load(progress, built.model, structure, checkpoint)
            found = {name: count for name, count in found.items() if name not in loaded}
        progress.step("measure")
        audit = examine(built.model, structure, metrics, found)
    from idfx.report import audit as terminal
    from idfx.report import json as json_report

    if html is not None:
        _write_page(html, [(options["spec"], audit)], quiet)
    click.echo(json_report.audit(audit) if as_json else terminal.audit(audit, options["spec"]))
    return int(bool(audit.at_least(fail_on)))


def _write_page(path: str, cases: list[tuple[str, Audit]], quiet: bool) -> None:
    """Write the cases as a page, and say on stderr where it lies."""
    from idfx.files import write_text
    from idfx.report.html import page

    text = page(cases, shlex.join(["idfx", *sys.argv[1:]]) if sys.argv[1:2] == ["audit"] else "")
    write_text(path, text)
    if not quiet:
        click.echo(f"{path}: the page of the audit, {len(text.encode()) / 1e6:.1f} MB", err=True)


def _drawn(options: dict[str, Any]) -> nn.Module:
    """The model built another time, its values drawn."""
    again = build_only(**options)
    again.pending.settle(again.model)
    return again.model


def _load(progress: Progress, model: nn.Module, structure: Structure, checkpoint: Checkpoint) -> set[str]:
    """Load what fits into the model; return the names of the parameters and buffers that it has values for."""
    from idfx.checkpoints import load_, matched, state_of
    from idfx.running import unwrap

    checkpoint, loaded, notes = matched(structure, checkpoint, state_of(model))
    load_(model, checkpoint, loaded)
    for note in notes:
        progress.remark(note)
    if missing := [name for name in structure.parameters if name not in loaded]:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        progress.remark(f"{checkpoint.name} has no values for {len(missing)} parameters, audited as built: {shown}")
    buffers = unwrap(model).named_buffers()
    return {*loaded, *(name for name, own in buffers if checkpoint.lookup((name,), own) is not None)}
