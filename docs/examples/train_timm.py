"""A small vision transformer of timm on scikit-learn's digits, initialised by idfx in one line."""

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import idfx


def main(steps: int = 120) -> idfx.Report:
    """Train for some steps of 64 digits each, and return what idfx did."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # 1797 of 1 × 8 × 8, from -1 to 1
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    train, test = order[:1500], order[1500:]

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10,
        embed_dim=64, depth=4, num_heads=4, class_token=False, global_pool="avg",
    )  # fmt: skip
    report = idfx.init_(model, images[:1])

    found = report.certificate
    print(f"{found.certified} of {len(found.checks)} blocks start as their shortcut; worst {found.worst.deviation:.1e}")

    def score() -> tuple[float, float]:
        model.eval()
        with torch.no_grad():
            logits = model(images[test])
        right = logits.argmax(1) == labels[test]
        return cross_entropy(logits, labels[test]).item(), right.float().mean().item()

    print("before: loss {:.3f}, accuracy {:.3f}".format(*score()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        batch = train[torch.randint(len(train), (64,))]
        loss = cross_entropy(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print("after:  loss {:.3f}, accuracy {:.3f}".format(*score()))
    return report


if __name__ == "__main__":
    main()
