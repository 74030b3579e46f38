"""A checkpoint of any format → a dense Hugging Face directory, one file of weights at a time, read back afterwards."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.architectures import UNEMBEDDING_WEIGHT
from interp.dequantize.settings import SHARD_GB, ExportDtype
from interp.errors import InputError, NotFinite
from interp.experts import stored_together
from interp.files import atomic_directory
from interp.formats.readers import reader_for
from interp.formats.shards import INDEX
from interp.quantize.cells import CellRecord, content_key, versions
from interp.surroundings import Surroundings, surroundings_of
from interp.tokenizer_files import FILES, JSON_OBJECTS

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint

NARROW = (torch.float16, torch.bfloat16)
"""Types of two bytes; what neither holds exactly goes to float32."""
Report = Callable[[int, int], object]
"""Called with the steps done and the steps in all: every tensor is written, and read again."""


def export(
    checkpoint: Checkpoint,
    out: Path,
    dtype: ExportDtype = ExportDtype.EXACT,
    *,
    like: Checkpoint | None = None,
    shard_gb: float = SHARD_GB,
    report: Report | None = None,
) -> CellRecord:
    """Write the dense model that a checkpoint stands for, and return the record that lies beside it.

    Config, tokenizer and chat template come from the checkpoint's directory, or are made of a GGUF's metadata, or are
    taken from `like`. The quantization is gone from the config. At most one file of weights is held in memory. After
    writing, every tensor is read back and compared with what was dequantized; the directory appears only then.

    Args:
        checkpoint: of any format that `interp.open_checkpoint` opens.
        out: the new directory.
        dtype: of all numbers; "exact" is the narrowest type that holds every one of them as it is read.
        like: the checkpoint whose config and tokenizer a GGUF takes instead of its own.
        shard_gb: gigabytes of a file of weights.
        report: see `Report`.

    Raises:
        InputError: `out` is there already or cannot be written; a GGUF whose metadata are not enough; a number that
            `dtype` cannot hold; what was written is not what was meant.

    Example:
        >>> export(open_checkpoint("path/to/model-Q4_K_M.gguf"), Path("dense"), ExportDtype.FLOAT16).notes
        ['these weights were dequantized from gguf at 4.85 bits per weight: …']
    """
    _refuse_existing(out)
    beside = surroundings_of(checkpoint, like)
    started = time.monotonic()
    names = checkpoint.names()
    steps = _Steps(2 * len(names), report)
    torch_dtype = _chosen(checkpoint, names, dtype)
    with atomic_directory(out) as directory:
        written = _write_weights(checkpoint, directory, torch_dtype, shard_gb, steps)
        _write_config(beside, directory, torch_dtype, untied=UNEMBEDDING_WEIGHT in names)
        _write_tokenizer(like or checkpoint, beside, directory)
        _verify(directory, written, steps)
        record = _record(checkpoint, written, torch_dtype, round(time.monotonic() - started, 2))
        record.write(directory)
    return record


@dataclass
class _Steps:
    total: int
    report: Report | None
    done: int = 0

    def advance(self) -> None:
        self.done += 1
        if self.report is not None:
            self.report(self.done, self.total)


@dataclass(frozen=True)
class _Written:
    """One tensor as it was written.

    Attributes:
        digest: hex SHA-256 of its type, shape and bytes.
        n_bytes: in the file.
        rounding: largest |written − read| / largest |read|; 0 where nothing was rounded.
    """

    digest: str
    n_bytes: int
    rounding: float


def _refuse_existing(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is there already, and nothing is replaced", "a new directory", "Move it away, or write elsewhere"
        )


def _chosen(checkpoint: Checkpoint, names: Sequence[str], dtype: ExportDtype) -> torch.dtype:
    """The type asked for, or the first narrow one that holds every number of every tensor, else float32."""
    if dtype is not ExportDtype.EXACT:
        return getattr(torch, dtype)
    holding = list(NARROW)
    for name in names:
        tensor = checkpoint.tensor(name)
        holding = [narrow for narrow in holding if _holds(narrow, tensor)]
        if not holding:
            return torch.float32
    return holding[0]


def _holds(narrow: torch.dtype, tensor: Tensor) -> bool:
    return tensor.dtype is narrow or torch.equal(tensor.to(narrow).double(), tensor.double())


def _write_weights(
    checkpoint: Checkpoint, directory: Path, dtype: torch.dtype, shard_gb: float, steps: _Steps
) -> dict[str, _Written]:
    from safetensors.torch import save_file

    held, shapes = stored_together(checkpoint.architecture, checkpoint.names()), checkpoint.shapes()
    sizes = {name: sum(prod(shapes[part]) for part in parts) for name, parts in held.items()}
    shards = list(_shards(sizes, dtype.itemsize, shard_gb * 1e9))
    files = _file_names(len(shards))
    written: dict[str, _Written] = {}
    for file, names in zip(files, shards, strict=True):
        tensors = {}
        for name in names:
            parts = []
            for part in held[name]:
                tensor, written[part] = _converted(checkpoint, part, dtype)
                parts.append(tensor)
                steps.advance()
            tensors[name] = parts[0] if held[name] == [name] else torch.stack([part.T for part in parts])
        save_file(tensors, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # the library makes it readable by its owner alone
    if len(files) > 1:
        placed = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.n_bytes for tensor in written.values())
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (directory / INDEX).write_text(json.dumps(index, indent=2))
    return written


def _shards(sizes: Mapping[str, int], itemsize: int, limit: float) -> Iterator[list[str]]:
    """Names in order, cut where a file would become larger than `limit` bytes."""
    names: list[str] = []
    size = 0
    for name, count in sizes.items():
        added = itemsize * count
        if names and size + added > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += added
    yield names


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _converted(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> tuple[Tensor, _Written]:
    tensor = checkpoint.tensor(name)
    cast = tensor.to(dtype, copy=True).contiguous()
    if not bool(cast.isfinite().all()):
        raise NotFinite(
            f"The tensor {name!r} of {checkpoint.path} has values that {dtype} cannot hold (the largest is "
            f"{tensor.abs().max().item():g})",
            "finite values",
            "Export to float32 or bfloat16",
        )
    return cast, _Written(_digest(cast), cast.nbytes, _rounding(tensor, cast))


def _rounding(tensor: Tensor, cast: Tensor) -> float:
    if tensor.dtype is cast.dtype or not tensor.numel():
        return 0.0
    largest = tensor.abs().max().double().item()
    return (cast.double() - tensor.double()).abs().max().item() / largest if largest else 0.0


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_config(beside: Surroundings, directory: Path, dtype: torch.dtype, untied: bool) -> None:
    """The config of the dense model: its type, its class, and no ties between tensors that have other numbers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = copy.deepcopy(beside.config)
    config.dtype = dtype
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    if untied:
        config.tie_word_embeddings = False
    config.save_pretrained(directory)
    if beside.generation_config is not None:
        beside.generation_config.save_pretrained(directory)


def _write_tokenizer(source: Checkpoint, beside: Surroundings, directory: Path) -> None:
    """The files as they lie beside the weights; those that transformers makes of a GGUF's metadata where none do."""
    if source.config is None:
        beside.tokenizer.save_pretrained(directory)
        return
    for name in (*FILES, *JSON_OBJECTS):
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, directory / name)


def _verify(directory: Path, written: dict[str, _Written], steps: _Steps) -> None:
    """Open the directory as anybody would, and compare every tensor with what was written.

    Raises:
        InputError: a tensor is not what was dequantized: the disk, or this program, is at fault.
    """
    reader = reader_for(directory)
    if reader.format != "dense" or set(reader.shapes()) != set(written):
        raise _unverified(f"it opens as {reader.format} with {len(reader.shapes())} tensors instead of {len(written)}")
    for name, tensor in written.items():
        if _digest(reader.read(name)) != tensor.digest:
            raise _unverified(f"the tensor {name!r} has other numbers than were written")
        steps.advance()


def _unverified(why: str) -> InputError:
    return InputError(
        f"The export cannot be verified: {why}",
        "the tensors that were dequantized",
        "Nothing was kept: check the disk and try again, and report this if it happens twice",
    )


def _record(checkpoint: Checkpoint, written: dict[str, _Written], dtype: torch.dtype, seconds: float) -> CellRecord:
    used = versions("torch", "transformers", "safetensors", "gguf")
    settings = {"dtype": str(dtype).removeprefix("torch.")}
    fingerprint = checkpoint.fingerprint()
    rounded = {name: tensor.rounding for name, tensor in written.items() if tensor.rounding}
    details: dict[str, Any] = {
        "source": {
            "name": checkpoint.path.name,
            "sha256": fingerprint,
            "format": checkpoint.format,
            "quantization": checkpoint.quantization,
            "bits_per_weight": round(checkpoint.bits_per_weight(), 4),
        },
        "tensors": len(written),
        "bytes": sum(tensor.n_bytes for tensor in written.values()),
        "dtype": settings["dtype"],
        "rounded": len(rounded),
        "largest_rounding": max(rounded.values(), default=0.0),
    }
    key = content_key(source=fingerprint, settings=settings, versions=used)
    notes = list(_notes(checkpoint, rounded, settings["dtype"]))
    return CellRecord("dense", "interp.dequantize", used, settings, key, details=details, notes=notes, seconds=seconds)


def _notes(checkpoint: Checkpoint, rounded: dict[str, float], dtype: str) -> Iterator[str]:
    if checkpoint.has_quantized_linears():
        yield (
            f"these weights were dequantized from {checkpoint.format} at {checkpoint.bits_per_weight():.2f} bits per "
            "weight: they are not the model from before quantization"
        )
    if rounded:
        yield (
            f"{len(rounded)} tensors were rounded to {dtype}, by up to {max(rounded.values()):.1e} of their largest "
            "value"
        )
