"""What the processes of `test_sharding.py` run: models under every scheme of sharding, compared with one process."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
import socket
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import idfx

Check = Callable[[], None]


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(self.norm(x))))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, 5)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Sizes that no mesh divides evenly: 10 wide, 14 and 6 inner, 11 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 10)
        self.blocks = nn.ModuleList([Block(10, 14), Attention(10), Block(10, 6)])
        self.norm, self.head = nn.LayerNorm(10), nn.Linear(10, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


TOKENS = (torch.arange(12).reshape(2, 6) % 11,)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def digest(model: nn.Module) -> str:
    """The hash of a state dict, with the whole of each DTensor."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        found.update(name.encode() + full.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def held(model: nn.Module) -> list[bytes]:
    """What this process holds, byte by byte."""
    state = model.state_dict().values()
    own = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in state)
    return [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in own]


def mesh(*sizes: int, names: tuple[str, ...] = ()) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", sizes, mesh_dim_names=names or None)


def fsdp(model: nn.Module, on: Any, **options: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block, mesh=on, **options)
    fully_shard(model, mesh=on, **options)
    return model


def tensor_parallel(model: nn.Module, on: Any) -> nn.Module:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {f"blocks.{number}.a": ColwiseParallel() for number in (0, 2)}
    plan |= {f"blocks.{number}.b": RowwiseParallel() for number in (0, 2)}
    plan |= {f"blocks.1.{name}": ColwiseParallel() for name in "qkv"} | {"blocks.1.out": RowwiseParallel()}
    plan |= {"embed": RowwiseParallel(input_layouts=Replicate()), "head": ColwiseParallel(output_layouts=Replicate())}
    return parallelize_module(model, on, plan)


def by_columns(parameter: nn.Parameter) -> Any:
    """Shard(1) where FSDP2 allows it: on sizes that the mesh divides."""
    from torch.distributed.tensor import Shard

    even = parameter.dim() > 1 and parameter.shape[1] % dist.get_world_size() == 0
    return Shard(1) if even else Shard(0)


everywhere = True  # or on one mesh alone


def meshes(world: int) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Every way to shard a model that this number of processes allows."""
    found: dict[str, Callable[[nn.Module], nn.Module]] = {"fsdp": lambda model: fsdp(model, mesh(world))}
    if world == 2:
        found["columns"] = lambda model: fsdp(model, mesh(world), shard_placement_fn=by_columns)
        found["tp"] = lambda model: tensor_parallel(model, mesh(world))
    if world == 4:
        found["hsdp"] = lambda model: fsdp(model, mesh(2, 2, names=("replicate", "shard")))
        found["fsdp x tp"] = _both
    return found if everywhere else dict([[*found.items()][-1]])


def _both(model: nn.Module) -> nn.Module:
    both = mesh(2, 2, names=("dp", "tp"))
    return fsdp(tensor_parallel(model, both["tp"]), both["dp"])


def schemes() -> list[str]:
    from idfx.schemes.scheme import SCHEMES

    return [*SCHEMES]


def step(model: nn.Module) -> float:
    """One step of training; the loss before it."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    loss = nn.functional.cross_entropy(model(*TOKENS).flatten(0, 1), TOKENS[0].flatten())
    loss.backward()
    optimiser.step()
    return float(loss.detach())


def run(rank: int, world: int, port: int, folder: str, names: list[str], whole: bool) -> None:
    """Run checks of this module as one of several processes; each writes its failures to a file."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    globals()["everywhere"] = whole
    dist.init_process_group("gloo")
    for name in names:
        try:
            globals()[name]()
            told = ""
        except Exception:
            told = traceback.format_exc()
        Path(folder, f"{name}-{rank}").write_text(told, encoding="utf-8")
        dist.barrier()
    dist.destroy_process_group()


def launch(world: int, names: list[str], whole: bool = True) -> dict[str, list[str]]:
    """Run checks on several processes, on every mesh or on one; return what each process failed with, by check."""
    from torch.multiprocessing.spawn import start_processes

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        set_forkserver_preload([__name__, "idfx.api", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"])
        start_processes(run, (world, port, folder, names, whole), nprocs=world, start_method="forkserver")
        return {
            name: [text for rank in range(world) if (text := Path(folder, f"{name}-{rank}").read_text("utf-8"))]
            for name in names
        }


def _equal_plans(shard: Callable[[nn.Module], nn.Module], scheme: str) -> None:
    alone, sharded = net(), shard(net())
    before = held(sharded)
    wanted = idfx.init_(alone, TOKENS, scheme=scheme, certify=False)
    if wanted.plan.scalars:
        _refused(lambda: idfx.init_(sharded, TOKENS, scheme=scheme), "scalars")
        assert held(sharded) == before, scheme
        return
    found = idfx.init_(sharded, TOKENS, scheme=scheme, certify=False)
    assert found.plan == wanted.plan, scheme
    assert digest(sharded) == digest(alone), scheme


def every_scheme() -> None:
    for shard in meshes(dist.get_world_size()).values():
        for scheme in schemes():
            _equal_plans(shard, scheme)


def two_schemes() -> None:
    for shard in meshes(dist.get_world_size()).values():
        for scheme in ("idinit", "orthogonal"):
            _equal_plans(shard, scheme)


def _refused(act: Callable[[], object], *words: str) -> None:
    try:
        act()
    except idfx.IdfxError as error:
        assert all(word in str(error) for word in words), str(error)
    else:
        raise AssertionError(f"not refused: {words}")


def _last() -> bool:
    return dist.get_rank() == dist.get_world_size() - 1


def certificates() -> None:
    alone = net()
    wanted = idfx.init_(alone, TOKENS)
    assert wanted.certificate.certified == 3
    for how, shard in meshes(dist.get_world_size()).items():
        sharded = shard(net())
        found = idfx.init_(sharded, TOKENS)
        assert found.certificate == wanted.certificate, (how, found.certificate, wanted.certificate)
        assert idfx.certify(sharded, found.structure) == idfx.certify(alone, wanted.structure), how


def training_goes_on() -> None:
    """A step before, another after; a forward before; and what the step gives is what it gives without idfx."""
    for how, shard in meshes(dist.get_world_size()).items():
        for steps in (0, 2):
            alone, sharded = net(), shard(net())
            for model in (alone, sharded):
                for _ in range(steps):
                    step(model)
                with torch.no_grad():
                    model(*TOKENS)
            with torch.no_grad():  # steps on several processes round differently
                for own, other in zip(sharded.state_dict().values(), alone.state_dict().values(), strict=True):
                    other.copy_(own.full_tensor() if hasattr(own, "full_tensor") else own)
            kinds = [type(module) for module in sharded.modules()]
            idfx.init_(sharded, TOKENS)
            idfx.init_(alone, TOKENS)
            assert [type(module) for module in sharded.modules()] == kinds
            assert digest(sharded) == digest(alone), (how, steps)
            for _ in range(2):
                one, other = step(sharded), step(alone)
                assert abs(one - other) < 1e-4, (how, steps, one, other)


def refusals_change_nothing() -> None:
    """Whatever is refused, on all processes or on one, every process raises and holds what it held."""
    *_, shard = meshes(dist.get_world_size()).values()
    model = shard(net())
    before = held(model)
    structure = idfx.analyze(model, TOKENS)
    made = idfx.plan(structure)
    decision = made.decisions["blocks.0.b.weight"]
    wrong = replace(decision, arguments={"eps": "much"})
    wrong = replace(made, decisions={**made.decisions, "blocks.0.b.weight": wrong})
    _refused(lambda: idfx.apply_(model, wrong), "blocks.0.b.weight")
    _refused(lambda: idfx.init_(model, TOKENS, plan=wrong), "blocks.0.b.weight")
    _refused(lambda: idfx.init_(model, TOKENS, keep=["nothing.*"]), "nothing.*")
    if dist.get_world_size() > 1:
        _refused(lambda: idfx.init_(model, TOKENS, keep=["nothing.*"] if _last() else []), "nothing.*")
        _refused(lambda: idfx.init_(model, TOKENS, seed=dist.get_rank()), "differs between processes")
        _refused(lambda: idfx.init_(model, TOKENS, plan=wrong if _last() else made), "blocks.0.b.weight")
    assert held(model) == before
    idfx.init_(model, TOKENS, plan=made)
    assert held(model) != before


def partial_sums_are_refused() -> None:
    from torch.distributed.tensor import DTensor, Partial

    model = net()
    on = mesh(dist.get_world_size())
    model.head.weight = nn.Parameter(DTensor.from_local(model.head.weight.detach(), on, [Partial()]))
    before = held(model)
    _refused(lambda: idfx.init_(model, TOKENS, certify=False), "head.weight", "Partial")
    assert held(model) == before


def flat_parameters_are_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    before = held(model.module)
    _refused(lambda: idfx.init_(model, TOKENS), "FSDP1", "fully_shard")
    assert held(model.module) == before


def spoilt_row_fails_everywhere() -> None:
    """One row of an end, on one process."""
    for how, shard in meshes(dist.get_world_size()).items():
        model = shard(net())
        report = idfx.init_(model, TOKENS)
        assert report.certificate is not None and report.certificate.passed
        own = model.blocks[0].b.weight.to_local()
        if dist.get_rank() == 0:
            with torch.no_grad():
                own[0] = 1.0
        if how == "hsdp":  # the other replica holds another row
            _refused(lambda model=model, report=report: idfx.certify(model, report.structure), "blocks.0.b.weight")
            continue
        found = idfx.certify(model, report.structure)
        assert not found.passed and "blocks.0" in found.failures[0], (how, found.failures)


def differences_end_on_all() -> None:
    """Inputs that raise on one process, a bias that is no DTensor and differs: an error on all, no waiting."""
    if dist.get_world_size() == 1:
        return
    model = tensor_parallel(net(), mesh(2)) if dist.get_world_size() == 2 else fsdp(net(), mesh(4))
    before = held(model)
    _refused(lambda: idfx.init_(model, torch.ones(2, 6) if _last() else TOKENS))
    assert held(model) == before
    if dist.get_world_size() == 2:
        with torch.no_grad():
            model.blocks[0].norm.bias += 5 * dist.get_rank()
        _refused(lambda: idfx.init_(model, TOKENS), "differ")


def saved_files_are_those_of_one_process() -> None:
    alone = net()
    report = idfx.init_(alone, TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        folder = [folder]
        dist.broadcast_object_list(folder)
        wanted = Path(folder[0], f"alone-{dist.get_rank()}.safetensors")
        idfx.save(alone, wanted, plan=report.plan)
        for how, shard in meshes(dist.get_world_size()).items():
            model, path = shard(net()), Path(folder[0], f"{how}.safetensors")
            saved = idfx.save(model, path, plan=idfx.init_(model, TOKENS).plan)
            assert (saved.bytes, saved.tensors) == (wanted.stat().st_size, len(model.state_dict()))
            assert path.read_bytes() == wanted.read_bytes(), how
            _refused(lambda model=model: idfx.save(model, Path(folder[0], "all.pt")), "sharded")
            _refused(lambda model=model: idfx.save(model, Path(folder[0], "none", "x.safetensors")), "none")
            assert not Path(folder[0], "all.pt").exists()
        dist.barrier()


def built_on_meta() -> None:
    """Built on meta, sharded, given memory, initialised: one process with values of its own gets the same."""
    options = {"overwrite_deliberate": True, "set": {"embed.weight": "normal(std=0.02)"}}
    alone = net()
    wanted = idfx.init_(alone, TOKENS, **options)
    for how, shard in meshes(dist.get_world_size()).items():
        with torch.device("meta"):
            model = Net()
        model = shard(model)
        _refused(lambda model=model: idfx.init_(model, TOKENS, **options), "meta", "to_empty")
        made = idfx.plan(idfx.analyze(model, TOKENS), **options)
        assert made == wanted.plan, how
        model.to_empty(device="cpu")
        assert idfx.init_(model, TOKENS, plan=made).certificate.passed, how
        assert digest(model) == digest(alone), how
        assert abs(step(model) - step(copy.deepcopy(alone))) < 1e-4


def checkpoints_load() -> None:
    source = {name: tensor for name, tensor in net(1).state_dict().items() if not name.startswith("blocks.2")}
    alone = net()
    wanted = idfx.init_(alone, TOKENS, checkpoint=source)
    for how, shard in meshes(dist.get_world_size()).items():
        model = shard(net())
        assert idfx.init_(model, TOKENS, checkpoint=source).certificate == wanted.certificate, how
        assert digest(model) == digest(alone), how


def audits_are_those_of_one_process() -> None:
    alone = net()
    wanted = idfx.audit(alone, TOKENS)
    for how, shard in meshes(dist.get_world_size()).items():
        model = shard(net())
        before = held(model)
        found = idfx.audit(model, TOKENS)
        assert found.findings == wanted.findings, how
        assert held(model) == before


def checkpointed_activations() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    alone, model = net(), net()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    model = fsdp(model, mesh(dist.get_world_size()))
    assert idfx.init_(model, TOKENS).certificate == idfx.init_(alone, TOKENS).certificate
    assert digest(model) == digest(alone)
    assert abs(step(model) - step(alone)) < 1e-4


def random_placements() -> None:
    """What torch distributes of 0, 1, 2, ... tells where each entry of a shard belongs."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    from idfx.fills import fill_

    world, drawn = dist.get_world_size(), random.Random(0)
    on = [mesh(world), *([mesh(2, 2, names=("a", "b"))] if world == 4 else [])]
    fills = [("normal", {}), ("idic", {"loosen": "dense"}), ("orthogonal", {}), ("hadamard", {}),
             ("constant", {"value": 0.5}), ("idizc", {})]  # fmt: skip
    equal = 0
    for _ in range(150):
        shape = [drawn.randint(1, 9) for _ in range(drawn.choice((2, 2, 3)))]
        own, (fill, arguments) = drawn.choice(on), drawn.choice(fills)
        axis = [drawn.randrange(len(shape)) for _ in range(own.ndim)]
        placed = [
            drawn.choice([Shard(at), Shard(at), Replicate(), _StridedShard(at, split_factor=drawn.randint(2, 3))])
            for at in axis
        ]
        numbers = torch.arange(math.prod(shape)).reshape(shape)
        try:
            here = distribute_tensor(numbers, own, placed, src_data_rank=None).to_local()
            target = distribute_tensor(torch.zeros(shape), own, placed, src_data_rank=None)
        except (AssertionError, RuntimeError, ValueError, IndexError):  # torch itself cannot
            continue
        whole = fill_(torch.empty(shape), fill, arguments, parameter="w", seed=1)
        try:
            fill_(target, fill, arguments, parameter="w", seed=1)
        except idfx.IdfxError:
            assert not target.to_local().any()
            continue
        assert torch.equal(target.to_local(), whole.flatten()[here.flatten()].reshape(here.shape)), (shape, placed)
        equal += 1
    assert equal > 75, equal


CHECKS = (
    "every_scheme",
    "two_schemes",
    "certificates",
    "training_goes_on",
    "refusals_change_nothing",
    "partial_sums_are_refused",
    "flat_parameters_are_refused",
    "spoilt_row_fails_everywhere",
    "differences_end_on_all",
    "saved_files_are_those_of_one_process",
    "built_on_meta",
    "checkpoints_load",
    "audits_are_those_of_one_process",
    "checkpointed_activations",
    "random_placements",
)


if __name__ == "__main__":
    import sys

    for name, texts in launch(int(sys.argv[1]), sys.argv[2:] or list(CHECKS)).items():
        print(name, "ok" if not texts else texts[0])
