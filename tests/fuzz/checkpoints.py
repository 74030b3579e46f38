"""Checkpoints of every format, valid ones, written by the tests' own writers and by the real quantizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gguf
import torch

from interp import load, loading, read_cache
from interp.chat import encode, render
from interp.checkpoint import open_checkpoint
from interp.inspect.headers import summary_of_headers
from interp.quantize.gguf_f16 import write_f16
from tests import SHARED, tiny_models
from tests.fuzz import oracles
from tests.fuzz.targets import MAKERS, target
from tests.fuzz.worker import Reader
from tests.gguf_files import write_gguf
from tests.interp.formats.test_formats_compressed import compressed_tensors, settings_for
from tests.interp.formats.test_stacked import write_mxfp4
from tests.interp.formats.test_wrappers import saved, whole_model
from tests.packed_files import (
    label_autoround,
    plain_settings,
    plain_tensors,
    write_awq,
    write_bitsandbytes,
    write_float8,
    write_fp4,
    write_gptq,
    write_hqq,
    write_mlx,
    write_packed,
)


def _fixtures(root: Path, *names: str) -> list[Path]:
    """Copies of checkpoints of the real quantizers, where the reference material is beside the project."""
    found = [name for name in names if (SHARED / "fixtures" / name / "config.json").is_file()]
    return [shutil.copytree(SHARED / "fixtures" / name, root / name.replace("/", "-")) for name in found]


def _read_checkpoint(directory: Path) -> dict[str, torch.Tensor]:
    return oracles.read_all(open_checkpoint(directory))


def _checkpoint(
    name: str, seeds: list[Path], *damaged: str, check: Callable[[Path, Any], str | None] | None = None
) -> Reader:
    return Reader(name, tuple(seeds), _read_checkpoint, damaged, check)


def _dense_seeds(root: Path) -> list[Path]:
    sharded = tiny_models.write("llama", root / "sharded", torch.float16, shard="60KB")
    return [
        tiny_models.write("llama", root / "llama"),
        tiny_models.write("qwen2", root / "qwen2", torch.bfloat16),
        tiny_models.write("gpt2", root / "gpt2", torch.float16),
        sharded,
    ]


@target
def dense_weights(root: Path) -> Reader:
    seeds = [seed for seed in _dense_seeds(root) if seed.name != "gpt2"]  # whose files leave a prefix out
    return _checkpoint("dense-weights", seeds, "*.safetensors", check=oracles.dense_is_wrong)


@target
def config(root: Path) -> Reader:
    return _checkpoint("config", _dense_seeds(root), "config.json")


@target
def index(root: Path) -> Reader:
    seed = tiny_models.write("llama", root / "sharded", torch.float16, shard="60KB")
    return _checkpoint("index", [seed], "*.index.json", check=oracles.dense_is_wrong)


def _written(directory: Path) -> Path:
    """Keep the quantization config as it was written where `oracles.packed_is_wrong` finds it."""
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    (directory / "written.json").write_text(json.dumps(settings))
    return directory


def _gptq_seeds(root: Path) -> list[Path]:
    return [
        _written(write_gptq(root / "v1")),
        _written(write_gptq(root / "v2", bits=8, version=2)),
        _written(write_gptq(root / "three", bits=3, group_size=32)),
    ]


def _compressed_seeds(root: Path) -> list[Path]:
    def write(bits: int) -> Path:
        pack = partial(compressed_tensors, group_size=16, bits=bits)
        return _written(write_packed(root / str(bits), pack, settings_for(bits)))

    return [write(4), write(8)]


def _plain_seeds(root: Path) -> list[Path]:
    def write(name: str, kind: str, strategy: str, **size: list[int]) -> Path:
        def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
            block = (-(-n_out // 20), -(-n_in // 24))
            grid = {"tensor": (1,), "channel": (n_out, 1), "block": block}[strategy]
            return plain_tensors(n_in, n_out, kind, grid, torch.float16)

        return _written(write_packed(root / name, pack, plain_settings(kind, strategy, **size)))

    blocks = write("blocks", "float", "block", block_structure=[20, 24])
    return [blocks, write("rows", "float", "channel"), write("whole", "int", "tensor")]


def _float8_seeds(root: Path) -> list[Path]:
    return [_written(write_float8(root / str(dtype), dtype=dtype)) for dtype in (torch.float32, torch.float8_e8m0fnu)]


def _bitsandbytes_seeds(root: Path) -> list[Path]:
    return [_written(write_bitsandbytes(root / kind, kind)) for kind in ("nf4", "nested", "int8")]


def _fp4_seeds(root: Path) -> list[Path]:
    return [_written(write_fp4(root / kind, kind)) for kind in ("nvfp4", "mxfp4", "modelopt")]


def _mlx_seeds(root: Path) -> list[Path]:
    seed = write_mlx(root / "mlx")
    (seed / "written.json").write_text(json.dumps({"quant_method": "mlx", "bits": 4, "group_size": 16}))
    return [seed]


def _autoround_seeds(root: Path) -> list[Path]:
    return [
        label_autoround(_written(write_gptq(root / "gptq", version=2)), "auto_round"),
        label_autoround(_written(write_awq(root / "awq")), "auto_round:auto_awq"),
    ]


PACKED: dict[str, Callable[[Path], list[Path]]] = {
    "gptq": _gptq_seeds,
    "awq": lambda root: [_written(write_awq(root / "gemm"))],
    "compressed": _compressed_seeds,
    "plain": _plain_seeds,
    "float8": _float8_seeds,
    "bitsandbytes": _bitsandbytes_seeds,
    "fp4": _fp4_seeds,
    "mlx": _mlx_seeds,
    "hqq": lambda root: [_written(write_hqq(root / str(axis), axis)) for axis in (0, 1)],
    "autoround": _autoround_seeds,
}
"""Packed format → what writes checkpoints of it, each with the quantization config as it was written beside."""
DAMAGED = {"weights": "*.safetensors", "settings": "config.json"}
"""Part of a checkpoint that is damaged → its files."""


def _packed(name: str, part: str, root: Path) -> Reader:
    return _checkpoint(f"{name}-{part}", PACKED[name](root), DAMAGED[part], check=oracles.packed_is_wrong)


MAKERS |= {f"{name}-{part}": partial(_packed, name, part) for name, part in product(PACKED, DAMAGED)}


def _stacked_seeds(root: Path) -> list[Path]:
    dense = tiny_models.write("gpt_oss", root / "dense", torch.bfloat16)
    return [dense, write_mxfp4(dense, root / "mxfp4")]


@target
def stacked_weights(root: Path) -> Reader:
    return _checkpoint("stacked-weights", _stacked_seeds(root), "*.safetensors", check=oracles.stacked_is_wrong)


@target
def stacked_settings(root: Path) -> Reader:
    return _checkpoint("stacked-settings", _stacked_seeds(root), "config.json", check=oracles.stacked_is_wrong)


@target
def experts(root: Path) -> Reader:
    seed = tiny_models.write("qwen3_moe", root / "qwen3_moe", torch.float16)
    stacked = tiny_models.write("qwen3_5_moe_text", root / "qwen3_5_moe_text", torch.float16, stacked=True)
    return _checkpoint("experts", [seed, stacked], "config.json", "*.safetensors", check=oracles.stacked_is_wrong)


@target
def wrappers(root: Path) -> Reader:
    seeds = [saved(whole_model("gemma3", True), root / "gemma3")]
    seeds.append(saved(whole_model("mistral3", False), root / "mistral3", newer_names=True))
    return _checkpoint("wrappers", seeds, "config.json", "*.safetensors", check=oracles.wrapped_is_wrong)


@target
def fixtures(root: Path) -> Reader:
    seeds = _fixtures(root, "autoawq_gemm", "autoawq_gemv", "gptqmodel_v1", "compressed_w4a16", "gptqmodel_v2_act")
    return _checkpoint("fixtures", seeds, "config.json", "quantize_config.json", "*.safetensors")


@target
def gguf_file(root: Path) -> Reader:
    model = tiny_models.bare_model("llama")
    kinds = gguf.GGMLQuantizationType
    for kind in (kinds.F16, kinds.Q8_0, kinds.Q4_0):
        (root / kind.name).mkdir(parents=True)
        write_gguf(root / kind.name / "model.gguf", model.state_dict(), model.config, "llama", kind)
    seeds = tuple(sorted(root.iterdir()))

    def read(directory: Path) -> dict[str, torch.Tensor]:
        return oracles.read_all(open_checkpoint(directory / "model.gguf"))

    return Reader("gguf-file", seeds, read, ("*.gguf",), oracles.gguf_is_wrong)


@target
def gguf_experts(root: Path) -> Reader:
    model = tiny_models.bare_model("olmoe")
    state, count = model.state_dict(), {"olmoe__expert_count": model.config.num_experts}
    (root / "experts").mkdir(parents=True)
    kind = gguf.GGMLQuantizationType.Q8_0
    write_gguf(root / "experts" / "model.gguf", state, model.config, "olmoe", kind, **count)
    return _checkpoint("gguf-experts", [root / "experts"], "*.gguf", check=oracles.gguf_experts_are_wrong)


@target
def gguf_parts(root: Path) -> Reader:
    model = tiny_models.bare_model("llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    (root / "parts").mkdir(parents=True)
    write_gguf(root / "parts" / "model.gguf", model.state_dict(), model.config, "llama", kind, most_tensors=10)
    return _checkpoint("gguf-parts", [root / "parts"], "*.gguf")


@target
def summaries(root: Path) -> Reader:
    """What is told of a checkpoint from its headers alone, and where they do not do, from the checkpoint."""
    seeds = [tiny_models.write("llama", root / "llama"), write_gptq(root / "gptq"), root / "gguf"]
    seeds[-1].mkdir()
    write_f16(seeds[0], seeds[-1] / "model.gguf")

    def read(directory: Path) -> Any:
        path = next(directory.glob("*.gguf"), directory)
        told = summary_of_headers(path)
        return str(told or ""), str(open_checkpoint(path).summary())

    return Reader("summaries", tuple(seeds), read, ("*.json", "*.safetensors", "*.gguf"))


@target
def gguf_surroundings(root: Path) -> Reader:
    """Of a GGUF without a baseline, whose config and tokenizer are made of its metadata."""
    (root / "own").mkdir(parents=True)
    write_f16(tiny_models.write("llama", root / "llama"), root / "own" / "model.gguf")
    return Reader("gguf-surroundings", (root / "own",), _surroundings, ("*.gguf",))


@target
def caches(root: Path) -> Reader:
    model = load(tiny_models.write("llama", root / "llama"))
    texts = ["How do I bake bread?", "Tell me."]
    model.write_cache(texts, "blocks.*.hook_resid_post", root / "cache", "all", batch_size=1)

    def read(directory: Path) -> Any:
        cache = read_cache(directory)
        return cache.token_ids, {name: cache[name] for name in cache}

    return Reader("caches", (root / "cache",), read)


def _surroundings(directory: Path) -> Any:
    """Tokenizer, generation config and template as `load` and the probes use them, without the weights."""
    checkpoint = open_checkpoint(next(directory.glob("*.gguf"), directory))
    beside = loading.surroundings(checkpoint, None)
    rendered = render(beside.tokenizer, ["How do I bake bread?", "Tell me."])
    checkpoint.vocabulary()
    return encode(beside.tokenizer, rendered.texts)


@target
def tokenizer(root: Path) -> Reader:
    seeds = (tiny_models.write("llama", root / "llama"),)
    return Reader("tokenizer", seeds, _surroundings, ("tokenizer.json", "tokenizer_config.json"))


@target
def template(root: Path) -> Reader:
    seed = tiny_models.write("llama", root / "llama")
    (seed / "chat_template.jinja").write_text(tiny_models.TEMPLATE)
    return Reader("template", (seed,), _surroundings, ("chat_template.jinja",))


@target
def generation_config(root: Path) -> Reader:
    seed = tiny_models.write("llama", root / "llama")
    return Reader("generation-config", (seed,), _surroundings, ("generation_config.json",))
