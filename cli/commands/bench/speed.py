"""`idfx bench speed`: the speed of idfx, as ratios within one run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from ...options import output_options
from ...session import Progress

_UNIT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def _count(text: str) -> int:
    """Read a number of parameters such as 100M or 1e9."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmb]?)", text.strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r}: not a number of parameters; expected one such as 100M or 1e9.")
    return int(float(found[1]) * _UNIT[found[2]])


@click.command("speed")
@click.option("-o", "--output", metavar="DIR", help="Write speed.json and speed.md here, updated after each ratio.")
@click.option(
    "--max-parameters", type=_count, default="100M", show_default=True, metavar="N", help="Size of the largest model."
)
@click.option(
    "--max-blocks", type=click.IntRange(10), default=1000, show_default=True, metavar="N", help="Length of the chain."
)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Rounds per pair.")
@click.option(
    "--only", default="", metavar="SECTION,...", help="process, stages, fill, whole, read, depth, parameters."
)
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:n]", help="Device for fill and whole.")
@output_options
def command(
    output: str | None,
    max_parameters: int,
    max_blocks: int,
    runs: int,
    only: str,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the cost of idfx relative to the baseline: alternating pairs, medians of their ratios.

    \b
    Example:
      idfx bench speed --max-parameters 30M -o speed
    """
    from idfx.bench.machine import machine, versions
    from idfx.bench.ratios import Ratio, markdown
    from idfx.bench.speed import MODELS, SECTIONS, measure
    from idfx.building.parsing import parse_device
    from idfx.core.errors import UsageError
    from idfx.core.files import write_text
    from idfx.core.registry import did_you_mean

    chosen = tuple(word.strip() for word in only.split(",") if word.strip()) or SECTIONS
    for word in chosen:
        if word not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise UsageError(f"--only {word}: unknown; expected some of {known}.{did_you_mean(word, SECTIONS)}")
    place = str(parse_device(device))
    if output is not None:
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"-o {output}: {error.strerror}; expected a folder. Choose another one.") from error
    ratios: list[Ratio] = []
    with Progress(quiet).shown() as progress:
        for ratio in measure(max_parameters, runs, max_blocks, place, chosen, progress.step):
            ratios.append(ratio)
            told = {"machine": machine(place), "versions": versions(), "ratios": [one.as_json() for one in ratios]}
            page = markdown(ratios, machine(place), versions())
            if output is not None:  # after each one: some take minutes
                write_text(Path(output) / "speed.json", json.dumps(told, indent=2, ensure_ascii=False) + "\n")
                write_text(Path(output) / "speed.md", page)
    if not ratios:
        raise UsageError(
            f"--max-parameters {max_parameters}: there is no such model; expected at least {min(MODELS.values()):,}. "
            "Raise it."
        )
    click.echo(json.dumps(told, indent=2, ensure_ascii=False) if as_json else page, nl=as_json)
