"""`idfx bench train`: trains models from each scheme, with a results directory that can be resumed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...limits import parse_seconds
from ...options import output_options

if TYPE_CHECKING:
    from idfx.bench.study import Study
    from idfx.bench.suites import Suite
    from idfx.bench.training import Run
    from idfx.bench.workers import Event


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers such as 0.1,0.01."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: expected comma-separated numbers, such as 0.1,0.01.") from error


@click.command("train")
@click.option("--suite", metavar="NAME|FILE.toml", help="Suite to train; by default that of an existing DIR.")
@click.option("-o", "--output", required=True, metavar="DIR", help="Results directory; an existing one is resumed.")
@click.option("--schemes", metavar="A,B,...", help="Schemes with options; `default` is the model's own initialisation.")
@click.option("--models", metavar="A,B,...", help="Only these models of the suite.")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Number of seeds, 0 to N - 1 [5].")
@click.option("--lr-grid", type=numbers, metavar="A,B,...", help="Learning rates, replacing the suite's.")
@click.option("--wd-grid", type=numbers, metavar="A,B,...", help="Weight decays, replacing the suite's.")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Number of epochs, replacing the suite's.")
@click.option("--full", is_flag=True, help="Run every seed at every point of the grid, not only at the best one.")
@click.option("--watch", is_flag=True, help="Also record gradients, dead units and ranks.")
@click.option("--device", default=None, metavar="auto|cpu|cuda[:n]", help="Where to train [auto].")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Location of the suite's data files.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Parallel runs.")
@click.option("--budget", type=parse_seconds, metavar="SECONDS", help="Start no run that would end later than this.")
@click.option(
    "--plots", type=click.Choice(["png", "svg", "none"]), default="png", show_default=True, help="File format of plots."
)
@output_options
def command(
    output: str, jobs: int, budget: float | None, plots: str, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Train models from each scheme at its own best learning rate, and compare them over the same seeds.

    Writes runs.jsonl, config.json, summary.md and plots to DIR. To resume, run the same command again, or give only
    -o DIR.

    \b
    Example:
      idfx bench train --suite digits --schemes default,kaiming,idinit --jobs 2 -o results
    """
    from idfx.bench.conduct import conduct
    from idfx.bench.plots import draw, pyplot_of
    from idfx.bench.summary import markdown
    from idfx.core.files import write_text

    folder = Path(output)
    study = _study(folder, options)
    if plots != "none":
        pyplot_of()  # what is missing is said before hours of training
    listener = _Listener(quiet)
    try:
        with listener:
            outcome = conduct(study, folder, jobs, budget, listener)
            pictures = draw(study, outcome.records, folder, plots) if plots != "none" else {}
            write_text(folder / "summary.md", markdown(study, outcome.records, outcome.done, outcome.total, pictures))
    except KeyboardInterrupt:
        click.echo(
            f"idfx: interrupted; finished runs are in {folder / 'runs.jsonl'}. "
            f"Resume with `idfx bench train -o {folder}`.",
            err=True,
        )
        raise SystemExit(130) from None
    if outcome.cut and not quiet:
        text = f"the budget of {budget:g} s is used; {outcome.done} of {outcome.total} runs are done"
        click.echo(f"note: {text}. Resume with `idfx bench train -o {folder}`.", err=True)
    told = {"output": str(folder), "done": outcome.done, "total": outcome.total}
    click.echo(json.dumps(told) if as_json else f"{outcome.done} of {outcome.total} runs; see {folder / 'summary.md'}")


def _study(folder: Path, options: Mapping[str, Any]) -> Study:
    """Return the study: a suite, or the one that a directory was started with, changed by the options."""
    from idfx.bench.conduct import facts
    from idfx.bench.study import Study, read_config, suite_of
    from idfx.bench.suites import read_suite
    from idfx.building.parsing import parse_device
    from idfx.core.errors import UsageError

    old = read_config(folder)
    if options["suite"] is None and old is None:
        raise UsageError(f"-o {folder}: there is no study here to resume; expected --suite. See docs/bench.md.")
    if options["suite"] is not None:
        suite = read_suite(options["suite"])
    else:
        assert old is not None
        suite = suite_of(old)
    asked = options["device"] or (old["device"] if old is not None and options["suite"] is None else "auto")
    kept = old if old is not None and options["suite"] is None else {}
    study = Study(
        _said(suite, options, old),
        full=options["full"] or bool(kept.get("full")),
        watch=options["watch"] or bool(kept.get("watch")),
        device=str(parse_device(asked)),
        path=options["data"],
    )
    return dataclasses.replace(study, facts=facts(study))


def _said(suite: Suite, options: Mapping[str, Any], old: Mapping[str, Any] | None) -> Suite:
    """Return the suite with the given models, schemes, seeds and settings; schemes in the order of the old study."""
    from idfx.bench.suites import settings
    from idfx.core.errors import UsageError
    from idfx.core.literals import split_calls
    from idfx.core.registry import did_you_mean

    models = dict(suite.models)
    if options["models"] is not None:
        wanted = split_calls(options["models"])
        for name in wanted:
            if name not in models:
                known = ", ".join(models)
                raise UsageError(f"--models {name}: unknown; expected some of {known}.{did_you_mean(name, models)}")
        models = {name: models[name] for name in dict.fromkeys(wanted)}
    given = {"lr": options["lr_grid"], "weight_decay": options["wd_grid"], "epochs": options["epochs"]}
    changed = {key: value for key, value in given.items() if value is not None}
    if changed:
        models = {name: settings({**model.model_dump(), **changed}, f"model {name}") for name, model in models.items()}
    schemes = tuple(dict.fromkeys(split_calls(options["schemes"]))) if options["schemes"] is not None else suite.schemes
    if not schemes or "" in schemes:
        raise UsageError(f"--schemes {options['schemes']!r}: expected comma-separated names. Write kaiming,idinit.")
    before = [scheme for scheme in (old["schemes"] if old is not None else ()) if scheme in schemes]
    schemes = tuple(dict.fromkeys([*before, *schemes]))
    return dataclasses.replace(suite, models=models, schemes=schemes, seeds=options["seeds"] or suite.seeds)


class _Listener:
    """Shows a progress bar for each run on a terminal's stderr; otherwise prints a line for each finished run."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._bars: Any = None
        self._tasks: dict[Any, Any] = {}

    def __enter__(self) -> _Listener:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, TextColumn("{task.fields[told]}"), console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def planned(self, done: int, total: int) -> None:
        """Handle the number of runs."""
        self.done, self.total = done, total
        if self._bars is not None:
            self._whole = self._bars.add_task("all runs", total=total, completed=done, told="")
        elif not self.quiet:
            click.echo(f"{done} of {total} runs are done", err=True)

    def begun(self, run: Run, epochs: int) -> None:
        """Handle the start of a run."""
        if self._bars is not None:
            name = f"{run.model} {run.scheme} {run.lr:g} seed {run.seed}"
            self._tasks[run] = self._bars.add_task(name, total=epochs, told="")

    def epoch(self, event: Event) -> None:
        """Handle a finished epoch."""
        if self._bars is not None and event.values is not None:
            told = f"loss {event.values['train_loss']:.3f}, accuracy {event.values['validation_accuracy']:.3f}"
            self._bars.update(self._tasks[event.run], completed=event.epoch, told=told)

    def finished(self, run: Run, record: Mapping[str, Any]) -> None:
        """Handle a finished run."""
        self.done += 1
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(run))
            self._bars.update(self._whole, completed=self.done)
        elif not self.quiet:
            told = "diverged" if record["diverged"] else f"test accuracy {record['test_accuracy'][-1]:.4f}"
            words = f"{run.model} {run.scheme} lr {run.lr:g} seed {run.seed}: {told}, {record['seconds']:.1f} s"
            click.echo(f"[{self.done}/{self.total}] {words}", err=True)
