"""Small models for tests: a function and its parts, and what is asked of their structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import idfx
from idfx.core.records import Join, Structure


class Small(nn.Module):
    """A module from a function of itself and its inputs, and parts: modules, and tensors that become parameters."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._body = body
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._body(self, *args, **kwargs)


def lin(inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def values(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def read(model: nn.Module, *inputs: Any, **named: Any) -> Structure:
    structure = idfx.analyze(model, inputs or (values(2, 3, 4),), named)
    assert set(structure.roles) == {name for name, _ in model.named_parameters()}
    return structure


def ends(join: Join) -> list[str]:
    assert all(end.rows is None for end in join.ends)
    return [end.parameter for end in join.ends]


def only(structure: Structure) -> Join:
    assert len(structure.joins) == 1, structure.joins
    return structure.joins[0]


def initialised_with_zeros(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None = None, **options: Any
) -> idfx.Report:
    """Initialise with eps 0; fail if the certificate finds anything but missing gradients.

    A zero before a function with f′(0) = 0, and one of two zeros in a row, never get a gradient.
    """
    try:
        return idfx.init_(model, inputs, kwargs, eps=0.0, **options)
    except idfx.CertificateError as error:
        report: idfx.Report = error.report
        assert report.certificate is not None
        assert all("no gradient gets to" in failure for failure in report.certificate.failures), error
        return report


def starts_as_shortcuts(model: nn.Module, *inputs: Any) -> None:
    """Initialised without any epsilon, every zeroable join of the model is exactly its shortcut."""
    report = initialised_with_zeros(model, inputs or (values(2, 3, 4),))
    assert report.certificate is not None
    assert report.certificate.certified == sum(join.zeroable for join in report.structure.joins)
