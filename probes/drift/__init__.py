"""What did quantization change in what the model refuses? Paired outcomes of a cell and its baseline, on two axes.

The outcome of an answer is a judge's label where the table has one, else the broader lexicon's
(`probes.labels.refused`).

Robustness looks at prompts that the baseline refused and counts those that the cell no longer refuses; over-refusal
looks at prompts that the baseline answered and counts those that the cell refuses. The two are never added up, and
neither are the tasks.

    python -m probes.drift runs/refusal/refusal.parquet --baseline llama --max-refusal-drop 0.05
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
