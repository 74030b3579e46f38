"""Refusal margin: log-odds of starting a refusal, its shift, and how it separates harmful from harmless."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
