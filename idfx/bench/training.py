"""One run: a model, a scheme, a learning rate and a seed; trained, and measured after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.data import Data, Samples, generator_of, split
from idfx.bench.models import entries
from idfx.bench.starts import begin
from idfx.bench.suites import Settings
from idfx.bench.watching import Watch

MEASURED = 512  # samples at a time
OnEpoch = Callable[[int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """The key of a run within a study."""

    model: str
    scheme: str
    lr: float
    weight_decay: float
    seed: int


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (..., classes) with class numbers; targets of -100 do not count."""
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index=-100)


@torch.no_grad()
def measure(model: nn.Module, samples: Samples, device: torch.device) -> tuple[float, float]:
    """Return the mean loss and the accuracy over samples in evaluation mode."""
    model.eval()
    loss = right = count = 0.0
    for numbers in torch.split(torch.arange(len(samples)), MEASURED):
        x, y = (tensor.to(device) for tensor in samples.take(numbers, None))
        logits = model(x)
        asked = int((y != -100).sum())
        loss += float(loss_of(logits, y)) * asked
        right += int((logits.argmax(-1) == y).sum())
        count += asked
    return loss / count, right / count


def order_of(count: int, batch: int, seed: int, epoch: int) -> list[Tensor]:
    """Return the batches of an epoch as sample numbers, which depend only on the arguments; a remainder is dropped."""
    order = torch.randperm(count, generator=generator_of("order", seed, epoch))
    size = min(batch, count)
    return list(torch.split(order[: count // size * size], size))


def optimiser_of(
    model: nn.Module, kind: str, lr: float, weight_decay: float = 0.0, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Return the optimiser of a run, "sgd", "adam" or "adamw"; only weights with two or more axes decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learned if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learned if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=momentum > 0)
    return (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)(groups, lr)


def update(model: nn.Module, loss: Tensor, optimiser: torch.optim.Optimizer, clip: float = 0.0) -> None:
    """Do one step against the gradient of a loss, whose norm is at most `clip`, 0 for no limit."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()


def schedule(step: int, steps: int, warm: int) -> float:
    """Return the factor of the learning rate: it rises over `warm` steps, then follows half a cosine down to 0.

    Example:
        >>> [round(schedule(step, 6, 2), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    settings: Settings, data: Data, run: Run, device: torch.device, watch: bool = False, on_epoch: OnEpoch | None = None
) -> dict[str, Any]:
    """Return the record of a run: loss and accuracy after every epoch, for training, validation and testing.

    A run whose loss is not finite stops and is marked as diverged.

    Args:
        settings: of the model.
        data: from its loader.
        run: scheme, learning rate, weight decay and seed.
        device: to train on.
        watch: also record gradients, dead units and ranks (see `watching`).
        on_epoch: receives the number of each finished epoch, and its measurements.
    """
    started = time.perf_counter()
    seen, held = split(data, run.seed, settings.validation)
    with torch.random.fork_rng():
        example, _ = seen.take(torch.arange(2), None)
        model, record = begin(settings.build, data.task, example, run.scheme, run.seed)
        torch.manual_seed(run.seed + 1_000_000)  # dropout: the same numbers, whatever the scheme has drawn
        model.to(device)
        curves, diverged = _epochs(model, settings, (seen, held, data.test), run, device, watch, on_epoch, record)
    return {
        **record,
        "epochs": settings.epochs,
        "parameters": entries(model),
        **curves,
        "diverged": diverged,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _epochs(
    model: nn.Module, settings: Settings, parts: tuple[Samples, Samples, Samples], run: Run, device: torch.device,
    watch: bool, on_epoch: OnEpoch | None, record: dict[str, Any],
) -> tuple[dict[str, list[float]], bool]:  # fmt: skip
    """Train; return the curves, and whether the run diverged."""
    seen, held, test = parts
    optimiser = optimiser_of(model, settings.optimiser, run.lr, run.weight_decay, settings.momentum)
    per_epoch = len(order_of(len(seen), settings.batch, 0, 0))
    steps, warm = settings.epochs * per_epoch, round(settings.warmup * per_epoch)
    follow = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, steps, warm))
    names = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    curves: dict[str, list[float]] = {name: [] for name in names}
    watched = Watch(seen, device) if watch else None
    if watched is not None:
        record["watch"] = [watched.look(model, ranks=True)]
        record["isometry"] = [watched.isometry(model)]
    for epoch in range(settings.epochs):
        loss = _epoch(model, settings, seen, run.seed, epoch, device, optimiser, follow)
        if not math.isfinite(loss):
            return curves, True
        values = (loss, *measure(model, held, device), *measure(model, test, device))
        if not all(map(math.isfinite, values)):
            return curves, True
        for name, value in zip(names, values, strict=True):
            curves[name].append(round(value, 6))
        if watched is not None:
            record["watch"].append(watched.look(model, ranks=epoch + 1 == settings.epochs))
        if on_epoch is not None:
            on_epoch(epoch + 1, {name: values[-1] for name, values in curves.items()})
    if watched is not None:
        record["isometry"].append(watched.isometry(model))
    return curves, False


def _epoch(
    model: nn.Module, settings: Settings, seen: Samples, seed: int, epoch: int, device: torch.device,
    optimiser: torch.optim.Optimizer, follow: torch.optim.lr_scheduler.LRScheduler,
) -> float:  # fmt: skip
    """Train for one epoch and return the mean loss."""
    model.train()
    total, batches = torch.zeros((), device=device), order_of(len(seen), settings.batch, seed, epoch)
    augmenting = generator_of("augment", seed, epoch)
    for numbers in batches:
        x, y = (tensor.to(device) for tensor in seen.take(numbers, augmenting))
        loss = loss_of(model(x), y)
        update(model, loss, optimiser, settings.clip)
        follow.step()
        total += loss.detach()
    return float(total) / len(batches)
