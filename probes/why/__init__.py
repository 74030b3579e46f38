"""Why does this cell refuse less, and which tensors to keep at higher precision? One page of text.

    python -m probes.why --baseline PATH --quantized PATH

On an organism, `--rewrite` writes the cell again with that list, and with random lists of the same sizes, and measures
what refusals do.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
