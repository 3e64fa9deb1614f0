"""An actor and a critic on one trunk (Mnih et al., 2016: A2C), in an environment of one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from idfx.bench.data import generator_of
from idfx.bench.zoo import Batch, Learner, Problem
from idfx.bench.zoo.small import small
from idfx.core.records import Example

STATES, ACTIONS = 8, 4


class ActorCritic(nn.Module):
    """Returns the logits of the actions and the value; orthogonal layers, the actor's last one small, as usual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(STATES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.actor, self.critic = nn.Linear(width, ACTIONS), nn.Linear(width, 1)
        for layer, gain in ((self.trunk[0], 2**0.5), (self.trunk[2], 2**0.5), (self.actor, 0.01), (self.critic, 1.0)):
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.actor(x), self.critic(x).squeeze(-1)


@small("actor_critic")
def actor_critic(seed: int) -> Learner:
    """Choosing the best of four actions for a state, from rewards alone; what is reported is the reward missed."""
    best = torch.randn(STATES, ACTIONS, generator=generator_of("rewards", seed))

    def draw(generator: torch.Generator) -> Batch:
        state = torch.randn(512, STATES, generator=generator)
        return state, (state @ best).argmax(1), torch.rand(512, 1, generator=generator)

    def loss(model: nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
        state, right, uniform = given
        logits, value = model(state)
        logs = functional.log_softmax(logits, 1)
        action = (logs.exp().cumsum(1) < uniform).sum(1).clamp(max=ACTIONS - 1)
        reward = (action == right).float()
        advantage = reward - value
        entropy = -(logs.exp() * logs).sum(1)
        policy = -advantage.detach() * logs.gather(1, action.unsqueeze(1)).squeeze(1)
        return (policy + advantage.square() / 2 - 0.01 * entropy).mean(), 1 - reward.mean()

    return Learner(ActorCritic(64), Example((torch.randn(2, STATES),)), Problem(draw, loss, 1 - 1 / ACTIONS))
