"""NVFP4 and MXFP4: compressed-tensors against the package itself, ModelOpt against linears that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.huggingface import PACKED_FORMATS
from interp.formats.packed import PackedModule, layout_of
from interp.formats.shards import Shards
from tests.packed_files import edit, fp4_dense, fp4_settings, fp4_tensors, random_codes, random_scales, write_packed
from tests.packed_files import write_fp4 as write

FILES = Path(__file__).parents[2] / "quantizer_files" / "modelopt"
NAME = "model.layers.1.mlp.up_proj"


def as_numbers(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: (t.float() if t.dtype == torch.float8_e4m3fn else t).numpy() for name, t in tensors.items()}


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_checkpoints_of_compressed_tensors(kind: str, tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    ck = open_checkpoint(write(tmp_path, kind))
    settings = fp4_settings(kind)
    assert (ck.format, ck.quantization["layout"]) == ("compressed-tensors", settings["format"])
    assert (ck.quantization["bits"], ck.quantization["group_size"]) == (4, 16 if kind == "nvfp4" else 32)
    assert ["rounding is in no result here" in warning for warning in ck.warnings] == [True]
    scheme = QuantizationScheme.model_validate(settings["config_groups"]["group_0"])
    package = BaseCompressor.get_value_from_registry(settings["format"])
    quantized = [name for name in ck.linears() if ck.is_quantized(name)]
    assert len(quantized) >= 18
    for name in quantized:
        tensors = fp4_tensors(*ck.weight_shape(name)[::-1], kind)
        weight = ck.tensor(f"{name}.weight")
        assert torch.equal(weight, package.decompress(tensors, scheme)["weight"])
        assert torch.equal(weight, torch.from_numpy(fp4_dense(as_numbers(tensors))).bfloat16())


def test_weights_that_compressed_tensors_quantized(tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    settings = fp4_settings("nvfp4")
    scheme = QuantizationScheme.model_validate(settings["config_groups"]["group_0"])
    package = BaseCompressor.get_value_from_registry(settings["format"])
    torch.manual_seed(0)
    weight = torch.randn(32, 48, dtype=torch.bfloat16)
    largest = weight.unflatten(1, (3, 16)).abs().amax(-1)
    own = {"weight": weight, "weight_scale": largest * 100 / 6, "weight_global_scale": torch.tensor([100.0])}
    tensors = package.compress(own, scheme)
    write(tmp_path, "nvfp4")
    down = "model.layers.1.mlp.down_proj"
    edit(tmp_path, lambda held: held.update({f"{down}.{suffix}": tensor for suffix, tensor in tensors.items()}))
    opened = open_checkpoint(tmp_path).tensor(f"{down}.weight")
    assert torch.equal(opened, package.decompress(tensors, scheme)["weight"])
    assert float((opened - weight).float().norm() / weight.float().norm()) < 0.15


@pytest.mark.parametrize("case", ["nvfp4", "fp8"])
def test_linears_that_modelopt_wrote(case: str) -> None:
    shards = Shards(FILES)
    expected = shards.read(f"{case}.expected")
    module = PackedModule(case, shards, {}, (expected.shape[0], expected.shape[1]))
    layout = layout_of(PACKED_FORMATS["modelopt"], module)
    layout.check(module)
    layout.require_all(module)
    assert torch.equal(layout.dequantize(module), expected)
    assert layout.describe(module).facts["version"] == case.upper()


@pytest.mark.parametrize("where", ["config.json", "hf_quant_config.json", "nowhere"])
def test_checkpoints_of_modelopt(where: str, tmp_path: Path) -> None:
    write(tmp_path, "modelopt")
    if where != "config.json":
        config = json.loads((tmp_path / "config.json").read_text())
        del config["quantization_config"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    if where == "hf_quant_config.json":
        quantization = {"quant_algo": "W4A16_NVFP4", "group_size": 16, "kv_cache_quant_algo": None}
        written = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": quantization}
        (tmp_path / where).write_text(json.dumps(written))
    ck = open_checkpoint(tmp_path)
    assert (ck.format, ck.quantization["bits"], ck.quantization["group_size"]) == ("modelopt", 4, 16)
    assert ck.quantization["writer"] == (None if where == "nowhere" else "modelopt:0.47.0")
    assert len(ck.warnings) == (0 if where == "hf_quant_config.json" else 1)
    for name in ck.linears():
        tensors = fp4_tensors(*ck.weight_shape(name)[::-1], "modelopt")
        assert np.array_equal(ck.weight(name).numpy(), fp4_dense(as_numbers(tensors)))


def test_modelopt_of_eight_bits(tmp_path: Path) -> None:
    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        weight = random_codes((n_out, n_in), torch.float8_e4m3fn)
        return {"weight": weight, "weight_scale": torch.tensor(0.02), "input_scale": torch.tensor(1.0)}

    ck = open_checkpoint(write_packed(tmp_path, pack, {"quant_method": "modelopt", "quant_algo": "FP8"}))
    assert (ck.format, ck.quantization["bits"], ck.quantization["version"]) == ("modelopt", 8, "FP8")
    assert ["rounding is in no result here" in warning for warning in ck.warnings] == [True]
    expected = random_codes((48, 32), torch.float8_e4m3fn).float() * 0.02
    assert torch.equal(ck.weight(NAME), expected)


@pytest.mark.parametrize(
    ("kind", "suffix", "change", "message"),
    [
        ("nvfp4", "weight_scale", lambda t: t.float(), r"has type torch\.float32\. Expected torch\.float8_e4m3fn"),
        ("nvfp4", "weight_scale", lambda t: t[:, :-1].clone(), r"has shape \[48, 1\]\. Expected \[48, 2\]"),
        ("nvfp4", "weight_scale", lambda t: (t.view(torch.uint8) | 127).view(t.dtype), "has 96 NaN or infinite values"),
        ("nvfp4", "weight_packed", lambda t: t[:-1].clone(), r"has shape \[47, 16\]\. Expected \[48, 16\]"),
        ("nvfp4", "weight_packed", lambda t: t.int(), r"has type torch\.int32"),
        ("nvfp4", "weight_global_scale", lambda t: t * 0, "has nothing but zeros"),
        ("nvfp4", "weight_global_scale", lambda t: t * torch.nan, "has 1 NaN or infinite values"),
        ("nvfp4", "weight_global_scale", lambda t: t.repeat(2), r"has shape \[2\]\. Expected one number"),
        ("mxfp4", "weight_scale", lambda t: t | 255, "has the byte 255, which is NaN, in 48 places"),
        ("mxfp4", "weight_scale", lambda t: t.repeat(1, 2), r"has shape \[48, 2\]\. Expected \[48, 1\]"),
        ("mxfp4", "weight_packed", lambda t: t.to(torch.int8), r"has type torch\.int8"),
        ("modelopt", "weight", lambda t: t[:-1].clone(), r"has shape \[47, 16\]\. Expected \[48, 16\]"),
        ("modelopt", "weight", lambda t: t.to(torch.int8), r"has type torch\.int8\. Expected torch\.uint8"),
        ("modelopt", "weight_scale", lambda t: t[:-1].clone(), r"has shape \[47, 2\]\. Expected \[48, 2\]"),
        ("modelopt", "weight_scale_2", lambda t: t * torch.inf, "has 1 NaN or infinite values"),
        ("modelopt", "weight_scale_2", lambda t: t.repeat(2), r"has shape \[2\]\. Expected one number"),
    ],
)
def test_malformed_tensors_are_named(kind: str, suffix: str, change: Any, message: str, tmp_path: Path) -> None:
    key = f"{NAME}.{suffix}"
    edit(write(tmp_path, kind), lambda tensors: tensors.update({key: change(tensors[key])}))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [
        ("nvfp4", "weight_global_scale", f"'{NAME}.weight_global_scale' is missing"),
        ("nvfp4", "weight_scale", f"'{NAME}.weight_scale' is missing"),
        ("nvfp4", "weight_packed", f"'{NAME}.weight_packed' is missing"),
        ("mxfp4", "weight_scale", f"'{NAME}.weight_scale' is missing"),
        ("modelopt", "weight", f"'{NAME}.weight' is missing"),
        ("modelopt", "weight_scale", f"'{NAME}.weight_scale' is missing"),
        ("modelopt", "weight_scale_2", f"'{NAME}.weight' of .* has type torch.uint8. Expected torch.float8_e4m3fn"),
    ],
)
def test_missing_tensors_are_named(kind: str, suffix: str, message: str, tmp_path: Path) -> None:
    edit(write(tmp_path, kind), lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("nvfp4", {"format": "mxfp4-pack-quantized"}, "format 'mxfp4-pack-quantized', and .* is stored as nvfp4-pack"),
        ("nvfp4", {"config_groups": fp4_settings("mxfp4")["config_groups"]}, r"\(4 bits in groups of 32\)"),
        ("modelopt", {"quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ', and .* is stored as nvfp4"),
        ("modelopt", {"quant_algo": "FP8"}, "quant_algo 'FP8', and .* is stored as nvfp4"),
        ("modelopt", {"group_size": 32}, "has groups of 32. Expected 16 inputs each"),
        ("modelopt", {"quant_method": "compressed-tensors"}, "declares compressed-tensors, but holds"),
        ("nvfp4", {"quant_method": "modelopt"}, "declares modelopt, but holds"),
    ],
)
def test_configs_that_the_tensors_contradict(kind: str, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(write(tmp_path, kind, **settings))


def test_scaled_inputs_are_refused(tmp_path: Path) -> None:
    scales = {f"{NAME}.input_quantizer.pre_quant_scale": random_scales((32,))}
    with pytest.raises(InputError, match="shows that the checkpoint is ModelOpt with scaled inputs"):
        open_checkpoint(edit(write(tmp_path, "modelopt"), lambda tensors: tensors.update(scales)))
