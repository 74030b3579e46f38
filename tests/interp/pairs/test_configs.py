"""Which settings make another model of the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from interp.formats.names import ROPE_FACTORS
from interp.pairs.configs import GGUF_KEYS, config_differences, metadata_differences
from tests.tiny_models import CONFIGS, NO_GGUF

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def changed(model: str, **settings: Any) -> list[str]:
    """The differences between a tiny model's config and one with other settings."""
    ours = CONFIGS[model]()
    theirs = ours.__class__(**{**ours.to_dict(), **settings})
    return config_differences(ours, theirs)


@pytest.mark.parametrize("model", CONFIGS)
def test_a_config_says_the_same_as_its_copy(model: str) -> None:
    ours = CONFIGS[model]()
    assert config_differences(ours, ours.__class__.from_dict(copy.deepcopy(ours.to_dict()))) == []


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 500000.0}),
        ("llama", "rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
        ("llama", "rope_parameters", LLAMA3),
        ("llama", "rms_norm_eps", 1e-5),
        ("llama", "hidden_act", "gelu"),
        ("llama", "num_attention_heads", 2),
        ("llama", "num_key_value_heads", 4),
        ("llama", "head_dim", 16),
        ("llama", "is_causal", False),
        ("qwen2", "head_dim", 16),
        ("qwen2", "sliding_window", 16),
        ("qwen2", "layer_types", ["full_attention"] * 3),
        ("mistral", "sliding_window", None),
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma2", "final_logit_softcapping", 20.0),
        ("gemma2", "query_pre_attn_scalar", 128),
        ("gemma2", "hidden_activation", "silu"),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma4_text", "num_kv_shared_layers", 0),
        ("qwen3_5_text", "linear_num_key_heads", 3),
        ("qwen3_5_text", "layer_types", ["linear_attention", "full_attention", "full_attention"]),
        ("phi", "rope_parameters", {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
        ("phi", "layer_norm_eps", 1e-6),
        ("gpt2", "layer_norm_epsilon", 1e-6),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "scale_attn_weights", False),
        ("gpt_neox", "use_parallel_residual", False),
    ],
)
def test_a_setting_that_changes_the_function_is_a_difference(model: str, key: str, value: Any) -> None:
    found = changed(model, **{key: value})
    assert any(key in difference for difference in found)


def test_layers_of_one_kind_with_another_rotary_base() -> None:
    parameters = copy.deepcopy(CONFIGS["gemma3_text"]().rope_parameters)
    parameters["full_attention"]["rope_theta"] = 2e6
    (difference,) = changed("gemma3_text", rope_parameters=parameters)
    assert "rope_parameters.full_attention.rope_theta = 2000000.0" in difference


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("llama", {"bos_token_id": 5, "eos_token_id": [1, 2], "pad_token_id": None}),
        ("llama", {"use_cache": False, "dtype": "bfloat16", "architectures": ["X"], "transformers_version": "4.1"}),
        ("llama", {"initializer_range": 0.1, "attention_dropout": 0.1, "unsloth_fixed": True, "eos_token": "</s>"}),
        ("llama", {"tie_word_embeddings": True}),  # their weights are compared
        ("llama", {"max_position_embeddings": 8192, "rms_norm_eps": 9.999999974752427e-07}),
        ("llama", {"rope_parameters": {"type": "default", "rope_type": "default", "rope_theta": 10000, "factor": 1.0}}),
        ("gemma2", {"use_bidirectional_attention": False}),
        ("qwen3", {"max_window_layers": 3, "sliding_window": 4096}),
        ("phi", {"resid_pdrop": 0.3}),
    ],
)
def test_what_a_writer_may_change(model: str, settings: dict[str, Any]) -> None:
    assert changed(model, **settings) == []


def test_yarns_bounds_may_be_said_or_left_to_their_defaults() -> None:
    """transformers: 32 and 1 where there is nothing or null, and truncated unless the config says otherwise."""
    plain = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}
    ours = transformers.Qwen2Config(rope_parameters=dict(plain), max_position_embeddings=128)

    def found(**parameters: Any) -> list[str]:
        rope = plain | parameters
        return config_differences(ours, transformers.Qwen2Config(rope_parameters=rope, max_position_embeddings=128))

    assert found(beta_fast=32, beta_slow=1.0, truncate=True, attention_factor=None) == []
    assert found(beta_fast=None, beta_slow=None) == []
    assert "beta_fast = 16" in found(beta_fast=16)[0]
    assert "truncate = False" in found(truncate=False)[0]


def test_the_context_counts_where_the_rotary_scaling_reads_it() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ours = transformers.LlamaConfig(rope_parameters=dynamic, max_position_embeddings=2048)
    theirs = transformers.LlamaConfig(rope_parameters=dynamic, max_position_embeddings=4096)
    assert "max_position_embeddings = 4096" in config_differences(ours, theirs)[0]


def as_written(config: Any) -> dict[str, Any]:
    """A GGUF's metadata as llama.cpp's converter takes them from a config."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": [config.num_key_value_heads] * config.num_hidden_layers,
        "attention.key_length": head_dim,
        "attention.layer_norm_rms_epsilon": 9.999999974752427e-07,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": head_dim,
    }


def test_metadata_of_a_llama() -> None:
    config = CONFIGS["llama"]()
    assert metadata_differences(config, as_written(config)) == []
    others = {
        "rope.freq_base": 500000.0,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.head_count": 2,
        "attention.head_count_kv": [2, 2, 1],
        "rope.dimension_count": 4,
        "rope.scaling.type": "linear",
        "block_count": 4,
    }
    for key, value in others.items():
        (difference,) = metadata_differences(config, as_written(config) | {key: value})
        assert key in difference
        assert repr(value) in difference


def test_rotary_factors_of_llama_3() -> None:
    """The converter's `generate_extra_tensors`, transcribed."""
    config = transformers.LlamaConfig(**CONFIGS["llama"]().to_dict() | {"rope_parameters": LLAMA3})
    factors = []
    for frequency in (1 / 500000.0 ** (index / 8) for index in range(0, 8, 2)):
        wavelength = 2 * torch.pi / frequency
        smooth = (32 / wavelength - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - smooth) / 8.0 + smooth)
        factors.append(1.0 if wavelength < 32 / 4.0 else 8.0 if wavelength > 32 / 1.0 else between)
    assert sorted({1.0, 8.0} & set(factors)) == [1.0, 8.0]
    assert metadata_differences(config, {ROPE_FACTORS: factors}) == []
    assert ROPE_FACTORS in metadata_differences(config, {ROPE_FACTORS: [1.0] * 4})[0]
    assert ROPE_FACTORS in metadata_differences(CONFIGS["llama"](), {ROPE_FACTORS: factors})[0]


def test_a_size_of_some_blocks_alone_is_a_difference() -> None:
    sizes = {block: {"head_dim": 16, "num_key_value_heads": 1} for block in (1, 2)}
    (difference,) = changed("gemma4_text", per_layer_config=sizes)
    assert "head_dim" in difference
    assert "[8, 12, 12]" in difference
    assert "[8, 16, 16]" in difference


@pytest.mark.parametrize("model", sorted(set(CONFIGS) - {*NO_GGUF}))
def test_every_key_can_be_asked_of_every_architecture(model: str) -> None:
    config = CONFIGS[model]()
    said = {key: value(config) for key, value in GGUF_KEYS.items()}
    assert metadata_differences(config, {key: value for key, value in said.items() if value is not None}) == []
    assert said["attention.head_count"] == 4
    assert (said["attention.layer_norm_rms_epsilon"] is None) != (said["attention.layer_norm_epsilon"] is None)


def test_windows_caps_and_layers_of_gemma() -> None:
    config = CONFIGS["gemma2"]()
    said = {"attention.sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    assert metadata_differences(config, said) == []
    assert len(metadata_differences(config, {key: value * 2 for key, value in said.items()})) == 3
    assert metadata_differences(CONFIGS["gemma3_text"](), {"rope.freq_base": 1e6}) == []
    assert metadata_differences(CONFIGS["gemma3_text"](), {"rope.freq_base": 1e4}) != []
