"""Small transformers configurations, so that a model of any type is built and captured in a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from idfx.sources._transformers_families import FAMILIES, PLACEHOLDER, VOCABULARY
from idfx.sources._transformers_form import configs

_PLACEHOLDERS = ("image_token", "video_token", "audio_token")
_TOKENS = ("token_id", "token_index")

LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth",
    "num_encoder_layers", "num_decoder_layers", "num_blocks", "num_hidden_groups", "layers",
)  # fmt: skip
EXPERTS: Mapping[str, int] = {
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_k"), 2),
}
# Per-layer settings of types without a default; the last value applies to the following layers.
BY_LAYER: Mapping[str, tuple[str, ...]] = {"layer_types": ("full_attention",), "mlp_layer_types": ("dense", "sparse")}

# With `tiny=true` every configuration, and each nested one, takes those of these values that it has a name for.
TINY: Mapping[str, object] = {
    **dict.fromkeys(LAYERS, 2),
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
    **EXPERTS,
    "n_group": 2,
    "topk_group": 1,
    **dict.fromkeys(("projection_dim", "output_hidden_size", "out_hidden_size", "output_dim"), 64),
    **dict.fromkeys(("num_queries", "two_stage_num_proposals"), 10),
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "context_size": 64,
    "encoder_hash_byte_group_vocab": VOCABULARY,
    "depths": 2,
    "use_cache": False,
}  # fmt: skip

# For keys and values from a latent: part of every head is rotated by its position.
LATENT: Mapping[str, int] = {
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "qk_head_dim": 24, "head_dim": 8, "v_head_dim": 16,
    "kv_lora_rank": 16, "q_lora_rank": 16,
}  # fmt: skip


def tiny_values(config: Any, widths: frozenset[int] | None = None) -> dict[str, Any]:
    """Return small values for a configuration and its nested ones; widths are the hidden sizes of all of them."""
    widths = frozenset(_widths(config)) if widths is None else widths
    found: dict[str, Any] = {}
    grid = any(hasattr(part, "spatial_merge_size") for part in vars(config).values())
    for key, value in vars(config).items():
        small = _inner(value, widths, grid) if hasattr(value, "to_dict") else _small(config, key, value, found, widths)
        if small is not None:
            found[key] = small
    found.update(_by_layer(config, found))
    found.update(_rope(config, found))
    if vars(config).get("qk_rope_head_dim"):  # a latent of the keys, of which every head has its own
        found.update({key: size for key, size in LATENT.items() if vars(config).get(key)})
        found["num_key_value_heads"] = found["num_attention_heads"]
    for path, value in FAMILIES.get(config.model_type, {}).items():
        set_inside(found, path, deepcopy(value))  # the library writes into what it is given
    return found


def _inner(config: Any, widths: frozenset[int], grid: bool) -> dict[str, Any]:
    """The values of a nested configuration; with patches on a grid, a text has positions on it too."""
    # A timm backbone is a name, so it cannot be made smaller here.
    values = config.to_dict() if config.model_type.startswith("timm") else tiny_values(config, widths)
    if hasattr(config, "depths") and hasattr(config, "out_indices"):  # the stages that are read stay the same
        values["out_indices"] = list(config.out_indices)
    if grid and hasattr(config, "rope_parameters") and hasattr(config, "vocab_size"):
        known = values.get("rope_parameters", config.rope_parameters) or {"rope_type": "default", "rope_theta": 10000.0}
        values["rope_parameters"] = _rotations(config, values, known)
    return {**values, "model_type": config.model_type}


def _small(config: Any, key: str, value: Any, found: Mapping[str, Any], widths: frozenset[int]) -> Any:
    """A small value for one name of a configuration; None to keep it."""
    name = key.removesuffix("_id").removesuffix("_index")
    if name in _PLACEHOLDERS:
        return PLACEHOLDER + _PLACEHOLDERS.index(name)
    if key.endswith(_TOKENS) and isinstance(value, int) and value >= VOCABULARY:
        return VOCABULARY - 1 - sum(other.endswith(_TOKENS) for other in found)
    if key == "deepstack_visual_indexes":
        return [0]
    if key == "depths" and isinstance(value, (list, tuple)):
        return [min(2, depth) for depth in value]
    if value is None:  # a type with experts that says nothing of them cannot be built
        return EXPERTS.get(key)
    limit = next((TINY[name] for name in _names(config, key) if name in TINY), None)
    if key in LAYERS and len(vars(config).get("depths") or ()) == value:  # a count of stages, not of layers
        return None
    if isinstance(value, bool) or isinstance(limit, bool):
        return limit if isinstance(value, bool) else None
    if not isinstance(value, int):
        return None
    if limit is not None:
        return min(value, int(str(limit)))
    if value in widths and any(word in key for word in ("hidden", "channels", "dim", "groups", "width", "adapter")):
        return TINY["hidden_size"]  # it names the width of another part, and stays equal to it
    return None


def _names(config: Any, key: str) -> tuple[str, ...]:
    """The names of an attribute in a configuration and in the other types.

    Where there are stages, the other names are those of lists.
    """
    aliases = {} if "depths" in vars(config) else config.attribute_map
    return key, *(alias for alias, name in aliases.items() if name == key)


def _widths(config: Any) -> Iterator[int]:
    """The hidden sizes of a configuration and its nested ones."""
    for part in configs(config):
        for key, value in vars(part).items():
            if not {"hidden_size", "d_model"}.isdisjoint(_names(part, key)) and isinstance(value, int):
                yield value


def _by_layer(config: Any, values: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The per-layer settings that are missing."""
    for key, kinds in BY_LAYER.items():
        if vars(config).get(key, "") is None:
            yield key, [kinds[min(layer, len(kinds) - 1)] for layer in range(values["num_hidden_layers"])]


def _rope(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of rotary positions that follow from those of a head."""
    found: dict[str, Any] = {}
    if vars(config).get("head_dim", 0) is None and not vars(config).get("qk_rope_head_dim"):
        found["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    rope = getattr(config, "rope_parameters", None)
    if rope == {} and getattr(config, "layer_types", None):  # to be said for each kind of layer
        rope = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in set(config.layer_types)}
        found["rope_parameters"] = rope
    if isinstance(rope, dict) and "rope_type" in rope and rope.get("rope_theta") is None:
        rope = found["rope_parameters"] = {**rope, "rope_theta": 10000.0}
    if rope and "mrope_section" in (getattr(config, "ignore_keys_at_rope_validation", None) or ()):
        found["rope_parameters"] = _rotations(config, {**values, **found}, rope)
    return found


def _rotations(config: Any, values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Split the rotary half of a small head among time, height and width."""
    if all(isinstance(part, dict) for part in known.values()):  # one for each kind of layer
        return {kind: {**part, **_sections(config, values, part)} for kind, part in known.items()}
    return {**known, **_sections(config, values, known)}


def _sections(config: Any, values: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    head = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    half = int(head * share) // 2
    return {"mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}


def set_inside(values: dict[str, Any], path: str, value: object) -> None:
    """Set a value by a dotted path of names."""
    *outer, last = path.split(".")
    for part in outer:
        values = values.setdefault(part, {})
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for key, inner in value.items():
            set_inside(values[last], key, inner)
    else:
        values[last] = value
