"""Error on safety neurons, heads and dimensions against matched others."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
