"""The stages strung together: what `import idfx` offers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idfx.apply import apply_
from idfx.capture import capture
from idfx.certification import certify
from idfx.checkpoints import Checkpoint, read_checkpoint, resume, state_of, unplaced
from idfx.claims import claims
from idfx.errors import CertificateError, PlanError, UsageError
from idfx.growth import growth
from idfx.inputs import check as check_inputs
from idfx.inputs import no_example, takes_nothing
from idfx.overrule import overrule
from idfx.plan_file import from_json
from idfx.planning import make_plan
from idfx.recording.running import unwrap
from idfx.records import Certificate, Example, Plan, Report, Structure
from idfx.steering import Word, steer, steering
from idfx.structure import analyse


def _derived_example(model: nn.Module) -> Example:
    """The example that a model itself speaks of: timm's input size, Lightning's or transformers' own."""
    model = unwrap(model)
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    device = floating[0].device if floating else torch.device("cpu")
    dtype = floating[0].dtype if floating else torch.float32

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size:
            generator = torch.Generator().manual_seed(0)
            return Example((placed(torch.randn((1, *size), generator=generator)),))
    for attribute in ("example_input_array", "dummy_inputs"):
        value = getattr(model, attribute, None)
        if isinstance(value, Mapping):
            return Example((), {key: placed(item) for key, item in value.items()})
        if isinstance(value, (tuple, list)):
            return Example(tuple(placed(item) for item in value))
        if isinstance(value, torch.Tensor):
            return Example((placed(value),))
    if takes_nothing(model):
        return Example()
    raise no_example(type(model).__name__, model, "python")


def analyze(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
) -> Structure:
    """Return the structure of a model: joins, weight sites, and the role of every parameter.

    The model is run once, as a rule on meta tensors, and is left exactly as it was.

    Args:
        model: any module, in any mode, dtype and on any device, wrapped or not.
        example_inputs: positional inputs of its forward; a single tensor stands for itself. Where the model names
            its own (timm's input size, `example_input_array`, `dummy_inputs`) they may be left out.
        example_kwargs: keyword inputs.
        roles: role by parameter name or pattern, for what you know better; "end" closes the block it stands in.

    Raises:
        UsageError: a role or a parameter that does not exist.
        SourceError: no example input, or one that the signature of the forward does not take.
        ForwardError: the model raised on it.
        ResourceError: it ran out of memory.
        CaptureError: the model ran but cannot be captured.

    Example:
        >>> import torch
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.fc(x).relu()
        >>> structure = analyze(Block(), (torch.ones(1, 4),))
        >>> structure.joins[0].kind, structure.joins[0].ends[0].parameter
        ('identity', 'fc.weight')
        >>> structure.roles["fc.weight"].name
        'end'
    """
    if example_kwargs is not None and not isinstance(example_kwargs, Mapping):
        found = type(example_kwargs).__name__
        raise UsageError(f"example_kwargs: a {found}; expected inputs by name. Write example_kwargs={{'name': value}}.")
    if example_inputs is None and not example_kwargs:
        example = _derived_example(model)
    else:
        given = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs or ())
        example = Example(given, dict(example_kwargs or {}))
    check_inputs(unwrap(model), example, type(unwrap(model)).__name__, "python")
    return overrule(analyse(capture(model, example)), roles or {})


def plan(
    structure: Structure,
    scheme: str = "idinit",
    seed: int = 0,
    *,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    set: Mapping[str, Word] | None = None,
    **options: Any,
) -> Plan:
    """Return what a scheme writes into each parameter and why; touches no tensor.

    Args:
        structure: what `analyze` returned.
        scheme: a name from `idfx list schemes`.
        seed: of every random number; any integer.
        only: patterns of parameters or modules; nothing else is written.
        keep: patterns of what is left as it is.
        set: by pattern what is written instead: "keep", a fill as in "idiz(eps=1e-4)", or a number; it has the last
            word.
        options: the scheme's own, for idinit `tau`, `eps`, `loosen`, `eps_tau`, `conv_order` and `depthwise`.

    Raises:
        UsageError: an unknown scheme, option or fill, a value out of range, or a pattern that means nothing.
        PlanError: a fill that a parameter does not take.

    Example:
        >>> import torch
        >>> structure = analyze(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        >>> made = plan(structure, keep=["bias"], set={"weight": "idi(tau=2)"})
        >>> list(made.decisions), made.kept
        (['weight'], {'bias': 'by your word: keep bias'})
    """
    made = make_plan(structure, scheme, seed, **options)
    return steer(made, structure, steering(only, keep, set))


def read_plan(path: str | Path) -> Plan:
    """Return the plan in a JSON file.

    Args:
        path: a file that `idfx plan -o` wrote, perhaps edited.

    Raises:
        PlanError: it cannot be read or is no plan.
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
    scheme: str = "idinit",
    seed: int = 0,
    certify: bool = True,
    plan: Plan | None = None,
    roles: Mapping[str, str] | None = None,
    checkpoint: str | Path | Mapping[str, torch.Tensor] | Checkpoint | None = None,
    only: Sequence[str] = (),
    keep: Sequence[str] = (),
    set: Mapping[str, Word] | None = None,
    **options: Any,
) -> Report:
    """Initialise a model in place and prove it: analyze, plan, apply_ and certify in one.

    The model keeps its device, dtypes, requires_grad, gradients, training mode, hooks, buffers and ties; the global
    settings and random states are as before.

    Args:
        model, example_inputs, example_kwargs, roles: as in `analyze`.
        scheme, seed, only, keep, set, options: as in `plan`.
        certify: run the initialised model and compare every join with its shortcut.
        plan: apply this plan instead of making one; `only`, `keep` and `set` change it.
        checkpoint: a file or a state dict. What fits is loaded from it, and only the rest is initialised; the
            certificate's `growth` says how much the branches that were added change the outputs.

    Returns:
        The structure, the plan and the certificate.

    Raises:
        CertificateError: the model was written but does not start as it should; `error.report` holds the details.
        IdfxError: any other; the model is as it was.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 3))
        >>> report = init_(model, (torch.ones(1, 2),), loosen="none")
        >>> model[2].weight.tolist()
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    words = steering(only, keep, set)
    source = read_checkpoint(checkpoint) if checkpoint is not None else None
    other = {"scheme": scheme != "idinit", "seed": seed != 0, "roles": bool(roles)}
    if plan is not None and (given := [*options, *(name for name, said in other.items() if said)]):
        raise UsageError(
            f"init_: {given[0]} is given together with a plan; expected one of the two. The plan holds the scheme, its "
            "options, the seed and the roles: edit it, or leave it out."
        )
    structure = analyze(model, example_inputs, example_kwargs, plan.roles if plan is not None else roles)
    made = plan if plan is not None else make_plan(structure, scheme, seed, **options)
    if source is not None:
        made, source = resume(made, structure, source, state_of(model), again=plan is not None)
    made = steer(made, structure, words)
    apply_(model, made, source)
    if not certify:
        return Report(structure, made, None)
    certificate = prove(model, structure, made, source)
    report = Report(structure, made, certificate)
    if not certificate.passed:
        error = CertificateError(failure_text(certificate, structure.model))
        error.report = report
        raise error
    return report


def prove(model: nn.Module, structure: Structure, plan: Plan, checkpoint: Checkpoint | None = None) -> Certificate:
    """Return the certificate of a model to which a plan has been applied: it is held to what the plan claims."""
    if plan.scalars:  # the model has other parameters now
        structure = analyse(capture(model, structure.capture.example))
    claimed = claims(structure, plan, unwrap(model))
    found = certify(model, claimed.structure, eps=claimed.entries)
    if checkpoint is None:
        return found
    state = state_of(model)
    fits = {name for name, tensor in state.items() if checkpoint.lookup((name,), tensor) is not None}
    written = {*plan.decisions, *plan.kept}
    loaded = {*plan.loaded, *(name for name in fits if name not in written)}
    closed = [check.join for check in found.checks if check.status == "identity"]
    grown = growth(model, claimed.structure, closed, loaded, unplaced(checkpoint, state))
    return dataclasses.replace(found, growth=grown)


def masks(model: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """Return where the weights that a plan makes sparse are not zero, as bool tensors by parameter.

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
        return f"{found}; expected finite numbers. Check that the model gives them as its author initialises it."
    if any(check.status == "deviates" for check in certificate.checks):
        return f"{found}; expected every block to start as its shortcut."
    return f"{found}; expected different ones. Try --conv-order centre, which keeps images in place, or keep a layer."
