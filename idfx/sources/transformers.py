"""Models of transformers (Hugging Face), from a configuration."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idfx.errors import SourceError
from idfx.records import Example
from idfx.sources import shortened, source, standard_normal, unknown_model

if TYPE_CHECKING:
    from torch import Tensor, nn

LENGTH = 8  # of a text
FRAMES = 4  # of a video, where the configuration does not say
SAMPLES = 4000  # of a sound
VOCABULARY = 128  # of a tiny model

# With `tiny=true` every configuration, and each one inside it, takes those of these values that it has a name for.
TINY: Mapping[str, object] = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth",
         "num_encoder_layers", "num_decoder_layers", "num_blocks", "num_hidden_groups", "layers"), 2),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "encoder_hidden_size"), 64),
    **dict.fromkeys(("embedding_size", "input_embedding_size"), 64),
    **dict.fromkeys(
        ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "attention_heads",
         "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "attention_head_dim"), 16),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "n_inner", "ffn_dim", "d_inner", "hidden_dim", "encoder_ffn_dim", "mlp_dim",
         "decoder_ffn_dim", "ffn_hidden_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_k"), 2),
    **dict.fromkeys(("projection_dim", "output_hidden_size"), 64),
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "depths": 2,
    "use_cache": False,
}  # fmt: skip

# What a family needs besides, with `tiny=true`; a name before a point is that of a configuration inside.
_SERIES: Mapping[str, object] = {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]}
FAMILIES: Mapping[str, Mapping[str, object]] = {
    "autoformer": _SERIES,
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 16},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {
        "hidden_size": 64, "ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"first_k_dense_replace": 1, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
                    "kv_lora_rank": 16, "q_lora_rank": 16, "head_dim": 8},
    "deepseek_v3": {"first_k_dense_replace": 1, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
                    "kv_lora_rank": 16, "q_lora_rank": 16, "head_dim": 8, "n_group": 2, "topk_group": 1},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "lilt": {"hidden_size": 96},
    "xmod": {"default_language": "en_XX"},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "funnel": {"block_sizes": [1, 2], "block_repeats": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "informer": _SERIES,
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16},
    "mimi": {"upsample_groups": 64},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"num_self_attends_per_block": 2, "num_latents": 16, "d_latents": 64, "num_blocks": 1,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [4, 16], "attn_layers": ["local", "lsh"],
                 "attention_head_size": 16, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_hashes": 1},
    "time_series_transformer": _SERIES,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
               "hybrid_layer_ids": [1, 3]},
}  # fmt: skip


def names() -> list[str]:
    """Return every model type that AutoModel can build."""
    _library()
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


@source("transformers", names=names)
def build(name: str, arguments: Mapping[str, object]) -> tuple[nn.Module, Example | None]:
    """`transformers:TYPE` or `transformers:FOLDER` with a config.json: `AutoModel.from_config`, inputs that it takes.

    The arguments override the configuration; a name such as `text_config.hidden_size` reaches the one inside.
    `tiny=true` makes every configuration small, for a test. Inputs are a text of 8 tokens, an image or video of
    the size in the configuration, or a short sound, whichever the model reads, and use_cache=False. Nothing is
    downloaded, and code that comes with a configuration is never run.
    """
    transformers = _library()
    with _quiet():
        config = _config(transformers, name, dict(arguments))
        if getattr(config, "architectures", None) is None:
            config.architectures = []  # AutoModel looks through them where a type has two models
        try:
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise SourceError(
                f"transformers:{name}: AutoModel has no model for {type(config).__name__}; expected a type that"
                " it has. Build the model with a factory of your own: path/to/file.py:factory."
            ) from error
        return model, _example(model)


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SourceError(
            "transformers: it is not installed; expected the Python package. Run `pip install transformers`."
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from warning about kernels that are not installed and values that are corrected."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _config(transformers: Any, name: str, overrides: dict[str, object]) -> Any:
    tiny = bool(overrides.pop("tiny", False))
    folder = Path(name)
    if folder.is_dir() or "/" in name:
        if not (folder / "config.json").is_file():
            raise SourceError(
                f"transformers:{name}: there is no {folder / 'config.json'}; expected a model type or a folder with a"
                " config.json. idfx opens no connection: fetch the file first."
            )
        try:
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            own_code = "custom code" in str(error)
            told = "it needs code of its own (trust_remote_code)" if own_code else shortened(error)
            raise SourceError(
                f"transformers:{name}: {told}; expected the configuration of a type that transformers has."
                " idfx runs no code that comes with a configuration: build such a model with a factory of your own."
            ) from error
        values = config.to_dict()
        kind = type(config)
    else:
        if name not in (known := names()):
            raise unknown_model("transformers", name, known, "transformers.AutoModel")
        kind = type(transformers.AutoConfig.for_model(name))
        values = {}
    if tiny:
        default = kind()
        values = {**_tiny(default), **values}
        for path, value in FAMILIES.get(name, {}).items():
            _set(values, path, value)
    for path, value in overrides.items():
        _set(values, path, value)
    for key in ("transformers_version", "model_type"):
        values.pop(key, None)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"transformers:{name}: {kind.__name__} raised {shortened(error)}; expected a configuration."
            " Check --model-arg."
        ) from error


def _set(values: dict[str, Any], path: str, value: object) -> None:
    *outer, last = path.split(".")
    for part in outer:
        values = values.setdefault(part, {})
    values[last] = value


def _tiny(config: Any) -> dict[str, Any]:
    """Return small values for a configuration and for those inside it."""
    found: dict[str, Any] = {}
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            # A backbone of timm is a name, which nothing here makes smaller.
            whole = value.to_dict() if value.model_type.startswith("timm") else _tiny(value)
            found[key] = {**whole, "model_type": value.model_type}
        elif key.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY:
            found[key] = VOCABULARY - 1 - sum(k.endswith(("token_id", "token_index")) for k in found)
        elif key == "depths" and isinstance(value, (list, tuple)):
            found[key] = [min(2, depth) for depth in value]
        elif key in TINY and isinstance(value, int) and not isinstance(TINY[key], bool):
            found[key] = min(value, int(str(TINY[key])))
        elif key in TINY and isinstance(value, bool):
            found[key] = TINY[key]
    return found


def _example(model: nn.Module) -> Example | None:
    """Return small inputs for the arguments that a forward has."""
    config: Any = model.config
    parameters = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    required = {n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    required.add(main)
    if "past_time_features" in required:
        required.update(("future_values", "future_time_features"))
    text = next((n for n in ("input_ids", "decoder_input_ids") if n in parameters), None)
    is_pair = text is not None and "pixel_values" in parameters and not _has_placeholders(config)
    # No attention mask: left out, it means the same as all ones, and a forward looks at the values of a given one.
    kwargs: dict[str, Any] = {}
    for name in parameters:
        make = INPUTS.get(name)
        if make is None:
            continue
        if name in required or (name in ("pixel_values", "input_features", "input_ids") and is_pair):
            kwargs[name] = make(config, kwargs)
    if not kwargs:
        return None
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        kwargs["decoder_input_ids"] = _tokens(config, kwargs)
    if "use_cache" in parameters:
        kwargs["use_cache"] = False
    return Example(kwargs=kwargs)


def _configs(config: Any) -> Iterator[Any]:
    """The configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from _configs(value)


def _found(config: Any, *keys: str, default: Any = None) -> Any:
    """Return the first of these attributes that a configuration, or one inside it, has."""
    for part in _configs(config):
        for key in keys:
            value = getattr(part, key, None)
            if value is not None:
                return value
    return default


def _has_placeholders(config: Any) -> bool:
    """Whether an image stands in the text as tokens, whose number only the model's processor knows."""
    return _found(config, "image_token_id", "image_token_index", "vision_start_token_id") is not None


def _tokens(config: Any, _: Mapping[str, Any]) -> Tensor:
    """Successive tokens none of which is special: mirrored, as a second example has them, they are the same set."""
    import torch

    vocabulary = int(_found(config, "vocab_size", default=LENGTH))
    special = {
        token
        for part in _configs(config)
        for key, value in vars(part).items()
        if key.endswith(("token_id", "token_index", "token_ids"))
        for token in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(token, int)
    }
    starts = range(max(1, vocabulary - LENGTH + 1))
    free = (start for start in starts if special.isdisjoint(range(start, start + LENGTH)))
    first = next(free, 0)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4]) + first
    return (order % vocabulary).unsqueeze(0)


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, Mapping):
        return int(value.get("height", 224)), int(value.get("width", 224))
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[1])) if len(value) > 1 else (int(value[0]), int(value[0]))
    return int(value), int(value)


def _image(config: Any, _: Mapping[str, Any]) -> Tensor:
    vision = next((getattr(p, k) for p in _configs(config) for k in ("vision_config",) if hasattr(p, k)), config)
    channels = _found(vision, "num_channels", "in_channels", "in_chans", "num_image_channels", default=3)
    height, width = _size(_found(vision, "image_size", "input_size", "img_size", default=224))
    frames = _found(vision, "num_frames", "frames")
    clip = () if frames is None else (int(frames),)
    return standard_normal(1, *clip, int(channels), height, width)


def _video(config: Any, _: Mapping[str, Any]) -> Tensor:
    channels = _found(config, "num_channels", "in_channels", "in_chans", default=3)
    frames = _found(config, "frames_per_clip", "num_frames", default=FRAMES)
    size = _size(_found(config, "image_size", "crop_size", default=224))
    return standard_normal(1, int(frames), int(channels), *size)


def _sound(config: Any, _: Mapping[str, Any]) -> Tensor:
    channels = _found(config, "audio_channels")
    if (bins := _found(config, "num_mel_bins")) is not None and (length := getattr(config, "max_length", None)):
        return standard_normal(1, int(length), int(bins))
    if channels is not None or config.model_type in ("dac", "xcodec"):
        return standard_normal(1, int(channels or 1), SAMPLES)
    return standard_normal(1, SAMPLES)


def _spectrum(config: Any, _: Mapping[str, Any]) -> Tensor:
    bins = int(_found(config, "num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", default=80))
    positions = _found(config, "max_source_positions")
    if positions is not None and config.model_type not in ("speech_to_text",):
        return standard_normal(1, bins, 2 * int(positions))
    return standard_normal(1, 64, bins)


def _mask(_: Any, __: Mapping[str, Any]) -> Tensor:
    import torch

    return torch.ones(1, LENGTH, dtype=torch.int64)


def _boxes(config: Any, _: Mapping[str, Any]) -> Tensor:
    import torch

    return torch.tensor([[1, 2, 3, 4]]).repeat(LENGTH, 1).unsqueeze(0)


def _series(config: Any, _: Mapping[str, Any]) -> Tensor:
    length = int(config.context_length)
    if config.model_type.startswith("patch"):
        return standard_normal(1, length, int(config.num_input_channels))
    return standard_normal(1, length + max(getattr(config, "lags_sequence", None) or [0]))


def _features(config: Any, found: Mapping[str, Any]) -> Tensor:
    return standard_normal(*found["past_values"].shape, int(config.num_time_features))


def _zeros(_: Any, found: Mapping[str, Any]) -> Tensor:
    import torch

    return torch.zeros(found["past_values"].shape)


def _ones(_: Any, found: Mapping[str, Any]) -> Tensor:
    import torch

    return torch.ones(found["past_values"].shape)


def _future(config: Any, _: Mapping[str, Any]) -> Tensor:
    return standard_normal(1, int(config.prediction_length))


def _future_features(config: Any, _: Mapping[str, Any]) -> Tensor:
    return standard_normal(1, int(config.prediction_length), int(config.num_time_features))


def _frequency(_: Any, __: Mapping[str, Any]) -> Tensor:
    import torch

    return torch.zeros(1, 1, dtype=torch.int64)


def _array(config: Any, _: Mapping[str, Any]) -> Tensor:
    return standard_normal(1, LENGTH, int(config.d_model))


INPUTS: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "attention_mask": _mask,
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "bbox": _boxes,
    "pixel_values": _image,
    "pixel_values_videos": _video,
    "input_values": _sound,
    "input_features": _spectrum,
    "inputs": _array,
    "past_values": _series,
    "past_time_features": _features,
    "past_observed_mask": _ones,
    "past_values_padding": _zeros,
    "freq": _frequency,
    "future_values": _future,
    "future_time_features": _future_features,
}
