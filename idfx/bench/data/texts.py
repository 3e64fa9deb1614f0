"""Texts: corpora that ship with Python's standard library, and files of sentences with labels."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from idfx.bench.data import Data, Tensors, dataset, generator_of
from idfx.bench.models import Task
from idfx.core.errors import UsageError

CHUNK = 4096  # characters; one chunk in ten is for testing, one for validation
MODULES = (
    "argparse", "_pydecimal", "typing", "inspect", "doctest", "turtle", "tarfile", "smtplib", "subprocess", "mailbox",
)  # fmt: skip


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(
            f"data texts: this Python has no source of {module}; expected the standard library as files. "
            "Use another Python."
        )
    return Path(spec.origin).read_text(encoding="utf-8")


def corpus() -> str:
    """Return about 570,000 characters of English and Python: the help topics of pydoc, and the source of doctest."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)) + "\n" + _source("doctest")


def _first(text: str, characters: int | None) -> str:
    """The beginning of a text, long enough to contain test chunks."""
    least = 10 * CHUNK
    if characters is not None and not (isinstance(characters, int) and characters >= least):
        raise UsageError(
            f"data texts: characters {characters!r}; expected at least {least}: one chunk in ten is for testing."
        )
    return text[:characters]


def _numbers(text: str, letters: Sequence[str]) -> Tensor:
    where = {letter: number for number, letter in enumerate(letters)}
    return torch.tensor([where[letter] for letter in text], dtype=torch.int64)


def _chunks(text: Tensor, part: str) -> list[Tensor]:
    """Return the chunks of a text that are for training, validation or test."""
    wanted = {"test": (9,), "validation": (4,)}.get(part, (0, 1, 2, 3, 5, 6, 7, 8))
    return [chunk for number, chunk in enumerate(torch.split(text, CHUNK)) if number % 10 in wanted]


def _unseen(windows: Tensor, *others: Tensor) -> Tensor:
    """Return which windows stand in none of the others: documentation repeats itself, and a test must not."""
    seen = {row.tobytes() for other in others for row in other.numpy()}
    return torch.tensor([row.tobytes() not in seen for row in windows.numpy()], dtype=torch.bool)


def _split(windows: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Return the windows of each part: validation has none of training, the test none of either."""
    train, validation, test = windows("train"), windows("validation"), windows("test")
    validation = validation[_unseen(validation, train)]
    return {"train": train, "validation": validation, "test": test[_unseen(test, train, validation)]}


@dataclass(frozen=True)
class Masked:
    """Windows of a text in which a share of the tokens is hidden and must be predicted; the others have target -100."""

    x: Tensor
    share: float
    mask: int

    def __len__(self) -> int:
        return len(self.x)

    def take(self, numbers: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of these samples; for evaluation, the hidden tokens are always the same."""
        x = self.x[numbers]
        if generator is None:
            generator = generator_of("mask", numbers.tolist())
        hidden = torch.rand(x.shape, generator=generator) < self.share
        hidden[:, 0] |= ~hidden.any(1)  # at least one token of every window
        return torch.where(hidden, self.mask, x), torch.where(hidden, x, -100)


@dataset("topics")
def topics(path: Path | None, *, block: int = 64, characters: int | None = None) -> Data:
    """Next-character prediction in the corpus, or its first characters, in windows that do not overlap."""
    text = _first(corpus(), characters)
    letters = sorted({*text})
    numbers = _numbers(text, letters)

    def cut(name: str) -> Tensor:
        return torch.cat([chunk.unfold(0, block + 1, block) for chunk in _chunks(numbers, name) if len(chunk) > block])

    parts = {
        name: Tensors(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        for name, windows in _split(cut).items()
    }
    facts = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "characters": len(text)}
    task = Task("language", (block,), len(letters), len(letters))
    return Data(task, parts["train"], parts["test"], parts["validation"], facts)


@dataset("masked-topics")
def masked_topics(path: Path | None, *, block: int = 64, share: float = 0.15, characters: int | None = None) -> Data:
    """Prediction of hidden characters of the corpus, as in BERT, all replaced by one mask token."""
    text = _first(corpus(), characters)
    letters = sorted({*text})
    numbers = _numbers(text, letters)

    def cut(name: str) -> Tensor:
        return torch.cat([chunk.unfold(0, block, block) for chunk in _chunks(numbers, name) if len(chunk) >= block])

    parts = {name: Masked(windows.contiguous(), share, len(letters)) for name, windows in _split(cut).items()}
    facts = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "characters": len(text)}
    task = Task("masked", (block,), len(letters), len(letters) + 1)
    return Data(task, parts["train"], parts["test"], parts["validation"], facts)


@dataset("modules")
def modules(path: Path | None, *, block: int = 64) -> Data:
    """Classification of characters by their module, out of ten of the standard library."""
    texts = [_source(module)[:45000] for module in MODULES]
    letters = sorted({letter for text in texts for letter in text})

    def cut(name: str) -> Tensor:
        """Windows with their label behind the last character."""
        rows = []
        for label, text in enumerate(texts):
            for chunk in _chunks(_numbers(text, letters), name):
                windows = chunk.unfold(0, block, block)
                rows.append(torch.cat((windows, torch.full((len(windows), 1), label)), 1))
        return torch.cat(rows)

    parts = {name: Tensors(rows[:, :-1].contiguous(), rows[:, -1].contiguous()) for name, rows in _split(cut).items()}
    facts = {"sha256": hashlib.sha256("".join(texts).encode()).hexdigest(), "modules": list(MODULES)}
    task = Task("sequences", (block,), len(MODULES), len(letters))
    return Data(task, parts["train"], parts["test"], parts["validation"], facts)


def _sentences(rows: Sequence[Sequence[tuple[str, str]]], length: int, vocabulary: int) -> Data:
    """Return sentences as token numbers: 0 is padding, 1 a rare word, then the words of the training data."""
    counts = Counter(word for words, _ in rows[0] for word in words.lower().split())
    known = {word: number for number, (word, _) in enumerate(counts.most_common(vocabulary - 2), 2)}
    labels = sorted({label for _, label in rows[0]})
    parts = []
    for part in rows:
        x = torch.zeros(len(part), length, dtype=torch.int64)
        for line, (words, _) in enumerate(part):
            found = [known.get(word, 1) for word in words.lower().split()[:length]]
            x[line, : len(found)] = torch.tensor(found, dtype=torch.int64)
        parts.append(Tensors(x, torch.tensor([labels.index(label) for _, label in part])))
    text = repr(rows).encode()
    facts = {"sha256": hashlib.sha256(text).hexdigest(), "sentences": [len(part) for part in rows]}
    return Data(Task("sequences", (length,), len(labels), len(known) + 2), parts[0], parts[1], facts=facts)


def _lines(path: Path | None, name: str, files: Sequence[str], encoding: str) -> list[list[str]]:
    missing = [file for file in files if path is None or not (path / file).is_file()]
    if path is None or missing:
        found = f"{path}: no {' and no '.join(missing)}" if path is not None else "no --data"
        raise UsageError(f"data {name}: {found}; expected a folder with {' and '.join(files)}. Put them there.")
    return [(path / file).read_text(encoding=encoding).splitlines() for file in files]


@dataset("sst2")
def sst2(path: Path | None, *, length: int = 64, vocabulary: int = 16000) -> Data:
    """SST-2 as in GLUE, train.tsv and dev.tsv in `--data`: `sentence<TAB>label` after a header; dev is for testing."""
    rows = []
    for lines in _lines(path, "sst2", ("train.tsv", "dev.tsv"), "utf-8"):
        pairs = [line.rpartition("\t") for line in lines[1:] if line.strip()]
        if any(label not in ("0", "1") for _, _, label in pairs):
            raise UsageError("data sst2: a line without a label 0 or 1; expected sentence<TAB>label. Repair the file.")
        rows.append([(words, label) for words, _, label in pairs])
    return _sentences(rows, length, vocabulary)


@dataset("trec6")
def trec6(path: Path | None, *, length: int = 32, vocabulary: int = 10000) -> Data:
    """TREC-6: train_5500.label and TREC_10.label in `--data`, `CLASS:kind question` on each line."""
    rows = []
    for lines in _lines(path, "trec6", ("train_5500.label", "TREC_10.label"), "latin-1"):
        pairs = [line.partition(" ") for line in lines if line.strip()]
        if any(":" not in label for label, _, _ in pairs):
            raise UsageError(
                "data trec6: a line without CLASS:kind; expected it before each question. Repair the file."
            )
        rows.append([(words, label.partition(":")[0]) for label, _, words in pairs])
    return _sentences(rows, length, vocabulary)
