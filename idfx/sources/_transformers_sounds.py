"""Sounds, series and arrays for a transformers model, of the size in its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from idfx.sources import standard_normal
from idfx.sources._transformers_form import LENGTH, SAMPLES, STEPS, Form, found, ones, true, whole

if TYPE_CHECKING:
    from torch import Tensor


# Their sounds have a channel axis, which their configurations do not mention.
WITH_CHANNELS = ("dac", "xcodec", "neucodec", "pe_audio", "vibevoice_acoustic")
# Their spectra have the steps last, as the convolutions of a whisper expect.
STEPS_LAST = ("clvp", "glmasr", "voxtral_realtime", "qwen3_asr")


def _sound(form: Form) -> Tensor:
    config = form.config
    if form.kind == "speecht5":  # without the nets before it, which are those of its tasks
        return standard_normal(1, LENGTH, int(config.hidden_size))
    channels = found(config, "audio_channels")
    if (bins := found(config, "num_mel_bins")) is not None and (length := getattr(config, "max_length", None)):
        return standard_normal(1, int(length), int(bins))
    if channels is not None or form.kind.startswith(WITH_CHANNELS):
        return standard_normal(1, int(channels or 1), SAMPLES)
    piece = int(getattr(config, "samples_per_token", 1))
    return standard_normal(1, -(-SAMPLES // piece) * piece)


def _spectrum(form: Form) -> Tensor:
    """Steps of bins; transposed, and in full length, for the convolutions of a whisper."""
    keys = (
        "input_feat_size", "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "feature_size",
        "input_dim",
    )  # fmt: skip
    bins = int(found(form.audio, *keys, default=128 if form.kind.startswith("gemma") else 80))
    bins *= int(found(form.audio, "num_stacked_frames", default=1))
    if (first := form.first("Linear", "input_linear")) is not None:  # it may take several steps, concatenated
        bins = int(first.in_features)
    positions = found(form.audio, "max_source_positions")
    if form.kind == "clap":
        return standard_normal(1, 4 if form.audio.enable_fusion else 1, int(form.audio.spec_size), bins)
    time_first = form.kind == "speech_to_text" or found(form.audio, "feature_projection_input_dim") is not None
    if positions is not None and not time_first:
        return standard_normal(1, bins, 2 * int(positions))
    if form.kind.startswith(STEPS_LAST):
        return standard_normal(1, bins, 2 * int(found(form.audio, "n_window", default=STEPS // 2)))
    if "input_values" in form.given:  # the spectrum of a sound, two steps of which make one of those that it has
        hop = getattr(form.config, "encoder_hop_length", None) or form.config.hop_length
        return standard_normal(1, SAMPLES // hop, bins)
    return standard_normal(1, STEPS, bins)


def _spectrum_mask(form: Form) -> Tensor:
    features, bins = form.given["input_features"], found(form.audio, "num_mel_bins", default=0)
    steps = features.shape[-1] if features.shape[-2] == bins != features.shape[-1] else features.shape[-2]
    return ones(1, steps)


# --- series ---


def _series(form: Form) -> Tensor:
    length = int(form.config.context_length)
    if form.kind.startswith("patch"):
        return standard_normal(1, length, int(form.config.num_input_channels))
    return standard_normal(1, length + max(getattr(form.config, "lags_sequence", None) or [0]))


def _past_features(form: Form) -> Tensor:
    return standard_normal(*form.given["past_values"].shape, int(form.config.num_time_features))


def _future(form: Form) -> Tensor:
    return standard_normal(1, int(form.config.prediction_length))


def _future_features(form: Form) -> Tensor:
    return standard_normal(1, int(form.config.prediction_length), int(form.config.num_time_features))


def _trajectory(key: str) -> Callable[[Form], Tensor]:
    return lambda form: standard_normal(1, LENGTH, int(getattr(form.config, key)))


def array(form: Form) -> Tensor:
    """The output of another model for a text, with the width of this model."""
    return standard_normal(1, LENGTH, int(found(form.config, "hidden_size", "d_model", "n_embd")))


def _several_arrays(form: Form) -> Tensor:
    """The same for several layers, concatenated."""
    return array(form).repeat(1, 1, len(form.config.target_layer_ids))


# How to make each argument; arguments that others depend on come first.
SOUNDS: Mapping[str, Callable[[Form], Tensor | None]] = {
    "input_values": _sound,
    "decoder_input_values": _sound,
    "input_features": _spectrum,
    "is_longer": lambda _: true(1, 1),
    "feature_attention_mask": _spectrum_mask,
    "input_features_mask": _spectrum_mask,
    "audio_mel": _spectrum,
    "audio_mel_mask": lambda form: ~true(*form.given["audio_mel"].shape[:2]),  # true where there is no sound
    "latents": lambda form: standard_normal(1, int(form.first("ConvTranspose1d", "upsample").in_channels), LENGTH),
    "inputs": array,
    "context_hidden_states": _several_arrays,
    "task_inputs": lambda form: standard_normal(1, int(form.config.task_seq_len)),
    "past_values": _series,
    "past_time_features": _past_features,
    "past_observed_mask": lambda form: 1.0 * ones(*form.given["past_values"].shape),
    "past_values_padding": lambda form: 0.0 * ones(*form.given["past_values"].shape),
    "freq": lambda _: 0 * ones(1, 1),
    "future_values": _future,
    "future_time_features": _future_features,
    "states": _trajectory("state_dim"),
    "actions": _trajectory("act_dim"),
    "returns_to_go": lambda _: standard_normal(1, LENGTH, 1),
    "timesteps": lambda _: whole([range(LENGTH)]),
}
