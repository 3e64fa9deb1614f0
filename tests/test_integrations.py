"""One line for other libraries: the callbacks initialise once, before training, and never what was loaded."""

from __future__ import annotations

import lightning as L
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import idfx
from idfx.core.errors import UsageError
from idfx.integrations.lightning import Initialise as LightningInitialise
from idfx.integrations.transformers import Initialise as TrainerInitialise


class Residual(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)
        self.example_input_array = torch.randn(1, 8)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.b(torch.relu(self.a(x))))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        self.seen.append(self.b.weight.detach().clone())
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Late(Residual):
    def configure_model(self) -> None:
        self.extra = nn.Linear(2, 2)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 8)


def trainer(callback: L.Callback, steps: int = 3, **options) -> L.Trainer:
    return L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callback], **{"enable_checkpointing": False, **options},
    )  # fmt: skip


def test_lightning_starts_from_what_init_writes_and_trains():
    torch.manual_seed(0)
    model, same = Residual(), Residual()
    same.load_state_dict(model.state_dict())
    expected = idfx.init_(same, seed=3).plan
    callback = LightningInitialise(seed=3)
    trainer(callback).fit(model, data())
    assert callback.report is not None and callback.report.plan == expected and callback.report.certificate.passed
    assert torch.equal(model.seen[0], same.b.weight) and not torch.equal(model.seen[0], model.seen[1])


def test_lightning_loads_a_checkpoint_after_it(tmp_path):
    first = trainer(LightningInitialise(), default_root_dir=tmp_path)
    model = Residual()
    first.fit(model, data())
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = Residual()
    trainer(LightningInitialise(), steps=4).fit(again, data(), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(again.seen[0], model.b.weight)


def test_lightning_refuses_layers_that_are_made_later():
    with pytest.raises(UsageError, match=r"Late: it makes layers in configure_model, .*Call idfx\.init_\(self\)"):
        trainer(LightningInitialise()).fit(Late(), data())


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )


def rows(count: int = 16) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 50, (count, 12), generator=generator)
    seen = torch.ones(12, dtype=torch.long)
    return [{"input_ids": row, "attention_mask": seen, "labels": int(row[0] > 25)} for row in words]


def train(
    model: nn.Module, folder, callback: TrainerInitialise, steps: int, resume: bool = False, data=None
) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, save_steps=2, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_strategy="no", learning_rate=1e-2,
    )  # fmt: skip
    made = Trainer(model, arguments, train_dataset=rows() if data is None else data, callbacks=[callback])
    made.train(resume_from_checkpoint=resume)
    return made


def test_the_trainer_starts_from_what_init_writes_and_a_resumed_run_keeps_its_weights(tmp_path):
    model, same, callback = bert(), bert(), TrainerInitialise(seed=3)
    sample = {name: torch.as_tensor(value)[None] for name, value in rows()[0].items()}
    expected = idfx.init_(same, example_kwargs=sample, seed=3).plan
    start = {}

    class Keep(TrainerInitialise):
        def on_train_begin(self, args, state, control, **kwargs):
            super().on_train_begin(args, state, control, **kwargs)
            start.update({name: value.clone() for name, value in kwargs["model"].state_dict().items()})

    callback = Keep(seed=3)
    train(model, tmp_path, callback, 2)
    assert callback.report.plan == expected and callback.report.certificate.passed
    assert all(torch.equal(start[name], value) for name, value in same.state_dict().items())
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.equal(trained["classifier.weight"], start["classifier.weight"])
    resumed = Keep(seed=3)
    train(bert(), tmp_path, resumed, 3, resume=True)
    assert resumed.report is None and all(torch.equal(start[name], value) for name, value in trained.items())


def test_the_trainer_asks_for_an_example_where_the_data_has_no_first_sample(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows())

    with pytest.raises(
        UsageError, match=r"no first sample; expected example inputs\. Write Initialise\(example_kwargs"
    ):
        train(bert(), tmp_path, TrainerInitialise(), 1, data=Stream())
    sample = {name: torch.as_tensor(value)[None] for name, value in rows()[0].items()}
    callback = TrainerInitialise(example_kwargs=sample)
    train(bert(), tmp_path, callback, 1, data=Stream())
    assert callback.report.certificate.passed


def test_timms_training_script_reads_the_weights(tmp_path):
    """`--initial-checkpoint FILE` of timm's train.py is this argument of create_model."""
    model = timm.create_model("test_vit")
    idfx.init_(model, torch.randn(1, 3, 160, 160))
    for name in ("weights.safetensors", "weights.pth"):
        idfx.save(model, tmp_path / name)
        again = timm.create_model("test_vit", checkpoint_path=str(tmp_path / name))
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
