"""A text for a transformers model: ordinary tokens, and placeholder tokens for an image or a sound.

The number of placeholders equals the number of features that the model computes for the image.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idfx.core.errors import IdfxError
from idfx.core.records import Example
from idfx.sources._transformers_form import FRAMES, LENGTH, Form, configs, found, ones, whole

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Placeholder:
    """A placeholder token for a feature of an image, a video or a sound, and the corresponding arguments."""

    kind: str
    source: tuple[str, ...]
    about: tuple[str, ...] = ()

    @property
    def token(self) -> tuple[str, str]:
        """The name of the token in a configuration."""
        return f"{self.kind}_token_id", f"{self.kind}_token_index"

    @property
    def method(self) -> str:
        """The name of the model's method that computes the features."""
        return f"get_{self.kind}_features"


IMAGE = Placeholder(
    "image",
    ("pixel_values", "high_res_pixel_values"),
    ("image_grid_thw", "image_sizes", "spatial_shapes", "image_position_ids", "pixel_attention_mask", "target_sizes"),
)
VIDEO = Placeholder("video", ("pixel_values_videos",))
AUDIO = Placeholder("audio", ("input_features", "input_values"), ("feature_attention_mask", "input_features_mask"))


def _after_pooling(form: Form) -> int:
    tower: Any = form.model.audio_tower
    return int(tower._get_feat_extract_output_lengths(whole(form.given["input_features"].shape[-1]))[1])


# For models without a method that gives the number of features.
COUNTS: Mapping[str, Callable[[Form], int]] = {
    "glm_image": lambda form: int(form.given["pixel_values"].shape[0]),
    "instructblip": lambda form: int(form.config.num_query_tokens),
    "instructblipvideo": lambda form: FRAMES * int(form.config.num_query_tokens),
    "pi0": lambda form: (int(form.vision.image_size) // int(form.vision.patch_size)) ** 2,
    "mllama": lambda form: 1,  # what the image says comes by cross-attention
    "qwen2_audio": _after_pooling,
}


# The number of tokens per step, if it is more than one.
CODEBOOKS: Mapping[str, Callable[[Form], int]] = {
    "kyutai_speech_to_text": lambda form: 1 + int(form.config.num_codebooks),
}


def tokens(form: Form) -> Tensor:
    """A text with as many placeholder tokens as the model has features of the image or sound.

    Ordinary tokens are in pairs on either side of the placeholder, which is then its own mirror.
    """
    inside: list[int] = []
    for placeholder in (IMAGE, VIDEO, AUDIO):
        token = _token(form.config, placeholder)
        if token is not None and any(name in form.given for name in placeholder.source):
            count = _features(form, placeholder)
            if count is None:  # it cannot be given its place in the text
                for name in (*placeholder.source, *placeholder.about):
                    form.given.pop(name, None)
            else:
                inside += [token] * count
    if not inside:
        codebooks = CODEBOOKS.get(form.kind)
        return plain_tokens(form).unsqueeze(-1).repeat(1, 1, codebooks(form)) if codebooks else _long_enough(form)
    middle, vocabulary = inside[0], int(found(form.config, "vocab_size", default=LENGTH))
    special = special_tokens(form.config)
    steps = range(1, min(middle, vocabulary - 1 - middle) + 1)
    pairs = [step for step in steps if special.isdisjoint((middle - step, middle + step))][: LENGTH // 2]
    before, after = [middle - step for step in pairs], [middle + step for step in reversed(pairs)]
    if not pairs:
        text = plain_tokens(form)[0].tolist()
        before, after = text[: LENGTH // 2], text[LENGTH // 2 :]
    return whole([[*before, *inside, *after]])


def plain_tokens(form: Form) -> Tensor:
    """Successive tokens without special ones; the mirror is the same set."""
    vocabulary = int(found(form.config, "vocab_size", default=LENGTH))
    special = special_tokens(form.config)
    starts = range(max(1, vocabulary - LENGTH + 1))
    first = next((start for start in starts if special.isdisjoint(range(start, start + LENGTH))), 0)
    return whole([[(first + step) % vocabulary for step in (5, 2, 7, 0, 3, 6, 1, 4)]])


def decoder_tokens(form: Form) -> Tensor:
    """The previous output of a decoder; a dia has one token for each codebook at every step."""
    text = plain_tokens(form)
    return text.unsqueeze(-1).repeat(1, 1, int(form.config.decoder_config.num_channels)) if form.kind == "dia" else text


def token_types(form: Form) -> Tensor | None:
    """A mask of the image tokens (boolean, so it is not mirrored)."""
    token = _token(form.config, IMAGE)
    return form.given["input_ids"] == token if "pixel_values" in form.given else None


def _long_enough(form: Form) -> Tensor:
    """A text without image tokens, long enough for the image features to be written over it."""
    text = plain_tokens(form)
    if "image_embeds_position_mask" not in form.names:
        return text
    return text.repeat(1, 1 + -(-int(form.config.latent_query_num) // LENGTH))


def _token(config: Any, placeholder: Placeholder) -> int | None:
    vocabulary = found(config, "vocabulary_map", default={})
    token = found(config, *placeholder.token, default=vocabulary.get(f"<{placeholder.kind}>"))
    return None if token is None else int(token)


def special_tokens(config: Any) -> set[int]:
    """The tokens of a configuration that have a meaning of their own."""
    return {
        token
        for part in configs(config)
        for key, value in vars(part).items()
        if key.endswith(("token_id", "token_index", "token_ids"))
        for token in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(token, int)
    }


def _features(form: Form, placeholder: Placeholder) -> int | None:
    """The number of features that a model computes for the given image or sound; None if unknown."""
    if (count := COUNTS.get(form.kind)) is not None:
        return count(form)
    method = getattr(form.model, placeholder.method, None)
    if method is None:
        return None
    names = inspect.signature(method).parameters
    shapes = _shapes(form.model, placeholder.method, {n: value for n, value in form.given.items() if n in names})
    return None if shapes is None else sum(math.prod(shape[:-1]) for shape in shapes)


def _shapes(model: nn.Module, method: str, inputs: dict[str, Any]) -> list[tuple[int, ...]] | None:
    """The shapes of the results of a method; None if it raises.

    It runs on meta tensors, or, if it depends on values, with a single zero for every weight: nothing is drawn.
    """
    import torch

    from idfx.capture.isolation import undisturbed
    from idfx.capture.nested import tensors_in
    from idfx.capture.tracing import record

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **kwargs: Any) -> Any:
            result = getattr(self.model, method)(**kwargs)
            return getattr(result, "pooler_output", result)

    asked = Features()
    try:
        seen = record(asked, Example(kwargs=inputs), "meta")
        return [seen.shapes[node.name] for node in seen.graph.output_node().all_input_nodes]
    except IdfxError:
        zero = torch.zeros(())
        zeros = {name: zero.to(p.dtype).expand(p.shape) for name, p in asked.named_parameters()}
    try:
        with undisturbed(asked):
            return [tuple(tensor.shape) for tensor in tensors_in(torch.func.functional_call(asked, zeros, (), inputs))]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _first(form: Form, count: int) -> Tensor:
    """The first tokens of a text, as a mask."""
    length = form.given["input_ids"].shape[1]
    return whole([[place < count for place in range(length)]])


# How to make each argument; arguments that others depend on come first.
TEXT: Mapping[str, Callable[[Form], Tensor | None]] = {
    "qformer_input_ids": plain_tokens,
    "classes_input_ids": plain_tokens,
    "classes_attention_mask": lambda _: ones(1, LENGTH),
    "classes_structure": lambda _: whole([1]),
    "tasks_input_ids": plain_tokens,
    "tasks_attention_mask": lambda _: ones(1, LENGTH),
    "input_ids": tokens,
    "decoder_input_ids": decoder_tokens,
    "mm_token_type_ids": token_types,
    "image_embeds_position_mask": lambda form: _first(form, int(form.config.latent_query_num)),
    "image_attention_mask": lambda form: ones(1, form.given["input_ids"].shape[1], 1),
    "global_attention_mask": lambda form: _first(form, 1),
    "bbox": lambda _: whole([[[1, 2, 1, 2]] * LENGTH]),  # of no size, which is its own mirror
    "entity_ids": lambda _: whole([[1, 2]]),
    "entity_position_ids": lambda _: whole([[[1, 2], [4, 5]]]),
}
