"""One checkpoint on one screen, from its headers, config and tokenizer; no weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from interp.architectures import UNEMBEDDINGS
from interp.chat import render, template_source
from interp.errors import InputError
from interp.inspect.wording import lines, sized

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint

REQUEST = "How are you?"
"""What is rendered to show a chat template."""
MEMORY_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a parameter."""


@dataclass(frozen=True)
class Summary:
    """What a checkpoint is.

    Attributes:
        path: of the directory or file.
        format: "dense", "awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "modelopt", "mlx", "mxfp4", "hqq"
            or "gguf".
        bits_per_weight: of the linears inside the blocks: codes, scales, zero points and order.
        writer: who quantized it, as far as the files say; None where they do not.
        quantization: what else is known of it: bits, group size, symmetric, version …; empty if dense.
        architecture: model type.
        blocks: how many.
        width: of the residual stream.
        parameters: of the dense model, tied ones once.
        context: tokens that it was made for; None where nothing says so.
        vocabulary: rows of the embedding.
        tied: whether the embedding is the unembedding, too.
        linears: kind of linear ("self_attn.q_proj") → number, how many of them are quantized, bits per weight.
        embedding_quantized: whether the embedding is stored quantized.
        tokenizer: its number of tokens; what is wrong with it where there is none.
        template: whether there is a chat template.
        rendered: `REQUEST` as the model would read it; "" without a tokenizer.
        disk: bytes of the files that hold the tensors.
        memory: dtype → bytes of the loaded weights.
        warnings: what a user should know before trusting the tensors.

    Example:
        >>> print(open_checkpoint("path/to/model-AWQ").summary())
        >>> open_checkpoint("path/to/model-AWQ").summary().memory["bfloat16"]
    """

    path: str
    format: str
    bits_per_weight: float
    writer: str | None
    quantization: Mapping[str, Any]
    architecture: str
    blocks: int
    width: int
    parameters: int
    context: int | None
    vocabulary: int
    tied: bool
    linears: Mapping[str, Mapping[str, int | float]]
    embedding_quantized: bool
    tokenizer: str
    template: bool
    rendered: str
    disk: int
    memory: Mapping[str, int]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(line for key, text in self._lines() for line in lines(key, text))

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "checkpoint", self.path
        yield "format", f"{self.format}, {self.bits_per_weight:.2f} bits per weight of the linears"
        facts = [f"{key.replace('_', ' ')} {_shown(value)}" for key, value in self.quantization.items()]
        if facts:
            yield "", "; ".join(facts)
        yield "writer", self.writer or ("unknown: the files do not say" if self.quantization else "none: not quantized")
        size = f"{self.architecture}, {self.blocks} blocks, width {self.width:,}, {self.parameters:,} parameters"
        yield "model", size
        context = "" if self.context is None else f", context of {self.context:,} tokens"
        yield "", f"vocabulary of {self.vocabulary:,}, {'tied' if self.tied else 'own'} unembedding{context}"
        yield from self._quantized_lines()
        yield "tokenizer", self.tokenizer
        yield "template", "its own" if self.template else "none: prompts are raw text"
        if self.rendered:
            yield "", repr(self.rendered)
        yield "on disk", sized(self.disk)
        yield "to load", ", ".join(f"{sized(size)} in {dtype}" for dtype, size in self.memory.items())
        for warning in self.warnings:
            yield "warning", warning

    def _quantized_lines(self) -> Iterator[tuple[str, str]]:
        total = sum(int(kind["number"]) for kind in self.linears.values())
        done = sum(int(kind["quantized"]) for kind in self.linears.values())
        embedding = "the embedding, too" if self.embedding_quantized else "not the embedding"
        yield "quantized", f"{done} of {total} linears, {embedding}" if done else f"none of {total} linears"
        bits: dict[str, list[str]] = {}
        for name, kind in self.linears.items():
            bits.setdefault(f"{kind['bits']:.2f}", []).append(name)
        if done and len(bits) > 1:
            yield from (("", f"{size} bits: {', '.join(names)}") for size, names in sorted(bits.items()))


def summarize(checkpoint: Checkpoint, request: str = REQUEST) -> Summary:
    """See `Checkpoint.summary`.

    Args:
        checkpoint: opened.
        request: what is rendered through the chat template.
    """
    tokenizer, template, rendered = _tokenizer(checkpoint, request)
    shapes, embed = checkpoint.shapes(), checkpoint.architecture.embed
    parameters = sum(map(prod, shapes.values()))
    facts = dict(checkpoint.quantization)
    return Summary(
        path=str(checkpoint.path),
        format=checkpoint.format,
        bits_per_weight=checkpoint.bits_per_weight(),
        writer=facts.pop("writer", None),
        quantization=facts,
        architecture=checkpoint.architecture.model_type,
        blocks=checkpoint.n_blocks(),
        width=shapes[f"{embed}.weight"][1],
        parameters=parameters,
        context=_context(checkpoint),
        vocabulary=shapes[f"{embed}.weight"][0],
        tied=not any(name.startswith(UNEMBEDDINGS) for name in shapes),
        linears=_linears(checkpoint),
        embedding_quantized=checkpoint.is_quantized(embed),
        tokenizer=tokenizer,
        template=template,
        rendered=rendered,
        disk=checkpoint.stored_bytes(),
        memory={dtype: size * parameters for dtype, size in MEMORY_DTYPES.items()},
        warnings=list(checkpoint.warnings),
    )


def _linears(checkpoint: Checkpoint) -> dict[str, dict[str, int | float]]:
    kinds: dict[str, list[str]] = {}
    for name in checkpoint.linears():
        kind = name.removeprefix(f"{checkpoint.architecture.blocks}.").partition(".")[2]
        kinds.setdefault(re.sub(r"\.[0-9]+\.", ".*.", kind), []).append(name)  # experts together
    return {
        kind: {
            "number": len(names),
            "quantized": sum(map(checkpoint.is_quantized, names)),
            "bits": sum(map(checkpoint.linear_bits, names)) / len(names),
        }
        for kind, names in kinds.items()
    }


def _context(checkpoint: Checkpoint) -> int | None:
    config = checkpoint.config
    length = (
        checkpoint.metadata().get("context_length")
        if config is None
        else getattr(config, "max_position_embeddings", None)
    )
    return length if isinstance(length, int) else None


def _tokenizer(checkpoint: Checkpoint, request: str) -> tuple[str, bool, str]:
    """What the tokenizer is, whether it has a template, and the request rendered; an error stands in its place."""
    try:
        from interp.surroundings import own_surroundings  # late: headers alone do without transformers

        tokenizer, stored = own_surroundings(checkpoint).tokenizer, checkpoint.vocabulary()
        description = f"{len(tokenizer if stored is None else stored):,} tokens"
        return description, template_source(tokenizer) is not None, render(tokenizer, request).texts[0]
    except InputError as error:
        return f"cannot be used: {error}", False, ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{number} × {key}" for key, number in value.items())
    return "unknown" if value is None else str(value)
