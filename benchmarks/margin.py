"""Refusal margins of the built-in harmful prompts: all openings in one pass, beside one pass for each inner path.

OMP_NUM_THREADS=1 python benchmarks/margin.py [CHECKPOINT]
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from torch import Tensor

from interp import HookedModel, load
from interp.chat import render
from interp.organisms.training import SHIPPED
from probes.harness.prompts import builtin
from probes.margin.openings import Openings, lexicon_openings
from probes.margin.refusal_margin import MarginRuns, following_tokens

REPEATS = 3


def first_openings(openings: Openings, n: int) -> Openings:
    """The first n of them."""
    of_each = {name: getattr(openings, name)[:n] for name in ("sequences", "texts", "counts", "purity")}
    return replace(openings, **of_each)


def measured(runs: MarginRuns, model: HookedModel) -> tuple[float, Tensor]:
    """Seconds of the CPU, the best of a few, and the margins."""
    seconds = []
    for _ in range(REPEATS):
        started = time.process_time()
        margins = runs.margins(model)
        seconds.append(time.process_time() - started)
    return min(seconds), margins


def main() -> None:
    """Print both, and how far they are apart."""
    path = sys.argv[1] if len(sys.argv) > 1 else next(p for p in SHIPPED.iterdir() if "alignment1" in p.name)
    model = load(path)
    texts = render(model.tokenizer, list(builtin("harmful").instructions)).texts
    for n in (2, 8, 32):
        openings = first_openings(lexicon_openings(model.tokenizer), n)
        runs = MarginRuns.of(model, texts, openings)
        once, together = measured(runs, model)
        with model.intervene({"hook_embed": lambda value: value}):  # a hook is promised whole passes
            each, apart = measured(runs, model)
        print(f"{n} openings, {following_tokens(openings)} tokens after each of {len(texts)} prompts:")
        print(f"  one pass {once:.2f} s, a pass for each path {each:.2f} s; {(together - apart).abs().max():.1e} apart")


if __name__ == "__main__":
    main()
