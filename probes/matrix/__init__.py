"""One matrix of all cells: any per-cell tables joined, baselines resolved, deltas with their intervals.

python -m probes.matrix cells.csv quality.parquet --quality bertscore --out results
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
