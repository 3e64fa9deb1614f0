"""Models of transformers: what builds from a configuration, with which inputs, and every refusal."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import json
import sys

import pytest
import torch

from idfx.analysis.structure import build_structure
from idfx.building.build import build
from idfx.capture.tracing import capture
from idfx.core.errors import SourceError, UsageError

transformers = pytest.importorskip("transformers")
KINDS = {
    "bert": {"input_ids"},
    "llama": {"input_ids", "use_cache"},
    "t5": {"input_ids", "decoder_input_ids", "use_cache"},
    "clip": {"input_ids", "pixel_values"},
    "vit": {"pixel_values"},
    "wav2vec2": {"input_values"},
    "mixtral": {"input_ids", "use_cache"},
    "mamba": {"input_ids", "use_cache"},
}


def tiny(kind):
    """A small model of a type, if this transformers has it."""
    needs(kind)
    return build(f"transformers:{kind}", arguments={"tiny": True}, device="cpu")


def needs(kind):
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if kind not in MODEL_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {kind} for AutoModel")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_of_every_kind_runs_on_its_example(kind):
    built = tiny(kind)
    assert KINDS[kind] <= set(built.example.kwargs)
    assert not built.example.args
    assert built.example.kwargs.get("use_cache", False) is False
    built.pending.materialize(built.model)
    with torch.no_grad():
        assert torch.isfinite(built.model.eval()(**built.example.kwargs)[0]).all()


def test_arguments_override_the_configuration_and_those_inside_it():
    built = build("transformers:bert", arguments={"tiny": True, "hidden_size": 48, "num_hidden_layers": 1})
    assert built.model.config.hidden_size == 48
    assert len(built.model.encoder.layer) == 1
    built = build("transformers:clip", arguments={"tiny": True, "text_config.num_hidden_layers": 3})
    assert len(built.model.text_model.encoder.layers) == 3
    assert len(built.model.vision_model.encoder.layers) == 2


def test_without_tiny_it_is_the_configuration_that_the_type_has():
    built = build("transformers:distilbert", device="cpu")
    assert sum(parameter.numel() for parameter in built.model.parameters()) > 60_000_000


def test_the_tokens_of_the_example_are_ordinary_ones():
    built = tiny("bart")
    tokens = built.example.kwargs["input_ids"]
    config = built.model.config
    assert {config.pad_token_id, config.eos_token_id, config.bos_token_id}.isdisjoint(tokens.flatten().tolist())
    assert tokens.unique().numel() == tokens.numel()


def unused(built):
    captured = capture(built.model, built.example, before_real=lambda: built.pending.materialize(built.model))
    return [name for name, role in build_structure(captured).roles.items() if role.name == "unused"]


@pytest.mark.parametrize(
    ("kind", "source", "token", "count"),
    [
        ("paligemma", "pixel_values", "image_token_id", (224 // 16) ** 2),
        ("internvl", "pixel_values", "image_token_id", None),
        ("qwen2_audio", "input_features", "audio_token_id", 750),
    ],
)
def test_an_image_or_a_sound_has_its_tokens_in_the_text(kind, source, token, count):
    built = tiny(kind)
    given, config = built.example.kwargs, built.model.config
    inside = given["input_ids"] == getattr(config, token)
    assert given[source].is_floating_point()
    assert inside.sum() == count if count is not None else inside.any()
    assert not inside.all()
    assert not unused(built)
    # A second example mirrors the numbers: the tokens of the image stay where they are.
    mirrored = given["input_ids"].max() + given["input_ids"].min() - given["input_ids"]
    assert torch.equal(mirrored == getattr(config, token), inside)


def test_counting_the_tokens_of_an_image_draws_no_weight():
    built = tiny("paligemma")
    missing = dict(built.model.named_parameters()).keys() - built.pending.names(built.model)
    assert not [name for name in missing if name.endswith("proj.weight")]


def test_an_image_given_as_patches_says_how_they_lie():
    built = tiny("qwen2_vl")
    given = built.example.kwargs
    if "pixel_values" not in inspect.signature(built.model.forward).parameters:
        pytest.skip(f"transformers {transformers.__version__} has a qwen2_vl that reads no image")
    assert given["pixel_values"].shape[0] == given["image_grid_thw"].prod()
    assert given["mm_token_type_ids"].sum() == given["image_grid_thw"].prod() // 4
    built = tiny("siglip2")
    given = built.example.kwargs
    assert given["pixel_values"].shape[1] == given["spatial_shapes"].prod()
    assert not unused(built)


def test_an_image_in_a_configuration_of_ones_own(tmp_path):
    needs("paligemma")
    text = {"model_type": "gemma", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    text |= {"num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 300}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 64, "image_size": 28, "patch_size": 14, "projection_dim": 32, "num_image_tokens": 4}
    config = {"model_type": "paligemma", "image_token_index": 257, "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps({**config, "projection_dim": 32, "hidden_size": 32}))
    built = build(f"transformers:{tmp_path}", device="cpu")
    assert built.example.kwargs["pixel_values"].shape == (1, 3, 28, 28)
    assert (built.example.kwargs["input_ids"] == 257).sum() == 4
    assert not unused(built)


@pytest.mark.parametrize("kind", ["deepseek_v3", "efficientnet", "sam", "vjepa2", "layoutlmv3", "xclip", "mllama"])
def test_tiny_is_small_and_fits_together(kind):
    built = tiny(kind)
    assert sum(parameter.numel() for parameter in built.model.parameters()) < 1_500_000
    capture(built.model, built.example)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("kimi_linear", {"input_ids"}),  # a name that attribute_map maps to another
        ("hunyuan_v1_dense", {"input_ids"}),  # no size of a head
        ("deepseek_ocr2", {"input_ids"}),  # no kinds of layers, no number of experts
        ("cohere_compass_text", {"input_ids"}),  # no rotary positions
        ("glm4v_moe_text", {"input_ids"}),  # a part of a head is rotated, in three sections
        ("dots3_note_text", {"input_ids"}),  # sizes that layers have of their own
        ("mimi_decoder", {"latents"}),
        ("blip_2_qformer", {"query_embeds", "encoder_hidden_states"}),
        ("minicpm_ocr_vision", {"pixel_values", "target_sizes"}),
        ("vibevoice_acoustic_tokenizer_decoder", {"hidden_states"}),
        ("qwen3_asr_encoder", {"input_features", "input_features_mask"}),
        ("xcodec2", {"input_values", "input_features"}),
    ],
)
def test_what_a_configuration_leaves_open_is_derived(kind, inputs):
    built = tiny(kind)
    assert inputs <= set(built.example.kwargs)
    capture(built.model, built.example)


def test_widths_that_are_equal_stay_equal():
    config = tiny("sam3_tracker").model.config
    assert config.vision_config.fpn_hidden_size == config.mask_decoder_config.hidden_size == 64


def test_a_package_that_is_missing_is_named():
    if importlib.util.find_spec("detectron2") is not None:
        pytest.skip("detectron2 is installed")
    with pytest.raises(SourceError) as raised:
        build("transformers:layoutlmv2", arguments={"tiny": True}, device="cpu")
    assert str(raised.value).startswith("transformers:layoutlmv2: detectron2 is not installed; expected the packages")


def test_a_folder_with_a_configuration(tmp_path):
    config = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64, "vocab_size": 50}))
    built = build(f"transformers:{tmp_path}", arguments={"hidden_act": "relu"}, device="cpu")
    assert built.model.config.hidden_size == 32
    assert built.model.config.hidden_act == "relu"
    assert int(built.example.kwargs["input_ids"].max()) < 50


def test_code_beside_a_configuration_is_never_run(tmp_path):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')\n")
    with pytest.raises(SourceError, match="trust_remote_code"):
        build(f"transformers:{tmp_path}", device="cpu")


@pytest.mark.parametrize(
    ("spec", "arguments", "error", "words"),
    [
        ("transformers:brt", {}, UsageError, "unknown model; expected a name of transformers.AutoModel"),
        ("transformers:no/such/folder", {}, SourceError, "there is no no/such/folder/config.json"),
        ("transformers:bert", {"tiny": True, "num_attention_heads": 7}, SourceError, "attention heads"),
    ],
)
def test_refusals(spec, arguments, error, words):
    with pytest.raises(error, match=words):
        build(spec, arguments=arguments, device="cpu")


def test_near_names_are_suggested():
    with pytest.raises(UsageError, match="bert"):
        build("transformers:bertt", device="cpu")


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    ordinary = builtins.__import__

    def missing(name, *rest, **options):
        if name.partition(".")[0] == "transformers":
            raise ImportError("No module named 'transformers'")
        return ordinary(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.delitem(sys.modules, "transformers")
    with pytest.raises(SourceError, match="pip install transformers"):
        build("transformers:bert", device="cpu")
