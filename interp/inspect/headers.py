"""The summary of a dense directory or a GGUF from headers alone, in a fraction of a second: no torch, no transformers.

Whatever is not plain (a packed format, tensors that do not add up, a config that leaves things to transformers'
defaults, a tokenizer of several files) has no summary here. Then the checkpoint is opened, and what is wrong with it
is told by those who read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf

from interp.architectures import ARCHITECTURES, UNEMBEDDINGS, Architecture
from interp.errors import InputError
from interp.formats.gguf_header import read_header
from interp.formats.names import DERIVED_GGUF, UNEMBEDDING, architecture_of, model_arch
from interp.formats.safetensors_header import SIZES, read_dense_headers
from interp.inspect.summary import MEMORY_DTYPES, REQUEST, Summary
from interp.inspect.tokenizer import StoredTokenizer, gguf_tokenizer, hugging_face_tokenizer

QUANTIZATION_KEYS = (
    "quantization_config",
    "compression_config",
    "quantization",
    "auto_map",
    "num_local_experts",
    "num_experts",
)
"""Keys of a config.json whose checkpoint is no plain dense one."""


READ_BY_TRANSFORMERS = ("llama", "qwen2", "qwen3")
"""Architectures of GGUFs of whose metadata transformers makes config and tokenizer, if none of `SPECIAL` are there."""
SPECIAL = ("rope.scaling", "attention.sliding_window")
"""Parts of keys of GGUF metadata that transformers may make something else of than they say."""


class NotPlain(Exception):
    """Headers are not enough."""


@dataclass(frozen=True)
class HeaderTensor:
    """What a header says of a tensor.

    Attributes:
        shape: in the Hugging Face layout.
        n_bytes: stored.
        quantized: whether its numbers are codes.
    """

    shape: tuple[int, ...]
    n_bytes: int
    quantized: bool = False


def summary_of_headers(path: Path, request: str = REQUEST) -> Summary | None:
    """The summary of a plain checkpoint; None where headers are not enough, or something is wrong.

    Args:
        path: a directory or a .gguf file.
        request: what is rendered through the chat template.
    """
    try:
        return _of_gguf(path, request) if path.suffix == ".gguf" else _of_directory(path, request)
    except (NotPlain, InputError, UnicodeDecodeError):
        return None


def _of_directory(path: Path, request: str) -> Summary:
    from interp.formats.model_config import QUANTIZATION_FILES, check_config, read_config

    config = read_config(path)
    _require(not any(config.get(key) for key in QUANTIZATION_KEYS) and config["model_type"] in ARCHITECTURES)
    _require(not any((path / name).exists() for name in QUANTIZATION_FILES))
    check_config(path, config)
    architecture = ARCHITECTURES[config["model_type"]]
    _require(architecture.layer_input is None)
    headers, files = read_dense_headers(path) or ({}, [])
    tensors = {name: HeaderTensor(header.shape, header.n_bytes) for name, header in headers.items()}
    blocks = _blocks(tensors, architecture.blocks, config.get("num_hidden_layers") or config.get("n_layer"))
    own = any(name.startswith(UNEMBEDDINGS) for name in tensors)
    _require(config.get("tie_word_embeddings") is (not own))
    embedding = _tensor(tensors, f"{architecture.embed}.weight")
    width, inner = (
        config.get(a) or config.get(b) for a, b in (("hidden_size", "n_embd"), ("intermediate_size", "n_inner"))
    )
    _require(embedding.shape == (config.get("vocab_size"), width) and f"{architecture.final_norm}.weight" in tensors)
    linears = {name: _tensor(tensors, f"{name}.weight") for name in linear_names(architecture, blocks)}
    _require(all(inner in linears[f"{architecture.blocks}.0.{name}"].shape for name in architecture.mlp_in))
    context = config.get("max_position_embeddings") or config.get("n_positions")
    disk = sum(file.stat().st_size for file in (*files, path / "config.json"))
    facts = Facts(path, "dense", {}, None, architecture, blocks, tensors, embedding, not own, context, disk)
    return facts.summary(linears, hugging_face_tokenizer(path), request)


def _of_gguf(path: Path, request: str) -> Summary:
    header = read_header(path)
    fields = {key: field.contents() for key, field in header.fields.items() if not key.startswith("tokenizer.")}
    architecture = architecture_of(path, str(fields.get("general.architecture")))
    prefix = architecture.gguf
    _require(not fields.get(f"{prefix}.expert_count") and fields.get("split.count", 1) == 1)
    _require(prefix in READ_BY_TRANSFORMERS and not any(part in key for key in fields for part in SPECIAL))
    _require(not set(DERIVED_GGUF) & set(header.tensors))
    tensors = {
        name: HeaderTensor(stored.shape, stored.n_bytes, stored.kind.name not in SIZES)
        for name, stored in header.tensors.items()
    }
    blocks = _blocks(tensors, "blk", fields.get(f"{prefix}.block_count"))
    arch = model_arch(architecture)
    known = {
        gguf.TENSOR_NAMES[kind].partition("{bid}")[2] or gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[arch]
    }
    _require(all(_kind(name).rpartition(".")[0] in known for name in tensors))
    names = gguf.get_tensor_name_map(arch, blocks)
    linears = {}
    for name in linear_names(architecture, blocks):
        stem = names.get_name(name)
        linears[name] = _tensor(tensors, f"{stem}.weight")
    embedding = _tensor(tensors, f"{names.get_name(architecture.embed)}.weight")
    _require(f"{names.get_name(architecture.final_norm)}.weight" in tensors)
    types = Counter(header.tensors[f"{names.get_name(name)}.weight"].kind.name for name in linears)
    kinds = {int(kind): kind.name.removeprefix("MOSTLY_") for kind in gguf.LlamaFileType}
    quantization = {"version": kinds.get(fields.get("general.file_type", -1)), "types": dict(types)}
    tied = not any(f"{name}.weight" in tensors for name in UNEMBEDDING.values())
    context, writer = fields.get(f"{prefix}.context_length"), fields.get("general.quantized_by")
    facts = Facts(
        path, "gguf", quantization, writer, architecture, blocks, tensors, embedding, tied, context, path.stat().st_size
    )
    return facts.summary(linears, gguf_tokenizer(path, header), request)


@dataclass(frozen=True)
class Facts:
    """What headers say of a checkpoint; the attributes are those of `Summary`, or what they are worked out from."""

    path: Path
    format: str
    quantization: Mapping[str, Any]
    writer: str | None
    architecture: Architecture
    blocks: int
    tensors: Mapping[str, HeaderTensor]
    embedding: HeaderTensor
    tied: bool
    context: int | None
    disk: int

    def summary(self, linears: Mapping[str, HeaderTensor], tokenizer: StoredTokenizer | None, request: str) -> Summary:
        """The summary; of a tokenizer that has to be made by transformers there is none.

        Raises:
            NotPlain: no such tokenizer.
        """
        if tokenizer is None:
            raise NotPlain
        parameters = sum(prod(tensor.shape) for tensor in self.tensors.values())
        weights = sum(prod(linear.shape) for linear in linears.values())
        return Summary(
            path=str(self.path),
            format=self.format,
            bits_per_weight=8 * sum(linear.n_bytes for linear in linears.values()) / weights,
            writer=self.writer,
            quantization=self.quantization,
            architecture=self.architecture.model_type,
            blocks=self.blocks,
            width=self.embedding.shape[1],
            parameters=parameters,
            context=self.context,
            vocabulary=self.embedding.shape[0],
            tied=self.tied,
            linears=_kinds(self.architecture, linears),
            embedding_quantized=self.embedding.quantized,
            tokenizer=tokenizer.description,
            template=tokenizer.chat_template is not None,
            rendered=tokenizer.rendered(request),
            disk=self.disk,
            memory={dtype: size * parameters for dtype, size in MEMORY_DTYPES.items()},
            warnings=[],
        )


def linear_names(architecture: Architecture, blocks: int) -> list[str]:
    """The linears inside the blocks, in the order of the model's modules."""
    kinds = (*architecture.attention_in, architecture.attention_out, *architecture.mlp_in, architecture.mlp_out)
    return [f"{architecture.blocks}.{block}.{kind}" for block in range(blocks) for kind in kinds]


def _kinds(architecture: Architecture, linears: Mapping[str, HeaderTensor]) -> dict[str, dict[str, int | float]]:
    kinds: dict[str, list[HeaderTensor]] = {}
    for name, linear in linears.items():
        kinds.setdefault(name.removeprefix(f"{architecture.blocks}.").partition(".")[2], []).append(linear)
    return {
        kind: {
            "number": len(stored),
            "quantized": sum(linear.quantized for linear in stored),
            "bits": sum(8 * linear.n_bytes / prod(linear.shape) for linear in stored) / len(stored),
        }
        for kind, stored in kinds.items()
    }


def _blocks(tensors: Mapping[str, HeaderTensor], prefix: str, declared: Any) -> int:
    """The number of blocks, all of which hold the same tensors of the same shapes."""
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            number, _, part = name.removeprefix(f"{prefix}.").partition(".")
            blocks.setdefault(number, {})[part] = tensor.shape
    _require(set(blocks) == {str(number) for number in range(len(blocks))} and len(blocks) == declared)
    _require(bool(blocks) and all(block == blocks["0"] for block in blocks.values()))
    return len(blocks)


def _kind(name: str) -> str:
    """A GGUF tensor's name without its block."""
    return f".{name.split('.', 2)[2]}" if name.startswith("blk.") else name


def _tensor(tensors: Mapping[str, HeaderTensor], name: str) -> HeaderTensor:
    _require(name in tensors)
    return tensors[name]


def _require(plain: bool) -> None:
    if not plain:
        raise NotPlain
