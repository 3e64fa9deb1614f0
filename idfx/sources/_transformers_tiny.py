"""A configuration of transformers made small, so that a model of any type is built and captured in a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY = 128  # of a tiny model
PLACEHOLDER = 64  # the token of an image or a sound: in the middle, so that there are tokens on either side

_PLACEHOLDERS = ("image_token", "video_token", "audio_token")

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
    **dict.fromkeys(("projection_dim", "output_hidden_size", "out_hidden_size", "output_dim"), 64),
    **dict.fromkeys(("num_queries", "two_stage_num_proposals"), 10),
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "depths": 2,
    "use_cache": False,
}  # fmt: skip

# Where keys and values come from a latent: a part of every head is turned by its position.
LATENT: Mapping[str, int] = {
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "qk_head_dim": 24, "head_dim": 8, "v_head_dim": 16,
    "kv_lora_rank": 16, "q_lora_rank": 16,
}  # fmt: skip

# Several types each.
_DETECTOR: Mapping[str, object] = {"encoder_hidden_dim": 64, "decoder_in_channels": [64] * 3}
_NARROW: Mapping[str, object] = {
    "width_coefficient": 0.5, "depth_coefficient": 0.3, "image_size": 64, "hidden_dim": 640,
}  # fmt: skip
_ROTATIONS: Mapping[str, object] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
}
_SEGMENT: Mapping[str, object] = {
    "vision_config.image_size": 128, "vision_config.output_channels": 64, "vision_config.num_pos_feats": 32,
    "vision_config.global_attn_indexes": [1], "prompt_encoder_config.image_size": 128,
    "prompt_encoder_config.image_embedding_size": 8, "mask_decoder_config.iou_head_hidden_dim": 64,
}  # fmt: skip
_SERIES: Mapping[str, object] = {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2, 3]}
_VQ: Mapping[str, object] = {"vq_config.resolution": 32, "vq_config.base_channels": 32}

# What a type needs besides, to be small and to fit together; a name before a point is that of a configuration inside.
FAMILIES: Mapping[str, Mapping[str, object]] = {
    "align": {"projection_dim": 160},
    "align_vision_model": _NARROW,
    "aria": {"projector_patch_to_query_dict": {49: 8}},
    "autoformer": _SERIES,
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 16},
    "chameleon": {"vocabulary_map": {"<image>": PLACEHOLDER, **{f"IMGIMG{chr(65 + n)}Z": 10 + n for n in range(10)}},
                  "vq_config.num_embeddings": 10, **_VQ},
    "clap": {"audio_config.hidden_size": 256, "audio_config.patch_embeds_hidden_size": 32},
    "clvp": {"text_config.num_attention_heads": 2, "speech_config.num_attention_heads": 2,
             "decoder_config.num_mel_attn_blocks": 2},
    "codegen": {"rotary_dim": 8},
    "cosmos3_edge_text": _ROTATIONS,
    "d_fine": _DETECTOR,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {
        "hidden_size": 64, "ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v2": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "deepseek_v3": {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    "deepseek_vl_hybrid": {"high_res_vision_config.image_size": 128, "high_res_vision_config.output_channels": 64,
                           "high_res_vision_config.global_attn_indexes": [1]},
    "deimv2": _DETECTOR,
    "depth_pro": {"patch_size": 32, "intermediate_hook_ids": [1, 0], "patch_model_config.image_size": 32,
                  "image_model_config.image_size": 32, "fov_model_config.image_size": 32},
    "dia": {"decoder_config.cross_hidden_size": 64},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "efficientloftr": {"hidden_size": 256},
    "efficientnet": _NARROW,
    "emu3": {"vocabulary_map": {"<image>": PLACEHOLDER, "<|extra_200|>": 80, **{
        f"<|visual token {n:06}|>": 70 + n for n in range(8)}}, "vq_config.codebook_size": 8},
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [3, 3, 2]},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "esmc": {"num_key_value_heads": 4},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "funnel": {"block_sizes": [1, 2], "block_repeats": [1, 1]},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_moe_text": _ROTATIONS,
    "glm4v_text": _ROTATIONS,
    "glm5_next_text": {"num_key_value_heads": 4},
    "glm_image_text": _ROTATIONS,
    "glm_ocr_text": _ROTATIONS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "gradium_phonon_tts": {"flow_head_config.condition_dim": 64},
    "granite_speech": {"encoder_config.hidden_dim": 64},
    "granite_speech_plus": {"encoder_config.hidden_dim": 64},
    "grounding-dino": {"num_queries": 10},
    "idefics3": {"vision_config.patch_size": 28},
    "informer": _SERIES,
    "inkling2": {"vision_config.text_hidden_size": 64},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lilt": {"hidden_size": 96},
    "llava_next": {"image_grid_pinpoints": [[224, 448]]},
    "llava_next_video": {"image_grid_pinpoints": [[224, 448]]},
    "llava_onevision": {"image_grid_pinpoints": [[224, 448]]},
    "luke": {"entity_vocab_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16},
    "mask2former": {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64},
    "mimi": {"upsample_groups": 64},
    "mllama": {"vision_config": {"image_size": 56, "num_global_layers": 1, "intermediate_layers_indices": [0],
                                 "vision_output_dim": 128},
               "text_config.cross_attention_layers": [1]},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "nemo_speechlm": {"head_config.audio_hidden_size": 64},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron3_5_transcribe_audio": {"head_config.audio_hidden_size": 64},
    "nemotron3_diarization": {"head_config.audio_hidden_size": 64},
    "perceiver": {"num_self_attends_per_block": 2, "num_latents": 16, "d_latents": 64, "num_blocks": 1,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "pocket_tts": {"flow_head_config.condition_dim": 64},
    "pp_doclayout_v3": _DETECTOR,
    "pp_doclayout_v4": _DETECTOR,
    "qwen2_5_vl_text": _ROTATIONS,
    "qwen2_vl": {"vision_config.embed_dim": 64},
    "qwen2_vl_text": _ROTATIONS,
    "qwen3_vl_moe_text": _ROTATIONS,
    "qwen3_vl_text": _ROTATIONS,
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [4, 16], "attn_layers": ["local", "lsh"],
                 "attention_head_size": 16, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_hashes": 1},
    "rt_detr": _DETECTOR,
    "rt_detr_v2": _DETECTOR,
    "sam": _SEGMENT,
    "sam2": {"vision_config.fpn_hidden_size": 64, "prompt_encoder_config.image_size": 128,
             "vision_config.backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]},
    "sam2_hiera_det_model": {"hidden_size": 96, "image_size": [128, 128]},
    "sam_hq": {**_SEGMENT, "mask_decoder_config.vit_dim": 64},
    "smolvlm": {"vision_config.patch_size": 28},
    "time_series_transformer": _SERIES,
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8, "num_frames": 2},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4, "pred_hidden_size": 64, "pred_num_attention_heads": 4,
               "pred_num_hidden_layers": 2},
    "wav2vec2-bert": {"feature_projection_input_dim": 32},
    "xclip": {"vision_config.mit_hidden_size": 64, "vision_config.mit_intermediate_size": 128,
              "prompt_num_attention_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
               "hybrid_layer_ids": [1, 3]},
}  # fmt: skip


def tiny_values(config: Any) -> dict[str, Any]:
    """Return small values for a configuration and for those inside it."""
    found: dict[str, Any] = {}
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            # A backbone of timm is a name, which nothing here makes smaller.
            whole = value.to_dict() if value.model_type.startswith("timm") else tiny_values(value)
            found[key] = {**whole, "model_type": value.model_type}
            if hasattr(value, "depths") and hasattr(value, "out_indices"):  # the stages that are read stay the same
                found[key]["out_indices"] = list(value.out_indices)
        elif key.removesuffix("_id").removesuffix("_index") in _PLACEHOLDERS:
            found[key] = PLACEHOLDER + _PLACEHOLDERS.index(key.removesuffix("_id").removesuffix("_index"))
        elif key.endswith(("token_id", "token_index")) and isinstance(value, int) and value >= VOCABULARY:
            found[key] = VOCABULARY - 1 - sum(k.endswith(("token_id", "token_index")) for k in found)
        elif key == "deepstack_visual_indexes":
            found[key] = [0]
        elif key == "depths" and isinstance(value, (list, tuple)):
            found[key] = [min(2, depth) for depth in value]
        elif key in TINY and isinstance(value, int) and not isinstance(TINY[key], bool):
            found[key] = min(value, int(str(TINY[key])))
        elif key in TINY and isinstance(value, bool):
            found[key] = TINY[key]
    inner = [part for part in vars(config).values() if hasattr(part, "to_dict")]
    if any(hasattr(part, "spatial_merge_size") for part in inner):
        for key, part in vars(config).items():
            if hasattr(part, "rope_parameters") and hasattr(part, "vocab_size"):
                found[key]["rope_parameters"] = _rotations(part, found[key])
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "rope_type" in rope and rope.get("rope_theta") is None:
        found["rope_parameters"] = {**rope, "rope_theta": 10000.0}
    if getattr(config, "qk_rope_head_dim", None):  # a latent of the keys, of which every head has its own
        found.update({key: size for key, size in LATENT.items() if getattr(config, key, None)})
        found["num_key_value_heads"] = found["num_attention_heads"]
    for path, value in FAMILIES.get(config.model_type, {}).items():
        set_inside(found, path, value)
    return found


def _rotations(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Divide the rotary half of a small head among time, height and width."""
    known = config.rope_parameters or {"rope_type": "default", "rope_theta": 10000.0}
    if all(isinstance(part, dict) for part in known.values()):  # one for each kind of layer
        return {kind: {**part, **_sections(config, values, part)} for kind, part in known.items()}
    return {**known, **_sections(config, values, known)}


def _sections(config: Any, values: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    head = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    half = int(head * share) // 2
    return {"mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}


def set_inside(values: dict[str, Any], path: str, value: object) -> None:
    """Set a value by a path of names with points between them."""
    *outer, last = path.split(".")
    for part in outer:
        values = values.setdefault(part, {})
    if isinstance(value, Mapping) and isinstance(values.get(last), dict):
        for key, inner in value.items():
            set_inside(values[last], key, inner)
    else:
        values[last] = value
