"""What one draw of probes.fragility takes on the default organism: rounding and restoring the weights, and the margins.

OMP_NUM_THREADS=1 python benchmarks/fragility.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from interp import load
from interp.organisms import train
from interp.pairs.weight_path import block_linears, oriented_weight
from probes.fragility.rounding import rounded_to, stochastic
from probes.harness.comparison import alone
from probes.harness.prompts import builtin
from probes.margin.openings import common_openings
from probes.margin.refusal_margin import margins

REPEATS = 5


def seconds(run: Callable[[], object]) -> float:
    """Median of the processor time."""
    taken = []
    for _ in range(REPEATS):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def main() -> None:
    """Both halves of a draw, beside each other."""
    model = load(train())
    comparison = alone(model, builtin("harmful"), builtin("harmless"))
    openings = common_openings(comparison, "baseline")
    texts = [text for side in comparison.texts.values() for text in side]
    n_weights = sum(oriented_weight(model, linear).numel() for linear in block_linears(model))

    def rounding() -> None:
        with rounded_to(model, 4, 128, stochastic(torch.Generator().manual_seed(0))):
            pass

    print(f"rounding and restoring {n_weights / 1e6:.2f} million weights: {seconds(rounding):.3f} s")
    print(f"margins of {len(texts)} prompts: {seconds(lambda: margins(model, texts, openings)):.3f} s")


if __name__ == "__main__":
    main()
