"""How well a model predicts given text, and how far its predictions are from the baseline's, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batching import batches
from interp.errors import InputError, NotFinite
from interp.model import HookedModel

BATCH_TOKENS = 2048
"""Tokens of one batch, pads included: with a vocabulary of 152,000, both models' logits take 2.5 GB in float32."""


@dataclass(frozen=True)
class Passage:
    """Tokens to be predicted.

    Attributes:
        ids: all tokens.
        start: the first one that is scored, at least 1; those before are context only.
    """

    ids: Sequence[int]
    start: int = 1


@dataclass(frozen=True)
class TokenScores:
    """The scores of every token, in the order of the passages.

    Attributes:
        nll: −ln p of the token under the model, in nats.
        kl: Kullback–Leibler divergence of the model's prediction from the baseline's, KL(baseline ‖ model), in nats.
        flips: whether the two models' most probable tokens differ.
    """

    nll: Float[np.ndarray, " token"]
    kl: Float[np.ndarray, " token"]
    flips: Bool[np.ndarray, " token"]


def perplexity(nll: Float[np.ndarray, " token"]) -> float:
    """exp of the mean negative log-likelihood per token."""
    return float(np.exp(nll.mean())) if len(nll) else float("nan")


def divergence(baseline: Float[Tensor, "*batch vocab"], cell: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """KL(softmax(baseline) ‖ softmax(cell)) of logits, in nats, in float64; rounding never turns it negative."""
    left, right = baseline.double().log_softmax(-1), cell.double().log_softmax(-1)
    terms = torch.where(left == -torch.inf, 0.0, left.exp() * (left - right))  # 0 · ln 0 is 0
    return terms.sum(-1).clamp_min(0.0)


def windows(ids: Sequence[int], size: int, bos: int | None) -> list[Passage]:
    """A long text as consecutive passages without overlap, each after a BOS where the model has one.

    Without a BOS a passage's first token is not scored.

    Args:
        ids: tokens of the text, without BOS.
        size: tokens of a passage, BOS included.
        bos: token that begins a text.

    Raises:
        InputError: not two tokens.
    """
    first = [] if bos is None else [bos]
    step = size - len(first)
    parts = [[*first, *ids[start : start + step]] for start in range(0, len(ids), step)]
    passages = [Passage(part) for part in parts if len(part) > 1]
    if not passages:
        raise InputError(f"The text has {len(ids)} tokens", "at least two", "Give a longer one")
    return passages


def score(baseline: HookedModel, cell: HookedModel, passages: Sequence[Passage]) -> TokenScores:
    """Run both models over the passages, batch by batch, and keep three numbers a token.

    Raises:
        NotFinite: one of the two computes NaN or infinity.
    """
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    ids = [passage.ids for passage in passages]
    for batch in batches(ids, -1, None, torch.device("cpu"), budget=BATCH_TOKENS):
        tokens, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        left, right = (_logits(model, tokens, mask) for model in (baseline, cell))
        for row, which in enumerate(batch.indices.tolist()):
            scored = slice(passages[which].start - 1, len(passages[which].ids) - 1)
            parts[which] = _scores(left[row, scored], right[row, scored], tokens[row, 1:][scored])
    nll, kl, flips = (torch.cat([parts[which][i] for which in range(len(passages))]).numpy() for i in range(3))
    if not (np.isfinite(nll).all() and np.isfinite(kl).all()):
        raise NotFinite(
            "A token's probability is zero or not a number", do="Load the model with dtype=torch.float32 or bfloat16"
        )
    return TokenScores(nll, kl, flips)


def _scores(
    left: Float[Tensor, "pos vocab"], right: Float[Tensor, "pos vocab"], targets: Int[Tensor, " pos"]
) -> tuple[Tensor, Tensor, Tensor]:
    nll = -right.double().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return nll, divergence(left, right), left.argmax(-1) != right.argmax(-1)


def _logits(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    device = model.hf.device
    with torch.no_grad():
        logits = model.hf(tokens.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return logits.float().cpu()
