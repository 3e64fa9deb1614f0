"""Discovers commands: the modules of a package."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click


class Commands(click.Group):
    """A group whose commands are the modules of a package, each with a click command named `command`.

    A trailing underscore avoids the name of a builtin: the module `list_` is the command `list`.

    Args:
        package: full name of the package.
    """

    def __init__(self, *args: Any, package: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package = package

    def _modules(self) -> dict[str, str]:
        package = importlib.import_module(self._package)
        return {module.name.removesuffix("_"): module.name for module in pkgutil.iter_modules(package.__path__)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._modules())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module = self._modules().get(name)
        if module is None:
            return None
        command: click.Command = importlib.import_module(f"{self._package}.{module}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from idfx.core.registry import did_you_mean

            known = self.list_commands(ctx)
            text = f"no command {args[0]!r}; expected one of {', '.join(known)}.{did_you_mean(args[0], known)}"
            raise click.UsageError(text, ctx) from error
