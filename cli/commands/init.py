"""`idfx init`: initialises a model, certifies it, and writes its state dict."""

from __future__ import annotations

from typing import Any

import click

from ..limits import Clock, limited
from ..options import (
    PlanEdits,
    given_overrides,
    given_scheme,
    model_options,
    output_options,
    override_options,
    scheme_options,
)
from ..session import Progress, build_and_read, build_only


@click.command("init")
@model_options
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to write: .pt, .pth or .safetensors.")
@scheme_options
@override_options
@click.option("--plan", "plan_file", default=None, metavar="FILE", help="Apply this plan instead of a scheme.")
@click.option("--no-certify", is_flag=True, help="Do not run the initialised model.")
@click.option("--keep-going", is_flag=True, help="Write the file even if the certificate fails.")
@click.option("-v", "--verbose", is_flag=True, help="Name all options of the scheme, defaults too.")
@output_options
@click.pass_context
def command(
    ctx: click.Context, /, output: str, scheme: str, plan_file: str | None, no_certify: bool, keep_going: bool,
    verbose: bool, as_json: bool, quiet: bool, **options: Any,
) -> int:  # fmt: skip
    """Initialise a model, check that its blocks start as identities, and write its state dict.

    SPEC is timm:NAME, torchvision:NAME, transformers:TYPE, path/to/file.py:factory or package.module:factory.

    \b
    Example:
      idfx init timm:resnet50 -o weights.pt
    """
    from idfx.core.errors import UsageError
    from idfx.planning.export import check_path

    scheme, scheme_given = given_scheme(scheme, options)
    words = given_overrides(options)
    if plan_file is not None:
        named = [name for name in ("scheme", "seed") if ctx.get_parameter_source(name).name == "COMMANDLINE"]  # type: ignore[union-attr]
        if contradicting := [*named, *scheme_given, *(["role"] if options["roles"] else [])]:
            raise UsageError(
                f"--plan: given together with --{contradicting[0].replace('_', '-')}; expected one of the two. "
                "The plan holds the scheme, its options, the seed and the roles: edit it, or leave it out."
            )
    if no_certify and keep_going:
        raise UsageError("--keep-going: given together with --no-certify; expected one of the two. Leave one out.")
    if no_certify and words.growing:
        given = "widen" if words.growing.widen else "new-rows"
        raise UsageError(
            f"--{given}: given together with --no-certify, but only the certificate shows that the function is "
            "preserved; expected one of the two. Leave one out."
        )
    check_path(output)
    with Progress(quiet).shown() as progress, limited(progress, options) as clock:
        report, saved = _initialise(
            progress, clock, output, scheme, scheme_given, plan_file, words, no_certify, keep_going, options
        )
    for note in report.plan.notes:
        progress.remark(note)
    from idfx.report import json as json_report
    from idfx.report import terminal

    if as_json:
        click.echo(json_report.init(report, options["spec"], saved))
    else:
        click.echo(terminal.init(report, options["spec"], saved, verbose))
    failed = report.certificate is not None and not report.certificate.passed
    if failed:
        from idfx.api import failure_text

        assert report.certificate is not None
        click.echo(f"idfx: {failure_text(report.certificate, options['spec'])}", err=True)
    return 1 if failed else 0


def _initialise(
    progress: Progress, clock: Clock, output: str, scheme: str, scheme_given: dict[str, Any], plan_file: str | None,
    words: PlanEdits, no_certify: bool, keep_going: bool, options: dict[str, Any],
) -> tuple[Any, Any]:  # fmt: skip
    progress.step("load libraries")
    from idfx.analysis.role_overrides import override_roles
    from idfx.api import author_start, failure_text, prove, read_plan
    from idfx.audits.garbage import refuse_unwritten
    from idfx.core.errors import CertificateError
    from idfx.core.records import Report
    from idfx.planning.apply import apply_built_
    from idfx.planning.export import save
    from idfx.planning.make import make_plan
    from idfx.planning.scalars import without_scripted

    plan = read_plan(plan_file) if plan_file is not None else None
    if plan is not None:
        options["seed"] = plan.seed
    built, structure = build_and_read(progress, **options)
    if plan is not None:
        structure = override_roles(structure, plan.roles)
    else:
        plan = without_scripted(make_plan(structure, scheme, options["seed"], **scheme_given), built.model)
    plan, checkpoint = words.on(plan, structure, built.model, again=plan_file is not None)
    refuse_unwritten(
        built.model, structure, plan, built.unwritten, checkpoint.tensors if checkpoint is not None else ()
    )
    progress.step(f"fill {len(plan.decisions)} parameters")
    apply_built_(built, plan, checkpoint)
    certificate = None
    if not no_certify:
        progress.step(f"certify {len(structure.joins)} joins")
        certificate = prove(
            built.model, structure, plan, checkpoint, lambda: author_start(build_only(**options).drawn(), structure)
        )
        if not certificate.passed and not keep_going:
            raise CertificateError(
                f"{failure_text(certificate, options['spec'])} Nothing was written; --keep-going writes the file."
            )
    clock.stop()
    progress.step(f"write {output}")
    saved = save(built.model, output, plan=plan)
    return Report(structure, plan, certificate), saved
