"""What the probes share: a baseline and its cells, prompts, options, results and tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
