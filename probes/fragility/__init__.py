"""Fragility: will a baseline lose refusals when rounded, and at how many bits? Asked before any cell is written."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
