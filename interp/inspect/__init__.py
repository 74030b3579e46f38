"""What a checkpoint is (format, bits, writer, tokenizer, template, memory), and whether two of them are a pair.

python -m interp.inspect PATH [OTHER]
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
