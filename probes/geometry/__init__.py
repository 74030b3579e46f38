"""Refusal subspace: its angle to the baseline's, and how much of quantization's error falls inside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
