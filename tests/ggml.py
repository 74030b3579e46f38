"""llama.cpp's own quantizers and dequantizers, called in its library: it writes block types that gguf only reads."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Traits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits` in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ToFloat),
    )


@cache
def library() -> Any:
    import llama_cpp

    found = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
    found.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return found


def quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """[rows, columns] float32 → [rows, bytes], every column equally important."""
    rows, columns = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    traits = library().ggml_get_type_traits(int(kind)).contents
    assert (traits.block_size, traits.type_size) == (block, size), kind
    values, importance = np.ascontiguousarray(values, np.float32), np.ones(columns, np.float32)
    stored = np.zeros((rows, columns // block * size), np.uint8)
    library().ggml_quantize_init(int(kind))
    pointers = values.ctypes.data, stored.ctypes.data
    written = library().ggml_quantize_chunk(int(kind), *pointers, 0, rows, columns, importance.ctypes.data)
    assert written == stored.nbytes
    return stored


def dequantize(stored: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """[rows, bytes] → [rows, columns] float32."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values = np.zeros((len(stored), stored.shape[1] // size * block), np.float32)
    traits = library().ggml_get_type_traits(int(kind)).contents
    traits.to_float(stored.ctypes.data, values.ctypes.data, values.size)
    return values
