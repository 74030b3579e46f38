"""One page and one summary of a run: what happened to refusals, why, and how it was measured.

python -m probes.report runs/demo
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
