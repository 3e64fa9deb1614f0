"""Shared by the commands after parsing: progress, building a model, and analysing its structure."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from idfx.building.build import Built
    from idfx.core.records import Example, Structure


class Progress:
    """Shows the current step on stderr if that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.current = "start"
        self._status: Any = None

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Show the steps inside the block, and clear the line afterwards.

        What the model's code prints in the block goes to stderr: stdout is for the result. If it exits, the block
        raises.

        Raises:
            SourceError: the model's code called `sys.exit`.
        """
        from idfx.core.errors import SourceError

        try:
            with self._status_line(), redirect_stdout(sys.stderr):
                yield self
        except SystemExit as error:
            raise SourceError(
                f"{self.current}: the model's code ended the program (sys.exit({error.code!r})); expected a "
                "constructor and a forward that return. Take the call out, or put it under if __name__ == '__main__'."
            ) from error

    @contextmanager
    def _status_line(self) -> Iterator[None]:
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status("start") as self._status:
            yield
        self._status = None

    def step(self, what: str) -> None:
        """Start a step."""
        self.current = what
        if self._status is not None:
            self._status.update(what)

    @property
    def unhide(self) -> str:
        """The control sequence that clears the line and shows the cursor, for a program that exits inside the block."""
        return "\r\x1b[2K\x1b[?25h" if self._status is not None else ""

    def remark(self, text: str) -> None:
        """Print a note on stderr."""
        if not self.quiet:
            click.echo(f"note: {text}", err=True)


def build_only(**options: Any) -> Built:
    """Return the model of a SPEC, with its random initialisation pending."""
    from idfx.building.build import build
    from idfx.building.parsing import parse_arguments

    return build(
        options["spec"],
        arguments=parse_arguments(options["model_args"]),
        input_shapes=options["input_shapes"],
        inputs=options["inputs"],
        device=options["device"],
        dtype=options["dtype"],
        seed=options["seed"],
    )


def build_and_read(
    progress: Progress, building: AbstractContextManager[Any] | None = None, **options: Any
) -> tuple[Built, Structure]:
    """Return the model of a SPEC, built inside `building` with its random initialisation pending, and its structure."""
    progress.step("load libraries")
    from idfx.analysis.role_overrides import override_roles, read_words
    from idfx.analysis.structure import build_structure
    from idfx.analysis.training import with_training
    from idfx.building.unwritten import left
    from idfx.capture.inputs import check, no_example, takes_nothing
    from idfx.capture.tracing import capture
    from idfx.capture.wrappers import unwrap
    from idfx.core.errors import StructureError
    from idfx.core.records import Example

    spec = options["spec"]
    words = read_words(options["roles"])
    progress.step(f"build {spec}")
    with building or nullcontext():
        built = build_only(**options)
    if built.suspects and building is None:
        progress.step(f"build {spec} again to find memory that nobody wrote")
        built = dataclasses.replace(built, unwritten=left(built, lambda: build_only(**options)))
    model = unwrap(built.model)
    example = built.example
    if example is None:
        if not takes_nothing(model):
            raise no_example(spec, model, "shell")
        example = Example()
    check(model, example, spec, "shell")
    if options["keep_norms"] and not options["without_norms"]:
        raise click.UsageError("--keep-norm: given without --without-norms; expected both. Add it, or leave both out.")
    if options["without_norms"]:
        _take_norms_out(progress, built, example, **options)
    progress.step(f"capture {spec}")
    captured = capture(built.model, example, lambda: built.pending.materialize(built.model), options["tracer"])
    progress.step(f"analyze {spec}")
    structure = override_roles(with_training(built.model, build_structure(captured)), words)
    if structure.unknown:
        names = ", ".join(f"{u.operator} in {u.sites[0]}" for u in structure.unknown)
        plural = "" if len(structure.unknown) == 1 else "s"
        text = f"{len(structure.unknown)} unknown operator{plural}: {names}; branches through them stay open"
        if options["strict"]:
            raise StructureError(f"{spec}: {text}. Leave out --strict, or define the operator (docs/adding.md).")
        progress.remark(text)
    return built, structure


def _take_norms_out(progress: Progress, built: Built, example: Example, **options: Any) -> None:
    """Take the normalisations out of a model that was built, and say how the same model is built again."""
    from idfx.analysis.structure import build_structure
    from idfx.capture.tracing import capture
    from idfx.capture.wrappers import unwrap
    from idfx.planning.without_norms import take_out_

    progress.step(f"take the normalisations out of {options['spec']}")
    captured = capture(built.model, example, lambda: built.pending.materialize(built.model), options["tracer"])
    keep = tuple(options["keep_norms"])
    names = take_out_(unwrap(built.model), build_structure(captured), keep=keep)
    again = f"idfx.without_norms(model, example_inputs{f', keep={[*keep]}' if keep else ''})"
    progress.remark(f"{len(names)} normalisations are taken out; {again} makes the same of the model in Python")
