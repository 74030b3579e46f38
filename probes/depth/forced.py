"""Beginnings of answers that all models read: a prefill, then what the baseline itself goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import nan

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batching import TEXTS_AT_ONCE, batches
from interp.generation import BATCH_SIZE, generate
from interp.memory import spare_memory
from interp.model import HookedModel
from probes.margin.openings import Openings
from probes.margin.refusal_margin import MarginRuns

REFUSAL, ANSWER = "refusal", "answer"
Forced = Sequence[list[int]]
"""The tokens of each prompt's answer."""


@dataclass(frozen=True)
class Prefilled:
    """Prompts whose answers have begun.

    Attributes:
        begun: "refusal" or "answer".
        prompts: tokens of each.
        forced: tokens of each answer, up to the number of positions; fewer where the baseline ends it.
    """

    begun: str
    prompts: Sequence[list[int]]
    forced: Forced

    def before(self, position: int) -> tuple[list[int], list[list[int]]]:
        """Prompts whose answer has a token at a position, by their place, and all tokens of each that stand before."""
        rows = [row for row, forced in enumerate(self.forced) if len(forced) > position]
        return rows, [[*self.prompts[row], *self.forced[row][:position]] for row in rows]


def prefilled(baseline: HookedModel, texts: Sequence[str], begun: str, prefill: Sequence[int], n: int) -> Prefilled:
    """Let the baseline go on after a prefill.

    Args:
        baseline: answers greedily.
        texts: rendered prompts.
        begun: what to call it.
        prefill: tokens that every answer begins with.
        n: tokens of an answer, the prefill's among them.

    Raises:
        InputError: a prompt without tokens, or too long for the context with so many more.
    """
    prompts = baseline.token_ids(list(texts), then=max(n, len(prefill)) - 1)
    answers: list[list[int]] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        begun_prompts = [[*ids, *prefill] for ids in prompts[start : start + BATCH_SIZE]]
        answers += [answer.tokens for answer in generate(baseline, begun_prompts, max(0, n - len(prefill)))]
    return Prefilled(begun, prompts, [[*prefill, *answer][:n] for answer in answers])


def log_probabilities(model: HookedModel, given: Prefilled, n: int) -> Float[Tensor, "prompt position vocab"]:
    """The next token's after 0, 1, 2, … forced ones, all in one pass; NaN where a prompt's answer has ended before.

    Args:
        model: with open hooks.
        given: the prompts.
        n: positions.
    """
    lengths = torch.tensor([len(forced) for forced in given.forced])
    read = [[*ids, *forced[:-1]] for ids, forced in zip(given.prompts, given.forced, strict=True)]
    vocabulary = model.hf.get_output_embeddings().weight.shape[0]
    values = torch.full((len(read), n, vocabulary), nan)
    steps = torch.arange(n)
    at_most = max(1, min(TEXTS_AT_ONCE, spare_memory(model) // (2 * values[0].nbytes)))
    for batch in batches(read, -1, None, model.device, at_most):
        places = (batch.positions[:, None] + 1 - lengths[batch.indices, None] + steps).minimum(batch.positions[:, None])
        with torch.no_grad(), model.unembed_only(partial(_at, places.to(model.device))):
            logits = model.hf(**batch.inputs, use_cache=False).logits
        ended = steps >= lengths[batch.indices, None]
        values[batch.indices] = logits.float().log_softmax(-1).cpu().masked_fill_(ended[..., None], nan)
    return values


def _at(
    places: Int[Tensor, "batch position"], hidden: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch position d"]:
    return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], places]


def kl(baseline: Float[Tensor, "prompt vocab"], cell: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    """Σ p·(ln p − ln q), nats, in float64."""
    log_p, log_q = baseline.double(), cell.double()
    return (log_p.exp() * (log_p - log_q)).sum(1)


def margin(
    model: HookedModel, given: Prefilled, position: int, openings: Openings, next_token: Float[Tensor, "prompt vocab"]
) -> Float[Tensor, " prompt"]:
    """Log-odds, nats, of refusing at a position: of starting to, or of going on as the baseline's refusal does.

    Args:
        model: with open hooks.
        given: the prompts.
        position: forced tokens before it; at 0 nothing has begun yet.
        openings: of the baseline.
        next_token: of `log_probabilities`, there.
    """
    rows, read = given.before(position)
    values = torch.full((len(given.prompts),), nan, dtype=torch.float64)
    if position and given.begun == REFUSAL:
        forced = torch.tensor([given.forced[row][position] for row in rows])
        values[rows] = _log_odds(next_token[rows], forced)
        return values
    runs = MarginRuns(len(read), tuple(batches(read, -1, None, model.device, TEXTS_AT_ONCE)), openings)
    values[rows] = runs.margins(model).double()
    return values


def _log_odds(log_probabilities: Float[Tensor, "n vocab"], tokens: Tensor) -> Float[Tensor, " n"]:
    """ln p − ln(1 − p), the second as a sum over the other tokens, so that it is exact when tiny."""
    values = log_probabilities.double()
    others = values.scatter(1, tokens[:, None], -torch.inf).logsumexp(1)
    return values.gather(1, tokens[:, None])[:, 0] - others
