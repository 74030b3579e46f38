"""How deep does refusing go? Margin and KL at the first eight tokens of answers that have begun either way."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
