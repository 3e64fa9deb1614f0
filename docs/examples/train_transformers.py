"""A small BERT of transformers that learns which of two words occurs more often, initialised from a plan."""

import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

import idfx

LENGTH = 15  # odd, so that one of the two words always occurs more often


def sentences(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of the words 1 and 2 in any order, and which is in the majority: 0 for the word 1, 1 for the word 2."""
    words = torch.randint(1, 3, (count, LENGTH))
    return words, ((words == 2).sum(1) > LENGTH // 2).long()


def main(steps: int = 60) -> idfx.Report:
    """Train for some steps of 64 sentences each, and return what idfx did."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=3, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)

    example = {"input_ids": sentences(1)[0]}
    structure = idfx.analyze(model, example_kwargs=example)
    plan = idfx.plan(structure, scheme="idinit", tau="gain", seed=1)
    print(len(structure.joins), "residual blocks;", len(plan.decisions), "tensors to write,", len(plan.kept), "to keep")
    print("embeddings are kept:", plan.kept["bert.embeddings.word_embeddings.weight"])
    report = idfx.init_(model, example_kwargs=example, plan=plan)

    found = report.certificate
    print(f"{found.certified} of {len(found.checks)} blocks start as their shortcut; worst {found.worst.deviation:.1e}")

    test, majority = sentences(1000)

    def score() -> tuple[float, float]:
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=test).logits
        return cross_entropy(logits, majority).item(), (logits.argmax(1) == majority).float().mean().item()

    print("before: loss {:.3f}, accuracy {:.3f}".format(*score()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        words, labels = sentences(64)
        loss = model(input_ids=words, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print("after:  loss {:.3f}, accuracy {:.3f}".format(*score()))
    return report


if __name__ == "__main__":
    main()
