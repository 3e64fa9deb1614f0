"""Build on the meta device, shard with FSDP2, initialise shard by shard, train; run it with torchrun.

torchrun --nproc-per-node 2 docs/examples/sharded_fsdp2.py
"""

import hashlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import idfx


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(self.norm(x))))


class Model(nn.Module):
    def __init__(self, width: int = 32, tokens: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(tokens)))


def digest(model: nn.Module) -> str:
    """The hash of all weights, gathered one by one."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.full_tensor().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def main(steps: int = 40) -> None:
    gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpu else "gloo")
    if gpu:
        torch.cuda.set_device(dist.get_rank() % torch.cuda.device_count())
    with torch.device("meta"):
        model = Model()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)

    device = torch.device("cuda" if gpu else "cpu")
    generator = torch.Generator().manual_seed(dist.get_rank())
    tokens = torch.randint(64, (8, 16), generator=generator).to(device)
    # idinit keeps embeddings as their author drew them, and on the meta device nobody has.
    plan = idfx.plan(idfx.analyze(model, tokens), set={"embed.weight": "normal(std=1.0)"})
    model.to_empty(device=device)
    report = idfx.init_(model, tokens, plan=plan)
    weights = digest(model)

    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach().item())
    if dist.get_rank() == 0:
        print(f"weights: {weights}")
        print(f"{report.certificate.certified} of {len(report.structure.joins)} blocks start as their shortcut")
        print(f"loss {losses[0]:.2f}, after {steps} steps {losses[-1]:.2f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
