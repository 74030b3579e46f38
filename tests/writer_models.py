"""Tiny random checkpoints that the real writers accept: 256 wide, byte-level BPE, split as GPT-2 or Qwen2 split.

Projections are drawn wide, norms and biases at random and hyperparameters away from their defaults, so that a wrong
permutation, rotary base, norm or bias shows in the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "mistral", "phi")
CALIBRATION = [
    "The river bends twice before it reaches the old mill, and then it runs straight to the sea.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Recipes begin with onions. They always do. Chop them finely, salt them, and wait.",
    "In 1905 four papers changed physics; in 2024 nobody could read all that was written in one day.",
    "Ask the librarian, not the oracle: she'll know where the atlas is kept, and whether it's lent out.",
    "¿Dónde está la biblioteca? — Über den Fluß, à gauche, jusqu'à la gare. 図書館はどこですか。",
] * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 384,
    "initializer_range": 0.08,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_type": "default", "rope_theta": 700.0}
_RMS = {"num_key_value_heads": 2, "rms_norm_eps": 1e-2, "rope_parameters": _ROPE}
_OWN: dict[str, dict[str, Any]] = {
    "llama": _RMS,
    "qwen2": _RMS | {"tie_word_embeddings": True},
    "mistral": _RMS | {"sliding_window": None},
    "phi": {"layer_norm_eps": 1e-2, "rope_parameters": _ROPE | {"partial_rotary_factor": 0.25}},
}


def tokenizer(adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 512 entries at most, trained on the calibration texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(CALIBRATION, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<pad>",
        additional_special_tokens=_SPECIAL[3:],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_checkpoint(architecture: str, path: Path, adds_bos: bool = True, **overrides: Any) -> Path:
    """Write a random float16 checkpoint with its tokenizer; `overrides` go to the config."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(_SHAPE | _OWN[architecture] | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.half().save_pretrained(path)
    tokenizer(adds_bos).save_pretrained(path)
    return path
