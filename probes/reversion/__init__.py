"""How far back to the model from before alignment did quantization go, in codes, weights, activations and logits?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
