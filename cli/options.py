"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from .limits import parse_seconds, parse_size

if TYPE_CHECKING:
    from torch import nn

    from idfx.core.records import Plan, Structure
    from idfx.planning.checkpoints import Checkpoint
    from idfx.planning.overrides import Overrides
    from idfx.planning.widening import Growing

SEED = click.IntRange(-(2**63), 2**64 - 1)  # the range that torch accepts

F = TypeVar("F", bound=Callable[..., Any])


def _chain(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def output_options(function: F) -> F:
    """--json, --quiet and --debug, which every command has."""
    return _chain(
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Show no progress and no notes."),
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
    )(function)


def _model_options(argument: Callable[[F], F]) -> Callable[[F], F]:
    """SPEC and the options for building a model."""
    return _chain(
        argument,
        click.option(
            "--model-arg", "model_args", multiple=True, metavar="KEY=VALUE",
            help="Keyword argument for the model; repeatable.",
        ),
        click.option(
            "--input-shape", "input_shapes", multiple=True, metavar="[NAME=]N,C,H,W",
            help="Shape of an example input, batch included, e.g. 1,3,224,224 or 1,16:int64; one per input or by name.",
        ),
        click.option(
            "--input", "inputs", multiple=True, metavar="FILE|NAME=VALUE",
            help="Example inputs: a .safetensors file of tensors by name, or a plain value; repeatable.",
        ),
        click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:n]"),
        click.option("--dtype", default=None, metavar="float32|bfloat16|float16|float64"),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of every random number."),
        click.option(
            "--role", "roles", multiple=True, metavar="PARAM=ROLE",
            help="Override the role of a parameter; patterns (*) are allowed; repeatable.",
        ),
        click.option("--tracer", default=None, metavar="record|export", help="How the graph is made."),
        click.option("--without-norms", is_flag=True, help="Take normalisations out; their scales and shifts stay."),
        click.option("--keep-norm", "keep_norms", multiple=True, metavar="MODULE", help="Except this one; repeatable."),
        click.option("--strict", is_flag=True, help="Fail if an operator is unknown."),
        click.option("--timeout", type=parse_seconds, metavar="SECONDS", help="Stop if the command takes longer."),
        click.option("--max-memory", type=parse_size, metavar="SIZE", help="Limit on memory, e.g. 4GiB (Linux only)."),
    )  # fmt: skip


model_options = _model_options(click.argument("spec"))
optional_model_options = _model_options(click.argument("spec", required=False))
several_models_options = _model_options(click.argument("specs", nargs=-1, required=True, metavar="SPEC..."))


def scheme_options(function: F) -> F:
    """The scheme and its options; the scheme sets options that are not given."""
    return _chain(
        click.option(
            "--scheme", default="idinit", show_default=True, metavar="NAME[(KEY=VALUE,...)]",
            help="See `idfx list schemes`; options in brackets, as in 'eoi(density=0.2)'.",
        ),
        click.option("--tau", default=None, metavar="NUMBER|gain", help="Diagonal entry of the identity [1]."),
        click.option("--eps", default=None, type=float, help="Entries at the end of a branch [1e-6]; 0 for zeros."),
        click.option("--loosen", default=None, metavar="diagonal|dense|none", help="Where noise is added [diagonal]."),
        click.option(
            "--conv-order", default=None, metavar="auto|channel|tap|centre", help="Order of kernel columns [auto]."
        ),
        click.option(
            "--overwrite-deliberate", is_flag=True, help="Write what the model's author set on purpose, too."
        ),
    )(function)  # fmt: skip


def override_options(function: F) -> F:
    """Overrides for single parameters, and the checkpoint to start from."""
    return _chain(
        click.option(
            "--set", "sets", multiple=True, metavar="PATTERN=FILL(...)|FILE.toml",
            help="Override the scheme: 'head.weight=idiz(eps=1e-4)', 'blocks.*.attn.qkv=keep'; repeatable, the last "
            "match wins; or a file of overrides.",
        ),
        click.option("--only", multiple=True, metavar="PATTERN", help="Write only these parameters; repeatable."),
        click.option("--keep", multiple=True, metavar="PATTERN", help="Leave these parameters unchanged; repeatable."),
        click.option(
            "--from", "checkpoints", multiple=True, metavar="CHECKPOINT",
            help="Load matching tensors from this file, and initialise only the rest.",
        ),
        click.option(
            "--rename", "renames", multiple=True, metavar="OLD=NEW|FILE",
            help="Rename tensors of the checkpoint first, from its name to the model's: "
            "'layers.{i}=layers.{2*i}'; repeatable, or a file of rules.",
        ),
        click.option(
            "--widen", is_flag=True, help="Fit tensors of the checkpoint into wider layers by copies of units."
        ),
        click.option(
            "--new-rows", is_flag=True, help="Fit tensors of the checkpoint into a larger vocabulary by new rows."
        ),
    )(function)  # fmt: skip


def given_overrides(options: dict[str, Any]) -> PlanEdits:
    """Return the overrides; they are removed from the options, and roles in files are added to `roles`.

    Raises:
        UsageError: an override or a file that cannot be read.
    """
    from idfx.planning.overrides import read_overrides

    steering, roles = read_overrides(options.pop("sets"), options.pop("only"), options.pop("keep"))
    options["roles"] = (*(f"{name}={role}" for name, role in roles.items()), *options["roles"])
    sources, renames = options.pop("checkpoints"), options.pop("renames")
    if len(sources) > 1:
        raise click.UsageError(
            f"--from: given {len(sources)} times; expected one checkpoint. Merge them into one file."
        )
    widen, new_rows = options.pop("widen"), options.pop("new_rows")
    if not sources:
        for name, given in (("rename", renames), ("widen", widen), ("new-rows", new_rows)):
            if given:
                raise click.UsageError(f"--{name}: given without --from; expected a checkpoint. Give it.")
        return PlanEdits(steering, None)
    from idfx.planning.checkpoints import read_checkpoint
    from idfx.planning.widening import Growing

    return PlanEdits(steering, read_checkpoint(sources[0], renames), Growing(widen, new_rows))


class PlanEdits(NamedTuple):
    """The user's changes to a plan: overrides and a checkpoint."""

    steering: Overrides
    checkpoint: Checkpoint | None
    growing: Growing | None = None  # made with the checkpoint, as torch is slow to import

    def on(
        self, plan: Plan, structure: Structure, model: nn.Module, again: bool = False
    ) -> tuple[Plan, Checkpoint | None]:
        """Return the plan with these changes, and the checkpoint under the model's names."""
        from idfx.planning.overrides import steer

        checkpoint = self.checkpoint
        if checkpoint is not None:
            from idfx.planning.checkpoints import resume, state_of
            from idfx.planning.widening import Growing

            growing = self.growing or Growing()
            plan, checkpoint = resume(plan, structure, checkpoint, state_of(model), again, growing)
        return steer(plan, structure, self.steering), checkpoint


def given_scheme(scheme: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the scheme and its options, given in brackets or as flags.

    The flags are removed from the command's options.

    Raises:
        UsageError: invalid brackets, an option given twice, or one that the scheme does not have.
    """
    from idfx.core.literals import parse_call
    from idfx.schemes.scheme import SCHEMES

    name, given = parse_call(scheme, "--scheme")
    for flag in ("tau", "eps", "loosen", "conv_order"):
        value = options.pop(flag)
        if value is None:
            continue
        if flag in given:
            raise click.UsageError(f"--{flag.replace('_', '-')}: also given in --scheme {scheme}; leave one out.")
        given[flag] = _number_if_one(value) if flag == "tau" else value
    SCHEMES.find(name).read_options(given)
    if options.pop("overwrite_deliberate"):
        given["overwrite_deliberate"] = True
    return name, given


def _number_if_one(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
