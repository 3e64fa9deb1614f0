"""The program `idfx`: finds the commands, and turns every error into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import threading
from types import FrameType
from typing import Any

import click

from idfx._version import __version__
from idfx.errors import IdfxError

_INTERRUPTED = "interrupted; nothing was written"
_NOT_COMMANDS = frozenset({"bench_speed", "bench_train", "cases", "limits", "main", "options", "session"})


class Commands(click.Group):
    """The commands are the modules of this package, each with a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = (module.name for module in pkgutil.iter_modules(sys.modules[__package__].__path__))
        return sorted(name.removesuffix("_") for name in found if name not in _NOT_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            return None
        modules = {module.name for module in pkgutil.iter_modules(sys.modules[__package__].__path__)}
        home = name if name in modules else f"{name}_"
        command: click.Command = importlib.import_module(f".{home}", __package__).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from idfx.registry import did_you_mean

            known = self.list_commands(ctx)
            text = f"no command {args[0]!r}; expected one of {', '.join(known)}.{did_you_mean(args[0], known)}"
            raise click.UsageError(text, ctx) from error


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="idfx")
def cli() -> None:
    """Initialise any PyTorch model as identities: IDInit, found out by reading the model's graph.

    \b
    Example:
      idfx init timm:resnet50 -o weights.pt
    """


def _fail(message: str, code: int, debug: bool = False) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    click.echo(f"idfx: {' '.join(message.split())}", err=True)
    raise SystemExit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit; the exit codes are those of `idfx.errors`, 130 after Ctrl-C."""
    state: dict[str, Any] = {"debug": "--debug" in (sys.argv[1:] if arguments is None else arguments)}
    _note_interrupts(state)
    try:
        code = cli.main(args=arguments, prog_name="idfx", standalone_mode=False, obj=state)
        sys.stdout.flush()
        raise SystemExit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as error:
        raise SystemExit(error.exit_code) from error
    except (KeyboardInterrupt, click.Abort):
        _fail(_INTERRUPTED, 130, state["debug"])
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except click.ClickException as error:
        where = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(error.format_message() + where, 2)
    except Exception as error:
        _fail_of(error, state)


def _fail_of(error: Exception, state: dict[str, Any]) -> None:
    """Say what an error is, or that the work was interrupted: an import that is cut off may raise anything."""
    if state.get("interrupted"):
        _fail(_INTERRUPTED, 130, state["debug"])
    if isinstance(error, IdfxError):
        _fail(str(error), error.exit_code, state["debug"])
    from idfx.sources import out_of_memory, shortened

    if out_of_memory(error):
        text = f"out of memory ({shortened(error)}); expected room for the weights."
        _fail(f"{text} Try a smaller --dtype or another --device.", 2, state["debug"])
    told = f"{type(error).__name__}: {error}; this is a defect of idfx. Run again with --debug and report it."
    _fail(told, 70, state["debug"])


def _note_interrupts(state: dict[str, Any]) -> None:
    """Keep in mind that Ctrl-C was pressed, whatever becomes of the exception that it raises."""

    def note(number: int, frame: FrameType | None) -> None:
        state["interrupted"] = True
        signal.default_int_handler(number, frame)

    in_main = threading.current_thread() is threading.main_thread()  # no other thread may set what signals do
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)


if __name__ == "__main__":
    main()
