"""Do the texts that a writer was calibrated on cover harmful prompts, or is each linear's error larger there?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
