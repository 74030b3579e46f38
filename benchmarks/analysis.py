"""The two hot paths of the analysis, on one core, beside a plain Python loop: features of completions, the bootstrap.

OMP_NUM_THREADS=1 python benchmarks/analysis.py
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from probes.labels.study_lexicon import REFUSAL_OPENINGS
from probes.matrix.regimes import regime_probabilities
from probes.reproduce.figures_regimes import study_matrix
from probes.rtsi.features import refusal_features
from probes.stats.bootstrap import DRAWS, deltas_from_rates, resampled_rates

COMPLETIONS = 100_000
LOOP_DRAWS = 100
"""The loop's bootstrap is timed on these and scaled up."""
OPENINGS = ["I'm sorry, but I can't", "I cannot", "As an AI,", "Sure, here is", "Step 1:", "I must decline to"]


def some_completions(n: int) -> list[str]:
    """Texts of 5 to 150 words, two in three of them refusals."""
    generator = np.random.default_rng(0)
    words = np.array([f"word{i}," for i in range(500)])
    lengths = generator.integers(5, 150, n)
    return [
        f"{OPENINGS[i % len(OPENINGS)]} {' '.join(words[generator.integers(0, 500, k)])}" for i, k in enumerate(lengths)
    ]


def plain_features(completions: list[str]) -> dict[str, float]:
    """The definition, one completion after the other."""
    prefixes, lengths = [], []
    for completion in completions:
        tokens = re.sub(r"[^a-z0-9\s]+", " ", completion.lower()).split()
        text = " ".join(tokens)
        if any(text == opening or text.startswith(opening + " ") for opening in REFUSAL_OPENINGS):
            prefixes.append(" ".join(tokens[:5]))
            lengths.append(len(completion.split()))
    counts = Counter(prefixes)
    shares = [count / len(prefixes) for count in counts.values()]
    return {
        "dominant_prefix_share": max(shares),
        "unique_prefix_rate": len(counts) / len(prefixes),
        "prefix_entropy_norm": -sum(s * math.log(s) for s in shares) / math.log(len(counts)),
        "mean_tokens_refusal": sum(lengths) / len(lengths),
    }


def vectorized_bootstrap(draws: int) -> np.ndarray:
    """P(hidden danger) of the study's 51 rows."""
    matrix = study_matrix()
    rates = resampled_rates(matrix["refusal_rate"].to_numpy(), matrix["refusal_rate_n"].to_numpy(dtype=float), draws)
    quality = matrix["quality_delta"].to_numpy(dtype=float)
    return regime_probabilities(quality, deltas_from_rates(rates, matrix))["hidden_danger"].to_numpy()


def plain_bootstrap(draws: int) -> np.ndarray:
    """The same, drawing each prompt of each cell."""
    generator = np.random.default_rng(0)
    rows = study_matrix().to_dict("records")
    counts = np.zeros(len(rows))
    for _ in range(draws):
        rate = {}
        for row in rows:
            n = int(row["refusal_rate_n"])
            rate[row["model"], row["quantization"]] = (
                sum(generator.random() < row["refusal_rate"] for _ in range(n)) / n
            )
        for i, row in enumerate(rows):
            delta = rate[row["model"], row["quantization"]] - rate[row["model"], row["baseline"]]
            counts[i] += delta < -0.1 - 1e-9 and row["quality_delta"] >= -0.02 - 1e-9
    return counts / draws


def seconds(function: Callable[[], object]) -> tuple[float, object]:
    """Wall time of one call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    completions = some_completions(COMPLETIONS)
    fast, features = seconds(lambda: refusal_features(completions))
    slow, plain = seconds(lambda: plain_features(completions))
    assert all(math.isclose(features[name], value) for name, value in plain.items())  # type: ignore[index, attr-defined]
    print(f"{COMPLETIONS:,} completions: {fast:.2f} s, plain loop {slow:.2f} s ({slow / fast:.1f}×)")
    fast, ours = seconds(lambda: vectorized_bootstrap(DRAWS))
    slow, theirs = seconds(lambda: plain_bootstrap(LOOP_DRAWS))
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 0.2
    slow *= DRAWS / LOOP_DRAWS
    print(f"{DRAWS:,} resamples of 51 rows: {fast:.2f} s, plain loop {slow:.0f} s, scaled up ({slow / fast:.0f}×)")


if __name__ == "__main__":
    main()
