"""Plots of a study: curves over epochs with bands over seeds, and accuracy by learning rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idfx.bench.statistics import Record, final
from idfx.bench.study import Study, unit
from idfx.bench.summary import at_best
from idfx.core.errors import UsageError


def draw(study: Study, records: Sequence[Record], folder: Path, suffix: str = "png") -> dict[str, list[str]]:
    """Write the plots of every model that has runs, and return their names by model.

    Args:
        study: of the runs.
        records: of runs.jsonl.
        folder: to write into.
        suffix: png or svg.

    Raises:
        UsageError: matplotlib is not installed.
    """
    pyplot_of()
    found: dict[str, list[str]] = {}
    for model in study.suite.models:
        if not any(record["model"] == model and "lr" in record for record in records):
            continue
        curves, rates = f"{model}-curves.{suffix}", f"{model}-rates.{suffix}"
        names = found.setdefault(model, [])
        if _curves(study, records, model, folder / curves):
            names.append(curves)
        if len(study.suite.models[model].grid) > 1:
            _rates(study, records, model, folder / rates)
            names.append(rates)
    return found


def pyplot_of() -> Any:
    """Return matplotlib's pyplot, ready to write files.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError(
            "plots: matplotlib is not installed; expected it. Give --plots none, or pip install 'idfx[bench]'."
        ) from error
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "idfx"
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a figure without the time of writing, and close it."""
    from matplotlib import pyplot

    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata=metadata)
    pyplot.close(figure)


def _style(study: Study, scheme: str) -> dict[str, Any]:
    """Colour and line style of a scheme, the same in every plot of a study."""
    number = study.suite.schemes.index(scheme)
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "label": scheme}


def _curves(study: Study, records: Sequence[Record], model: str, path: Path) -> bool:
    """Test accuracy and training loss over epochs at each scheme's own rate: mean, and a band of the range."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    drawn = False
    for scheme in study.suite.schemes:
        best = at_best(study, records, model, scheme)
        whole = [run for run in best[1] if not run["diverged"]] if best is not None else []
        if best is None or not whole:
            continue
        drawn = True
        style = _style(study, scheme)
        style["label"] = f"{scheme}, {best[0][0]:g} (n = {len(whole)})"
        for axis, name in zip(axes, ("test_accuracy", "train_loss"), strict=True):
            columns = list(zip(*(run[name] for run in whole), strict=True))
            epochs = range(1, len(columns) + 1)
            axis.plot(epochs, [statistics.fmean(column) for column in columns], **style)
            axis.fill_between(
                epochs, list(map(min, columns)), list(map(max, columns)), color=style["color"], alpha=0.12, linewidth=0
            )
    for axis, title in zip(axes, ("test accuracy", "training loss"), strict=True):
        axis.set(xlabel="epoch", title=f"{model}: {title}")
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    if drawn:
        axes[0].legend(fontsize=7)
        save(figure, path)
    else:
        pyplot.close(figure)
    return drawn


def _rates(study: Study, records: Sequence[Record], model: str, path: Path) -> None:
    """Final validation accuracy by learning rate over the selection seeds, each with its best weight decay."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4.2))
    for scheme in study.suite.schemes:
        its = [r for r in unit(records, model, scheme) if r["seed"] in study.selection]
        rates = sorted({r["lr"] for r in its})
        if not rates:
            continue
        values = []
        for rate in rates:
            decays = {r["weight_decay"] for r in its if r["lr"] == rate}
            runs = [[r for r in its if (r["lr"], r["weight_decay"]) == (rate, decay)] for decay in decays]
            values.append(max(([final(r, "validation_accuracy") for r in part] for part in runs), key=statistics.fmean))
        style = _style(study, scheme)
        axis.plot(rates, list(map(statistics.fmean, values)), marker="o", markersize=3, **style)
        axis.fill_between(
            rates, list(map(min, values)), list(map(max, values)), color=style["color"], alpha=0.12, linewidth=0
        )
    axis.set(xscale="log", xlabel="learning rate", title=f"{model}: validation accuracy at the end")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save(figure, path)
