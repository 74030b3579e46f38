"""Linears kept at higher precision: how each quantizer is told, and what that costs.

A list of Hugging Face linear names goes in; what comes out matches exactly those modules and no others, by each
program's own rules (GPTQModel's `dynamic` matches regular expressions from the start of the name, llama.cpp searches
them anywhere in the tensor's name, compressed-tensors compares a plain name whole).

Runtimes that fuse q, k and v, or gate and up, into one matrix (vLLM) need such a group kept whole or not at all:
`whole_groups` rounds a list up. llama.cpp fuses nothing.
AWQ may still move a scale out of a kept linear's rows into the next one's columns: the function stays the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from interp.architectures import Architecture
from interp.checkpoint import Checkpoint
from interp.errors import InputError

KEPT_TYPE = "F16"
"""What kept linears are stored as in a GGUF file: the baseline's own float16, as GPTQModel leaves them too."""
KEPT_BITS = 16.0


def checked(checkpoint: Checkpoint, keep: Iterable[str]) -> list[str]:
    """`keep` without repetitions, in the model's order.

    Raises:
        InputError: one of them is no linear of the checkpoint, or nothing would be left to quantize.
    """
    wanted, linears = set(keep), checkpoint.linears()
    if unknown := sorted(wanted - set(linears)):
        raise InputError(f"{checkpoint.path} has no linear {unknown[0]!r} to keep", f"names such as {linears[0]!r}")
    if wanted == set(linears):
        raise InputError("Every linear would be kept, so nothing would be quantized", "some of them")
    return [name for name in linears if name in wanted]


def whole_groups(keep: Iterable[str], architecture: Architecture) -> list[str]:
    """`keep`, and after it whatever completes its groups that runtimes fuse: q, k and v; gate and up of one block."""
    whole = dict.fromkeys(keep)
    groups = [group for group in (architecture.attention_in, architecture.mlp_in) if len(group) > 1]
    if architecture.experts is not None:
        numbers = {int(match[1]) for name in whole if (match := re.search(r"\.experts\.([0-9]+)\.", name))}
        groups += [architecture.experts.linears(expert)[0] for expert in sorted(numbers)]
    for name in tuple(whole):
        for group in groups:
            if own := [linear for linear in group if name.endswith(f".{linear}")]:
                whole |= dict.fromkeys(name.removesuffix(own[0]) + linear for linear in group)
    return list(whole)


def mixed_name(cell: str, keep: Sequence[str]) -> str:
    """Name of the cell with these linears kept: "Q2_K-keep3-1f0c9a" (their number, and a hash of the list)."""
    if not keep:
        return cell
    digest = hashlib.sha256("\n".join(sorted(keep)).encode()).hexdigest()
    return f"{cell}-keep{len(set(keep))}-{digest[:6]}"


def gptqmodel_dynamic(keep: Iterable[str]) -> dict[str, dict[str, object]]:
    """For GPTQModel's `QuantizeConfig(dynamic=...)`: "-:" leaves a module as it is."""
    return {f"-:^{re.escape(name)}$": {} for name in keep}


def llm_compressor_ignore(keep: Iterable[str]) -> list[str]:
    """For llm-compressor's `ignore`; the unembedding, which its recipes name too, comes first."""
    return ["lm_head", *keep]


def gguf_tensors(keep: Iterable[str], architecture: Architecture, n_blocks: int) -> list[str]:
    """The names that llama.cpp gives to the weights of these linears, e.g. "blk.0.attn_q.weight".

    Raises:
        InputError: GGUF has no name for one of them, or is not supported for the architecture.
    """
    from gguf import get_tensor_name_map

    from interp.formats.names import model_arch

    names = get_tensor_name_map(model_arch(architecture), n_blocks)
    stems = {linear: names.get_name(linear) for linear in keep}
    for linear, stem in stems.items():
        if stem is None:
            raise InputError(
                f"GGUF has no name for the linear {linear!r} of {architecture.gguf!r} with {n_blocks} blocks"
            )
    return [f"{stem}.weight" for stem in stems.values()]


def exactly(tensor: str) -> str:
    """The regular expression that matches this tensor's name and no other."""
    return f"^{re.escape(tensor)}$"


def llama_cpp_tensor_types(
    keep: Iterable[str], architecture: Architecture, n_blocks: int, kept_type: str = KEPT_TYPE
) -> list[str]:
    """Arguments for llama-quantize: "--tensor-type", "^blk\\.0\\.attn_q\\.weight$=f16", …; quote them in a shell."""
    options = []
    for tensor in gguf_tensors(keep, architecture, n_blocks):
        options += ["--tensor-type", f"{exactly(tensor)}={kept_type.lower()}"]
    return options


def mean_bits(checkpoint: Checkpoint, keep: Iterable[str]) -> float:
    """Bits per weight of the linears of the quantized `checkpoint` if `keep` were in float16, weighted by size.

    What writing the cell again gives can differ a little: llama.cpp's mixtures choose other types for the neighbours.
    """
    float16_linears = set(keep)
    sizes = {name: _size(checkpoint, name) for name in checkpoint.linears()}
    bits = sum(
        size * (KEPT_BITS if name in float16_linears else checkpoint.linear_bits(name)) for name, size in sizes.items()
    )
    return bits / sum(sizes.values())


def _size(checkpoint: Checkpoint, name: str) -> int:
    rows, columns = checkpoint.weight_shape(name)
    return rows * columns
