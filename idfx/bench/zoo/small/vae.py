"""A variational autoencoder (Kingma and Welling, 2014), convolutional."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.problems import patterns
from idfx.bench.zoo.small import small
from idfx.core.records import Example

LATENT = 8
SHAPE = (3, 16, 16)
PRECISION = 16.0  # of the decoder's normal distribution


class VAE(nn.Module):
    """Returns the decoded images, and mean and logarithm of the variance of the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * width, 2 * LATENT),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 16 * width), nn.ReLU(), nn.Unflatten(1, (width, 4, 4)),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + (variance / 2).exp() * noise), mean, variance


def _loss(model: nn.Module, given: Batch) -> Tensor:
    x, noise = given
    decoded, mean, variance = model(x, noise)
    apart = (mean.square() + variance.exp() - 1 - variance).sum(1) / 2
    wrong = (decoded - x).square().flatten(1)
    total: Tensor = (wrong.mean(1) + apart * 2 / (PRECISION * wrong.shape[1])).mean()
    return total


@small("vae")
def vae(seed: int) -> Learner:
    """A VAE of mixtures of four patterns; its bound in units of the error, 1 for a decoder that knows nothing."""
    known = patterns(SHAPE, 4, seed) / 2

    def draw(generator: torch.Generator) -> Batch:
        x = torch.einsum("bk,k...->b...", torch.randn(32, 4, generator=generator), known)
        return x, torch.randn(32, LATENT, generator=generator)

    example = Example((torch.randn(2, *SHAPE), torch.randn(2, LATENT)))
    return Learner(VAE(24), example, Problem(draw, _loss, 1.0))
