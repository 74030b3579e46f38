"""Models that also see images: their language model against what transformers computes of the whole on text."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from interp import load
from interp.checkpoint import open_checkpoint
from interp.dequantize.settings import ExportDtype
from interp.dequantize.write import export
from interp.errors import InputError
from interp.pairs.weight_error import check_pair
from tests.tiny_models import CONFIGS, TEXTS, tokenizer

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
WRAPPERS: dict[str, tuple[Any, Any, Any, Any]] = {
    "gemma3": (
        transformers.Gemma3ForConditionalGeneration,
        transformers.Gemma3Config,
        CONFIGS["gemma3_text"],
        {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
    ),
    "mistral3": (
        transformers.Mistral3ForConditionalGeneration,
        transformers.Mistral3Config,
        CONFIGS["mistral"],
        {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 8},
    ),
    "qwen3_5": (
        transformers.Qwen3_5ForConditionalGeneration,
        transformers.Qwen3_5Config,
        CONFIGS["qwen3_5_text"],
        {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16, "patch_size": 8},
    ),
    "qwen3_5_moe": (
        transformers.Qwen3_5MoeForConditionalGeneration,
        transformers.Qwen3_5MoeConfig,
        CONFIGS["qwen3_5_moe_text"],
        {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16, "patch_size": 8},
    ),
    "gemma4": (
        transformers.Gemma4ForConditionalGeneration,
        partial(transformers.Gemma4Config, audio_config=None),
        CONFIGS["gemma4_text"],
        {"patch_size": 4, "position_embedding_size": 16, "num_key_value_heads": 2, "head_dim": 8},
    ),
}
PARTS = {"qwen3_5": "visual", "qwen3_5_moe": "visual", "gemma4": "vision_tower, embed_vision"}
TEXT_MODELS = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma4": "gemma4_text",
}


def whole_model(name: str, tied: bool) -> Any:
    """The model with its eyes, float32."""
    torch.manual_seed(0)
    model_class, config_class, text, vision = WRAPPERS[name]
    text_config = text().to_dict() | {"tie_word_embeddings": tied}
    config = config_class(text_config=text_config, vision_config=VISION | vision, tie_word_embeddings=tied)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(model: Any, directory: Path, newer_names: bool = False) -> Path:
    """With save_pretrained, which gives the names of older files, or with the names that the model itself has."""
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    if newer_names:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del state["lm_head.weight"]
        save_file(state, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.parametrize("newer_names", [False, True])
@pytest.mark.parametrize(
    ("name", "tied"),
    [
        *(("gemma3", True), ("mistral3", False), ("qwen3_5", True), ("qwen3_5", False), ("gemma4", True)),
        *(("qwen3_5_moe", True), ("qwen3_5_moe", False)),
    ],
)
def test_the_language_model_is_the_wholes_on_text(name: str, tied: bool, newer_names: bool, tmp_path: Path) -> None:
    whole = whole_model(name, tied)
    model = load(saved(whole, tmp_path, newer_names))
    for text in TEXTS:
        ids = torch.tensor(model.token_ids([text]))
        with torch.no_grad():
            theirs = whole(input_ids=ids, output_hidden_states=True)
            with model.capture(["hook_embed", "blocks.1.hook_resid_post"]) as acts:
                ours = model.hf(ids)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(acts["hook_embed"], theirs.hidden_states[0])
        torch.testing.assert_close(acts["blocks.1.hook_resid_post"], theirs.hidden_states[2])
    (warning,) = model.checkpoint.warnings
    n_others = sum(not key.startswith(("model.language_model", "lm_head")) for key in whole.state_dict())
    parts = PARTS.get(name, "vision_tower, multi_modal_projector")
    assert f"also sees images: {n_others} tensors ({parts}) are left out" in warning
    assert model.architecture.model_type == TEXT_MODELS[name]


@pytest.mark.parametrize(
    ("name", "model_class"),
    [("gemma3", transformers.Gemma3ForCausalLM), ("qwen3_5_moe", transformers.Qwen3_5MoeForCausalLM)],
)
def test_an_exported_language_model_is_a_pair_with_the_whole(name: str, model_class: type, tmp_path: Path) -> None:
    source = saved(whole_model(name, True), tmp_path / "whole", newer_names=name == "qwen3_5_moe")
    export(open_checkpoint(source), tmp_path / "text", ExportDtype.EXACT)
    assert check_pair(source, tmp_path / "text") == []
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32)
    assert type(alone) is model_class
    assert torch.equal(alone(torch.arange(3, 20)[None]).logits, load(source).hf(torch.arange(3, 20)[None]).logits)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_a_part_that_guesses_further_tokens_is_left_out(name: str, tmp_path: Path) -> None:
    directory = saved(whole_model(name, False), tmp_path, newer_names=True)
    tensors = load_file(directory / "model.safetensors")
    layers = {"mtp.layers.0.mlp.experts.down_proj": torch.ones(7, 32, 24), "mtp.fc.weight": torch.ones(32, 64)}
    save_file(tensors | layers | {"stray": torch.ones(2)}, directory / "model.safetensors", {"format": "pt"})
    of_images, of_tokens, of_others = open_checkpoint(directory).warnings
    assert "(visual) are left out" in of_images
    assert "2 tensors" in of_tokens
    assert "guess further tokens" in of_tokens
    assert "1 tensors" in of_others
    assert "['stray']" in of_others


def test_tied_or_not_is_told_by_the_tensors_where_the_config_is_silent(tmp_path: Path) -> None:
    directory = saved(whole_model("mistral3", False), tmp_path)
    config = json.loads((directory / "config.json").read_text())
    for settings in (config, config["text_config"]):
        settings.pop("tie_word_embeddings", None)
    (directory / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight" in open_checkpoint(directory).names()
    tensors = {k: v for k, v in load_file(directory / "model.safetensors").items() if "lm_head" not in k}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    assert "lm_head.weight" not in open_checkpoint(directory).names()


@pytest.mark.parametrize("text_config", [None, [], "gemma3_text"])
def test_a_wrapper_without_a_text_config(text_config: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text_config}))
    with pytest.raises(InputError, match="a gemma3 model with the text_config"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("model_type", [["gemma3_text"], 3, {}])
def test_a_language_model_whose_type_is_no_name(model_type: Any, tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"model_type": model_type}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="the name of an architecture"):
        open_checkpoint(tmp_path)
