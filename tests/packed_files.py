"""Checkpoints with packed linears, packed here bit by bit so that nothing of the readers is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.tiny_models import write

Codes = NDArray[np.int64]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack_rows(codes: Codes, bits: int) -> torch.Tensor:
    """Columns of codes as little-endian bit streams in int32 words, by writing out every bit."""
    stream = ((codes[:, None, :] >> np.arange(bits)[None, :, None]) & 1).reshape(-1, codes.shape[1])
    stream = np.concatenate([stream, np.zeros((-len(stream) % 32, codes.shape[1]), dtype=np.int64)])
    words = np.einsum("wbc,b->wc", stream.reshape(-1, 32, codes.shape[1]), 1 << np.arange(32))
    return _plain(torch.from_numpy(words.astype(np.uint32).view(np.int32).copy()))


def pack_columns(codes: Codes, bits: int) -> torch.Tensor:
    return _plain(pack_rows(codes.T, bits).T)


PLANES = {5: ((4, 0), (1, 4)), 6: ((4, 0), (2, 4)), 7: ((4, 0), (2, 4), (1, 6)), 3: ((2, 0), (1, 2))}
"""Bits of a code → width of each plane and where in the code it begins; GPTQModel's `utils/planar_packing.py`."""


def pack_planes(codes: Codes, bits: int) -> torch.Tensor:
    """Columns of codes, 32 after 32: for each plane its words, as streams of so many bits."""
    blocks = []
    for start in range(0, len(codes), 32):
        block = codes[start : start + 32]
        blocks += [pack_rows((block >> offset) & ((1 << width) - 1), width) for width, offset in PLANES[bits]]
    return torch.cat(blocks)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """With the strides of a tensor read from a file, for axes of length 1 too."""
    return tensor.clone(memory_format=torch.contiguous_format)


def pack_awq_gemm(codes: Codes) -> torch.Tensor:
    """[rows, columns] with each eight columns in AWQ's order."""
    return pack_columns(codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER].reshape(codes.shape), 4)


def gptq_tensors(
    codes: Codes,
    zeros: Codes,
    scales: NDArray[np.float16],
    g_idx: Codes,
    bits: int,
    version: int,
    planar: bool = False,
) -> dict[str, torch.Tensor]:
    """Codes [in, out], zeros and scales [groups, out], as GPTQ stores them."""
    stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
    pack = pack_planes if planar and bits in PLANES else pack_rows
    return {
        "qweight": pack(codes, bits),
        "qzeros": _plain(pack(stored.T, bits).T),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(g_idx.astype(np.int32)),
    }


def dense(codes: Codes, zeros: Codes, scales: NDArray[np.float16], g_idx: Codes) -> torch.Tensor:
    """(q - z)·s in numpy's float16, [out, in]."""
    return torch.from_numpy(((codes - zeros[g_idx]).astype(np.float16) * scales[g_idx]).T.copy())


def random_linear(
    n_in: int, n_out: int, group_size: int, bits: int, seed: int = 0
) -> tuple[Codes, Codes, NDArray[np.float16], Codes]:
    """Codes [in, out], zeros and scales [groups, out], group of each input."""
    random = np.random.default_rng(seed)
    groups = -(-n_in // group_size)
    return (
        random.integers(0, 1 << bits, (n_in, n_out)),
        random.integers(0, 1 << bits, (groups, n_out)),
        random.uniform(0.001, 0.1, (groups, n_out)).astype(np.float16),
        np.arange(n_in) // group_size,
    )


def write_packed(
    directory: Path,
    pack: Callable[[int, int], dict[str, torch.Tensor]],
    quantization: dict[str, Any],
    model: str = "llama",
) -> Path:
    """Replace the linears in the blocks of a tiny model by `pack(in, out)`; norms and embeddings stay."""
    write(model, directory, torch.float16)
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        n_out, n_in = tensors.pop(name).shape
        packed = pack(n_in, n_out)
        tensors |= {f"{name.removesuffix('weight')}{suffix}": tensor for suffix, tensor in packed.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return directory


def write_gptq(
    directory: Path, group_size: int = 16, bits: int = 4, version: int = 1, planar: bool = False, **settings: Any
) -> Path:
    """A GPTQ checkpoint of random codes; in planes, linears without whole words of 32 codes stay as they are."""

    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        if planar and (n_in % 32 or n_out % 32):
            return {"weight": torch.ones(n_out, n_in, dtype=torch.float16)}
        linear = random_linear(n_in, n_out, n_in if group_size == -1 else group_size, bits)
        return gptq_tensors(*linear, bits, version, planar)

    quantization = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "sym": False, "desc_act": False}
    label = {"checkpoint_format": "gptq_p" if planar else "gptq" if version == 1 else "gptq_v2"}
    return write_packed(directory, pack, quantization | label | settings)


def gptq_copy(source: Path, out: Path) -> Path:
    """A dense tiny checkpoint rounded to four bits in groups of 8; of its blocks the linears that whole words hold."""

    def pack(weight: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        groups = weight.T.reshape(-1, 8, len(weight))  # [group, input, out]
        low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
        scales = ((high - low) / 15).astype(np.float16)
        zeros = np.clip(np.round(-low / scales), 1, 15)
        codes = np.clip(np.round(groups / scales) + zeros, 0, 15).astype(np.int64).reshape(-1, len(weight))
        g_idx = np.arange(len(codes)) // 8
        return gptq_tensors(codes, zeros[:, 0].astype(np.int64), scales[:, 0].copy(), g_idx, 4, 1)

    def rounded(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".layers." in name and name.endswith("weight")]:
            shape = tensors[name].shape
            if len(shape) == 2 and not any(side % 8 for side in shape):
                packed = pack(tensors.pop(name).float().numpy())
                tensors |= {f"{name.removesuffix('weight')}{suffix}": tensor for suffix, tensor in packed.items()}

    shutil.copytree(source, out)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "desc_act": False}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = settings | {"checkpoint_format": "gptq"}
    (out / "config.json").write_text(json.dumps(config))
    return edit(out, rounded)


def write_awq(directory: Path, group_size: int = 16, **settings: Any) -> Path:
    """An AWQ GEMM checkpoint of random codes."""

    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        codes, zeros, scales, _ = random_linear(n_in, n_out, group_size, 4)
        return {
            "qweight": pack_awq_gemm(codes),
            "qzeros": pack_awq_gemm(zeros),
            "scales": torch.from_numpy(scales),
        }

    quantization = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    return write_packed(directory, pack, quantization | settings)


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Apply `change` to the tensors of model.safetensors and write them back."""
    tensors = load_file(directory / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def set_quantization(directory: Path, **settings: Any) -> Path:
    """Change keys of the quantization config in config.json."""
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] |= settings
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def e4m3(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Numbers of eight bits by their definition: sign, four bits of exponent (bias 7), three of mantissa."""
    exponent, mantissa = (stored >> 3) & 15, (stored & 7) / 8
    magnitude = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent.astype(np.int64) - 7))
    magnitude = np.where(stored & 127 == 127, np.nan, magnitude)
    return np.where(stored & 128, -magnitude, magnitude).astype(np.float32)


def blocks(values: NDArray[Any], block: tuple[int, int], shape: tuple[int, int]) -> NDArray[Any]:
    """A value for each block as one for each weight; blocks at the edges may be smaller."""
    rows, columns = (np.arange(size) // width for size, width in zip(shape, block, strict=True))
    return values[rows[:, None], columns[None, :]]


def random_codes(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random int8, or all numbers that float8_e4m3fn has but NaN."""
    random = np.random.default_rng(seed)
    if dtype == torch.int8:
        return torch.from_numpy(random.integers(-128, 128, shape).astype(np.int8))
    sign = random.integers(0, 2, shape) * 128
    return torch.from_numpy((random.integers(0, 127, shape) + sign).astype(np.uint8)).view(dtype)


def random_scales(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Positive; of float8_e8m0fnu powers of two."""
    random = np.random.default_rng(seed)
    if dtype == torch.float8_e8m0fnu:
        return torch.from_numpy(random.integers(110, 130, shape).astype(np.uint8)).view(dtype)
    return torch.from_numpy(np.asarray(random.uniform(0.001, 0.1, shape), np.float32)).to(dtype)


def write_float8(
    directory: Path,
    block: tuple[int, int] = (16, 24),
    dtype: torch.dtype = torch.float32,
    model: str = "llama",
    **settings: Any,
) -> Path:
    """A fine-grained FP8 checkpoint of random numbers; blocks at the edges of its weights are smaller."""

    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        grid = (-(-n_out // block[0]), -(-n_in // block[1]))
        codes = random_codes((n_out, n_in), torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale_inv": random_scales(grid, dtype)}

    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    return write_packed(directory, pack, quantization | settings, model)


def bitsandbytes_4bit(n_in: int, n_out: int, nested: bool = False, blocksize: int = 64) -> dict[str, torch.Tensor]:
    """Random NF4 codes with a made-up table, as `Linear4bit` saves them; float16."""
    random = np.random.default_rng(0)
    state = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "float16", "shape": [n_out, n_in]}
    blocks_ = -(-n_out * n_in // blocksize)
    tensors = {
        "weight": torch.from_numpy(random.integers(0, 256, (n_out * n_in // 2, 1)).astype(np.uint8)),
        "weight.absmax": random_scales((blocks_,)),
        "weight.quant_map": torch.from_numpy(np.linspace(-1, 1, 16).astype(np.float32)),
    }
    if nested:
        state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.25}
        tensors["weight.absmax"] = torch.from_numpy(random.integers(0, 256, blocks_).astype(np.uint8))
        tensors["weight.nested_absmax"] = random_scales((-(-blocks_ // 16),))
        tensors["weight.nested_quant_map"] = torch.from_numpy(np.linspace(-1, 1, 256).astype(np.float32))
    as_bytes = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors | {"weight.quant_state.bitsandbytes__nf4": as_bytes}


def bitsandbytes_dense(tensors: Mapping[str, NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.float16]:
    """Each value looked up by its code, each block's magnitude by its place; high half of a byte first."""
    state = json.loads(bytes(tensors["weight.quant_state.bitsandbytes__nf4"].tolist()))
    count = shape[0] * shape[1]
    codes = np.stack([tensors["weight"].ravel() >> 4, tensors["weight"].ravel() & 15], axis=1).ravel()[:count]
    absmax = tensors["weight.absmax"]
    if "nested_offset" in state:
        outer = tensors["weight.nested_absmax"][np.arange(len(absmax)) // state["nested_blocksize"]]
        absmax = tensors["weight.nested_quant_map"][absmax] * outer + np.float32(state["nested_offset"])
    values = tensors["weight.quant_map"][codes] * absmax[np.arange(count) // state["blocksize"]]
    return values.reshape(shape).astype(state["dtype"])


def bitsandbytes_int8(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
    """Random codes of LLM.int8(), as `Linear8bitLt` saves them."""
    weight_format = torch.tensor(0, dtype=torch.uint8)
    codes = random_codes((n_out, n_in), torch.int8)
    return {"weight": codes, "SCB": random_scales((n_out,)), "weight_format": weight_format}


def write_bitsandbytes(directory: Path, kind: str = "nf4", **settings: Any) -> Path:
    """A bitsandbytes checkpoint of random codes: nf4, nested or int8."""
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": kind != "int8", "load_in_8bit": kind == "int8"}

    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        return bitsandbytes_int8(n_in, n_out) if kind == "int8" else bitsandbytes_4bit(n_in, n_out, kind == "nested")

    return write_packed(directory, pack, quantization | settings)


STORED = {"float": torch.float8_e4m3fn, "int": torch.int8}
"""`type` of a compressed-tensors scheme → how its weights of eight bits are stored."""


def plain_settings(kind: str, strategy: str, symmetric: bool = True, **weights: Any) -> dict[str, Any]:
    """The quantization config of float-quantized or int-quantized compressed-tensors."""
    scheme = {"num_bits": 8, "type": kind, "symmetric": symmetric, "strategy": strategy} | weights
    activations = {"num_bits": 8, "type": kind, "strategy": "token", "dynamic": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": activations}}
    return {"quant_method": "compressed-tensors", "format": f"{kind}-quantized", "config_groups": groups}


def plain_tensors(
    n_in: int,
    n_out: int,
    kind: str,
    grid: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
    symmetric: bool = True,
) -> dict[str, torch.Tensor]:
    """Random weights of eight bits, with scales and zero points of shape `grid`."""
    tensors = {"weight": random_codes((n_out, n_in), STORED[kind]), "weight_scale": random_scales(grid, dtype)}
    return tensors if symmetric else tensors | {"weight_zero_point": random_codes((*grid,), torch.int8, seed=1)}


def label_autoround(directory: Path, packing: str, **settings: Any) -> Path:
    """Put AutoRound's own config in place of the writer's: four bits in groups of 16."""
    config = json.loads((directory / "config.json").read_text())
    own = {"bits": 4, "group_size": 16, "sym": False, "data_type": "int", "autoround_version": "0.16.1"}
    own |= {"quant_method": "auto-round", "packing_format": packing}
    config["quantization_config"] = own | settings
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def e2m1(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Two numbers of four bits in each byte by their definition, the low half first: sign, two bits, one bit."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    magnitude = np.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent.astype(np.int64) - 1))
    return np.where(codes & 8, -magnitude, magnitude).astype(np.float32)


def fp4_tensors(n_in: int, n_out: int, kind: str) -> dict[str, torch.Tensor]:
    """Random numbers of four bits: "nvfp4" and "mxfp4" of compressed-tensors, "modelopt" as ModelOpt stores NVFP4."""
    random = np.random.default_rng(0)
    packed = torch.from_numpy(random.integers(0, 256, (n_out, n_in // 2)).astype(np.uint8))
    if kind == "mxfp4":
        exponents = random_scales((n_out, n_in // 32), torch.float8_e8m0fnu).view(torch.uint8)
        return {"weight_packed": packed, "weight_scale": exponents}
    scales = random_scales((n_out, n_in // 16)).mul(3000).to(torch.float8_e4m3fn)
    if kind == "modelopt":
        return {"weight": packed, "weight_scale": scales, "weight_scale_2": torch.tensor(0.0003)}
    return {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": torch.tensor([3000.0])}


def fp4_dense(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The weights in float32, before compressed-tensors' rounding to bfloat16; scales of FP8 are numbers already."""
    packed, scales = tensors.get("weight_packed", tensors.get("weight")), tensors["weight_scale"]
    assert packed is not None
    if scales.dtype == np.uint8:
        scales = np.exp2(scales.astype(np.float32) - 127)
    if "weight_global_scale" in tensors:
        scales = scales / tensors["weight_global_scale"]
    elif "weight_scale_2" in tensors:
        scales = scales * tensors["weight_scale_2"]
    values = e2m1(packed)
    return values * np.repeat(scales, values.shape[1] // scales.shape[1], axis=1)


def fp4_settings(kind: str) -> dict[str, Any]:
    """The quantization config of `fp4_tensors`."""
    if kind == "modelopt":
        producer = {"name": "modelopt", "version": "0.47.0"}
        return {"quant_method": "modelopt", "quant_algo": "NVFP4", "producer": producer}
    size, strategy = {"nvfp4": (16, "tensor_group"), "mxfp4": (32, "group")}[kind]
    scheme = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": size}
    groups = {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": {**scheme, "dynamic": True}}}
    return {"quant_method": "compressed-tensors", "format": f"{kind}-pack-quantized", "config_groups": groups}


def write_fp4(directory: Path, kind: str, **settings: Any) -> Path:
    """A checkpoint of random numbers of four bits; linears whose inputs are no whole groups stay as they are."""
    size = 32 if kind == "mxfp4" else 16

    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        if n_in % size:
            return {"weight": torch.ones(n_out, n_in, dtype=torch.float16)}
        return fp4_tensors(n_in, n_out, kind)

    return write_packed(directory, pack, fp4_settings(kind) | settings)


def hqq_tensors(n_in: int, n_out: int, axis: int = 1) -> dict[str, torch.Tensor]:
    """Random codes of four bits in groups of 16 as `HQQLinear.state_dict` holds them, float16."""
    random = np.random.default_rng(0)
    count = n_in * n_out
    grid = (count // 16, 16) if axis == 1 else (16, count // 16)
    codes = random.integers(0, 16, grid)
    words = (codes[: len(codes) // 2] << 4) | codes[len(codes) // 2 :]
    groups = (grid[0], 1) if axis == 1 else (1, grid[1])
    settings = {"nbits": 4, "group_size": 16, "axis": axis}
    truths = {"view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "channel_wise": 1, "encoded_state_dict": 1}
    texts = {"packing": "4bit_u8", "compute_dtype": "torch.float16"}
    return {
        "W_q": torch.from_numpy(words.astype(np.uint8)),
        "scale": random_scales(groups, torch.float16),
        "zero": torch.from_numpy(random.uniform(0, 15, groups).astype(np.float16)),
        "shape": torch.tensor([n_out, n_in]),
        **{key: torch.tensor(value, dtype=torch.int32) for key, value in settings.items()},
        **{key: torch.tensor(value, dtype=torch.uint8) for key, value in truths.items()},
        **{key: torch.tensor(list(value.encode()), dtype=torch.uint8) for key, value in texts.items()},
    }


def hqq_dense(tensors: Mapping[str, NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.float16]:
    """(q - z)·s of the grid of codes, the high halves of all bytes before the low ones."""
    codes = np.concatenate([tensors["W_q"] >> 4, tensors["W_q"] & 15]).astype(np.float16)
    return ((codes - tensors["zero"]) * tensors["scale"]).reshape(shape)


def write_hqq(directory: Path, axis: int = 1, **settings: Any) -> Path:
    """A checkpoint as transformers 4 saves one that hqq quantized."""
    weights = {"nbits": 4, "group_size": 16, "axis": axis, "channel_wise": True} | settings
    quantization = {
        "quant_method": "hqq",
        "quant_config": {"weight_quant_params": weights},
        "skip_modules": ["lm_head"],
    }
    return write_packed(directory, lambda n_in, n_out: hqq_tensors(n_in, n_out, axis), quantization)


def mlx_tensors(n_in: int, n_out: int, bits: int = 4) -> dict[str, torch.Tensor]:
    """Random codes as MLX stores them, float16, in groups of 16."""
    codes, zeros, scales, _ = random_linear(n_in, n_out, 16, bits)
    words = pack_columns(codes.T, bits).view(torch.uint32)
    biases = torch.from_numpy((-scales * zeros.astype(np.float16)).T.copy())
    return {"weight": words, "scales": torch.from_numpy(scales.T.copy()), "biases": biases}


def write_mlx(directory: Path, **settings: Any) -> Path:
    """A checkpoint as mlx-lm writes it: `quantization` in the config, and no quant_method."""
    write_packed(directory, mlx_tensors, {})
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    config["quantization"] = {"group_size": 16, "bits": 4, "mode": "affine"} | settings
    (directory / "config.json").write_text(json.dumps(config))
    return directory
