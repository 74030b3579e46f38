"""Whether two checkpoints say that they compute the same function: config.json against config.json or GGUF metadata.

Equal weights in a model with another rotary base or another epsilon are another model. Every key that transformers'
config of the architecture declares is compared, but for those listed here as of no effect on a forward pass in
evaluation mode; a key that a later transformers adds is compared until someone lists it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from interp.formats.names import ROPE_FACTORS

NO_EFFECT = frozenset(
    {
        # names and versions
        *("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version", "id2label", "label2id"),
        *("dtype", "torch_dtype", "quantization_config", "problem_type"),
        # what a forward pass returns or keeps, not what it computes
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache", "chunk_size_feed_forward"),
        *("is_encoder_decoder", "is_decoder", "pretraining_tp"),
        # training and classification heads
        *("initializer_range", "attention_dropout", "hidden_dropout", "classifier_dropout"),
        *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
        # tokens: generation begins and ends with them; the vocabularies are compared by themselves
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        # said again by layer_types and sliding_window, and by the unembedding's own weights
        *("use_sliding_window", "max_window_layers", "tie_word_embeddings"),
    }
)
READ_UNDECLARED = {"head_dim": None, "is_causal": True}
"""Keys that transformers' models read although not every config declares them → what they are where missing."""
SCALED_BY_CONTEXT = ("dynamic", "longrope", "yarn")
"""Rotary scalings that take the context length into account."""
ROPE_DEFAULTS: dict[str, Any] = {"rope_type": "default", "partial_rotary_factor": 1.0}
YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""What YaRN's bounds are where the config says nothing, null or 0."""
UNSCALED_KEYS = ("rope_type", "rope_theta", "partial_rotary_factor")
"""All that the rotary type "default" reads."""
FLOAT32_DIGITS = 1e-6
"""GGUF stores numbers in float32, so 1e-5 is 9.9999997e-06 there."""
ROPE_FACTOR_DIGITS = 1e-3
"""Rotary factors are quotients of powers that each writer computed in float32."""


def config_differences(baseline: Any, quantized: Any) -> list[str]:
    """What two transformers configs of one model type disagree on that changes what the model computes.

    Args:
        baseline: the unquantized model's.
        quantized: its cell's.

    Returns:
        A phrase for each key.
    """
    ours, theirs = (_computed(config) for config in (baseline, quantized))
    keys = list(dict.fromkeys([*ours, *theirs]))
    return [
        f"config.json says {key} = {theirs.get(key)!r} and the baseline's {ours.get(key)!r}"
        for key in keys
        if not _same(ours.get(key), theirs.get(key))
    ]


def metadata_differences(baseline: Any, metadata: Mapping[str, Any]) -> list[str]:
    """What a GGUF says of its model that is not so in the baseline. What it does not say is not compared.

    Args:
        baseline: the unquantized model's transformers config.
        metadata: of the GGUF, keys without the architecture's prefix; see `Checkpoint.metadata`.

    Returns:
        A phrase for each key.
    """
    expected = {key: value(baseline) for key, value in GGUF_KEYS.items() if key in metadata}
    differing = [
        f"the file's metadata say {key} = {metadata[key]!r} and the baseline's config.json {wanted!r}"
        for key, wanted in expected.items()
        if wanted is not None and not all(_same(wanted, item) for item in _each(metadata[key]))
    ]
    factors, wanted = metadata.get(ROPE_FACTORS), _rope_factors(baseline)
    if factors is None or wanted is None or _close(factors, wanted):
        return differing
    return [*differing, f"the file's {ROPE_FACTORS} do not scale the rotary frequencies as the baseline's config.json"]


def _computed(config: Any) -> dict[str, Any]:
    """The keys that change the function, rotary parameters flat."""
    declared = {field.name for field in dataclasses.fields(config)} | set(READ_UNDECLARED)
    all_settings = READ_UNDECLARED | config.to_dict()
    settings = {key: value for key, value in all_settings.items() if key in declared - NO_EFFECT}
    rope = _flat_rope(settings.pop("rope_parameters", None) or {})
    if not any(value in SCALED_BY_CONTEXT for key, value in rope.items() if key.endswith("rope_type")):
        settings.pop("max_position_embeddings", None)
    if "sliding_attention" not in (settings.get("layer_types") or ["sliding_attention"]):
        settings.pop("sliding_window", None)
    return settings | rope | {"head_dim": _head_dim(config)} | _of_blocks(config)


def _of_blocks(config: Any) -> dict[str, list[Any]]:
    """The settings that differ between blocks (Gemma 4), one value for each."""
    if not getattr(config, "is_heterogeneous", False):
        return {}
    keys = sorted(config.per_layer_attributes)
    return {key: [getattr(block, key) for block in config.per_layer_config] for key in keys}


def _flat_rope(parameters: Mapping[str, Any], prefix: str = "rope_parameters") -> dict[str, Any]:
    """Rotary parameters, for each kind of layer where they differ (Gemma 3), without what their type does not read."""
    if any(isinstance(value, Mapping) for value in parameters.values()):
        kinds = [_flat_rope(value, f"{prefix}.{kind}") for kind, value in parameters.items() if value is not None]
        return {key: value for kind in kinds for key, value in kind.items()}
    known = ROPE_DEFAULTS | {key: value for key, value in parameters.items() if key != "type"}
    if known["rope_type"] == "default":
        known = {key: known.get(key) for key in UNSCALED_KEYS}
    if known["rope_type"] == "yarn":
        bounds = {key: known.get(key) or default for key, default in YARN_DEFAULTS.items()}
        known = {"truncate": True} | known | bounds
    return {f"{prefix}.{key}": value for key, value in known.items()}


def _same(first: Any, second: Any) -> bool:
    """Equal, numbers as float32 holds them; null and false are one."""
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    if not _is_number(first) or not _is_number(second):
        return (first or None) == (second or None)
    return math.isclose(first, second, rel_tol=FLOAT32_DIGITS)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _each(value: Any) -> list[Any]:
    """A number for all layers, or one for each."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _head_dim(config: Any) -> Any:
    return (
        _of_blocks(config).get("head_dim")
        or getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )


def _rope(config: Any) -> dict[str, Any]:
    """Rotary parameters of the layers that attend to the whole context."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return ROPE_DEFAULTS | (parameters.get("full_attention") or parameters)


def _rotary_width(config: Any) -> int | None:
    return int(_head_dim(config) * _rope(config)["partial_rotary_factor"]) if "rope_theta" in _rope(config) else None


def _rope_scaling(config: Any) -> str | None:
    """llama.cpp's name; Llama 3's scaling is a tensor there, and a dynamic one is not in the file."""
    return {"default": "none", "llama3": "none", "linear": "linear", "yarn": "yarn"}.get(_rope(config)["rope_type"])


def _rope_factors(config: Any) -> list[float] | None:
    """What each rotary frequency is divided by; None where that depends on more than the config."""
    rope, width = _rope(config), _rotary_width(config)
    if width is None or rope["rope_type"] not in ("default", "llama3"):
        return None
    if rope["rope_type"] == "default":
        return [1.0] * (width // 2)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](copy.deepcopy(config), device="cpu")
    plain = (rope["rope_theta"] ** (-2 * index / width) for index in range(width // 2))
    return [frequency / divided for frequency, divided in zip(plain, scaled.tolist(), strict=True)]


def _close(factors: list[float], wanted: list[float]) -> bool:
    pairs = zip(factors, wanted, strict=False)
    return len(factors) == len(wanted) and all(math.isclose(a, b, rel_tol=ROPE_FACTOR_DIGITS) for a, b in pairs)


def _if_scaled(key: str) -> Callable[[Any], Any]:
    return lambda config: _rope(config).get(key) if _rope_scaling(config) in ("linear", "yarn") else None


def _window(config: Any) -> int | None:
    """The window of the layers that have one."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None


def _of(*names: str) -> Callable[[Any], Any]:
    """The first of these attributes that the config has a value for."""
    return lambda config: next((v for name in names if (v := getattr(config, name, None)) is not None), None)


GGUF_KEYS: dict[str, Callable[[Any], Any]] = {
    "block_count": _of("num_hidden_layers"),
    "embedding_length": _of("hidden_size"),
    "expert_count": _of("num_local_experts", "num_experts"),
    "expert_used_count": _of("num_experts_per_tok"),
    "expert_feed_forward_length": _of("moe_intermediate_size", "intermediate_size"),
    "feed_forward_length": _of("intermediate_size", "n_inner"),
    "attention.head_count": _of("num_attention_heads"),
    "attention.head_count_kv": _of("num_key_value_heads", "num_attention_heads"),
    "attention.key_length": _head_dim,
    "attention.value_length": _head_dim,
    "attention.layer_norm_rms_epsilon": _of("rms_norm_eps"),
    "attention.layer_norm_epsilon": _of("layer_norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": _window,
    "rope.freq_base": lambda config: _rope(config).get("rope_theta"),
    "rope.dimension_count": _rotary_width,
    "rope.scaling.type": _rope_scaling,
    "rope.scaling.factor": _if_scaled("factor"),
    "rope.scaling.original_context_length": _if_scaled("original_max_position_embeddings"),
    "attn_logit_softcapping": _of("attn_logit_softcapping"),
    "final_logit_softcapping": _of("final_logit_softcapping"),
    "use_parallel_residual": _of("use_parallel_residual"),
    "attention.scale": _of("attention_multiplier"),
    "embedding_scale": _of("embedding_multiplier"),
    "residual_scale": _of("residual_multiplier"),
    "logit_scale": _of("logits_scaling"),
}
"""Key of a GGUF, without the architecture's prefix → what it must be for a config; None where the config does not
say. Source: llama.cpp's `convert_hf_to_gguf.py` and the GGUF specification (ggml, docs/gguf.md)."""
