"""How models are stored: one module per format, packed tensors to dense weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
