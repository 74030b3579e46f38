"""The gate before a comparison: baseline and cell read the same tokens and run on the same engine.

Another tokenizer, another template or another engine changes answers by itself; compared across them, that change
would be measured as quantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.errors import InputError


@dataclass(frozen=True)
class Reading:
    """How one cell reads the prompts.

    Attributes:
        engine: what runs it.
        texts: the rendered prompts.
        prompts: their token ids; None where only a server knows them.
        context: the longest that the model can read; None where unknown.
        warnings: what should be recorded with the answers.
    """

    engine: str
    texts: list[str]
    prompts: list[list[int]] | None
    context: int | None
    warnings: list[str]


def check_llama_cpp(path: Path, tokenizer: object, texts: Sequence[str], prompts: Sequence[list[int]]) -> None:
    """llama.cpp reads the rendered prompts as the Hugging Face tokenizer does, but for the BOS, which we add.

    Raises:
        InputError: names the first prompt that it reads otherwise.
    """
    from probes.refusal.llama_cpp_engine import tokenize

    bos = [getattr(tokenizer, "bos_token_id", None)]
    for text, expected, tokens in zip(texts, prompts, tokenize(path, texts), strict=True):
        if expected not in (tokens, bos + tokens):
            raise InputError(
                f"llama.cpp reads {text[:60]!r}… as {len(tokens)} tokens {tokens[:8]}…, the Hugging Face tokenizer as "
                f"{len(expected)} tokens {expected[:8]}…, from the GGUF file {path}",
                "the same tokens",
                "Take the tokenizer of the directory that the file was made from (--like DIR), or convert it again",
            )


def check_lengths(cell: str, reading: Reading, max_new_tokens: int) -> None:
    """Every prompt has tokens and leaves room for an answer.

    Raises:
        InputError: names the first prompt that does not.
    """
    if reading.prompts is None:
        return
    for text, prompt in zip(reading.texts, reading.prompts, strict=True):
        if not prompt:
            raise InputError(f"A prompt is empty for {cell}: it has no tokens", do="Leave it out")
        if reading.context is not None and len(prompt) + max_new_tokens > reading.context:
            raise InputError(
                f"The prompt {text[:60]!r}… has {len(prompt)} tokens for {cell}, and an answer up to {max_new_tokens}",
                f"at most {reading.context} together, the model's context",
                "Leave it out, or set --max-tokens lower; prompts are never truncated",
            )


def check(baseline: Reading, cell: Reading, name: str, across_engines: bool = False) -> None:
    """Refuse to compare a cell that is not run as its baseline is.

    Args:
        baseline: how the baseline reads the prompts.
        cell: how the cell does.
        name: of the cell.
        across_engines: somebody insists on another engine, and measures what it does.

    Raises:
        InputError: says what differs.
    """
    if differences := [*([] if across_engines else _engines(baseline, cell)), *_prompts(baseline, cell)]:
        raise InputError(
            f"The cell {name} cannot be compared with the baseline: {'; '.join(differences)}",
            "the same prompt tokens on the same engine",
            "Run both on one engine with one template, or insist with --control, which shows what an engine does",
        )


def _engines(baseline: Reading, cell: Reading) -> list[str]:
    if baseline.engine == cell.engine:
        return []
    return [f"it runs on {cell.engine}, the baseline on {baseline.engine}"]


def _prompts(baseline: Reading, cell: Reading) -> list[str]:
    if baseline.prompts is None or cell.prompts is None:
        return []
    pairs = list(zip(baseline.texts, cell.texts, baseline.prompts, cell.prompts, strict=True))
    differing = [pair for pair in pairs if pair[2] != pair[3]]
    if not differing:
        return []
    expected, rendered, expected_ids, rendered_ids = differing[0]
    how = (
        f"the first is rendered as {rendered[:80]!r} instead of {expected[:80]!r}"
        if expected != rendered
        else f"the first, {expected[:60]!r}, has {len(rendered_ids)} tokens instead of {len(expected_ids)}, or others"
    )
    return [f"{len(differing)} of {len(pairs)} prompts have other tokens ({how})"]
