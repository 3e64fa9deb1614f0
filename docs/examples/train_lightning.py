"""A LightningModule on scikit-learn's digits that initialises itself, by its own `example_input_array`."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import idfx


class Block(nn.Module):
    """x + fc2(relu(fc1(norm(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(torch.relu(self.fc1(self.norm(x))))


class Digits(L.LightningModule):
    """A stem, six blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), *(Block(64) for _ in range(6)), nn.Linear(64, 10))
        self.example_input_array = torch.randn(1, 64)
        self.report: idfx.Report | None = None

    def configure_model(self) -> None:
        """The trainer calls this before it loads a checkpoint and makes the optimiser, and once for every run."""
        if self.report is None:
            self.report = idfx.init_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: list[torch.Tensor]) -> None:
        logits = self(batch[0])
        accuracy = (logits.argmax(1) == batch[1]).float().mean()
        self.log_dict({"loss": cross_entropy(logits, batch[1]), "accuracy": accuracy})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(steps: int = 100) -> idfx.Report:
    """Train for some steps of 64 digits each, and return what idfx did."""
    L.seed_everything(0, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target))
    train, test = torch.utils.data.random_split(data, (1500, 297))
    batches, held_out = DataLoader(train, 64, shuffle=True), DataLoader(test, 297)

    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    model = Digits()
    (before,) = trainer.test(model, held_out, verbose=False)
    trainer.fit(model, batches)
    (after,) = trainer.test(model, held_out, verbose=False)

    found = model.report.certificate
    print(f"{found.certified} of {len(found.checks)} blocks start as their shortcut; worst {found.worst.deviation:.1e}")
    print("before: loss {loss:.3f}, accuracy {accuracy:.3f}".format(**before))
    print("after:  loss {loss:.3f}, accuracy {accuracy:.3f}".format(**after))
    return model.report


if __name__ == "__main__":
    main()
