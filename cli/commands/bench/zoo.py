"""`idfx bench zoo`: models of every kind from each scheme, for some steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ...limits import Size, parse_seconds, parse_size
from ...options import output_options
from .train import numbers


@click.command("zoo")
@click.option("-o", "--output", required=True, metavar="DIR", help="Results directory; an existing one is resumed.")
@click.option("--set", "sets", metavar="A,B,...", help="Sets of models: small, timm, torchvision, transformers [all].")
@click.option("--models", metavar="A,B,...", help="These models, as SET:NAME, instead of all of every set.")
@click.option("--only", metavar="PATTERN", help="Only models in whose name this regular expression is found.")
@click.option("--schemes", "--scheme", metavar="A,B,...", help="Beside the author's start [idinit,idfx].")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Seeds 0 to N - 1.")
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, metavar="N", help="Steps of each run.")
@click.option("--rates", type=numbers, default="0.001,0.003,0.01", show_default=True, metavar="A,B,...", help="Rates.")
@click.option("--optimiser", type=click.Choice(["adamw", "adam", "sgd"]), default="adamw", show_default=True)
@click.option("--device", default="cpu", show_default=True, metavar="auto|cpu|cuda[:n]", help="Where to train.")
@click.option(
    "--seconds", type=parse_seconds, metavar="SECONDS", default="600", show_default=True, help="Time limit of a model."
)
@click.option(
    "--memory", type=parse_size, metavar="SIZE", default="6GiB", show_default=True, help="Memory limit of a model."
)
@click.option("--without-norms", is_flag=True, help="Take the normalisations out of every model.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Models at a time.")
@click.option("--retry", is_flag=True, help="Try again what failed.")
@click.option("--plots", type=click.Choice(["png", "svg", "none"]), default="png", show_default=True)
@output_options
def command(output: str, plots: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train models of every kind for some steps from their author's start and from each scheme, and compare.

    Each model runs in a process of its own, with limits. Writes runs.jsonl, config.json, zoo.md and zoo.png to DIR. To
    resume, run the same command again.

    \b
    Example:
      idfx bench zoo --set small -o zoo
      idfx bench zoo --only 'vit|swin' --schemes idinit,idfx -o zoo
    """
    from idfx.bench.isolated import Limits
    from idfx.bench.plots import pyplot_of
    from idfx.bench.zoo.conduct import conduct
    from idfx.bench.zoo.results import rows, summary_of

    folder, memory = Path(output), options["memory"]
    assert isinstance(memory, Size)
    sweep = _sweep(options)
    if plots != "none":
        pyplot_of()  # what is missing is said before hours of training
    done = 0

    def finished(model: str, records: Sequence[dict[str, Any]], reason: str) -> None:
        nonlocal done
        done += 1
        if not quiet:
            told = ", ".join(f"{name} {loss}" for name, loss in _told(records).items())
            click.echo(f"[{done}] {model}: {told}{f'; {reason}' if reason else ''}", err=True)

    try:
        limits = Limits(options["seconds"], memory.bytes)
        records = conduct(sweep, folder, limits, options["jobs"], options["retry"], finished)
    except KeyboardInterrupt:
        _write(folder, plots)
        told = f"finished runs are in {folder / 'runs.jsonl'}. Resume with the same command."
        click.echo(f"idfx: interrupted; {told}", err=True)
        raise SystemExit(130) from None
    _write(folder, plots)
    found = summary_of(rows([r for r in records if r["model"] in sweep.members]), sweep.schemes)
    if as_json:
        click.echo(json.dumps({"output": output, "schemes": found}))
        return
    for scheme, its in found.items():
        counts = ", ".join(f"{count} {verdict}" for verdict, count in its.items() if isinstance(count, int))
        click.echo(f"{scheme}: {counts}; see {folder / 'zoo.md'}")


def _told(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    from idfx.bench.zoo.results import best

    by_scheme: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_scheme.setdefault(record["scheme"], []).append(record)
    found = {scheme: best(its) for scheme, its in by_scheme.items()}
    return {scheme: "failed" if result.failed else f"{result.mean:.4g}" for scheme, result in found.items()}


def _sweep(options: dict[str, Any]) -> Any:
    """Return the sweep that the options describe."""
    from idfx.bench.starts import DEFAULT
    from idfx.bench.zoo.conduct import Sweep, chosen
    from idfx.building.parsing import parse_device
    from idfx.core.literals import split_calls

    sets, models = (split_calls(options[name]) if options[name] else None for name in ("sets", "models"))
    schemes = split_calls(options["schemes"]) if options["schemes"] else ["idinit", "idfx"]
    return Sweep(
        chosen(sets, models, options["only"]),
        tuple(dict.fromkeys([DEFAULT, *schemes])),
        options["seeds"],
        tuple(sorted(options["rates"])),
        options["steps"],
        options["optimiser"],
        str(parse_device(options["device"])),
        options["without_norms"],
    )


def _write(folder: Path, plots: str) -> None:
    """Write the page and the picture of what is recorded."""
    from idfx.bench.runs import read_runs
    from idfx.bench.zoo.page import draw, markdown, read_config
    from idfx.bench.zoo.results import rows
    from idfx.core.files import write_text

    found = rows(read_runs(folder))
    picture = f"zoo.{plots}" if plots != "none" else None
    if picture is not None and found:
        draw(found, folder / picture)
    write_text(folder / "zoo.md", markdown(found, read_config(folder), picture))
