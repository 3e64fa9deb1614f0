"""Question 4: which rank does the change of a middle weight have, after tall weights padded in different ways?

A perceptron 64 → 256 → 256 → 256 → 10 with ReLU on scikit-learn's digits, the middle weights identities, the head
random. The first weight has four times as many outputs as inputs: padded with zeros, [I; 0; 0; 0], its later units are
0 and stay so; padded with identities, [I; I; I; I], they are replicas; loosened, or orthogonal, they are not. The rank
of a weight less its start is the number of its singular values above a share of the largest one.

    python docs/evidence/rank.py
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.data import load_data, split
from idfx.bench.training import order_of
from idfx.fills import fill_

EPOCHS, SEEDS, WIDTH, RATE, SHARE = 30, 5, 256, 0.03, 1e-3


def start(kind: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
                          nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))  # fmt: skip
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    first, middle = model[1].weight, (model[3].weight, model[5].weight)
    for weight in middle:
        nn.init.eye_(weight)
    if kind == "zeros":
        nn.init.eye_(first)
    elif kind == "orthogonal":
        nn.init.orthogonal_(first, 2**0.5)
    elif kind == "random throughout":
        for weight in (first, *middle):
            nn.init.kaiming_normal_(weight)
    else:
        noise = {"identities": 0.0, "identities, loosened 1e-6": 1e-6, "identities, loosened 1e-2": 1e-2}[kind]
        fill_(first, "idi", {"loosen": "diagonal", "eps_tau": noise}, parameter="first", seed=seed)
    return model


KINDS = (
    "zeros",
    "identities",
    "identities, loosened 1e-6",
    "identities, loosened 1e-2",
    "orthogonal",
    "random throughout",
)


def rank(change: Tensor) -> int:
    values = torch.linalg.svdvals(change.double())
    return int((values > SHARE * values[0]).sum())


def run(kind: str, seed: int) -> tuple[list[int], float]:
    """Return the rank of the change of the second middle weight after each epoch, and the test accuracy."""
    data = load_data("digits")
    seen, _ = split(data, seed, 0.15)
    model = start(kind, seed)
    before = model[5].weight.detach().clone()
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    found = []
    for epoch in range(EPOCHS):
        for numbers in order_of(len(seen), 64, seed, epoch):
            x, y = seen.take(numbers, None)
            optimiser.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        found.append(rank(model[5].weight.detach() - before))
    x, y = data.test.take(torch.arange(len(data.test)), None)
    return found, float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    picture = parser.parse_args().picture
    print(
        f"width {WIDTH}, {EPOCHS} epochs, SGD {RATE} with momentum 0.9, {SEEDS} seeds; "
        f"rank at {SHARE:g} of the largest\n"
    )
    print("| first weight | rank after 1 epoch | after 5 | at the end | test accuracy |\n|---|---|---|---|---|")
    curves = {}
    for kind in KINDS:
        ranks, accuracies = zip(*(run(kind, seed) for seed in range(SEEDS)), strict=True)
        curves[kind] = [sorted(column) for column in zip(*ranks, strict=True)]
        at = [
            f"{column[len(column) // 2]} ({column[0]} to {column[-1]})"
            for column in (curves[kind][e] for e in (0, 4, -1))
        ]
        spread = f"{statistics.fmean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f}"
        print(f"| {kind} | {' | '.join(at)} | {spread} |", flush=True)
    if picture is not None:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot

        figure, axis = pyplot.subplots(figsize=(6, 4.2))
        for number, (kind, columns) in enumerate(curves.items()):
            epochs = range(1, EPOCHS + 1)
            axis.plot(epochs, [column[len(column) // 2] for column in columns], color=f"C{number}", label=kind)
            axis.fill_between(epochs, [c[0] for c in columns], [c[-1] for c in columns], color=f"C{number}", alpha=0.12)
        axis.axhline(64, color="grey", linewidth=0.7, linestyle=":")
        axis.set(xlabel="epoch", ylabel="rank", title=f"rank of the change of a {WIDTH} × {WIDTH} weight")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
        figure.savefig(picture, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
