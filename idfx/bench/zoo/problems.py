"""Problems that are learnt in tens of steps: classes of patterns or tokens, denoising, functions, densities.

Every batch is drawn anew. What stays the same, the patterns or the function, depends on the seed of the problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.data import generator_of
from idfx.bench.zoo import Batch, Problem

CLASSES = 10
COARSE = 4  # cells of a pattern along each axis
TRUTH = 0.8  # share of the tokens of a topic that come from its own words
Draw = Callable[[Tensor, torch.Generator], tuple[Sequence[Any], Mapping[str, Any]]]


def patterns(shape: Sequence[int], count: int, seed: int) -> Tensor:
    """Return smooth patterns (count, *shape) with mean square 1; the last axes (at most three) are space and time.

    Args:
        shape: of one input: (channels, ...), or (length,).
        count: of patterns.
        seed: of their values.

    Example:
        >>> found = patterns((3, 8, 8), 2, 0)
        >>> found.shape, round(float(found.square().mean()), 3)
        (torch.Size([2, 3, 8, 8]), 1.0)
    """
    channels, space = (shape[0], tuple(shape[1:])) if len(shape) > 1 else (1, tuple(shape))
    generator = generator_of("patterns", tuple(shape), count, seed)
    cells = [min(side, COARSE if len(space) > 1 else max(COARSE, side // 8)) for side in space]
    coarse = torch.randn(count, channels, *cells, generator=generator)
    mode = ("linear", "bilinear", "trilinear")[len(space) - 1] if space else ""
    fine = functional.interpolate(coarse, size=space, mode=mode) if space else coarse
    fine = fine.reshape(count, *shape)
    norm = fine.flatten(1).square().mean(1).sqrt()
    return fine / norm.view(-1, *[1] * len(shape))


def classes(draw_inputs: Draw, count: int, batch: int, read: Callable[[Any], Tensor]) -> Problem:
    """Return the problem of telling classes apart: cross-entropy, ln(count) by chance.

    Args:
        draw_inputs: from labels (batch,) and a generator to the arguments of the forward, by place and by name.
        count: of classes, which are equally frequent.
        batch: its size.
        read: from the output of the model to logits (batch, count).
    """

    def draw(generator: torch.Generator) -> Batch:
        labels = torch.randint(count, (batch,), generator=generator)
        args, kwargs = draw_inputs(labels, generator)
        return tuple(args), dict(kwargs), labels

    def loss(model: nn.Module, given: Batch) -> Tensor:
        args, kwargs, labels = given
        return functional.cross_entropy(read(model(*args, **kwargs)).float(), labels)

    return Problem(draw, loss, math.log(count))


def pictures(shape: Sequence[int], batch: int, seed: int, count: int = CLASSES) -> Problem:
    """Return the problem of telling apart patterns in noise of the same strength, from inputs (batch, *shape)."""
    known = patterns(shape, count, seed)

    def draw(labels: Tensor, generator: torch.Generator) -> tuple[Sequence[Any], Mapping[str, Any]]:
        return (in_noise(known, labels, generator),), {}

    return classes(draw, count, batch, logits_of(count))


def in_noise(known: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the patterns of these labels in noise of variance 1."""
    return known[labels] + torch.randn(len(labels), *known.shape[1:], generator=generator)


def topics(words: Sequence[int], length: int, count: int, seed: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return a function from labels to texts (batch, length): each class prefers its own words; the last one asks.

    The last token is the same in every text, so what is read there must have come from the tokens before it.

    Args:
        words: token numbers; the last one is that which asks.
        length: of a text.
        count: of classes.
        seed: of the words of each class.
    """
    *ordinary, question = words
    order = torch.tensor(ordinary)[torch.randperm(len(ordinary), generator=generator_of("topics", count, seed))]
    own = order[: len(order) // count * count].view(count, -1)

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(labels), length - 1)
        mine = torch.gather(own[labels], 1, torch.randint(own.shape[1], shape, generator=generator))
        other = order[torch.randint(len(order), shape, generator=generator)]
        text = torch.where(torch.rand(shape, generator=generator) < TRUTH, mine, other)
        return torch.cat([text, torch.full((len(labels), 1), question)], 1)

    return draw


def logits_of(count: int) -> Callable[[Any], Tensor]:
    """Return a function from the output of a classifier to its first tensor (batch, count)."""

    def read(output: Any) -> Tensor:
        from idfx.capture.nested import tensors_in

        found = next((one for one in tensors_in(output) if one.dim() == 2 and one.shape[1] == count), None)
        if found is None:
            shapes = [tuple(one.shape) for one in tensors_in(output)]
            raise RuntimeError(f"no output has {count} classes: {shapes}")
        return found

    return read


def denoising(shape: Sequence[int], batch: int, seed: int) -> Problem:
    """Return the problem of taking noise of variance 1 away from mixtures of eight patterns of variance 1."""
    known = patterns(shape, 8, seed) / math.sqrt(8)

    def draw(generator: torch.Generator) -> Batch:
        clean = torch.einsum("bk,k...->b...", torch.randn(batch, 8, generator=generator), known)
        return clean + torch.randn(clean.shape, generator=generator), clean

    return Problem(draw, lambda model, given: functional.mse_loss(model(given[0]), given[1]), 1.0)


def diffusion(shape: Sequence[int], batch: int, seed: int) -> Problem:
    """Return the problem of a diffusion model: the noise in a noisy mixture of patterns, at a known time."""
    known = patterns(shape, 8, seed) / math.sqrt(8)

    def draw(generator: torch.Generator) -> Batch:
        clean = torch.einsum("bk,k...->b...", torch.randn(batch, 8, generator=generator), known)
        time = torch.rand(batch, generator=generator)
        angle = (time * math.pi / 2).view(-1, *[1] * len(shape))
        noise = torch.randn(clean.shape, generator=generator)
        return angle.cos() * clean + angle.sin() * noise, time, noise

    return Problem(draw, lambda model, given: functional.mse_loss(model(given[0], given[1]), given[2]), 1.0)


def fitting(function: Callable[[Tensor], Tensor], inputs: int, batch: int) -> Problem:
    """Return the problem of fitting a function of points in [−1, 1]; the error is in units of its variance.

    Args:
        function: from points (batch, inputs) to values (batch, outputs).
        inputs: coordinates of a point.
        batch: points in a batch.
    """
    sample = function(2 * torch.rand(4096, inputs, generator=generator_of("fitting")) - 1)
    mean, variance = sample.mean(0), sample.var(0).mean()

    def draw(generator: torch.Generator) -> Batch:
        points = 2 * torch.rand(batch, inputs, generator=generator) - 1
        return points, (function(points) - mean) / variance.sqrt()

    return Problem(draw, lambda model, given: functional.mse_loss(model(given[0]), given[1]), 1.0)


def ring(count: int, generator: torch.Generator, radius: float = 1.0) -> Tensor:
    """Return points (count, 2) on a circle, with a twentieth of its radius as noise."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return radius * (circle + 0.05 * torch.randn(count, 2, generator=generator))
