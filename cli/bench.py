"""`idfx bench`: evidence, how schemes train and how fast idfx is."""

from __future__ import annotations

import importlib

import click

NAMES = ("speed", "train")


class _Commands(click.Group):
    """The commands are the modules `bench_NAME` of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in NAMES:
            return None
        command: click.Command = importlib.import_module(f".bench_{name}", __package__).command
        return command


@click.command("bench", cls=_Commands)
def command() -> None:
    """Measure: how models train from each scheme, and how fast idfx is.

    \b
    Example:
      idfx bench train --suite digits -o results
      idfx bench speed
    """
