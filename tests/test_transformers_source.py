"""Models of transformers: what builds from a configuration, with which inputs, and every refusal."""

from __future__ import annotations

import builtins
import json
import sys

import pytest
import torch

from idfx.building import build
from idfx.errors import SourceError, UsageError

pytest.importorskip("transformers")

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_of_every_kind_runs_on_its_example(kind):
    built = build(f"transformers:{kind}", arguments={"tiny": True}, device="cpu")
    assert KINDS[kind] <= set(built.example.kwargs)
    assert not built.example.args
    assert built.example.kwargs.get("use_cache", False) is False
    built.pending.settle(built.model)
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
    built = build("transformers:bart", arguments={"tiny": True}, device="cpu")
    tokens = built.example.kwargs["input_ids"]
    config = built.model.config
    assert {config.pad_token_id, config.eos_token_id, config.bos_token_id}.isdisjoint(tokens.flatten().tolist())
    assert tokens.unique().numel() == tokens.numel()


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
