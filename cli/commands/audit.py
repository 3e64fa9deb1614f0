"""`idfx audit`: measures the initialisation of a model and reports defects."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cases import Question, cases_of
from ..limits import parse_seconds
from ..options import output_options, several_models_options
from ..session import Progress

if TYPE_CHECKING:
    from idfx.core.findings import Audit, Severity


@click.command("audit")
@several_models_options
@click.option("--weights", default=None, metavar="FILE", help="Audit these weights: a state dict, never unpickled.")
@click.option("--scheme", "schemes", multiple=True, metavar="NAME[(KEY=VALUE,...)]",
              help="Initialise with this scheme first; repeat to compare several.")  # fmt: skip
@click.option("--against", default=None, metavar="SCHEME", help="Compare the model with itself under this scheme.")
@click.option("--batch", default="normal", show_default=True, metavar="normal|none|IMAGE|FOLDER",
              help="The batch to run, unless set by --input or --input-shape; none: weights only.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=None, metavar="N", help="Size of the batch [4 to 64].")
@click.option("--budget", type=parse_seconds, default=60.0, show_default=True, metavar="SECONDS",
              help="Time limit for running the batch.")  # fmt: skip
@click.option("--only", default="", metavar="METRIC,...", help="Apply only these metrics (see `idfx list audits`).")
@click.option("--with", "also", default="", metavar="METRIC,...", help="Also apply these optional metrics.")
@click.option("--html", default=None, metavar="FILE", help="Also write an HTML page with a drawing, plots and tables.")
@click.option("--github", is_flag=True, help="Print findings as GitHub Actions annotations.")
@click.option("--schema", is_flag=True, is_eager=True, expose_value=False, callback=lambda *given: _schema(*given),
              help="Print the JSON Schema of --json and exit.")  # fmt: skip
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "error"]),
    default="error",
    show_default=True,
    help="Lowest severity of a finding that sets exit code 1.",
)
@output_options
def command(
    specs: tuple[str, ...],
    schemes: tuple[str, ...],
    against: str | None,
    only: str,
    also: str,
    html: str | None,
    github: bool,
    fail_on: Severity,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Audit the initialisation of a model: its weights, its structure, and the values of a batch.

    Give several models, or one with several schemes, to compare them.

    \b
    Example:
      idfx audit timm:resnet50 --html report.html
      idfx audit timm:resnet50 --against idinit
      idfx audit path/to/file.py:factory --batch none --fail-on warning
    """
    from idfx.audits.run import asked

    if github and as_json:
        raise click.UsageError("--github and --json: both are given; expected one of them. Leave one out.")
    if options["batch_size"] is not None and (said := _says_size(options)):
        raise click.UsageError(f"--batch-size and {said}: both are given; expected one of them. Leave one out.")
    question = Question(_names(only, "--only"), _names(also, "--with"), options.pop("batch"), options.pop("batch_size"),
                        options.pop("budget"), options.pop("weights"))  # fmt: skip
    asked(question.only, question.also)
    cases = cases_of(specs, schemes, against, question)
    if html is not None:
        _check_page(html, question)
    with Progress(quiet).shown() as progress:
        audits = [(case.label, case.audit(progress, question, options)) for case in cases]
    if html is not None:
        _write_page(html, audits, quiet)
    click.echo(_text(audits, as_json, github))
    judged = [audit for case, (_, audit) in zip(cases, audits, strict=True) if case.judged]
    return int(any(audit.at_least(fail_on) for audit in judged))


def _says_size(options: Mapping[str, Any]) -> str:
    """Return the option that conflicts with --batch-size, or ""."""
    if options["batch"] == "none":
        return "--batch none"
    given = [name for name in ("input_shapes", "inputs") if options[name]] if options["batch"] == "normal" else []
    return {"input_shapes": "--input-shape", "inputs": "--input"}[given[0]] if given else ""


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if text and not names:
        raise click.UsageError(f"{option} {text!r}: no name in it; expected metrics. See `idfx list audits`.")
    return names


def _text(audits: list[tuple[str, Audit]], as_json: bool, github: bool) -> str:
    from idfx.report import annotations
    from idfx.report import audit as terminal
    from idfx.report import json as json_report

    if as_json:
        return json_report.audit(audits[0][1]) if len(audits) == 1 else json_report.audits(audits)
    return annotations.audits(audits) if github else terminal.audits(audits)


def _check_page(path: str, question: Question) -> None:
    """Raise, before the audit, if its page could not be written."""
    from idfx.core.files import check_writable
    from idfx.report.html import check_plotly

    check_writable(Path(path))
    if question.batch != "none":
        check_plotly()


def _write_page(path: str, audits: list[tuple[str, Audit]], quiet: bool) -> None:
    """Write the audits as an HTML page, and report its path on stderr."""
    from idfx.core.files import write_text
    from idfx.report.html import page

    text = page(audits, shlex.join(["idfx", *sys.argv[1:]]) if sys.argv[1:2] == ["audit"] else "")
    write_text(path, text)
    if not quiet:
        click.echo(f"{path}: the page of the audit, {len(text.encode()) / 1e6:.1f} MB", err=True)


def _schema(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        from idfx.report.schema import audit_schema

        click.echo(json.dumps(audit_schema(), indent=2))
        context.exit()
