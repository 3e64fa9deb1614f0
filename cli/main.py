"""The program `idfx`: discovers the commands, and turns every error into one line and an exit code."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import click

from idfx.core.errors import IdfxError

from .discovery import Commands

_INTERRUPTED = "interrupted; nothing was written"

_COLLECTION_THRESHOLDS = (50_000, 20, 20)


def _show_versions(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
    if not given:
        return
    from idfx.core.versions import versions

    found = versions(("torch", "torchvision", "timm", "networkx"))
    others = ", ".join(f"{name} {found[name]}" for name in found if name != "idfx")
    click.echo(f"idfx {found['idfx']} ({others})")
    ctx.exit()


@click.command(
    cls=Commands, package=f"{__package__}.commands", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of idfx and of what it runs with, and exit.",
)
def cli() -> None:
    """Initialise PyTorch models as identities (IDInit), using the structure found in the model's graph.

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
    """Run the program and exit; the exit codes are those of `idfx.core.errors`, 130 after Ctrl-C."""
    state: dict[str, Any] = {"debug": "--debug" in (sys.argv[1:] if arguments is None else arguments)}
    _note_interrupts(state)
    if arguments is None:
        _collect_less()
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
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later: a group without a command
            click.echo(error.format_message())
            raise SystemExit(2) from None
        where = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        _fail(error.format_message() + where, 2)
    except Exception as error:
        _fail_of(error, state)


def _collect_less() -> None:
    """Spare the garbage collector what can hold no garbage: the objects that importing torch and timm leaves.

    Python's defaults search them all several times while they are imported, and once more at the exit: together a
    third of the time of `idfx init timm:resnet50` (docs/performance.md).
    """
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    atexit.register(gc.freeze)


def _fail_of(error: Exception, state: dict[str, Any]) -> None:
    """Report an error, or an interruption: an interrupted import may raise anything."""
    if state.get("interrupted"):
        _fail(_INTERRUPTED, 130, state["debug"])
    if isinstance(error, IdfxError):
        _fail(str(error), error.exit_code, state["debug"])
    from idfx.core.errors import out_of_memory, shortened

    if out_of_memory(error):
        text = f"out of memory ({shortened(error)}); expected enough memory for the weights."
        _fail(f"{text} Try a smaller --dtype or another --device.", 2, state["debug"])
    told = f"{type(error).__name__}: {error}; this is a bug in idfx or in a package that extends it."
    _fail(f"{told} Run again with --debug and report it.", 70, state["debug"])


def _note_interrupts(state: dict[str, Any]) -> None:
    """Record that Ctrl-C was pressed, even if the exception that it raises is lost."""

    def note(number: int, frame: FrameType | None) -> None:
        state["interrupted"] = True
        signal.default_int_handler(number, frame)

    in_main = threading.current_thread() is threading.main_thread()  # only the main thread may set signal handlers
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)


if __name__ == "__main__":
    main()
