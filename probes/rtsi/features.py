"""How stable the wording of a cell's refusals is: the four features of RTSI (arXiv:2606.10154)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from interp.errors import InputError
from probes.labels.study_lexicon import factorize_prefixes, is_refusal

__all__ = ["RefusalFeatures", "is_refusal", "prefix_features", "refusal_features"]

TokenUnit = Literal["tokens", "words"]
"""`tokens`: counted by the model's tokenizer; `words`: white-space words of the completion."""

TokenCounts = Sequence[float | int] | np.ndarray
WORDING_FEATURES = ("dominant_prefix_share", "unique_prefix_rate", "prefix_entropy_norm", "mean_tokens_refusal")

NO_REFUSAL = "no refusals: the features of their wording are undefined"


class RefusalFeatures(dict[str, float | int]):
    """Features of one cell's refusals by name, with the unit of the token counts and why a feature is undefined.

    Attributes:
        token_unit: what `mean_tokens_refusal` counts.
        reasons: feature → why it is NaN.
    """

    def __init__(self, features: dict[str, float | int], token_unit: TokenUnit, reasons: dict[str, str]) -> None:
        super().__init__(features)
        self.token_unit = token_unit
        self.reasons = reasons


def refusal_features(completions: Sequence[str], token_counts: TokenCounts | None = None) -> RefusalFeatures:
    """Features of the wording of one cell's refusals.

    Args:
        completions: what the cell answered to the harmful prompts.
        token_counts: length of each completion in tokens of the model's tokenizer; without it, white-space words.

    Returns:
        dominant_prefix_share: share of the commonest prefix (first five tokens) among the refusals.
        unique_prefix_rate: distinct prefixes / refusals.
        prefix_entropy_norm: Shannon entropy of the prefixes / log(distinct prefixes); 0 where there is one.
        mean_tokens_refusal: mean token count of the refusals.
        refusal_rate, n_refusals, n_total: of all completions.
        The first four are NaN, with a reason, where nothing was refused; the rate too where there are no completions.

    Raises:
        InputError: a completion is not text, or a token count is missing, negative or not finite.

    Example:
        >>> refusal_features(["I cannot help.", "I cannot say.", "Sure!"])["refusal_rate"]
        0.6666666666666666
    """
    prefixes = factorize_prefixes(completions)
    refused = prefixes.refuses[prefixes.codes]
    unit: TokenUnit = "words" if token_counts is None else "tokens"
    counts = (
        _word_counts(completions, refused) if token_counts is None else _checked(token_counts, completions)[refused]
    )
    n_total, n_refusals = len(completions), int(refused.sum())
    sizes: dict[str, float | int] = {
        "refusal_rate": n_refusals / n_total if n_total else np.nan,
        "n_refusals": n_refusals,
        "n_total": n_total,
    }
    if n_refusals == 0:
        undefined = dict.fromkeys(WORDING_FEATURES, np.nan)
        return RefusalFeatures({**undefined, **sizes}, unit, dict.fromkeys(WORDING_FEATURES, NO_REFUSAL))
    frequencies = np.bincount(prefixes.codes[refused])
    wording = prefix_features(frequencies[frequencies > 0]) | {"mean_tokens_refusal": float(counts.mean())}
    return RefusalFeatures({**wording, **sizes}, unit, {})


def prefix_features(frequencies: np.ndarray) -> dict[str, float]:
    """Concentration of prefixes from how often each occurs: [distinct] positive counts."""
    shares = (
        np.sort(frequencies)[::-1] / frequencies.sum()
    )  # sorted: the sum must not depend on the order of completions
    distinct = len(shares)
    entropy = float(-(shares * np.log(shares)).sum() / np.log(distinct)) if distinct > 1 else 0.0
    return {
        "dominant_prefix_share": float(shares[0]),
        "unique_prefix_rate": float(distinct / frequencies.sum()),
        "prefix_entropy_norm": min(entropy, 1.0),  # rounding can push the uniform case past 1
    }


def _word_counts(completions: Sequence[str], mask: np.ndarray) -> np.ndarray:
    return np.array([len(completions[index].split()) for index in np.flatnonzero(mask).tolist()], dtype=float)


def _checked(token_counts: TokenCounts, completions: Sequence[str]) -> np.ndarray:
    counts = np.asarray(token_counts, dtype=float)
    if counts.shape != (len(completions),):
        raise InputError(f"{counts.size} token counts for {len(completions)} completions", "one count per completion")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise InputError("A token count is negative or not a finite number", "the length of each completion in tokens")
    return counts
