"""Question 5: can a deep linear net that starts at the identity learn a map with negative eigenvalues?

The problem of Bartlett, Helmbold and Long, "Gradient descent with identity initialization efficiently learns positive
definite linear transformations by deep residual networks", ICML 2018: layers W_1 … W_L of size d × d, all the identity
at first, are to make W_L ⋯ W_1 = Φ; inputs are white, so that the loss is ½ ‖W_L ⋯ W_1 − Φ‖². Four ways of
descent, four ways to start; targets that are symmetric with so many negative eigenvalues, and a rotation.

    python docs/evidence/linear.py > docs/evidence/linear.txt
"""

from __future__ import annotations

import torch

D, STEPS, SEEDS, BATCH = 8, 3_000, 5, 16
RATES = (0.3, 0.1, 0.03)
STARTS = ("identity", "loosened 1e-6", "loosened 1e-2", "orthogonal")
WAYS = {
    "full batch": (False, 0.0),
    "full batch, momentum": (False, 0.9),
    "mini-batch": (True, 0.0),
    "mini-batch, momentum": (True, 0.9),
}
REACHED = 1e-3  # of the loss at the zero map, ½ ‖Φ‖²
DEPTHS = (2, 3, 6)


def orthogonal(generator: torch.Generator) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=generator))
    return q * r.diagonal().sign()


def target(kind: str, generator: torch.Generator) -> torch.Tensor:
    basis = orthogonal(generator)
    if kind == "rotation":  # by a right angle in every plane: eigenvalues ± i
        turn = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)] * (D // 2))
        return basis @ turn @ basis.T
    values = torch.rand(D, dtype=torch.float64, generator=generator) + 0.5
    values[: int(kind)] *= -1
    return basis @ values.diag() @ basis.T


def begin(start: str, depth: int, generator: torch.Generator) -> torch.Tensor:
    if start == "orthogonal":
        return torch.stack([orthogonal(generator) for _ in range(depth)])
    noise = float(start.split()[-1]) if start != "identity" else 0.0
    layers = torch.eye(D, dtype=torch.float64).repeat(depth, 1, 1)
    return layers + noise * torch.randn(layers.shape, dtype=torch.float64, generator=generator)


def gradients(layers: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """∂ loss / ∂ W_k = (W_L ⋯ W_{k+1})ᵀ E (W_{k−1} ⋯ W_1)ᵀ, with E = ∂ loss / ∂ (W_L ⋯ W_1); many problems at once."""
    problems, depth = layers.shape[:2]
    one = torch.eye(D, dtype=torch.float64).expand(problems, D, D)
    below, above, found = [one], one, [one] * depth
    for k in range(depth - 1):
        below.append(layers[:, k] @ below[-1])
    for k in reversed(range(depth)):
        found[k] = above.mT @ error @ below[k].mT
        above = above @ layers[:, k]
    return torch.stack(found, 1)


def product(layers: torch.Tensor) -> torch.Tensor:
    """W_L ⋯ W_1 of each problem."""
    made = layers[:, 0]
    for k in range(1, layers.shape[1]):
        made = layers[:, k] @ made
    return made


def descend(way: str, kind: str, depth: int) -> dict[str, torch.Tensor]:
    """Return by start the losses at the end over those of the zero map, (rates, seeds); infinite where it diverged."""
    sampled, momentum = WAYS[way]
    generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
    goals = torch.stack([target(kind, generator) for generator in generators])
    layers = torch.stack([begin(start, depth, g) for start in STARTS for g in generators])  # (starts · seeds, L, d, d)
    goals = goals.repeat(len(STARTS), 1, 1)
    rates = torch.tensor(RATES, dtype=torch.float64).repeat_interleave(len(goals)) / depth * (1 - momentum)
    layers, goals, rates = layers.repeat(len(RATES), 1, 1, 1), goals.repeat(len(RATES), 1, 1), rates.view(-1, 1, 1, 1)
    speed, scale = torch.zeros_like(layers), goals.square().sum((1, 2)) / 2
    noise = torch.Generator().manual_seed(10_000)
    for _ in range(STEPS):
        error = product(layers) - goals
        if sampled:
            x = torch.randn(SEEDS, D, BATCH, dtype=torch.float64, generator=noise)  # of a seed the same for all
            x = x.repeat(len(goals) // SEEDS, 1, 1)
            error = error @ x @ x.mT / BATCH
        speed = momentum * speed + gradients(layers, error)
        layers = (layers - rates * speed).clamp(-1e3, 1e3)  # what diverges stays a number
    ends = (product(layers) - goals).square().sum((1, 2)) / 2 / scale
    ends = ends.where(ends.isfinite() & (ends < 100), torch.inf).view(len(RATES), len(STARTS), SEEDS)
    return {start: ends[:, number] for number, start in enumerate(STARTS)}


def main() -> None:
    print(f"d = {D}, {STEPS} steps, {SEEDS} seeds; rates {', '.join(map(str, RATES))} over L, with momentum 0.9")
    print(
        "a tenth of them; of these the one that most seeds succeed at. Loss at the end over that of the zero map: the"
    )
    print(
        f"median, and how many seeds got to {REACHED}. Theory: full-batch descent from the identity keeps Σ λ² over the"
    )
    print("negative eigenvalues, of Σ λ² over all.")
    for kind in ("0", "1", "2", "rotation"):
        print(f"\ntarget: {kind if kind == 'rotation' else 'symmetric, negative eigenvalues: ' + kind}")
        goals = [target(kind, torch.Generator().manual_seed(seed)) for seed in range(SEEDS)]
        if kind != "rotation":
            values = [torch.linalg.eigvalsh(goal) for goal in goals]
            parts = [float(v.clamp(max=0).square().sum() / v.square().sum()) for v in values]
            print("theory, by seed:                            ", *(f"{part:.4f}" for part in parts))
        print("\n| depth | start | " + " | ".join(WAYS) + " |")
        print("|---" * (2 + len(WAYS)) + "|")
        for depth in DEPTHS:
            cells: dict[str, list[str]] = {start: [] for start in STARTS}
            for way in WAYS:
                found = descend(way, kind, depth)
                if (way, depth) == ("full batch", 3):
                    slow = found["identity"][-1]
                for start, ends in found.items():
                    best = min(ends, key=lambda at: (-int((at <= REACHED).sum()), float(at.median())))
                    cells[start].append(f"{float(best.median()):.3f} ({int((best <= REACHED).sum())} of {SEEDS})")
            for start, row in cells.items():
                print(f"| {depth} | {start} | {' | '.join(row)} |", flush=True)
        print(f"\nL = 3, identity, full batch, rate {RATES[-1]} / L:", *(f"{float(end):.4f}" for end in slow))


if __name__ == "__main__":
    main()
