"""Tiny random models of every supported architecture, saved as the real checkpoints that users have on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from interp.architectures import ARCHITECTURES

CONTEXT = 96
TEXTS = [
    "How do I bake bread?",
    "Tell me.",
    "What is the capital of the country whose flag has a maple leaf, and why does it have one at all?",
    "x",
    "The quick brown fox jumps over the lazy dog.",
]
"""Of very different lengths, the longest longer than the sliding windows below."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2}
_WINDOWED = {"sliding_window": 8}
_WIDE_HEADS = {"head_dim": 12}  # num_attention_heads · head_dim ≠ hidden_size, as in Gemma and Qwen3

_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": CONTEXT // 4,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

_DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, **_GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(
        **_SIZES, **_GROUPED, **_WINDOWED, use_sliding_window=True, max_window_layers=1, tie_word_embeddings=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, **_GROUPED, **_WIDE_HEADS),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, **_GROUPED, **_WINDOWED),
    "ministral": lambda: transformers.MinistralConfig(
        **_SIZES,
        **_GROUPED,
        **_WINDOWED,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "ministral3": lambda: transformers.Ministral3Config(**_SIZES, **_GROUPED, head_dim=8, rope_parameters=_YARN),
    "smollm3": lambda: transformers.SmolLM3Config(**_SIZES, **_GROUPED, no_rope_layers=[1, 0, 1]),
    "granite": lambda: transformers.GraniteConfig(
        **_SIZES,
        **_GROUPED,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.4,
        logits_scaling=0.5,
    ),
    "olmo2": lambda: transformers.Olmo2Config(**_SIZES, **_GROUPED),
    "olmo3": lambda: transformers.Olmo3Config(
        **_SIZES, **_GROUPED, **_WINDOWED, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "phi3": lambda: transformers.Phi3Config(**_SIZES, **_GROUPED, **_WINDOWED),
    "gemma": lambda: transformers.GemmaConfig(**_SIZES, **_GROUPED, **_WIDE_HEADS),
    "gemma2": lambda: transformers.Gemma2Config(**_SIZES, **_GROUPED, **_WINDOWED, **_WIDE_HEADS),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **_SIZES,
        **_GROUPED,
        **_WINDOWED,
        **_WIDE_HEADS,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma4_text": lambda: transformers.Gemma4TextConfig(
        **_SIZES,
        **_GROUPED,
        **_WINDOWED,
        head_dim=8,
        global_head_dim=12,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        num_kv_shared_layers=1,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=6,
        vocab_size_per_layer_input=320,
        final_logit_softcapping=30.0,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **_SIZES, **_GROUPED, **_WINDOWED, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES,
        **_GROUPED,
        **_WIDE_HEADS,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        mlp_only_layers=[1],
        norm_topk_prob=True,
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **_SIZES,
        **_GROUPED,
        **_WIDE_HEADS,
        **_DELTA_NET,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
        mlp_only_layers=[1],
    ),
    "qwen3_5_text": lambda: transformers.Qwen3_5TextConfig(**_SIZES, **_GROUPED, **_WIDE_HEADS, **_DELTA_NET),
    "qwen3_5_moe_text": lambda: transformers.Qwen3_5MoeTextConfig(
        **_SIZES,
        **_GROUPED,
        **_WIDE_HEADS,
        **_DELTA_NET,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=40,
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**_SIZES, **_GROUPED, num_experts=6, num_experts_per_tok=3),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_SIZES | {"intermediate_size": 64},
        **_GROUPED,
        **_WINDOWED,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi": lambda: transformers.PhiConfig(**_SIZES, partial_rotary_factor=0.5),
    "gpt2": lambda: transformers.GPT2Config(
        **{k: v for k, v in _SIZES.items() if k != "intermediate_size"}, n_inner=48
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_SIZES, rotary_pct=0.25),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(**_SIZES, use_parallel_residual=False),
}
"""Name → config; the names are `model_type`s, but for a second GPT-NeoX whose blocks are not parallel."""
MIXTURES = ("mixtral", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "olmoe", "gpt_oss")
"""Of experts."""
NO_GGUF = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "gemma4_text")
"""Those that are not read from GGUF files."""
HYBRIDS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
"""Two blocks of three have a recurrence in place of attention."""
DENSE = [name for name in CONFIGS if name not in MIXTURES]
DISTINCT = [name for name in DENSE if name not in ("ministral", "ministral3", "olmo2", "smollm3")]
"""Without those whose modules are another one's: they differ in positions and windows."""
IN_GGUF = sorted(name for name in {*ARCHITECTURES} & {*DENSE} if ARCHITECTURES[name].gguf)
"""Those that are read from GGUF files, too."""


def tokenizer(chat: bool = True, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained here."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZES["vocab_size"],
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=TEMPLATE if chat else None,
    )


def bare_model(name: str, **overrides: Any) -> Any:
    """The Hugging Face model of `CONFIGS[name]` with weights large enough that a mistake shows, float32."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    if overrides:
        config = type(config)(**config.to_dict() | overrides)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("layer_scalar"):
                buffer.mul_(0.8)
    return model


def write(
    name: str, directory: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", stacked: bool = False
) -> Path:
    """Save the model and its tokenizer with save_pretrained, as anyone would.

    Args:
        name: of `CONFIGS`.
        directory: the new one.
        dtype: of the weights.
        shard: the largest file.
        stacked: all experts of a block in one tensor, as the model itself has them.
    """
    bare_model(name).to(dtype).save_pretrained(directory, max_shard_size=shard, save_original_format=not stacked)
    tokenizer().save_pretrained(directory)
    return directory
