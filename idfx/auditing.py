"""Model × metrics → audit: what is wrong with its weights and its structure, without any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from idfx.api import analyze
from idfx.audits.metric import METRICS
from idfx.audits.subject import Subject
from idfx.findings import SEVERITIES, Audit, Finding
from idfx.network import Network
from idfx.records import Structure
from idfx.running import unwrap

_STOOD = "idfx did not build this model, so it is not known which memory was written; `idfx audit SPEC` tells"


def audit(
    model: nn.Module,
    example_inputs: Sequence[Any] | torch.Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
) -> Audit:
    """Return what is wrong with the weights and the structure of a model; no data is run through it.

    The model is run once on the example, as a rule on meta tensors, and is left exactly as it was. What an initialiser
    left unwritten can be told only of a model that idfx builds: the metric `uninitialised` is left out.

    Args:
        model, example_inputs, example_kwargs: as in `analyze`, which also says what is raised.
        only: metrics from `idfx list audits`; all of them if there are none.

    Returns:
        Findings, each with its place, value, threshold and remedy, and measures.

    Raises:
        UsageError: an unknown metric.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> nn.init.constant_(model[0].weight, 0.5)[0, 0].item()
        0.5
        >>> found = audit(model, (torch.ones(1, 8),))
        >>> found.verdict, [(f.metric, f.parameter) for f in found.at_least("error")]
        ('error', [('rank', '0.weight'), ('replicas', '0.weight')])
    """
    check(only)
    return examine(model, analyze(model, example_inputs, example_kwargs), only)


def check(only: Sequence[str]) -> None:
    """Return if all metrics are known.

    Raises:
        UsageError: one is not.
    """
    for name in only:
        METRICS.find(name)


def attributes(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that modules hold as plain attributes, neither parameters nor buffers, by path.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.shift = torch.ones(2)
        >>> attributes(nn.Sequential(layer))
        {'0.shift': tensor([1., 1.])}
    """
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_meta and type(value) in (Tensor, nn.Parameter):
                found[f"{path}.{name}" if path else name] = value.detach()
    return found


def examine(
    model: nn.Module, structure: Structure, only: Sequence[str] = (), unwritten: Mapping[str, int] | None = None
) -> Audit:
    """Return the audit of a model whose structure is known.

    Args:
        model: with its values, nothing of them pending.
        structure: of this model.
        only: the metrics that are asked for; all of them if there are none.
        unwritten: how many entries of each tensor no initialiser wrote; None where that is not known.

    Raises:
        UsageError: an unknown metric.
    """
    model = unwrap(model)
    tensors = {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
    tensors.update(attributes(model))
    subject = Subject(model, structure, Network(structure), tensors, unwritten)
    check(only)
    names = [name for name in METRICS if not only or name in only]
    left_out = {"uninitialised": _STOOD} if unwritten is None and "uninitialised" in names else {}
    ran = tuple(name for name in names if name not in left_out)
    findings: list[Finding] = []
    measures: dict[str, dict[str, float | int | str]] = {}
    with torch.no_grad():
        for name in ran:
            for found in METRICS[name].look(subject):
                if isinstance(found, Finding):
                    findings.append(found)
                else:
                    measures.setdefault(name, {})[found.name] = found.value
    findings.sort(key=lambda found: -SEVERITIES.index(found.severity))
    return Audit(structure.model, tuple(findings), measures, ran, left_out)
