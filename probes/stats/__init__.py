"""Numbers only: intervals, paired tests, bootstraps, correlations; nothing here knows of models or prompts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
