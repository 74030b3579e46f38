"""Models whose weights are read part by part: `load(path, stream=True)`.

All prompts pass through a block before the next one is read, so that a model larger than memory takes one read of its
files, and a block of it in memory.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
