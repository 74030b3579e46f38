"""What does a model do? Requests answered by every cell, one row per prompt, with a label of each answer.

    python -m probes.refusal --baseline llama --quantized q4=llama-Q4_K_M.gguf --out runs/llama

Interrupted, killed or cut off, the same command goes on where it was; with another --quantized it asks only that cell.
The Inspect logs are in OUT/cells. What the cells
lost against the baseline: python -m probes.drift OUT/refusal.parquet --baseline baseline.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
