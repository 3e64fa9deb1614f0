"""Example inputs for a transformers model, from its forward and its configuration.

The signature of the forward gives the arguments, and the configuration gives their sizes.

A second example is made by mirroring integers within their range, so integers that are counts are chosen to be their
own mirror, and masks are booleans, which are not mirrored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from idfx.core.records import Example
from idfx.sources._transformers_form import Form
from idfx.sources._transformers_images import IMAGES
from idfx.sources._transformers_sounds import SOUNDS, array
from idfx.sources._transformers_tokens import AUDIO, IMAGE, TEXT, decoder_tokens

if TYPE_CHECKING:
    from torch import nn

MAKERS = {**IMAGES, **SOUNDS, **TEXT}

# An example is complete with these, if the forward takes them; a missing mask means the same as all ones.
COMPLETE = frozenset((
    "input_ids", "pixel_values", "input_features", "image_grid_thw", "mm_token_type_ids", "image_sizes",
    "aspect_ratio_ids", "aspect_ratio_mask", "spatial_shapes", "image_position_ids", "visual_feats", "visual_pos",
    "visual_embeds", "image_embeds_position_mask", "prompt_pixel_values", "prompt_masks", "feature_attention_mask",
    "input_features_mask", "high_res_pixel_values", "decoder_input_values", "future_values", "future_time_features",
    "bbox", "target_sizes",
))  # fmt: skip
# What a type needs in addition.
_PROMPTS = ("input_points", "input_labels", "input_masks")
EXTRA: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("sam", "sam_hq", "sam2", "edgetam", "sam3_tracker"), _PROMPTS),
    "blip_2_qformer": ("encoder_hidden_states",),
    "clap": ("is_longer",),
    "decision_transformer": ("actions", "returns_to_go", "timesteps"),
    "idefics": ("image_attention_mask",),
    "led": ("global_attention_mask",),
    "lfm2_vl": ("pixel_attention_mask",),
    "longformer": ("global_attention_mask",),
    **dict.fromkeys(("pe_audio_video", "pe_audio_video_encoder"), ("input_values", "pixel_values_videos")),
    "pi0": ("pixel_attention_mask",),
    "luke": ("entity_ids", "entity_position_ids"),
}
# What a type does not accept together with the rest.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("granite_speech", "granite_speech_plus"), ("input_features_mask",)),  # it is one of the features
}


def example(model: nn.Module) -> Example | None:
    """Return small inputs for the known arguments of a forward; None if it has none."""
    config: Any = model.config
    parameters = inspect.signature(model.forward).parameters
    required = {*_needed(model.forward), str(getattr(model, "main_input_name", "input_ids"))}
    for placeholder in (IMAGE, AUDIO):  # what the features of an image need, the forward needs too
        if (method := getattr(model, placeholder.method, None)) is not None:
            required |= _needed(method)
    wanted = (COMPLETE | required | {*EXTRA.get(config.model_type, ())}) - {*LEFT_OUT.get(config.model_type, ())}
    form = Form(model, config, tuple(parameters))
    for name, make in MAKERS.items():
        if name in parameters and name in wanted and (value := make(form)) is not None:
            form.given[name] = value
    for name in {*_needed(model.forward), *EXTRA.get(config.model_type, ())} - MAKERS.keys():
        if name.endswith(("_embeds", "hidden_states")):
            form.given[name] = array(form)
    if not form.given:
        return None
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        form.given["decoder_input_ids"] = decoder_tokens(form)
    if "use_cache" in parameters:
        form.given["use_cache"] = False
    return Example(kwargs={name: form.given[name] for name in parameters if name in form.given})


def _needed(function: Callable[..., Any]) -> set[str]:
    """The required arguments of a function."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
