"""A baseline and its cells in one object, measured when asked: what a notebook starts with."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
