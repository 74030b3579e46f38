"""GGUF: llama.cpp's names and layouts turned back into Hugging Face's.

Layouts: llama.cpp's convert_hf_to_gguf.py (`LlamaModel.permute`, `Gemma2Model`, `GPT2Model`, `GPTNeoXModel`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as BlockType
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from interp.architectures import MOST_EXPERTS, Architecture
from interp.errors import InputError
from interp.formats.ggml_blocks import PLAIN, dequantize
from interp.formats.gguf_codes import UNIT_SCALES, block_codes, by_the_rule
from interp.formats.gguf_experts import Place, in_turns, of_all_experts, own_place
from interp.formats.gguf_header import StoredTensor
from interp.formats.gguf_split import read_parts
from interp.formats.mapped import Mapped
from interp.formats.names import DERIVED_GGUF, ROPE_FACTORS, UNEMBEDDING, architecture_of, model_arch
from interp.formats.reader import Reader
from interp.formats.skeleton import MAX_BLOCKS, Skeleton, count_blocks, skeleton

DENSE_TYPES = {**PLAIN, BlockType.F64: torch.float64}
FUSED = {"attn_q": 0, "attn_k": 1, "attn_v": 2}
"""Which third of `attn_qkv` holds these, where an older converter wrote Phi's three projections as one."""
INTERLEAVED_QKV = ("gptneox",)
"""Architectures whose query, key and value rows Hugging Face interleaves head by head; llama.cpp stores all of each."""
MAX_COUNT = 2**31
PERMUTED_BY = {"q_proj": "attention.head_count", "k_proj": "attention.head_count_kv"}
"""Linears whose rows llama.cpp permutes head by head → the field that counts the heads."""


@dataclass(frozen=True)
class Stored:
    """Where a Hugging Face tensor is in the file.

    Attributes:
        tensor: the file's tensor.
        rows: which of its rows, None for all.
        expert: which of its matrices, where it holds those of all experts of a block.
        turns: the tensor whose rows (of a bias: numbers) stand after each one of its own.
    """

    tensor: StoredTensor
    rows: slice | None = None
    expert: int | None = None
    turns: StoredTensor | None = None

    @property
    def turning(self) -> int:
        """The dimension along which `turns` takes turns with the tensor: rows of a matrix, numbers of a bias."""
        return 0 if self.expert is not None else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """As torch sees it."""
        shape = self.tensor.shape if self.expert is None else self.tensor.shape[1:]
        if self.turns is not None:
            shape = tuple(2 * size if dim == self.turning else size for dim, size in enumerate(shape))
        return shape if self.rows is None else (self.rows.stop - self.rows.start, *shape[1:])


class GGUFReader(Reader):
    """Reads one .gguf file, or all parts of a split one, memory-mapped; see `Reader`.

    `config` is None: it comes from the baseline.

    Raises:
        InputError: not a GGUF, truncated, an unknown architecture, or a missing tensor.
    """

    config = None
    format = "gguf"

    def __init__(self, file: Path) -> None:
        parts = read_parts(file)
        self.files = list(parts)
        self.file = self.files[0]
        self._header = parts[self.file]
        self._tensors = {name: tensor for header in parts.values() for name, tensor in header.tensors.items()}
        self._mapped: Mapped[Any] = Mapped(lambda part: np.memmap(part, np.uint8, "c"))
        self._part_of = {name: part for part, header in parts.items() for name in header.tensors}
        name = str(self._field("general.architecture"))
        self._n_experts = self._count(f"{name}.expert_count") if self._has(f"{name}.expert_count") else 0
        self.architecture = architecture_of(file, name, self._n_experts > 0)
        self._refuse()
        n_blocks = self._n_blocks()
        model, self.architecture = _skeleton(self.architecture, n_blocks, self._n_experts)
        self._stored = self._locate(model, n_blocks)
        self._rules: dict[str, bool] = {}
        self._check_stored(model)
        self.linears = [name for name in model.linears if f"{name}.weight" in self._stored]
        self._shapes = {
            name: stored.shape[::-1] if self._is_conv1d(name) else stored.shape for name, stored in self._stored.items()
        }
        self.warnings = self._unused()
        types = Counter(self._stored[f"{name}.weight"].tensor.kind.name for name in self.linears)
        self.quantization = {"version": self._file_type(), "types": dict(types), "writer": self._quantized_by()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Reader.shapes`."""
        return self._shapes

    def read(self, name: str) -> Tensor:
        """See `Reader.read`."""
        stored = self._stored[name]
        tensor = self._dequantize(stored.tensor, stored.expert)
        if stored.turns is not None:
            return in_turns(tensor, self._dequantize(stored.turns, stored.expert), stored.turning)
        if stored.rows is not None:
            tensor = tensor[stored.rows]
        if self.architecture.gguf_permuted and (field := PERMUTED_BY.get(name.rpartition(".")[0].rpartition(".")[2])):
            return unpermute(tensor, self._heads(field, name, len(tensor)))
        if self.architecture.gguf in INTERLEAVED_QKV and ".query_key_value." in name:
            return interleave_heads(tensor, self._heads("attention.head_count", name, len(tensor), parts=3))
        if self.architecture.gguf_norm_offset and name.endswith("norm.weight"):
            return tensor - self.architecture.gguf_norm_offset
        return tensor.T.contiguous() if self._is_conv1d(name) else tensor

    def is_quantized(self, module: str) -> bool:
        """See `Reader.is_quantized`."""
        return self._stored[f"{module}.weight"].tensor.kind not in DENSE_TYPES

    def stored_bytes(self, module: str) -> int:
        """See `Reader.stored_bytes`."""
        stored = self._stored[f"{module}.weight"]
        whole, part = math.prod(stored.tensor.shape), math.prod(stored.shape)
        return stored.tensor.n_bytes * part // whole

    def codes(self, module: str, weight: Tensor) -> Tensor | None:
        """See `Reader.codes`."""
        kind = self._stored[f"{module}.weight"].tensor.kind
        return block_codes(weight, kind) if self._by_the_rule(module, kind) else None

    def _by_the_rule(self, module: str, kind: BlockType) -> bool:
        if module not in self._rules:
            self._rules[module] = kind in UNIT_SCALES and by_the_rule(self.read(f"{module}.weight"), kind)
        return self._rules[module]

    def floating_dtypes(self) -> dict[torch.dtype, int]:
        """See `Reader.floating_dtypes`; norms and biases do not count, as a GGUF always holds them in float32."""
        count: Counter[torch.dtype] = Counter()
        for name, stored in self._stored.items():
            dtype = DENSE_TYPES.get(stored.tensor.kind)
            if dtype is not None and not (name.endswith("norm.weight") or name.endswith(".bias")):
                count[dtype] += torch.Size(stored.shape).numel()
        return dict(count) or {torch.float16: 0}

    def metadata(self) -> dict[str, Any]:
        """See `Reader.metadata`; among it are `ROPE_FACTORS`, a tensor that scales the rotary frequencies."""
        prefix = f"{self.architecture.gguf}."
        fields = {key.removeprefix(prefix): self._field(key) for key in self._header.fields if key.startswith(prefix)}
        factors = self._tensors.get(ROPE_FACTORS)
        return fields if factors is None else fields | {ROPE_FACTORS: self._dequantize(factors).flatten().tolist()}

    def vocabulary(self) -> dict[str, int] | None:
        """See `Reader.vocabulary`."""
        tokens = "tokenizer.ggml.tokens"
        return {token: index for index, token in enumerate(self._field(tokens))} if self._has(tokens) else None

    def _field(self, key: str) -> Any:
        field = self._header.fields.get(key)
        if field is None:
            raise InputError(
                f"{self.file} has no field {key!r}",
                "the metadata llama.cpp writes",
                "Download or convert the file again",
            )
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise InputError(f"The field {key!r} of {self.file} is not UTF-8", do="Download the file again") from error

    def _has(self, key: str) -> bool:
        return key in self._header.fields

    def _count(self, key: str) -> int:
        """A field that counts something.

        Raises:
            InputError: missing, or no whole number, or out of range.
        """
        value = self._field(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_COUNT:
            raise InputError(
                f"{self.file} gives {key} as {str(value)[:80]}", "a whole number", "Download or convert the file again"
            )
        return value

    def _number(self, key: str) -> int:
        return self._count(f"{self.architecture.gguf}.{key}")

    def _n_blocks(self) -> int:
        """The number of blocks, held against the tensors' names before a model of that many is built.

        Raises:
            InputError: the metadata say another number than there are.
        """
        declared, n_stored = self._number("block_count"), count_blocks(self._tensors, ("blk",))
        if declared != n_stored or not 1 <= declared <= MAX_BLOCKS:
            raise InputError(
                f"{self.file} describes {declared} blocks, and its tensors belong to {n_stored}",
                f"the same number of both, from 1 to {MAX_BLOCKS}",
                "Download or convert the file again",
            )
        return declared

    def _file_type(self) -> str | None:
        known = {int(kind): kind.name.removeprefix("MOSTLY_") for kind in gguf.LlamaFileType}
        return known.get(self._count("general.file_type")) if self._has("general.file_type") else None

    def _quantized_by(self) -> str | None:
        return str(self._field("general.quantized_by")) if self._has("general.quantized_by") else None

    def _refuse(self) -> None:
        if self._n_experts > MOST_EXPERTS:
            raise InputError(
                f"{self.file} counts {self._n_experts} experts", f"{MOST_EXPERTS} at most", "Download the file again"
            )

    def _locate(self, model: Skeleton, n_blocks: int) -> dict[str, Stored]:
        """Where each tensor of the Hugging Face model is; biases the architecture may leave out are optional."""
        names = gguf.get_tensor_name_map(model_arch(self.architecture), n_blocks)
        own = {name: place for name in model.shapes if (place := own_place(name, self.architecture))}
        located = {name: self._find_own(place, names) for name, place in own.items()}
        for module in dict.fromkeys(name.rpartition(".")[0] for name in model.shapes if name not in own):
            together, expert = of_all_experts(module, self.architecture)
            stem = names.get_name(together) or UNEMBEDDING.get(module)
            for suffix in ("weight", "bias") if expert is None else ("weight",):
                stored = self._find(stem, suffix, expert) if stem else None
                if stored is not None:
                    located[f"{module}.{suffix}"] = stored
            if f"{module}.weight" not in located and module != "lm_head":  # no output.weight: tied to the embedding
                raise self._missing(f"{stem}.weight", module)
        return located

    def _missing(self, tensor: str, module: str) -> InputError:
        return InputError(
            f"The tensor {tensor!r} ({module}) is missing from {self.file}",
            f"every tensor of a {self.architecture.gguf} model",
            "Download or convert the file again",
        )

    def _find_own(self, place: Place, names: gguf.TensorNameMap) -> Stored:
        """One tensor, or two of one shape in turns.

        Raises:
            InputError: one of them is missing, has no matrix for every expert, or is unlike the other.
        """
        found = []
        for module in place.modules:
            stem = names.get_name(module) or module
            stored = self._find(stem, place.suffix, place.expert)
            if stored is None:
                raise self._missing(f"{stem}.{place.suffix}", module)
            found.append(stored)
        first, last = found[0].tensor, found[-1].tensor
        if (first.shape, first.kind) != (last.shape, last.kind):
            raise InputError(
                f"The tensors {first.name!r} and {last.name!r} of {self.file} have the shapes {list(first.shape)} and "
                f"{list(last.shape)} and the types {first.kind.name} and {last.kind.name}",
                "one shape and one type, as their rows are one linear's in turns",
                "Download or convert the file again",
            )
        return replace(found[0], turns=last if len(found) > 1 else None)

    def _check_stored(self, model: Skeleton) -> None:
        """Hold dimensions and types of the tensors against the model's.

        Raises:
            InputError: a matrix where the model has a vector, or a type that the gguf package does not dequantize.
        """
        for name, stored in self._stored.items():
            dimensions = len(model.shapes[name]) if name in model.shapes else 1  # a bias that may be left out
            if len(stored.shape) != dimensions:
                raise InputError(
                    f"The tensor {stored.tensor.name!r} of {self.file} has the shape {list(stored.shape)}",
                    f"{dimensions} dimensions",
                    "Download or convert the file again",
                )
        for tensor in {stored.tensor.kind: stored.tensor for stored in self._stored.values()}.values():
            size = gguf.GGML_QUANT_SIZES[tensor.kind][1]
            self._dequantized(tensor, np.zeros(size, np.uint8))

    def _find(self, stem: str, suffix: str, expert: int | None = None) -> Stored | None:
        tensor = self._tensors.get(f"{stem}.{suffix}")
        if tensor is not None and expert is not None and tensor.shape[0] != self._n_experts:
            raise InputError(
                f"The tensor {tensor.name!r} of {self.file} has the shape {list(tensor.shape)}",
                f"one matrix for each of {self._n_experts} experts",
                "Download or convert the file again",
            )
        if tensor is not None:
            return Stored(tensor, expert=expert)
        block, _, part = stem.rpartition(".")
        fused = self._tensors.get(f"{block}.attn_qkv.{suffix}")
        if part not in FUSED or fused is None:
            return None
        heads, key_heads = self._number("attention.head_count"), self._number("attention.head_count_kv")
        head_width, rest = divmod(fused.shape[0], max(heads + 2 * key_heads, 1))
        if rest or not head_width:
            raise self._wrong_heads("attention.head_count", heads, fused.name, fused.shape[0])
        edges = [0, heads * head_width, (heads + key_heads) * head_width, (heads + 2 * key_heads) * head_width]
        return Stored(fused, slice(edges[FUSED[part]], edges[FUSED[part] + 1]))

    def _dequantize(self, tensor: StoredTensor, expert: int | None = None) -> Tensor:
        """All of a tensor, or one expert's matrix of it."""
        shape = tensor.shape if expert is None else tensor.shape[1:]
        n_bytes = tensor.n_bytes if expert is None else tensor.n_bytes // tensor.shape[0]
        start = tensor.offset + (expert or 0) * n_bytes
        contents = self._mapped.reading(self._part_of[tensor.name], n_bytes)
        dense = self._dequantized(tensor, contents[start : start + n_bytes])
        if not _finite(dense):
            raise InputError(
                f"The tensor {tensor.name!r} of {self.file} holds NaN or infinite values",
                "finite scales",
                "Download or quantize the file again",
            )
        return dense.view(shape)

    def _dequantized(self, tensor: StoredTensor, stored: NDArray[np.uint8]) -> Tensor:
        """The numbers of bytes of the tensor's type, in one dimension."""
        try:
            return dequantize(stored, tensor.kind)
        except NotImplementedError as error:
            raise InputError(
                f"The tensor {tensor.name!r} of {self.file} has the block type {tensor.kind.name}",
                "a type that the gguf package dequantizes",
                "Quantize the model to another type",
            ) from error

    def _heads(self, field: str, name: str, rows: int, parts: int = 2) -> int:
        """How many heads the rows of this tensor belong to, each of as many equal parts.

        Raises:
            InputError: a number of heads that the rows cannot have.
        """
        heads = self._number(field)
        if heads < 1 or rows % (parts * heads):
            raise self._wrong_heads(field, heads, name, rows)
        return heads

    def _wrong_heads(self, field: str, heads: int, name: str, rows: int) -> InputError:
        return InputError(
            f"{self.file} gives {self.architecture.gguf}.{field} as {heads}, and {name} has {rows} rows",
            "a number of heads that divides them into equal parts",
            "Download or convert the file again",
        )

    def _is_conv1d(self, name: str) -> bool:
        return self.architecture.conv1d and name.removesuffix(".weight") in self.linears

    def _unused(self) -> list[str]:
        stored = [tensor for stored in self._stored.values() for tensor in (stored.tensor, stored.turns)]
        used = {tensor.name for tensor in stored if tensor is not None} | {*DERIVED_GGUF}
        unused = [name for name in self._tensors if name not in used]
        return [f"{len(unused)} tensors of {self.file} belong to no part of the model: {unused[:5]}"] if unused else []


def _finite(numbers: Tensor) -> bool:
    """A sum is one pass; only where it overflows is every number looked at."""
    return math.isfinite(numbers.sum(dtype=torch.float32)) or bool(numbers.isfinite().all())


def unpermute(tensor: Float[Tensor, rows * columns], n_heads: int) -> Float[Tensor, rows * columns]:
    """Undo llama.cpp's interleaving of the two rotary halves of each head."""
    half = tensor.shape[0] // n_heads // 2
    return tensor.reshape(n_heads, half, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def interleave_heads(tensor: Float[Tensor, rows * columns], n_heads: int) -> Float[Tensor, rows * columns]:
    """From all queries, all keys, all values to the query, key and value of each head in turn."""
    width = tensor.shape[0] // n_heads // 3
    return tensor.reshape(3, n_heads, width, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _skeleton(row: Architecture, n_blocks: int, n_experts: int) -> tuple[Skeleton, Architecture]:
    """Names only: the sizes are those of the architecture's default config. A file may untie what that ties. The row
    comes with the linears of each expert."""
    from transformers import AutoConfig

    experts = {row.experts.count_key: n_experts, "num_experts_per_tok": 1} if row.experts is not None else {}
    config = AutoConfig.for_model(row.model_type, num_hidden_layers=n_blocks, **experts)
    model = skeleton(config, row)
    return model.untie([*model.tied]), row.expanded(config)
