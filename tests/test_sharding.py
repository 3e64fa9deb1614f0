"""Models on several processes: what is written, certified, saved and refused is that of one process.

The checks are in `sharded.py`; each test runs some of them on 1, 2 or 4 processes over gloo.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sharded
import torch
from torch import nn
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

import idfx
from idfx.sharding.bare import bare, gathered
from idfx.sharding.layout import shard_order

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "docs/examples/sharded_fsdp2.py"
SHORT = {
    1: [name for name in sharded.CHECKS if name != "two_schemes"],
    2: ["two_schemes", "refusals_change_nothing", "spoilt_row_fails_everywhere", "random_placements"],
    4: ["two_schemes", "certificates", "random_placements"],
}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_several_processes_do_what_one_does(world: int) -> None:
    failed = {name: texts for name, texts in sharded.launch(world, SHORT[world], whole=False).items() if texts}
    assert not failed, "\n".join(text for texts in failed.values() for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("check", sharded.CHECKS)
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_do_what_one_does_on_every_mesh(world: int, check: str) -> None:
    (texts,) = sharded.launch(world, [check]).values()
    assert not texts, texts[0]


def test_fsdp_cuts_what_tensor_parallelism_has_cut() -> None:
    """The order that torch's documentation of a strided shard gives: the mesh axis of the factor comes first."""
    strided = [_StridedShard(0, split_factor=2), Shard(0)]
    assert shard_order([0, 1], strided, [2, 2]) == [(1, 1), (0, 1)]
    assert shard_order([0, 1], [Shard(0), Shard(0)], [2, 2]) == [(0, 1), (1, 1)]
    assert shard_order([0], [_StridedShard(0, split_factor=3)], [2]) == [(0, 3)]  # nothing to its right: as written


def test_plain_models_are_their_own() -> None:
    model = nn.Linear(2, 2)
    assert bare(model) is model and gathered(model) is model


def test_parameters_out_of_sight_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0  # what DeepSpeed leaves on a parameter that it has taken away
    with pytest.raises(idfx.IdfxError, match="ZeRO-3"):
        idfx.init_(model, (torch.ones(1, 2),))


def test_the_example_writes_the_same_weights_on_one_and_on_two_processes() -> None:
    printed = []
    for count in ("1", "2"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, EXAMPLE]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    (weights, blocks, loss), other = printed
    assert weights.startswith("weights: ") and other[0] == weights
    assert blocks == other[1] == "4 of 4 blocks start as their shortcut"
    first, last = map(float, re.findall(r"\d+\.\d+", loss))
    assert last < 0.5 * first


LLAMA = """
import sys, torch, torch.distributed as dist
import idfx
from transformers import LlamaForCausalLM

dist.init_process_group("gloo")
model = LlamaForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto")
alone = LlamaForCausalLM.from_pretrained(sys.argv[1])
ids = torch.arange(8)[None]
sharded = model.model.layers[0].mlp.up_proj.weight.to_local().shape[0]
found, wanted = idfx.init_(model, (ids,)), idfx.init_(alone, (ids,))
states = zip(model.state_dict().values(), alone.state_dict().values(), strict=True)
same = [torch.equal(own.full_tensor() if hasattr(own, "full_tensor") else own, other) for own, other in states]
near = torch.allclose(model(ids).logits, alone(ids).logits, atol=1e-5)
if dist.get_rank() == 0:
    print(sharded, found.certificate.certified, found.plan == wanted.plan, all(same), near)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_tensor_parallelism_of_transformers(tmp_path: Path) -> None:
    """Half of the 64 rows on each process, both blocks of both layers closed, and the weights of one process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=64)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "run.py").write_text(LLAMA, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(tmp_path / "run.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-5:] == ["32", "4", "True", "True", "True"]


def test_import_idfx_loads_no_distributed_tensors() -> None:
    program = "import sys, idfx; print('torch.distributed.tensor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
