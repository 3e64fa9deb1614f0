"""Tiny configurations of transformers types of every kind, with a linear head that tells classes apart."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from idfx.bench.zoo import Learner, zoo_set
from idfx.bench.zoo.problems import classes, in_noise, logits_of, patterns, topics
from idfx.building.build import Built, build
from idfx.capture.nested import tensors_in
from idfx.core.errors import IdfxError, SourceError, shortened
from idfx.core.records import Example

TOPICS = 8
SIDE = 64  # of images, where a model takes that
BATCH = 16

# Of each kind some; a type that the installed release lacks is left out of the set.
TYPES = (
    # text, from both sides
    "albert", "bert", "convbert", "deberta-v2", "distilbert", "esm", "fnet", "funnel", "modernbert", "mpnet",
    "nystromformer", "roberta", "roformer", "squeezebert",
    # text, from the left
    "bloom", "cohere2", "falcon", "gemma2", "glm4", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "mpt", "olmo2",
    "opt", "phi", "qwen3", "stablelm", "diffllama",
    # mixture of experts
    "deepseek_v3", "gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen2_moe",
    # recurrence and state space
    "bamba", "falcon_mamba", "jamba", "mamba", "mamba2", "recurrent_gemma", "rwkv", "zamba2",
    # encoder and decoder
    "bart", "led", "m2m_100", "mbart", "pegasus", "t5", "umt5",
    # vision
    "beit", "dinov2", "levit", "mobilevit", "poolformer", "pvt_v2", "segformer",
    "swinv2", "vit", "vit_mae", "vivit", "videomae",
    # audio and series
    "audio-spectrogram-transformer", "hubert", "patchtst", "speech_to_text", "wav2vec2", "wav2vec2-conformer",
    "whisper",
    # several modalities
    "clip", "siglip", "vilt",
)  # fmt: skip

# What `tiny` leaves large: the steps to which texts of eight tokens are padded, long sounds, wide first layers.
SMALLER: Mapping[str, Mapping[str, object]] = {
    "audio-spectrogram-transformer": {"max_length": 128},
    "bamba": {"mamba_chunk_size": 8},
    **{name: {"conv_dim": [32] * 7} for name in ("hubert", "wav2vec2", "wav2vec2-conformer")},
    "led": {"attention_window": 8},
    "mamba2": {"chunk_size": 8},
    "swinv2": {"embed_dim": 24},
    "whisper": {"max_source_positions": 64},
    "zamba2": {"chunk_size": 8},
}


def names() -> list[str]:
    """Return the types above that the installed release has."""
    from idfx.sources.transformers import names

    known = set(names())
    return [name for name in TYPES if name in known]


class Reader(nn.Module):
    """A model without a head, and a linear layer on its main output.

    Texts are read at their last place, where every token is the same, and the rest as the mean over all places.
    """

    def __init__(self, model: nn.Module, text: bool) -> None:
        super().__init__()
        self.model, self.text = model, text
        self.head: nn.Module = nn.Identity()

    def forward(self, **inputs: Any) -> Tensor:
        out: Tensor = self.head(self.read(self.model(**inputs)))
        return out

    def read(self, output: Any) -> Tensor:
        """Return one vector for each sample."""
        named = output if isinstance(output, Mapping) else {}
        found = named.get("last_hidden_state")
        if found is None and (towers := [value for key, value in named.items() if key.endswith("_embeds")]):
            found = torch.cat(towers, -1)
        x: Tensor = found if found is not None else next(t for t in tensors_in(output) if t.requires_grad and t.dim())
        if x.dim() == 4:
            x = x.flatten(2).transpose(1, 2) if x.shape[1] > x.shape[-1] or not self.text else x.flatten(1, 2)
        if x.dim() == 3:
            x = x[:, -1] if self.text else x.mean(1)
        return x


def _many(value: Any, batch: int) -> Any:
    """The same input for every sample."""
    return value.expand(batch, *value.shape[1:]).clone() if isinstance(value, Tensor) else value


@zoo_set("transformers", names)
def learner(name: str, seed: int) -> Learner:
    """Tiny transformers of every kind: texts by their topic, images and sounds by the pattern in their noise."""
    arguments = {"tiny": True, **SMALLER.get(name, {})}
    built = build(f"transformers:{name}", arguments=arguments, device="cpu", seed=seed)
    image = built.example.kwargs.get("pixel_values") if built.example is not None else None
    if isinstance(image, Tensor) and image.shape[-1] > SIDE:
        with contextlib.suppress(IdfxError):  # it takes its own size alone
            arguments |= {"image_size": SIDE}
            return _learner(build(f"transformers:{name}", arguments=arguments, device="cpu", seed=seed), name, seed)
    return _learner(built, name, seed)


def _learner(built: Built, name: str, seed: int) -> Learner:
    built.pending.materialize(built.model)
    if built.example is None or built.example.args:
        raise SourceError(f"transformers:{name}: no inputs by name; expected an example of them. Choose another type.")
    given = dict(built.example.kwargs)
    changing = _inputs(built.model, given, seed)

    def draw(labels: Tensor, generator: torch.Generator) -> tuple[Sequence[Any], Mapping[str, Any]]:
        batch = {key: _many(value, len(labels)) for key, value in given.items()}
        return (), batch | {key: make(labels, generator) for key, make in changing.items()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Reader(built.model, "input_ids" in changing)
        example = Example(kwargs=draw(torch.arange(2), torch.Generator().manual_seed(0))[1])
        try:
            width = model.train()(**example.kwargs).shape
        except Exception as error:
            raise SourceError(
                f"transformers:{name}: {shortened(error)}; expected it to take two samples. Choose another type."
            ) from error
        if len(width) != 2 or width[0] != 2:
            raise SourceError(
                f"transformers:{name}: its output has the shape {tuple(width)}; expected one vector for each sample."
                " Choose another type."
            )
        model.head = nn.Linear(width[1], TOPICS)
    problem = classes(draw, TOPICS, BATCH, logits_of(TOPICS))
    return Learner(model, example, problem, {"input": {key: [BATCH, *given[key].shape[1:]] for key in changing}})


def _inputs(model: Any, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """How each input that differs from sample to sample is drawn: texts by topic, floating-point numbers by pattern."""
    from idfx.sources._transformers_form import found
    from idfx.sources._transformers_tokens import special_tokens

    made: dict[str, Any] = {}
    for key, value in given.items():
        if key == "input_ids":
            special = special_tokens(model.config)
            words = [t for t in range(int(found(model.config, "vocab_size", default=64))) if t not in special]
            made[key] = topics(words, value.shape[1], TOPICS, seed)
        elif isinstance(value, Tensor) and value.is_floating_point() and bool(value.std() > 0):
            known = patterns(value.shape[1:], TOPICS, seed)
            made[key] = lambda labels, generator, known=known: in_noise(known, labels, generator)
    return made
