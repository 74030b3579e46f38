"""A baseline and a cell of it: whether they are a pair, AWQ's rescaling undone, errors of weights, the path between."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
