"""The public functions of `import idfx`, which combine the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idfx.analysis.analyze import analyze
from idfx.analysis.structure import build_structure
from idfx.audits.garbage import refuse_garbage
from idfx.capture.tracing import capture
from idfx.capture.wrappers import is_exported, unwrap
from idfx.certification.certificate import certify, on_same_inputs, worst
from idfx.certification.expected_zero import claims
from idfx.certification.function_preservation import growth, growth_failures
from idfx.certification.start import Start, compare, observe_start, start_failures, suspicious
from idfx.core.errors import CertificateError, PlanError, UsageError
from idfx.core.records import Certificate, Plan, Report, Structure
from idfx.planning.apply import apply_, check
from idfx.planning.checkpoints import Checkpoint, read_checkpoint, resume, state_of, unplaced
from idfx.planning.export import digest
from idfx.planning.file import from_json
from idfx.planning.make import make_plan
from idfx.planning.overrides import Word, steer, steering
from idfx.planning.renaming import Rules
from idfx.planning.scalars import without_scripted
from idfx.planning.widening import Growing
from idfx.sharding.together import agree, together


def plan(
    structure: Structure,
    scheme: str = "idinit",
    seed: int = 0,
    *,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    set: Mapping[str, Word] | None = None,
    overwrite_deliberate: bool = False,
    **options: Any,
) -> Plan:
    """Return what a scheme writes into each parameter, and why; writes no tensor.

    Args:
        structure: from `analyze`; if parameters are DTensors, all processes of the mesh make the plan at the same time.
        scheme: a name from `idfx list schemes`.
        seed: of every random number; any integer.
        only: patterns of parameters or modules; nothing else is written.
        keep: patterns of parameters or modules to leave unchanged.
        set: what to write instead, by pattern: "keep", a fill such as "idiz(eps=1e-4)", or a number; applied last.
        overwrite_deliberate: also write what the model's author set on purpose (docs/plans.md).
        options: of the scheme; for idinit `tau`, `eps`, `loosen`, `eps_tau`, `conv_order` and `depthwise`.

    Raises:
        UsageError: an unknown scheme, option or fill, a value out of range, or a pattern that matches nothing.
        PlanError: a fill that does not fit a parameter.

    Example:
        >>> import torch
        >>> structure = analyze(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        >>> made = plan(structure, keep=["bias"], set={"weight": "idi(tau=2)"})
        >>> list(made.decisions), made.kept
        (['weight'], {'bias': 'set by --keep bias'})
    """
    with together(structure.capture.graph_module.parameters()):
        made = make_plan(structure, scheme, seed, overwrite_deliberate=overwrite_deliberate, **options)
        return steer(made, structure, steering(only, keep, set))


def read_plan(path: str | Path) -> Plan:
    """Return the plan in a JSON file.

    Args:
        path: a file from `idfx plan -o`, possibly edited.

    Raises:
        PlanError: the file cannot be read or is not a plan.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PlanError(f"{path}: {reason}; expected a plan. Make one with `idfx plan SPEC -o plan.json`.") from error
    return from_json(text, str(path))


def init_(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    scheme: str | None = None,
    seed: int | None = None,
    certify: bool = True,
    plan: Plan | None = None,
    roles: Mapping[str, str] | None = None,
    checkpoint: str | Path | Mapping[str, torch.Tensor] | Checkpoint | None = None,
    rename: Rules = (),
    widen: bool = False,
    new_rows: bool = False,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    set: Mapping[str, Word] | None = None,
    overwrite_deliberate: bool | None = None,
    tracer: str | None = None,
    **options: Any,
) -> Report:
    """Initialise a model in place and certify it: analyze, plan, apply_ and certify in one call.

    The model keeps its device, dtypes, requires_grad, gradients, training mode, hooks, buffers and ties; global
    settings and random states do not change. If parameters are DTensors (FSDP2, tensor parallelism), all processes of
    the mesh call this at the same time, and an error on one is raised on all.

    Args:
        model, example_inputs, example_kwargs, roles, tracer: as in `analyze`.
        scheme, seed, only, keep, set, overwrite_deliberate, options: as in `plan`; "idinit", 0 and False where nothing
            is given.
        certify: run the initialised model and compare every join with its shortcut.
        plan: apply this plan instead of making one; `only`, `keep` and `set` change it.
        checkpoint: a file or a state dict. Matching tensors are loaded, and only the rest is initialised; the
            certificate's `growth` reports by how much the added branches change the outputs.
        rename: rules "OLD=NEW" that give tensors of the checkpoint the model's names before they are matched, as in
            "layers.{i}=layers.{2*i}"; or a mapping, or a file.
        widen: make tensors of the checkpoint fit wider layers such that the function is preserved, which the
            certificate checks.
        new_rows: the same for tables of tokens with more rows, and for output layers with as many more outputs.

    Returns:
        The structure, the plan and the certificate.

    Raises:
        CertificateError: the model was written but does not start as planned; `error.report` has the details.
        IdfxError: any other error; the model is unchanged.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 3))
        >>> report = init_(model, (torch.ones(1, 2),), loosen="none")
        >>> model[2].weight.tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    asked = {"scheme": scheme, "seed": seed, "overwrite_deliberate": overwrite_deliberate} | options
    asked = {name: value for name, value in asked.items() if name in options or value is not None}
    example = example_inputs, example_kwargs, plan.roles if plan is not None else roles, tracer
    with together(unwrap(model).parameters()):
        words = steering(only, keep, set)
        growing = Growing(widen, new_rows)
        refuse_growing(checkpoint is not None, bool(rename), growing, certify)
        source = read_checkpoint(checkpoint, rename) if checkpoint is not None else None
        if plan is not None:
            refuse_beside_a_plan([*asked, *(["roles"] if roles else [])])
        structure = analyze(model, *example)
        model = unwrap(model) if is_exported(model) else model
        made = plan if plan is not None else without_scripted(make_plan(structure, **asked), model)
        if source is not None:
            made, source = resume(made, structure, source, state_of(model), plan is not None, growing)
        report = _applied(model, structure, steer(made, structure, words), source, certify)
    if report.certificate is not None and not report.certificate.passed:
        raise failure(report)
    return report


def _applied(model: nn.Module, structure: Structure, made: Plan, source: Checkpoint | None, certified: bool) -> Report:
    """Apply a plan on all processes that hold the model, once all of them can, and certify it."""
    refuse_garbage(model, structure, made)
    author = author_start(model, structure) if certified else None
    check(model, made, source)
    agree(digest(made), f"plan for {made.model}: it")
    apply_(model, made, source)
    return Report(structure, made, prove(model, structure, made, source, lambda: author) if certified else None)


def refuse_beside_a_plan(given: Sequence[str]) -> None:
    """Raise for what a plan already holds."""
    if given:
        raise UsageError(
            f"init_: {given[0]} is given together with a plan; expected one of the two. The plan holds the scheme, "
            "its options, the seed and the roles: edit it, or leave it out."
        )


def refuse_growing(has_checkpoint: bool, renames: bool, growing: Growing, certified: bool) -> None:
    """Raise for options of a checkpoint without one, and for tensors that grow without a certificate."""
    options = {"rename": renames, "widen": growing.widen, "new_rows": growing.new_rows}
    named = [name for name, given in options.items() if given]
    if named and not has_checkpoint:
        raise UsageError(f"{named[0]}: given without a checkpoint; expected one. Give it (--from, checkpoint=).")
    if growing and not certified:
        raise UsageError(
            f"{named[-1]}: given without a certificate, which alone shows that the function is preserved; expected "
            "one. Leave out --no-certify (certify=False)."
        )


def failure(report: Report) -> CertificateError:
    """Return the error of a certificate that failed, with the report."""
    assert report.certificate is not None
    error = CertificateError(failure_text(report.certificate, report.structure.model))
    error.report = report
    return error


def author_start(model: nn.Module, structure: Structure) -> Start | None:
    """Return the start that a model's own values make, before they are overwritten; None on the meta device."""
    meta = any(tensor.is_meta for tensor in model.parameters())
    return None if meta else observe_start(model, on_same_inputs(structure))


def prove(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    checkpoint: Checkpoint | None = None,
    author: Callable[[], Start | None] = lambda: None,
) -> Certificate:
    """Return the certificate of a model to which a plan was applied, checked against the claims of the plan.

    Args:
        model: to which the plan was applied.
        structure, plan, checkpoint: as applied.
        author: returns the start that the author's values make, if they are known; called only if it is needed.
    """
    with together(unwrap(model).parameters()):
        return worst(_proven(model, on_same_inputs(structure), plan, checkpoint, author))


def _proven(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    checkpoint: Checkpoint | None,
    author: Callable[[], Start | None],
) -> Certificate:
    """The certificate of a model whose processes act together."""
    if plan.scalars:  # the model has other parameters now
        structure = build_structure(capture(model, structure.capture.example, tracer=structure.capture.tracer))
    claimed = claims(structure, plan, unwrap(model))
    found = certify(model, claimed.structure, eps=claimed.entries)
    now = observe_start(model, claimed.structure)
    needed = suspicious(now) or any(not parameter.requires_grad for parameter in model.parameters())
    start = compare(now, author() if needed else None)
    found = dataclasses.replace(found, start=start, failures=(*found.failures, *start_failures(start)))
    if checkpoint is None:
        return found
    state = state_of(model)
    fits = {name for name, tensor in state.items() if checkpoint.lookup((name,), tensor) is not None}
    written = {*plan.decisions, *plan.kept}
    loaded = {*plan.loaded, *(name for name in fits if name not in written)}
    closed = [check.join for check in found.checks if check.status == "identity"]
    grown = growth(model, claimed.structure, closed, loaded, unplaced(checkpoint, state), checkpoint.grown)
    return dataclasses.replace(found, growth=grown, failures=(*found.failures, *growth_failures(model, grown)))


def masks(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """Return the non-zero positions of weights that a plan makes sparse, as bool tensors by parameter.

    Args:
        model: to which the plan was applied.
        plan: made by the scheme `eoi`, or with the fill `givens`; other weights have no mask.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(8, 8)
        >>> report = init_(model, (torch.ones(1, 8),), scheme="eoi", density=0.25)
        >>> int(masks(model, report.plan)["weight"].sum())
        16
    """
    sparse = {name for name, decision in plan.decisions.items() if decision.fill == "givens"}
    return {name: value.detach() != 0 for name, value in unwrap(model).named_parameters() if name in sparse}


def failure_text(certificate: Certificate, model: str) -> str:
    """Return the failures of a certificate as one line."""
    shown = "; ".join(certificate.failures[:3])
    more = len(certificate.failures) - 3
    found = f"{model}: {shown}{f' and {more} more' if more > 0 else ''}"
    if not certificate.finite:
        return f"{found}; expected finite numbers. Check that the model gives them with its own initialisation."
    if any(check.status == "deviates" for check in certificate.checks):
        return f"{found}; expected every block to start as its shortcut."
    if any(" grew, but " in failure for failure in certificate.failures):
        return f"{found}; expected the same function. Leave out what makes it grow (--widen, --new-rows)."
    if any("signal is lost" in failure for failure in certificate.failures):
        return f"{found}; expected different ones. Change what the signal is lost in, or keep it (--keep NAME)."
    if any("no gradient gets" in failure for failure in certificate.failures):
        return (
            f"{found}; expected one, as a parameter without it never learns. Close blocks by a small number instead of "
            "0 (idinit's --eps 1e-6), or keep a layer of zeros (--keep NAME)."
        )
    return f"{found}; expected a start like the author's. Keep the layers before it (--keep NAME)."
