"""Two residual blocks: one whose branch is gated (squeeze-excite), one with a projection on the shortcut."""

import torch
from torch import nn


class GatedBlock(nn.Module):
    """x + conv2(relu(conv1(x))) · gate, the gate made of two linear layers and a sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze = nn.Linear(width, width // 4)
        self.excite = nn.Linear(width // 4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(torch.relu(self.conv1(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3))))))
        return x + y * gate[:, :, None, None]


class ProjectionBlock(nn.Module):
    """shortcut(x) + conv2(relu(conv1(x))), half the resolution and other channels on both sides."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(width, out, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.conv2(torch.relu(self.conv1(x)))


class Small(nn.Module):
    """A stem, the two blocks, a head for ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.gated = GatedBlock(8)
        self.projected = ProjectionBlock(8, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.gated(x))
        x = torch.relu(self.projected(x))
        return self.head(x.mean((2, 3)))


def example_inputs() -> torch.Tensor:
    """One image of 16 × 16 with three channels."""
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
