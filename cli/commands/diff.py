"""`idfx diff`: compares two plans, schemes or checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..limits import limited
from ..options import optional_model_options, output_options
from ..session import Progress, build_and_read

if TYPE_CHECKING:
    from idfx.core.records import Structure
    from idfx.planning.difference import Side


@click.command("diff")
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@optional_model_options
@click.option("--all", "every", is_flag=True, help="Also show equal parameters.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs or exists on one side only.")
@output_options
def command(
    left: str, right: str, every: bool, exit_code: bool, as_json: bool, quiet: bool, **options: Any
) -> int:  # fmt: skip
    """Compare A and B: each is a plan (.json), a checkpoint (.pt, .pth, .safetensors), or a scheme for the model SPEC.

    \b
    Example:
      idfx diff idinit 'idinit(eps=1e-4)' timm:resnet18
      idfx diff before.json after.json
      idfx diff plan.json weights.pt
    """
    from idfx.core.errors import UsageError
    from idfx.core.literals import is_file_name

    schemes = [side for side in (left, right) if not is_file_name(side)]
    if schemes and options["spec"] is None:
        raise UsageError(
            f"{schemes[0]}: not a .json, .pt, .pth or .safetensors file, so it must be a scheme; expected a model for "
            "it. Name one: idfx diff A B SPEC."
        )
    structure = None
    options["spec"] = options["spec"] or ""
    with Progress(quiet).shown() as progress, limited(progress, options):
        if schemes:
            _, structure = build_and_read(progress, **options)
        progress.step("compare")
        from idfx.planning.difference import diff

        found = diff(*(_side(text, structure, options["seed"]) for text in (left, right)))
    from idfx.report import json as json_report
    from idfx.report import terminal

    click.echo(json_report.differences(found) if as_json else terminal.differences(found, left, right, every))
    return int(exit_code and any(one.status not in ("same", "not compared") for one in found))


def _side(text: str, structure: Structure | None, seed: int) -> Side:
    """Read a plan or a checkpoint, or make the plan of a scheme."""
    from idfx.api import read_plan
    from idfx.core.literals import is_file_name, parse_call
    from idfx.planning.checkpoints import read_checkpoint
    from idfx.planning.make import make_plan

    if structure is not None and not is_file_name(text):
        name, given = parse_call(text, "scheme")
        return make_plan(structure, name, seed, **given)
    return read_plan(text) if text.endswith(".json") else read_checkpoint(text)
