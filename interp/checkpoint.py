"""Open a checkpoint of any format: its linears, and its dense weights tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture
from interp.errors import InputError
from interp.files import sha256
from interp.formats.placing import reading_to
from interp.formats.reader import Reader
from interp.formats.readers import reader_for

if TYPE_CHECKING:
    from interp.inspect.summary import Summary
    from interp.quantize.cells import CellRecord


class Checkpoint:
    """A stored model, seen as the dense Hugging Face model it stands for. Nothing is kept in memory between calls.

    Attributes:
        path: the directory, or the .gguf file, also where a directory that holds one was given.
        warnings: what a user should know before trusting the tensors.

    Example:
        >>> checkpoint = open_checkpoint("path/to/model-AWQ")
        >>> checkpoint.weight(checkpoint.linears()[0]).shape
        torch.Size([256, 256])
    """

    def __init__(self, path: Path, reader: Reader) -> None:
        self.path = path
        self.warnings: list[str] = reader.warnings
        self._reader = reader

    def __repr__(self) -> str:
        model_type, blocks = self.architecture.model_type, self.n_blocks()
        return f"<Checkpoint {self.path.name}: {self.stored_as()}, {model_type}, {blocks} blocks>"

    def stored_as(self) -> str:
        """The format and the bits per weight of the block linears, in words: "awq, 4.16 bits per weight"."""
        return f"{self.format}, {self.bits_per_weight():.2f} bits per weight"

    @property
    def format(self) -> str:
        """The name of the format, as `interp.formats.reader.Reader` lists them: "dense", "awq", "gptq", "gguf", …"""
        return self._reader.format

    @property
    def architecture(self) -> Architecture:
        """The row of `interp.architectures`."""
        return self._reader.architecture

    @property
    def config(self) -> Any:
        """The transformers config without its quantization; None for a GGUF, which takes its baseline's."""
        return self._reader.config

    @property
    def quantization(self) -> dict[str, Any]:
        """What is known of it (bits, group_size, symmetric, act_order, version, writer); empty if dense."""
        return self._reader.quantization

    def metadata(self) -> dict[str, Any]:
        """What a GGUF says of its own model, keys without the architecture's prefix; empty where a config.json does."""
        return self._reader.metadata()

    def linears(self) -> list[str]:
        """Names of the linear modules inside the blocks, in the model's order."""
        return list(self._reader.linears)

    def is_quantized(self, name: str) -> bool:
        """Whether the linear `name` is stored quantized (a quantizer may leave some out)."""
        return self._reader.is_quantized(name)

    def has_quantized_linears(self) -> bool:
        """Whether at least one linear is stored quantized."""
        return any(map(self._reader.is_quantized, self._reader.linears))

    def names(self) -> list[str]:
        """Every name of the dense model's state dict, tied copies omitted."""
        return list(self._reader.shapes())

    def weight(
        self, name: str, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Float[Tensor, "out in"]:
        """Dense weight [out, in] of the linear `name`, in the writer's own arithmetic and then cast to `dtype`.

        GPT-2's Conv1D, stored [in, out], comes out as [out, in] too.

        Args:
            name: of a linear.
            dtype: of the result.
            device: as in `tensor`.

        Raises:
            InputError: no such linear, or its tensors are malformed.
        """
        weight = self.tensor(f"{name}.weight", dtype, device)
        return weight.T if self.architecture.conv1d and name in self._reader.linears else weight

    def codes(self, name: str, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"] | None:
        """The integer code that the storage of the linear `name` would give each number of a weight.

        Args:
            name: of a linear.
            weight: any weight of its shape; the checkpoint's own has the codes that are stored.

        Returns:
            Steps from the block's offset; None where the weight alone does not determine them: AWQ and GPTQ fit their
            grids to activations, K-quants (and all types that an importance matrix was used for) search for theirs, and
            a dense tensor has none.

        Example:
            >>> codes = cell.codes(name, cell.weight(name))
            >>> (codes == cell.codes(name, other.weight(name))).double().mean()
        """
        return self._reader.codes(name, weight)

    def tensor(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """One tensor of the dense state dict, in the Hugging Face layout (Conv1D stays [in, out]).

        Args:
            name: one of `names()`.
            dtype: what to cast to; None keeps the stored dtype (float16 for AWQ and GPTQ, float32 for GGUF blocks).
            device: where the stored tensors are put and dequantized; None for main memory.

        Raises:
            InputError: no such tensor, or it is malformed.
        """
        if name not in self._reader.shapes():
            raise InputError(f"{self.path} has no tensor {name!r}", "one of Checkpoint.names()")
        with reading_to(device):
            tensor = self._reader.read(name)
        return tensor if dtype is None else tensor.to(dtype)

    def weight_shape(self, name: str) -> tuple[int, int]:
        """[out, in] of the linear `name`, without reading it."""
        rows, columns = self._reader.shapes()[f"{name}.weight"]
        return (columns, rows) if self.architecture.conv1d and name in self._reader.linears else (rows, columns)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of `names()`, in the Hugging Face layout."""
        return dict(self._reader.shapes())

    def vocabulary(self) -> dict[str, int] | None:
        """Token to id, as the checkpoint's own tokenizer has them; None where it carries no tokenizer."""
        return self._reader.vocabulary()

    def bits_per_weight(self) -> float:
        """Stored bits of the block linears (codes, scales, zero points, order) per weight."""
        weights = sum(torch.Size(self.weight_shape(name)).numel() for name in self._reader.linears)
        return 8 * sum(self._reader.stored_bytes(name) for name in self._reader.linears) / weights

    def linear_bits(self, name: str) -> float:
        """Stored bits per weight of the linear `name`: codes, scales and zero points, or 16 for float16."""
        rows, columns = self.weight_shape(name)
        return 8 * self._reader.stored_bytes(name) / (rows * columns)

    def n_blocks(self) -> int:
        """How many transformer blocks there are."""
        prefix = self.architecture.blocks + "."
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in self._reader.linears)

    def stored_bytes(self) -> int:
        """Size of the files that the tensors come from."""
        return sum(file.stat().st_size for file in self._reader.files)

    def summary(self, request: str = "How are you?") -> Summary:
        """What the checkpoint is, on one screen: `print(checkpoint.summary())`. No weight is read.

        Format, bits per weight, writer, architecture, which linears are quantized, tokenizer, chat template and what a
        request looks like rendered, size on disk and in memory, warnings. Whether two checkpoints are a pair says
        `python -m interp.inspect BASELINE CELL`.

        Args:
            request: what is rendered.

        Example:
            >>> print(open_checkpoint("path/to/model-AWQ").summary())
        """
        from interp.inspect.summary import summarize

        return summarize(self, request)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype most unquantized floating-point parameters are stored in (scales do not count)."""
        counts = self._reader.floating_dtypes()
        return max(counts, key=lambda dtype: counts[dtype])

    def stamp(self) -> list[list[str | int]]:
        """Name, size and time of change (ns) of the files that the tensors come from; equal while none is written."""
        files = sorted(self._reader.files)
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def fingerprint(self) -> str:
        """Hex SHA-256 over the content of the files that the tensors come from; reads them all."""
        digest = hashlib.sha256()
        for file in sorted(self._reader.files):
            digest.update(f"{file.name}\0{sha256(file)}\n".encode())
        return digest.hexdigest()

    def export(
        self,
        out: str | Path,
        dtype: str = "exact",
        *,
        like: Checkpoint | None = None,
        shard_gb: float | None = None,
        report: Callable[[int, int], object] | None = None,
    ) -> CellRecord:
        """Write the dense Hugging Face directory that this checkpoint stands for; see `interp.dequantize.export`.

        Args:
            out: the new directory.
            dtype: "float16", "bfloat16", "float32", or "exact": the narrowest that holds every number as it is.
            like: the checkpoint whose config and tokenizer a GGUF takes instead of its own metadata's.
            shard_gb: gigabytes of a file of weights.
            report: called with the steps done and the steps in all.

        Raises:
            InputError: no such dtype; as `interp.dequantize.export`.

        Example:
            >>> open_checkpoint("path/to/model-AWQ").export("dense", "float16").details["tensors"]
            57
        """
        from interp.dequantize.settings import SHARD_GB, ExportDtype
        from interp.dequantize.write import export

        if dtype not in list(ExportDtype):
            raise InputError(f"There is no type {dtype!r} to export to", f"one of {', '.join(ExportDtype)}")
        return export(self, Path(out), ExportDtype(dtype), like=like, shard_gb=shard_gb or SHARD_GB, report=report)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory, a .gguf file, or a Hugging Face hub id ("owner/model").

    Headers and config are checked at once, tensor data is read when asked for. A path never touches the network; only a
    name that looks like a hub id and is not a path is downloaded (safetensors, JSON, tokenizer and GGUF files alone).

    Args:
        path: the directory, file or hub id.

    Raises:
        InputError: missing path, not a checkpoint, damaged or inconsistent files, or an unsupported format.

    Example:
        >>> checkpoint = open_checkpoint("path/to/model-AWQ")
        >>> checkpoint.format, checkpoint.linears()[0]
        ('awq', 'model.layers.0.self_attn.q_proj')
    """
    from interp.hub import resolve

    resolved = resolve(path)
    reader = reader_for(resolved)
    return Checkpoint(reader.files[0] if reader.format == "gguf" else resolved, reader)
