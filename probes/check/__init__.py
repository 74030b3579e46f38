"""Is a quantized copy fit to be published? Pair, weights, first token, margin and 32 answers on one screen.

python -m probes.check --baseline path/to/model --quantized path/to/model-AWQ --max-refusal-drop 0.1
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
