"""Independent readers of the formats: what an accepted checkpoint's weights must be, whatever was damaged in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from interp.checkpoint import Checkpoint
from tests.gguf_files import to_llama_cpp
from tests.packed_files import AWQ_ORDER, bitsandbytes_dense, blocks, e2m1, e4m3, fp4_dense, hqq_dense

PACKED_BESIDE = (".weight_scale", ".weight_scale_inv", ".weight.absmax", ".SCB", ".biases")
"""Suffixes of a module that are there where the weight itself is stored quantized."""
Arrays = Mapping[str, NDArray[Any]]
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "U32": "<u4",
}


def safetensors_arrays(directory: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a directory's safetensors files; bfloat16 as float32."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = {directory / name for name in json.loads(index.read_text("utf-8-sig"))["weight_map"].values()}
    else:
        files = set(directory.glob("*.safetensors"))
    arrays = {}
    for file in files:
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, tensor in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            first, last = (start + offset for offset in tensor["data_offsets"])
            arrays[name] = _array(tensor["dtype"], content[first:last]).reshape(tensor["shape"])
    return arrays


def _array(dtype: str, data: bytes) -> NDArray[Any]:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return e4m3(np.frombuffer(data, "u1"))
    if dtype == "F8_E8M0":
        return power(np.frombuffer(data, "u1"))
    return np.frombuffer(data, _NUMPY[dtype])


def power(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What E8M0 bytes stand for."""
    return np.exp2(stored.astype(np.float32) - 127)


def same(found: torch.Tensor, expected: NDArray[Any]) -> bool:
    """Bit for bit, but for the width of the floating-point type; NaN equals NaN."""
    if found.dtype is torch.bfloat16:  # which numpy has not: the expected product is exact in float32, and rounded once
        expected = torch.tensor(expected).bfloat16().float().numpy()
    values = found.float().numpy() if found.dtype is torch.bfloat16 else found.numpy()
    return values.shape == expected.shape and np.array_equal(values, expected, equal_nan=values.dtype.kind == "f")


def read_all(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Everything that a probe may ask a checkpoint for, and all of its tensors."""
    assert checkpoint.compute_dtype.is_floating_point
    checkpoint.bits_per_weight()
    checkpoint.n_blocks()
    for name in checkpoint.linears():
        checkpoint.weight_shape(name)
        checkpoint.linear_bits(name)
        checkpoint.is_quantized(name)
    json.dumps([checkpoint.quantization, checkpoint.warnings])
    shapes = checkpoint.shapes()
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == shapes[name], name
    return tensors


def dense_is_wrong(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A dense tensor is what the file holds."""
    arrays = safetensors_arrays(directory)
    for name, tensor in tensors.items():
        if not same(tensor, arrays[name]):
            return f"{name} is not what the file holds"
    return None


def wrapped_is_wrong(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A tensor of the language model is what the file holds under the wrapper's name for it."""
    arrays = safetensors_arrays(directory)
    for name, tensor in tensors.items():
        names = (f"language_model.{name}", name.replace("model.", "model.language_model.", 1), name)
        if not any(same(tensor, arrays[stored]) for stored in names if stored in arrays):
            return f"{name} is not what the file holds"
    return None


def stacked_is_wrong(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """An expert's linear is its part of the tensor of all experts, or what its MXFP4 blocks stand for.

    gpt-oss's gates and ups are one linear, and all are turned.
    """
    arrays = safetensors_arrays(directory)
    turned = not any(".experts." in name and name.endswith("gate_proj.weight") for name in tensors)
    for name, tensor in tensors.items():
        expert = re.fullmatch(r"(.*\.experts)\.([0-9]+)\.(\w+)\.weight", name)
        if not same(tensor, arrays[name] if expert is None else _of_expert(arrays, turned, *expert.groups())):
            return f"{name} is not what the file holds"
    return None


def _of_expert(arrays: Arrays, turned: bool, module: str, number: str, linear: str) -> NDArray[Any]:
    if f"{module}.{number}.{linear}.weight" in arrays:
        return arrays[f"{module}.{number}.{linear}.weight"]
    if linear in (halves := ("gate_proj", "up_proj")):
        return np.split(arrays[f"{module}.gate_up_proj"][int(number)], 2)[halves.index(linear)]
    stored = f"{module}.{linear}"
    if stored in arrays:
        return arrays[stored][int(number)].T if turned else arrays[stored][int(number)]
    packed, powers = (arrays[f"{stored}_{part}"][int(number)] for part in ("blocks", "scales"))
    with np.errstate(over="ignore"):
        return e2m1(packed.reshape(len(packed), -1)) * np.repeat(power(powers), 32, axis=1)


def packed_is_wrong(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Packed linears are what the format's definition makes of the packed tensors, all others what the file holds.

    What the config says may be damaged too: weights by the config as it was written are right as well.
    """
    arrays = safetensors_arrays(directory)
    settings = json.loads((directory / "config.json").read_text("utf-8-sig")).get("quantization_config")
    settings = settings if isinstance(settings, dict) else {}
    method = json.loads((directory / "written.json").read_text())
    for name, tensor in tensors.items():
        packed = any(name.removesuffix(".weight") + suffix in arrays for suffix in PACKED_BESIDE)
        if name in arrays and not packed:
            if not same(tensor, arrays[name]):
                return f"{name} is not what the file holds"
            continue
        module = {
            key.removeprefix(name.removesuffix("weight")): array
            for key, array in arrays.items()
            if key.startswith(name.removesuffix("weight"))
        }
        readings = []
        unlabelled = {"checkpoint_format": "gptq"} if settings else {}  # what GPTQ's config means without the key
        for said in (method | settings, method, method | unlabelled | settings):
            try:
                readings.append(_DEQUANTIZE[method["quant_method"]](module, said, tuple(tensor.shape)))
            except Exception:  # damaged settings, of whatever kind
                continue
        if not any(same(tensor, reading) for reading in readings):
            return f"{name} is not what the packed tensors stand for"
    return None


def unpack(words: NDArray[Any], bits: int, count: int) -> NDArray[np.int64]:
    """Rows of words as little-endian streams of `count` codes each, bit by bit."""
    if words.dtype != np.dtype("<i4"):
        raise TypeError(words.dtype)
    stream = (words.view(np.uint32)[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
    stream = stream.reshape(len(words), -1)[:, : count * bits].reshape(len(words), count, bits)
    return (stream.astype(np.int64) << np.arange(bits)).sum(axis=-1)


def _groups(size: int, inputs: int) -> NDArray[np.int64]:
    return np.arange(inputs) // (inputs if size == -1 else size)


def _product(codes: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
    return (codes - zeros).astype(scales.dtype) * scales


def _gptq(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    n_out, n_in = shape
    bits, scales = settings["bits"], module["scales"]
    zeros = unpack(module["qzeros"], bits, n_out)
    if str(settings["checkpoint_format"] or "gptq").lower() == "gptq":  # null is no label either
        zeros = (zeros + 1) % (1 << bits)
    group = module.get("g_idx", np.zeros(n_in, np.int32))
    if not group.any() and len(scales) > 1:
        group = _groups(settings["group_size"], n_in)
    if (group < 0).any():
        raise IndexError
    codes = unpack(np.ascontiguousarray(module["qweight"].T), bits, n_in).T
    return _product(codes, zeros[group], scales[group]).T


def _awq(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    n_out, n_in = shape
    order = np.argsort(AWQ_ORDER)
    codes, zeros = (
        unpack(module[name], 4, n_out).reshape(-1, n_out // 8, 8)[:, :, order].reshape(-1, n_out)
        for name in ("qweight", "qzeros")
    )
    group = _groups(settings["group_size"], n_in)
    return _product(codes, zeros[group], module["scales"][group]).T


def _float8(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    size = tuple(settings["weight_block_size"])
    stored = module["weight_scale_inv"]
    scales = power(stored) if stored.dtype == np.uint8 else stored.astype(np.float32)
    grid = tuple(-(-length // width) for length, width in zip(shape, size, strict=True))
    return module["weight"] * blocks(scales.reshape(grid), size, shape)


def _plain(module: Arrays, weights: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    scales = module["weight_scale"]
    size = {"tensor": shape, "channel": (1, shape[1]), "block": weights.get("block_structure")}[weights["strategy"]]
    grid = tuple(-(-length // width) for length, width in zip(shape, size, strict=True))
    return module["weight"].astype(scales.dtype) * blocks(scales.reshape(grid), size, shape)


def _bitsandbytes(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    if "SCB" in module:
        return module["weight"] * module["SCB"][:, None] * np.float32(1 / 127)
    return bitsandbytes_dense(module, shape)


def _mlx(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    codes = unpack(module["weight"].view(np.int32), settings["bits"], shape[1])
    group = _groups(settings["group_size"], shape[1])
    return codes.astype(module["scales"].dtype) * module["scales"][:, group] + module["biases"][:, group]


def _hqq(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    said = bytes(module.get("compute_dtype", np.zeros(0, np.uint8)).tolist()).decode("ascii", "replace")
    width = {"torch.float16": np.float16, "torch.float32": np.float32}.get(said, module["scale"].dtype)
    cast = {name: module[name].astype(width) for name in ("scale", "zero")}  # as hqq does when it loads them
    return hqq_dense({**module, **cast}, shape)


def _modelopt(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    return fp4_dense(module)


def _compressed(module: Arrays, settings: Mapping[str, Any], shape: tuple[int, int]) -> NDArray[Any]:
    n_out, n_in = shape
    if module.get("weight_packed", np.zeros(1)).dtype == np.uint8:
        return fp4_dense(module)
    if "weight" in module:
        return _plain(module, next(iter(settings["config_groups"].values()))["weights"], shape)
    weights = next(iter(settings["config_groups"].values()))["weights"]
    bits, scales = weights["num_bits"], module["weight_scale"]
    codes = unpack(module["weight_packed"], bits, n_in)
    if "weight_zero_point" in module:
        zeros = unpack(np.ascontiguousarray(module["weight_zero_point"].T), bits, n_out).T
    else:
        zeros = np.full(scales.shape, 1 << (bits - 1))
    group = module.get("weight_g_idx", np.full(n_in, -1))
    if (group == -1).all():
        group = _groups(weights["group_size"], n_in)
    return _product(codes, zeros[:, group], scales[:, group])


_DEQUANTIZE = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _float8,
    "bitsandbytes": _bitsandbytes,
    "modelopt": _modelopt,
    "mlx": _mlx,
    "hqq": _hqq,
}


class _Heads:
    """What `to_llama_cpp` asks of a config, from the metadata."""

    model_type = "llama"

    def __init__(self, reader: gguf.GGUFReader) -> None:
        heads, key_heads = (reader.get_field(f"llama.attention.{name}") for name in ("head_count", "head_count_kv"))
        self.num_attention_heads = int(heads.contents()) if heads else 0
        self.num_key_value_heads = int(key_heads.contents()) if key_heads else self.num_attention_heads


def gguf_is_wrong(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A tensor of a Llama is what gguf-py dequantizes, in llama.cpp's order of rows."""
    reader = gguf.GGUFReader(next(directory.glob("*.gguf")))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 8)
    config = _Heads(reader)
    for name, tensor in tensors.items():
        held = stored[names.get_name(name, (".weight", ".bias"))]
        expected = gguf.dequantize(held.data, held.tensor_type)
        if not same(to_llama_cpp(name, tensor.float(), config), np.asarray(expected, np.float32)):
            return f"{name} is not what gguf-py reads"
    return None


def gguf_experts_are_wrong(directory: Path, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A tensor of an OLMoE is what gguf-py dequantizes; an expert's linear is its part of that of all experts."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(next(directory.glob("*.gguf"))).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.OLMOE, 8)
    for name, tensor in tensors.items():
        module, expert, rest = re.fullmatch(r"(?:(.*\.experts)\.([0-9]+)\.)?(.*)", name).groups()  # type: ignore[union-attr]
        held = stored[names.get_name(f"{module}.{rest}" if module else name, (".weight", ".bias"))]
        expected = np.asarray(gguf.dequantize(held.data, held.tensor_type), np.float32)
        if not same(tensor.float(), expected if expert is None else expected[int(expert)]):
            return f"{name} is not what gguf-py reads"
    return None
