"""Audits made by hand, with numbers for everything that a page can show."""

from __future__ import annotations

import math
import random

from idfx.core.findings import ActivationStats, Audit, Batch, Block, Finding, ParameterState, Spectrum

NAN, INF = float("nan"), float("inf")


def made(depth: int = 6, seed: int = 0, growth: float = 1.1, findings: int = 6, nested: bool = True) -> Audit:
    """Return an audit of `depth` residual blocks of two weights each; every third one holds another block."""
    draw = random.Random(seed)
    parameters, blocks, profile = [], [], []

    def weight(name: str, shape: tuple[int, ...], role: str, block: str | None, level: int) -> None:
        rms = 0.0 if len(parameters) == 12 else 0.02 * draw.uniform(0.5, 2)
        parameters.append(
            ParameterState(f"{name}.weight", shape, role, block or name, block, rms, 1e-3 * growth**-level)
        )
        parameters.append(ParameterState(f"{name}.bias", shape[:1], "bias", block or name, block, 0.0, 1e-4))
        profile.append(point(name, "weight", f"{name}.weight", block, level))

    def point(name: str, kind: str, parameter: str, block: str | None, level: int) -> ActivationStats:
        variance = growth**level * draw.uniform(0.8, 1.25) * (0.3 if block else 1)
        active = kind == "activation"
        return ActivationStats(
            name, kind, f"aten.{kind}", parameter, block, 64, draw.gauss(0, 0.1), variance, draw.gauss(0.4, 0.3),
            min(1, level / (4 * depth)) if active else 0.0, draw.uniform(0, 0.2) if active else None,
            1 - 0.9 * math.exp(-level / depth), 64 * math.exp(-level / depth / 2), 64, 1e-3 * growth ** (level - depth),
        )  # fmt: skip

    def norm(name: str, block: str | None) -> None:
        parameters.append(ParameterState(f"{name}.weight", (64,), "norm scale", name, block, 1.0, 2e-3))
        parameters.append(ParameterState(f"{name}.bias", (64,), "norm shift", name, block, 0.0, 1e-3))

    weight("stem", (64, 3, 7, 7), "input stem", None, 0)
    for number in range(depth):
        name = f"blocks.{number}"
        norm(f"{name}.norm", name)
        weight(f"{name}.fc1", (256, 64), "inner", name, number + 1)
        profile.append(point(f"{name}.act", "activation", "", name, number + 1))
        inner = (f"{name}.fc1.weight", f"{name}.fc2.weight")
        if nested and number % 3 == 2:
            within = f"{name}.inner"
            weight(f"{within}.fc", (64, 64), "end", within, number + 1)
            blocks.append(Block(within, "identity", name, True, (f"{within}.fc.weight",)))
            profile.append(point(within, "join", "", name, number + 1))
            inner = (*inner, f"{within}.fc.weight")
        weight(f"{name}.fc2", (64, 256), "end", name, number + 1)
        kind = "projection" if number % 4 == 3 else "identity"
        blocks.append(Block(name, kind, None, number % 2 == 1, inner))
        if kind == "projection":
            weight(f"{name}.short.0", (64, 64), "projection shortcut", None, number + 1)
        profile.append(point(name, "join", "", None, number + 1))
    norm("norm", None)
    weight("head", (10, 64), "output", None, depth + 1)
    spectra = [_spectrum("", draw, depth), *(_spectrum(one.name, draw, 0) for one in blocks[:60])]
    found = _findings(parameters, blocks, profile, findings)
    metrics = ("branches", "dead", "finite", "forward", "jacobian", "scale")
    return Audit(
        "Made", tuple(found), {"branches": {"open": 3, "closed": 3}, "forward": {"growth": growth**depth}}, metrics,
        {"curvature": "no loss was given"}, tuple(parameters), tuple(blocks),
        Batch("a batch of standard normal numbers", 32, ((32, 3, 32, 32),)), tuple(profile), tuple(spectra),
        {name: 0.01 * (1 + i) for i, name in enumerate(metrics)},
    )  # fmt: skip


def _spectrum(place: str, draw: random.Random, depth: int) -> Spectrum:
    values = sorted((math.exp(draw.gauss(0, 0.5 + depth / 20)) for _ in range(64)), reverse=True)
    squares = [value**2 for value in values]
    mean = sum(squares) / len(squares)
    spread = math.sqrt(sum((one - mean) ** 2 for one in squares) / len(squares)) / mean
    record = {
        "place": place, "rows": 64, "columns": 64, "exact": not place, "largest": values[0],
        "largest_error": 0.15 * values[0] if place else 0.0, "smallest": values[-1],
        "smallest_error": 0.4 * values[-1] if place else 0.0, "mean_square": mean,
        "mean_square_error": 0.1 * mean if place else 0.0, "spread": spread,
        "density": tuple((value, 1 / 64) for value in values), "products": 64,
    }  # fmt: skip
    return Spectrum(**{**{name: 0.0 for name in Spectrum.__annotations__ if name.endswith("_error")}, **record})


def _findings(
    parameters: list[ParameterState], blocks: list[Block], profile: list[ActivationStats], count: int
) -> list[Finding]:
    if not count:
        return []
    some = [parameters[(7 * i + 3) % len(parameters)] for i in range(count)]
    return [
        Finding("error", "dead", some[0].name, some[0].site, 3, 0, "it is zero, and no gradient ever reaches it",
                "Start it at 1, or the weight behind it at something."),
        Finding("error", "forward", "", profile[len(profile) // 2].name, 1e6, 1e3, "the variance grows a millionfold",
                "Close the branches, or normalise each."),
        *(Finding("warning", "scale", one.name, one.site, 5.25, 4, f"r = 5.25 with {one.shape}", "Draw it by fan-in.")
          for one in some),
        Finding("info", "branches", "", blocks[-1].name, 3, 0, "3 residual branches start open", "Nothing, if meant."),
        Finding("info", "whole", "", "", NAN, INF, "the model as a whole", ""),
    ]  # fmt: skip
