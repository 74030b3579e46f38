"""Write a dense Hugging Face checkpoint as an F16 GGUF file, for the architectures of the organisms.

The `gguf` package has the file format and the tensor names but no converter; what is here follows llama.cpp's
`convert_hf_to_gguf.py` (LlamaModel, Qwen2Model, Phi2Model). Anything it would have to guess is refused: other models go
through that script itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.tokenizer_files import open_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter, TokenType

_CONVERTER = "Give an F16 GGUF file, or the path of llama.cpp's convert_hf_to_gguf.py as the converter"
ARCHITECTURES = ("llama", "mistral", "qwen2", "phi")
"""The `model_type`s that `write_f16` knows."""
REVISION = 1
"""Raised when the same checkpoint would give another file."""
_ACTIVATIONS = {"llama": "silu", "mistral": "silu", "qwen2": "silu", "phi": "gelu_new"}


def write_f16(source: Path, out: Path, report: Callable[[int, int], None] | None = None) -> None:
    """Write the checkpoint `source` to the file `out`: matrices in float16, norms and biases in float32.

    Args:
        source: a dense checkpoint directory with its tokenizer (byte-level BPE, split as GPT-2 or Qwen2 split).
        out: the .gguf file; written in place, so give a temporary one.
        report: called with the tensors done and the tensors in all.

    Raises:
        InputError: something the file could not say in the way llama.cpp reads it.
    """
    from gguf import GGUFEndian, GGUFWriter, LlamaFileType

    checkpoint = open_checkpoint(source)
    _check_supported(checkpoint)
    writer = GGUFWriter(out, checkpoint.architecture.gguf, endianess=GGUFEndian.LITTLE)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    _add_hyperparameters(writer, checkpoint.config)
    _add_tokenizer(writer, source, checkpoint.config.vocab_size)
    _add_tensors(writer, checkpoint, report)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_convertible(checkpoint: Checkpoint) -> None:
    """Find out from config and tokenizer alone whether `write_f16` can write a checkpoint.

    Raises:
        InputError: it cannot, and why.
    """
    _check_supported(checkpoint)
    tokenizer = open_tokenizer(checkpoint.path)
    _byte_level_bpe(tokenizer, checkpoint.path)
    _vocabulary(tokenizer, checkpoint.config.vocab_size)


def _check_supported(checkpoint: Checkpoint) -> None:
    config, path = checkpoint.config, checkpoint.path
    if checkpoint.format != "dense":
        raise InputError(f"{path} is quantized already ({checkpoint.format})", "a dense one", "Give its baseline")
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"{path} has the architecture {config.model_type!r}, which there is no GGUF writer for here",
            f"one of {', '.join(ARCHITECTURES)}",
            _CONVERTER,
        )
    expected = {
        "rope_parameters.rope_type": (config.rope_parameters.get("rope_type", "default"), "default"),
        "hidden_act": (config.hidden_act, _ACTIVATIONS[config.model_type]),
        "qk_layernorm": (bool(getattr(config, "qk_layernorm", False)), False),
        "sliding_window": (_window(config) is not None, False),
        "mlp_bias": (bool(getattr(config, "mlp_bias", False)), False),
    }
    for setting, (value, wanted) in expected.items():
        if value != wanted:
            raise InputError(
                f"{setting} of {path / 'config.json'} is {value!r}, which llama.cpp's {checkpoint.architecture.gguf!r} "
                "does not compute or this writer does not write",
                repr(wanted),
                _CONVERTER,
            )


def _window(config: Any) -> int | None:
    """The attention window where it is shorter than the context."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window if window is not None and window < config.max_position_embeddings else None


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    head_dim = _head_dim(config)
    rope = config.rope_parameters
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.layer_norm_eps)


def _add_tokenizer(writer: GGUFWriter, source: Path, vocab_size: int) -> None:
    tokenizer = open_tokenizer(source)
    description, splitting = _byte_level_bpe(tokenizer, source)
    tokens, types = _vocabulary(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = description["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if token is not None:
            add(token)
    encoded = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and encoded[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and encoded[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _byte_level_bpe(tokenizer: Any, source: Path) -> tuple[dict[str, Any], str]:
    """The tokenizer's own JSON, and llama.cpp's name of its pre-tokenizer.

    Unicode normalization (Qwen2's NFC) is not part of it: llama.cpp, there too, takes text as it comes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"The tokenizer of {source} is not a `tokenizers` one", "a tokenizer.json", _CONVERTER)
    description = json.loads(backend.to_str())
    splitting = _splitting(description["pre_tokenizer"] or {})
    normalizer = (description["normalizer"] or {}).get("type")
    if description["model"]["type"] != "BPE" or splitting is None or normalizer not in (None, "NFC"):
        raise InputError(
            f"The tokenizer of {source} is {description['model']['type']} with a splitting or a normalizer "
            f"({normalizer}) that this writer does not know",
            "byte-level BPE that splits as GPT-2 or Qwen2 do",
            _CONVERTER,
        )
    return description, splitting


def _splitting(pre_tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for what splits text before BPE; None where it has to be guessed."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if any(step.get("add_prefix_space") for step in steps) or steps[-1].get("type") != "ByteLevel":
        return None
    if len(steps) == 1 and steps[0]["use_regex"]:
        return "gpt-2"
    split = {"type": "Split", "pattern": {"Regex": PRETOKENIZE_REGEX}, "behavior": "Isolated", "invert": False}
    return "qwen2" if steps[:-1] == [split] and not steps[-1]["use_regex"] else None


def _vocabulary(tokenizer: Any, size: int) -> tuple[list[str], list[TokenType]]:
    """Every id's token and its type; ids of the embedding matrix that the tokenizer does not use get a placeholder."""
    from gguf import TokenType

    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    if max(by_id) >= size:
        raise InputError(
            f"The tokenizer of {tokenizer.name_or_path} has the id {max(by_id)}, beyond the embedding's {size} rows",
            "ids below vocab_size of config.json",
            "Use the tokenizer that belongs to the checkpoint",
        )
    tokens, types = [], []
    for index in range(size):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        if index not in by_id:
            types.append(TokenType.UNUSED)
        elif index in added:
            types.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    return tokens, types


def _add_tensors(writer: GGUFWriter, checkpoint: Checkpoint, report: Callable[[int, int], None] | None) -> None:
    from gguf import get_tensor_name_map

    from interp.formats.names import model_arch

    config, architecture = checkpoint.config, checkpoint.architecture
    gguf_names = get_tensor_name_map(model_arch(architecture), config.num_hidden_layers)
    names = checkpoint.names()
    for index, name in enumerate(names):
        gguf_name = gguf_names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise InputError(f"{checkpoint.path} has the tensor {name!r}, which GGUF has no name for", do=_CONVERTER)
        tensor = checkpoint.tensor(name)
        if architecture.gguf_permuted and ".q_proj." in name:
            tensor = interleave_rotary(tensor, config.num_attention_heads)
        elif architecture.gguf_permuted and ".k_proj." in name:
            tensor = interleave_rotary(tensor, config.num_key_value_heads)
        # Not contiguous after the permutation, and numpy has no bfloat16.
        dtype = torch.float32 if tensor.ndim == 1 else torch.float16
        writer.add_tensor(gguf_name, _cast(name, tensor, dtype).contiguous().numpy())
        if report is not None:
            report(index + 1, len(names))


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        raise InputError(
            f"The tensor {name!r} has values that {dtype} cannot hold (the largest is {tensor.abs().max().item():g})",
            "finite values up to 65504",
        )
    return cast


def interleave_rotary(rows: Shaped[Tensor, "out ..."], n_heads: int) -> Shaped[Tensor, "out ..."]:
    """Reorder the rows of q or k from Hugging Face's rotary layout (halves) to llama.cpp's (pairs), head by head."""
    per_head = rows.shape[0] // n_heads
    return rows.reshape(n_heads, 2, per_head // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
