"""Example inputs → a batch with more samples of the same form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from idfx.capture.nested import map_example, tensors_in
from idfx.core.findings import Batch
from idfx.core.records import Example

ENTRIES = 2**17  # of the inputs of a batch, by which its size is chosen
FEWEST, MOST = 4, 64


def described(example: Example, source: str = "given") -> Batch:
    """Return the description of an example as a batch.

    Example:
        >>> described(Example((torch.ones(8, 3), torch.ones(8, 2))))
        Batch(source='given', samples=8, shapes=((8, 3), (8, 2)))
    """
    shapes = tuple(tuple(tensor.shape) for tensor in _tensors(example))
    firsts = {shape[0] for shape in shapes if shape}
    return Batch(source, firsts.pop() if len(firsts) == 1 else None, shapes)


def is_uniform(example: Example) -> bool:
    """Return whether every tensor of an example is constant, which is not representative of data.

    Example:
        >>> is_uniform(Example((torch.ones(2, 3),))), is_uniform(Example((torch.arange(3.0),)))
        (True, False)
    """
    tensors = [tensor for tensor in _tensors(example) if tensor.numel() > 1]
    plain = [tensor for tensor in tensors if tensor.layout == torch.strided and not tensor.is_nested]
    return bool(tensors) and len(plain) == len(tensors) and not any(bool((t != t.flatten()[0]).any()) for t in plain)


def sizes(example: Example) -> int:
    """Return the default number of samples of a batch, which decreases with their size.

    Example:
        >>> sizes(Example((torch.ones(1, 3, 224, 224),))), sizes(Example((torch.ones(1, 3, 32, 32),)))
        (4, 42)
    """
    entries = sum(tensor.numel() for tensor in _tensors(example))
    return min(max(ENTRIES // max(entries, 1), FEWEST), MOST)


def enlarged(example: Example, samples: int, seed: int = 0) -> Iterator[tuple[Example, str]]:
    """Yield batches of this many samples with the form of a one-sample example, the most varied first.

    Floating-point tensors are drawn from a standard normal distribution. Integers are drawn within the range of each
    tensor, or repeated in case the model rejects such a draw. An example counts as one sample only if all its tensors
    have a first axis of 1; otherwise nothing is yielded.

    Args:
        example: of one sample.
        samples: the number of samples.
        seed: of the draws.

    Example:
        >>> batch, words = next(enlarged(Example((torch.ones(1, 3),)), 8))
        >>> batch.args[0].shape, words
        (torch.Size([8, 3]), 'standard normal')
    """
    tensors = _tensors(example)
    if not tensors or any(not tensor.dim() or tensor.shape[0] != 1 for tensor in tensors):
        return
    floating = any(tensor.is_floating_point() for tensor in tensors)
    whole = any(not tensor.is_floating_point() and _varies(tensor) for tensor in tensors)
    if whole:
        words = "standard normal, random integers" if floating else "random integers"
        yield _drawn(example, samples, seed, whole=True), words
    if floating:
        words = "standard normal, repeated integers" if whole else "standard normal"
        yield _drawn(example, samples, seed, whole=False), words


def _drawn(example: Example, samples: int, seed: int, whole: bool) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        shape = (samples, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator).to(tensor.device, tensor.dtype)
        if whole and _varies(tensor):
            low, high = int(tensor.min()), int(tensor.max())
            return torch.randint(low, high + 1, shape, generator=generator).to(tensor.device, tensor.dtype)
        return tensor.expand(shape).clone()

    return map_example(example, draw)


def _varies(tensor: Tensor) -> bool:
    """Whether a tensor holds different whole numbers, as indices do and masks of ones do not."""
    return not tensor.is_complex() and tensor.dtype != torch.bool and bool((tensor != tensor.flatten()[:1]).any())


def _tensors(example: Example) -> list[Tensor]:
    return list(tensors_in((example.args, dict(example.kwargs))))
