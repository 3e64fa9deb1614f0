"""Which kernel order trains best: the same residual convnet on scikit-learn's digits, three orders.

    python docs/measurements/conv_order.py --depth 20 --seeds 3

Prints one JSON line per run (model, order, learning rate, seed, test accuracy after each epoch) and a summary
with, per order, the best learning rate's final accuracy and the epochs to 90%.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from sklearn.datasets import load_digits
from torch import nn

import idfx


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, with or without BatchNorm."""

    def __init__(self, c_in: int, c_out: int, norm: bool) -> None:
        super().__init__()
        stride = 1 if c_in == c_out else 2
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=not norm)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(c_out) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(c_out) if norm else nn.Identity()
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.shortcut(x) + self.norm2(self.conv2(y))).relu()


def resnet(depth: int, norm: bool) -> nn.Sequential:
    """A CIFAR-style ResNet of 6n + 2 layers for images of one channel."""
    n = (depth - 2) // 6
    widths = [16] * n + [32] * n + [64] * n
    blocks = [Block(a, b, norm) for a, b in zip([16, *widths[:-1]], widths, strict=True)]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(model: nn.Module, lr: float, seed: int, epochs: int, data: tuple[torch.Tensor, ...]) -> list[float]:
    """Return the test accuracy after each epoch of SGD with momentum and a cosine schedule."""
    x, y, x_test, y_test = data
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    accuracies = []
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x), generator=order)[: len(x) // 64 * 64].view(-1, 64):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            accuracies.append((model(x_test).argmax(1) == y_test).float().mean().item())
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.1, 0.02])
    parser.add_argument("--orders", nargs="+", default=["default", "channel", "tap", "centre"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train_part, test_part = shuffled[:1347], shuffled[1347:]
    data = (images[train_part], labels[train_part], images[test_part], labels[test_part])
    for norm in (False, True):
        for order in arguments.orders:
            results: dict[float, list[list[float]]] = {}
            for lr in arguments.lrs:
                for seed in range(arguments.seeds):
                    torch.manual_seed(seed)
                    model = resnet(arguments.depth, norm)
                    if order != "default":
                        idfx.init_(model, (images[:1],), seed=seed, conv_order=order)
                    curve = train(model, lr, seed, arguments.epochs, data)
                    results.setdefault(lr, []).append(curve)
                    print(json.dumps({"depth": arguments.depth, "norm": norm, "order": order, "lr": lr,
                                      "seed": seed, "accuracy": curve}), flush=True)  # fmt: skip
            best = max(results, key=lambda lr: statistics.mean(curve[-1] for curve in results[lr]))
            final = [curve[-1] for curve in results[best]]
            soon = [next((i + 1 for i, a in enumerate(curve) if a >= 0.9), None) for curve in results[best]]
            spread = statistics.stdev(final) if len(final) > 1 else 0.0
            print(
                f"depth {arguments.depth} {'BatchNorm' if norm else 'no norm'} {order}: best lr {best}, "
                f"final {statistics.mean(final):.4f} ± {spread:.4f}, epochs to 90%: {soon}",
                flush=True,
            )


if __name__ == "__main__":
    main()
