"""Write GGUF files the way llama.cpp's convert_hf_to_gguf.py does: its names, its permutations, its norm offsets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

GEMMA = ("gemma", "gemma2", "gemma3_text")
PERMUTED = ("llama", "mistral", "mixtral", "ministral", "ministral3", "smollm3", "granite")
GATE_UP = ".mlp.experts.gate_up_proj"


def to_llama_cpp(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """`modify_tensors` of the converter's model classes, transcribed."""
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", heads)
    kind = config.model_type
    if kind in PERMUTED and (".q_proj." in name or ".k_proj." in name):
        n = heads if ".q_proj." in name else key_heads
        return tensor.reshape(n, 2, tensor.shape[0] // n // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    if kind in GEMMA and name.endswith("norm.weight"):
        return tensor + 1
    if kind == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return tensor.transpose(1, 0)
    if kind == "gpt_neox" and ".query_key_value." in name:
        width = config.hidden_size // heads
        fused = tensor.reshape(heads, 3, width, *tensor.shape[1:])
        return torch.cat([fused[:, part].reshape(heads * width, *tensor.shape[1:]) for part in range(3)])
    return tensor


def by_converters_names(state: Mapping[str, torch.Tensor], kind: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that the converter writes: gates and ups of all experts of a block apart, [experts, out, in] each."""
    for name, tensor in state.items():
        if kind == "gpt_oss" and ".experts." in name:
            module = name.removesuffix("_bias")
            suffix = "bias" if name.endswith("_bias") else "weight"
            rows = tensor if suffix == "bias" else tensor.transpose(1, 2)
            if module.endswith("gate_up_proj"):
                yield f"{module.removesuffix('gate_up_proj')}gate_proj.{suffix}", rows[:, ::2]
                yield f"{module.removesuffix('gate_up_proj')}up_proj.{suffix}", rows[:, 1::2]
            else:
                yield f"{module}.{suffix}", rows
        elif name.endswith(".sinks"):
            yield f"{name}.weight", tensor
        elif name.endswith(GATE_UP):
            gates, ups = tensor.chunk(2, dim=1)
            yield f"{name.removesuffix('gate_up_proj')}gate_proj.weight", gates
            yield f"{name.removesuffix('gate_up_proj')}up_proj.weight", ups
        else:
            yield (f"{name}.weight" if name.endswith(".experts.down_proj") else name), tensor


def write_gguf(
    path: Path,
    state: dict[str, torch.Tensor],
    config: Any,
    arch: str,
    kind: gguf.GGMLQuantizationType,
    quantize: Callable[[np.ndarray, gguf.GGMLQuantizationType], np.ndarray] = gguf.quantize,
    most_tensors: int = 0,
    small_first: bool = False,
    **metadata: Any,
) -> Path:
    """One file: matrices in blocks of `kind` (F16 where its block does not divide the rows), the rest in float32.

    With `most_tensors`, parts of so many each; with `small_first`, the first has the metadata alone.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=most_tensors, small_first_shard=small_first)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key.replace("__", "."), value)
    model_arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(model_arch, config.num_hidden_layers)
    for name, tensor in by_converters_names(state, config.model_type):
        stored_name = names.get_name(name, (".weight", ".bias")) or {"lm_head.weight": "output.weight"}.get(name)
        assert stored_name is not None, name
        values = to_llama_cpp(name, tensor.float(), config).contiguous().numpy()
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if values.ndim == 1 or stored_name.endswith(".bias"):
            writer.add_tensor(stored_name, values)
        elif values.shape[-1] % block:
            writer.add_tensor(stored_name, values.astype(np.float16))
        else:
            writer.add_tensor(stored_name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
