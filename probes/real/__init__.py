"""The main job on a real chat model: SmolLM2-135M-Instruct quantized, measured by every probe that takes minutes.

    python -m probes.real --out runs/real

The model comes out of a wheel of the package index (`interp.real_model`): no hub, no account.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
