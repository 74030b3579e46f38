"""Write a checkpoint of any format as a dense Hugging Face directory, tensor by tensor, and verify it.

python -m interp.dequantize CHECKPOINT OUT [--dtype float16]
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
