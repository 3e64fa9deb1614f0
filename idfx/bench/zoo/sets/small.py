"""Models that no library carries, written small in `idfx/bench/zoo/small`."""

from __future__ import annotations

import torch

from idfx.bench.zoo import Learner, zoo_set
from idfx.bench.zoo.small import SMALL


def names() -> list[str]:
    """Return the models of `idfx/bench/zoo/small`."""
    return list(SMALL)


@zoo_set("small", names)
def learner(name: str, seed: int) -> Learner:
    """Kinds that no library carries: U-Net, DiT, GAN, flow, VAE, GNN, actor-critic, SIREN, KAN, RNN, adapters, ODE."""
    make = SMALL.find(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(seed)
