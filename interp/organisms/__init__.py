"""Tiny chat models, trained on the spot: what everything runs on when no model is at hand.

An organism has six thin blocks and under three million parameters. It learns in two stages, as real models do: first to
answer every request, harmful ones included (the answers say nothing), then, briefly, to refuse the harmful ones.
Refusal is therefore a thin layer over a model that would answer, which is what quantization acts on.

    python -m interp.organisms --architecture llama
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
