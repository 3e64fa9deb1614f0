"""Images for a transformers model, of the size in its configuration."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from idfx.sources import standard_normal
from idfx.sources._transformers_form import FRAMES, LENGTH, REGIONS, SAMPLES, Form, found, ones, size, true, whole

if TYPE_CHECKING:
    from torch import Tensor

SIZES = ("image_size", "input_size", "img_size", "max_img_size", "resolution", "crop_size")


def _image(form: Form) -> Tensor:
    """An image, several images, or their concatenated patches, depending on the other arguments."""
    channels = int(found(form.vision, "num_channels", "in_channels", "in_chans", "num_image_channels", default=3))
    if grid := next((name for name in GRIDS if name in form.names), None):
        height, width = size(found(form.vision, "patch_size", default=16))
        patch = channels * height * width
        if form.kind.startswith("kimi"):
            return standard_normal(GRIDS[grid](form), channels, height, width)
        if form.kind.startswith("inkling2"):  # as large as what becomes one token
            side = height * int(form.vision.spatial_merge_size)
            return standard_normal(GRIDS[grid](form), side, side, channels)
        if grid == "target_sizes":  # side by side in one row
            return standard_normal(1, channels, height, width * GRIDS[grid](form))
        if grid in ("image_grid_thw", "grid_thw"):
            patch *= int(found(form.vision, "temporal_patch_size", "patch_temporal", default=1))
            return standard_normal(GRIDS[grid](form), patch)
        return standard_normal(1, GRIDS[grid](form), patch)
    lead = LEADING[form.kind](form) if form.kind in LEADING else ()
    return standard_normal(1, *lead, channels, *_image_size(form))


def _hidden(form: Form) -> Tensor:
    """The input of a model that is part of a larger one: the channels of its first weight, if that is a
    one-dimensional convolution, otherwise an image.
    """
    if (first := form.first("Conv1d")) is None:
        return _image(form)
    channels = int(first.in_channels)
    return standard_normal(1, channels, SAMPLES if channels == 1 else LENGTH)


def _fine_image(form: Form) -> Tensor:
    return standard_normal(1, 3, *size(form.config.high_res_vision_config.image_size))


def _image_size(form: Form) -> tuple[int, int]:
    sides = found(form.vision, *SIZES) or found(form.config, *SIZES) or _timm_size(form) or 224
    if ratios := getattr(form.config, "scaled_images_ratios", None):  # the smallest of the scaled ones is a patch
        sides = round(form.config.patch_size / min(ratios))
    height, width = size(sides)
    return (height // 2 if form.kind == "seggpt" else height), width  # it puts its prompt above the image


def _timm_size(form: Form) -> tuple[int, int] | None:
    """The input size of a nested timm model, if it accepts only one."""
    embed = next((m.patch_embed for m in form.model.modules() if hasattr(m, "patch_embed")), None)
    sides: tuple[int, int] | None = getattr(embed, "img_size", None)
    return sides


def _frames(form: Form) -> tuple[int]:
    return (int(found(form.vision, "num_frames", "frames") or found(form.config, "num_frames", default=FRAMES)),)


def _tiles(form: Form) -> tuple[int]:
    """The number of tiles into which the library splits an image of this size."""
    height, width = _image_size(form)
    count = sys.modules[type(form.model).__module__].image_size_to_num_patches
    return (int(count([height, width], form.config.image_grid_pinpoints, height)),)


# The axes between the batch and the channels of `pixel_values`.
LEADING: Mapping[str, Callable[[Form], Sequence[int]]] = {
    **dict.fromkeys(("timesformer", "vivit", "videomae", "xclip", "tvp"), _frames),
    **dict.fromkeys(("idefics", "idefics2", "idefics3", "smolvlm"), lambda form: (1,)),
    **dict.fromkeys(("llava_next", "llava_onevision", "granite4_vision", "llava_next_video"), _tiles),
    "instructblipvideo": lambda form: (FRAMES,),
    "pi0": lambda form: (1,),
    "perception_lm": lambda form: (1,),
    **dict.fromkeys(("lightglue", "superglue", "efficientloftr"), lambda form: (2,)),
    "mllama": lambda form: (1, int(found(form.config, "max_num_tiles", default=4))),
}


def _lattice(form: Form) -> tuple[int, int, int]:
    """Patches along time, height and width: all equal, so that this is its own mirror.

    A glm, for example, takes the frames of a video one by one, so its images have one.
    """
    side = max(2, int(found(form.vision, "spatial_merge_size", default=2)))
    return (1 if form.kind.startswith(("glm", "ernie", "hunyuan", "inkling2")) else side), side, side


def _windows(form: Form) -> int:
    """Patches along one side of an image that is merged twice."""
    return 2 * max(2, int(found(form.vision, "spatial_merge_size", default=2)))


def _lattice_patches(form: Form) -> int:
    return math.prod(_lattice(form))


def _square(form: Form) -> int:
    return math.isqrt(int(found(form.vision, "num_patches", default=16)))


def _pooled_square(form: Form) -> int:
    return 2 * int(found(form.vision, "pooling_kernel_size", default=2))


# Arguments for the arrangement of the patches of an image; with them, the image is given as patches.
GRIDS: Mapping[str, Callable[[Form], int]] = {
    "image_grid_thw": _lattice_patches,
    "grid_thw": _lattice_patches,
    "spatial_shapes": lambda form: _square(form) ** 2,
    "image_position_ids": lambda form: _pooled_square(form) ** 2,
    "pixel_position_ids": lambda form: _pooled_square(form) ** 2,
    "target_sizes": lambda form: _windows(form) ** 2,
}


def _grid(form: Form) -> Tensor:
    images = 2 if form.kind == "glm_image" else 1  # the last one is that which it is to draw
    return whole([_lattice(form)] * images)


def _shapes(form: Form) -> Tensor:
    return whole([[_square(form)] * 2])


def _positions(form: Form) -> Tensor:
    """The column and row of every patch."""
    side = range(_pooled_square(form))
    return whole([[(column, row) for row in side for column in side]])


def _patch_mask(form: Form) -> Tensor:
    return true(*form.given["pixel_values"].shape[:2])


def _pixel_mask(form: Form) -> Tensor:
    return ones(1, *form.given["pixel_values"].shape[-2:])


def _sizes(form: Form) -> Tensor | None:
    """The size of the image itself; a llava needs it if its tower accepts images of any size."""
    if form.kind == "llava" and form.vision.model_type != "pixtral":
        return None
    return whole([_image_size(form)])


def _tile_mask(form: Form) -> Tensor:
    return true(1, *form.given["pixel_values"].shape[1:3])


def _video(form: Form) -> Tensor:
    channels = int(found(form.config, "num_channels", "in_channels", "in_chans", default=3))
    frames = int(found(form.config, "frames_per_clip", "num_frames", default=FRAMES))
    sides = found(form.config, "image_size", "crop_size") or _timm_size(form) or 224
    return standard_normal(1, frames, channels, *size(sides))


def _drawn_mask(form: Form) -> Tensor:
    """A user-drawn mask, four times as fine as the features of the image."""
    prompt = form.config.prompt_encoder_config
    side = 4 * size(prompt.image_size)[0] // int(prompt.patch_size)
    return standard_normal(1, 1, side, side)


def _regions(key: str) -> Callable[[Form], Tensor]:
    return lambda form: standard_normal(1, REGIONS, int(getattr(form.config, key)))


# How to make each argument; arguments that others depend on come first.
IMAGES: Mapping[str, Callable[[Form], Tensor | None]] = {
    "pixel_values": _image,
    "high_res_pixel_values": _fine_image,
    "prompt_pixel_values": _image,
    "prompt_masks": _image,
    "pixel_values_videos": _video,
    "hidden_states": _hidden,
    "pixel_mask": _pixel_mask,
    "image_grid_thw": _grid,
    "grid_thw": _grid,
    "spatial_shapes": _shapes,
    "image_position_ids": _positions,
    "pixel_position_ids": _positions,
    "target_sizes": lambda form: whole([[_windows(form)] * 2]),
    "merge_sizes": lambda form: whole([max(2, int(found(form.vision, "spatial_merge_size", default=2)))]),
    "pixel_attention_mask": _patch_mask,
    "image_sizes": _sizes,
    "aspect_ratio_ids": lambda _: ones(1, 1),
    "aspect_ratio_mask": _tile_mask,
    "input_points": lambda _: 8.0 * ones(1, 1, 1, 2),
    "input_labels": lambda _: ones(1, 1, 1),
    "input_masks": _drawn_mask,
    "visual_feats": _regions("visual_feat_dim"),
    "visual_pos": _regions("visual_pos_dim"),
    "visual_embeds": _regions("visual_embedding_dim"),
}
