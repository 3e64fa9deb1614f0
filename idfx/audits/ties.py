"""Parameters that are declared tied, but are two tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from idfx.audits.metric import metric
from idfx.audits.subject import AuditContext
from idfx.capture.wrappers import unwrap
from idfx.core.findings import Finding

_REMEDY = "Call model.tie_weights() after replacing or loading the weights."


@metric("ties")
def ties(subject: AuditContext) -> Iterator[Finding]:
    """Parameters that the model declares tied, but that are different tensors.

    Definition: the pairs that a model of transformers names as tied (`all_tied_weights_keys`), and its input and output
    embeddings where `config.tie_word_embeddings` is set. Each must be one tensor. Other libraries declare no ties.

    Unit: pairs. Threshold: 0 (error): the two diverge from the first step, and a checkpoint keeps only one.

    Source: Press and Wolf, "Using the output embedding to improve language models", EACL 2017; transformers,
    `PreTrainedModel.tie_weights`.
    """
    model = unwrap(subject.model)
    for one, other, first, second in declared(model):
        if first is not second and first.data_ptr() != second.data_ptr():
            message = f"the model declares it tied to {other}, but the two are different tensors"
            name = subject.first_name(one)
            yield subject.finding("error", "ties", name, 1, 0, message, _REMEDY)


def declared(model: nn.Module) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yield the pairs of parameters that a model declares tied: two names and their tensors.

    Args:
        model: any module; one that declares nothing yields nothing.

    Example:
        >>> list(declared(nn.Linear(2, 2)))
        []
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    pairs: dict[str, str] = {}
    keys = getattr(model, "all_tied_weights_keys", None)
    if isinstance(keys, Mapping):
        pairs.update((str(one), str(other)) for one, other in keys.items())
    if (both := _embeddings(model)) is not None and not {both, both[::-1]} & set(pairs.items()):
        pairs[both[0]] = both[1]
    for one, other in pairs.items():
        if one in tensors and other in tensors:
            yield one, other, tensors[one], tensors[other]


def _embeddings(model: Any) -> tuple[str, str] | None:
    """The names of output and input embeddings, where the configuration says that they are tied."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if not getattr(text, "tie_word_embeddings", False) or not hasattr(model, "get_output_embeddings"):
        return None
    try:
        modules = model.get_output_embeddings(), model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    paths = {id(module): path for path, module in model.named_modules()}
    if modules[0] is modules[1] or any(id(module) not in paths for module in modules):
        return None
    return f"{paths[id(modules[0])]}.weight", f"{paths[id(modules[1])]}.weight"
