"""Whether the parts blamed for lost refusals cause it: restore, damage, rescue the direction, patch activations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
