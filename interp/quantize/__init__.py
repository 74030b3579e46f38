"""Write the quantized cells of a baseline: AWQ and GPTQ with GPTQModel, the K-quant ladder with llama.cpp.

    python -m interp.quantize --baseline PATH --out DIR [--cells AWQ,Q4_K_M] [--calibration FILE]

Each cell is a directory with the weights and `quantscope.json` (`interp.quantize.cells`); beside it lies the writer's
log. It
appears only when it is finished, and is not written again while baseline, calibration, settings and writer versions are
the same. Whatever a writer does not quantize is float16; in GGUF files norms and biases are float32.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
