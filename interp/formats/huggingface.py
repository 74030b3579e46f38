"""A Hugging Face directory: config.json and safetensors, with dense or packed linears.

What is quantized is decided by the tensors that are there, never by the config's exclusion patterns.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp import inferred
from interp.architectures import ARCHITECTURES, Architecture, architecture
from interp.errors import InputError
from interp.formats import autoround, modelopt, wrappers
from interp.formats.awq import AWQ
from interp.formats.bitsandbytes import BITSANDBYTES_4BIT, BITSANDBYTES_INT8
from interp.formats.compressed import COMPRESSED
from interp.formats.compressed_fp4 import MXFP4, NVFP4
from interp.formats.compressed_plain import COMPRESSED_PLAIN
from interp.formats.float8 import FLOAT8
from interp.formats.gptq import GPTQ
from interp.formats.hqq import HQQ
from interp.formats.mlx import MLX
from interp.formats.model_config import (
    check_config,
    quantization_settings,
    read_config,
    transformers_config,
    unusable,
    writer_of,
)
from interp.formats.modelopt import MODELOPT_FP8, MODELOPT_NVFP4
from interp.formats.packed import FLOATS, PackedFormat, PackedModule, layout_of
from interp.formats.reader import Reader
from interp.formats.shards import Shards
from interp.formats.skeleton import Skeleton, count_blocks, skeleton
from interp.formats.stacked import STACKED_MXFP4, StackedShards, open_shards
from interp.rounding import resembles

Layouts = tuple[PackedFormat, ...]

PACKED_FORMATS: dict[str, Layouts] = {
    "awq": (AWQ,),
    "gptq": (GPTQ,),
    "compressed-tensors": (NVFP4, COMPRESSED, MXFP4, COMPRESSED_PLAIN),
    "fp8": (FLOAT8,),
    "bitsandbytes": (BITSANDBYTES_4BIT, BITSANDBYTES_INT8),
    "modelopt": (MODELOPT_NVFP4, MODELOPT_FP8),
    "mlx": (MLX,),
    "mxfp4": (STACKED_MXFP4,),
    "hqq": (HQQ,),
}
"""The layouts of each `quant_method`, the first that fits a module being its own. To support another format, add it."""
REFUSED_SUFFIXES = {
    "act.scales": "AWQ with scaled activations",
    "zero_scale": "HQQ with scales that were kept apart (offload_meta)",
    "scale_q": "HQQ with quantized scales",
    "zero_q": "HQQ with quantized zero points",
    "pre_quant_scale": "ModelOpt with scaled inputs (AWQ or SmoothQuant)",
}
RENAMED = {"lm_head.weight": ("embed_out.weight",)}
"""Names that transformers 5 changed, with what older files call them (GPT-NeoX)."""
DERIVED = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Buffers that older files store and that the model computes itself."""


class HuggingFaceReader(Reader):
    """Reads a directory; see `Reader`.

    Raises:
        InputError: anything wrong with the config or the headers of the files.
    """

    def __init__(self, directory: Path) -> None:
        written = read_config(directory)
        self._wrapped = written["model_type"] in wrappers.TEXT_PARTS
        settings_of_model = wrappers.text_settings(directory, written)
        self._written_settings = quantization_settings(directory, written)
        self.settings = modelopt.translate(autoround.translate(directory, self._written_settings))
        _refuse_methods(directory, self.settings)
        _refuse_experts(directory, settings_of_model)
        _refuse_custom_code(directory, settings_of_model)
        self.directory = directory
        self.architecture = _row(directory, settings_of_model)
        check_config(directory, settings_of_model)
        self.shards = open_shards(directory, self.architecture)
        self.files = [*self.shards.files, directory / "config.json"]
        _refuse_tensors(self.shards)
        self._layouts = _layouts(self.shards, self.settings)
        self.format = self._layouts[0].name if self._layouts else "dense"
        for key in ("num_hidden_layers", "n_layer"):  # before a config or a model of that many is built
            self._check_blocks(settings_of_model.get(key))
        if self._wrapped:
            settings_of_model = wrappers.with_ties(settings_of_model, self.shards.headers)
        self.config = transformers_config(directory, settings_of_model)
        self._check_blocks(self.config.num_hidden_layers)
        self.architecture = self.architecture.expanded(self.config)
        if isinstance(self.shards, StackedShards):
            self.shards.check_experts(self.config)
        self.skeleton = _skeleton(directory, self.config, self.architecture)
        untied = self._untied()
        self.skeleton = self.skeleton.untie(untied)
        self.linears = self.skeleton.linears
        self._sources = {name: self._source(name) for name in self.skeleton.shapes}
        self._check_dense()
        self.warnings = [*self._unused(), *map(self._tie_warning, untied)]
        if self.architecture.inferred:
            self.warnings.append(inferred.warning(self.architecture.model_type))
        self.quantization = self._describe()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Reader.shapes`."""
        return self.skeleton.shapes

    def read(self, name: str) -> Tensor:
        """See `Reader.read`."""
        module = name.removesuffix(".weight")
        if name not in self._modules or not name.endswith(".weight"):
            return self.shards.read(self._sources[name])
        weight = self._layout(self._modules[name]).dequantize(self._modules[name])
        return weight.T.contiguous() if self._is_conv1d(module) else weight

    def is_quantized(self, module: str) -> bool:
        """See `Reader.is_quantized`."""
        return f"{module}.weight" in self._modules

    def stored_bytes(self, module: str) -> int:
        """See `Reader.stored_bytes`."""
        if not self.is_quantized(module):
            return self.shards.headers[self._sources[f"{module}.weight"]].n_bytes
        packed = self._modules[f"{module}.weight"]
        return self._layout(packed).stored_bytes(packed)

    def floating_dtypes(self) -> dict[torch.dtype, int]:
        """See `Reader.floating_dtypes`."""
        count: Counter[torch.dtype] = Counter()
        for name, source in self._sources.items():
            if name not in self._modules and self.shards.headers[source].dtype.is_floating_point:
                count[self.shards.headers[source].dtype] += torch.Size(self.skeleton.shapes[name]).numel()
        return dict(count)

    def vocabulary(self) -> dict[str, int] | None:
        """See `Reader.vocabulary`: of tokenizer.json, added tokens included."""
        file = self.directory / "tokenizer.json"
        if not file.exists():
            return None
        from interp.tokenizer_files import read_vocabulary

        return read_vocabulary(file)

    def _is_conv1d(self, module: str) -> bool:
        return self.architecture.conv1d and module in self.linears

    def _check_blocks(self, declared: Any) -> None:
        """Hold a number of blocks, None where nothing is said, against the tensors' names.

        Raises:
            InputError: another number than there are.
        """
        blocks = self.architecture.blocks
        within = wrappers.names_within(blocks) if self._wrapped else ()
        n_stored = count_blocks(self.shards.headers, (blocks, blocks.rpartition(".")[2], *within))
        if declared is not None and declared != n_stored:
            raise InputError(
                f"{self.directory / 'config.json'} describes {declared} blocks, and the tensors belong to {n_stored}",
                "as many blocks as the model has",
                "The weights and the config.json do not belong together, or the download is incomplete",
            )

    def _source(self, name: str) -> str:
        """The tensor's name in the files, or the packed module's name; of tied tensors the one that is there."""
        copies = [copy for copy, original in self.skeleton.tied.items() if original == name]
        source = next((stored_name for candidate in (name, *copies) if (stored_name := self._find(candidate))), None)
        if source is None:
            raise self._missing(name)
        return source

    def _find(self, name: str) -> str | None:
        plain = name.removeprefix(self.skeleton.prefix)
        within = wrappers.names_within(name) if self._wrapped else ()
        experts = self.architecture.experts
        older = () if experts is None else (name.replace(".mlp.", f".{experts.stored_mlp}."),)
        for candidate in (name, plain, *RENAMED.get(name, ()), *within, *older):
            module = candidate.removesuffix(".weight")
            if module != candidate and any(self._is_packed(module, layout) for layout in self._layouts):
                return module
            if candidate in self.shards:
                return candidate
        return None

    def _is_packed(self, module: str, layout: PackedFormat) -> bool:
        """Whether a module has the marker, and no dense weight beside it that is none of the packed tensors itself."""
        dense = f"{module}.weight" in self.shards and "weight" not in layout.parts
        return f"{module}.{layout.marker}" in self.shards and not dense

    def _layout(self, module: PackedModule) -> PackedFormat:
        return layout_of(self._layouts, module)

    def _untied(self) -> list[str]:
        """Tensors that the config ties to another one and that are stored with other numbers; see `Skeleton.untie`."""
        pairs = {copy: (self._find(copy), self._find(original)) for copy, original in self.skeleton.tied.items()}
        return [
            copy
            for copy, (stored, original) in pairs.items()
            if stored and original and not self._is_redundant(copy, stored, original)
        ]

    def _is_redundant(self, name: str, stored: str, original: str) -> bool:
        """Whether a stored copy is the tied tensor again, bit by bit, or packed and so close to it."""
        if original not in self.shards:
            return True
        tensor = self.shards.read(original)
        if stored in self.shards:
            return torch.equal(self.shards.read(stored).to(tensor.dtype), tensor)
        rows, columns = self.skeleton.shapes[self.skeleton.tied[name]]
        if tuple(tensor.shape) != (rows, columns):
            return True  # the embedding itself is refused, by its own shape
        module = self._module(stored, (rows, columns))
        layout = self._layout(module)
        layout.check(module)
        layout.require_all(module)
        return resembles(tensor, layout.dequantize(module))

    def _tie_warning(self, name: str) -> str:
        return (
            f"{self.directory / 'config.json'} says that the embeddings are tied, and {name} is stored with other "
            "numbers: it is kept, as transformers keeps it"
        )

    def _missing(self, name: str) -> InputError:
        module = name.removesuffix(".weight")
        packed = [suffix for suffix in self._suffixes() if f"{module}.{suffix}" in self.shards]
        remainder = f"; of its packed tensors only {', '.join(packed)} are there" if packed else ""
        return InputError(
            f"The tensor {name!r} is missing from {self.directory}{remainder}",
            f"every tensor of a {self.architecture.model_type} model with this config.json",
            "The checkpoint is incomplete: download it or write it again",
        )

    def _suffixes(self) -> list[str]:
        """Suffixes of all tensors that a packed module of this checkpoint may have."""
        return list(dict.fromkeys(suffix for layout in self._layouts for suffix in layout.suffixes))

    @cached_property
    def _modules(self) -> dict[str, PackedModule]:
        """Packed weights by the dense tensor's name."""
        return {
            name: self._module(source, self._weight_shape(name))
            for name, source in self._sources.items()
            if source not in self.shards
        }

    def _module(self, source: str, shape: tuple[int, int]) -> PackedModule:
        settings = autoround.own_settings(self._written_settings, self.settings, source)
        return PackedModule(source, self.shards, settings, shape)

    def _weight_shape(self, name: str) -> tuple[int, int]:
        shape = self.skeleton.shapes[name]
        if len(shape) != 2:
            raise InputError(
                f"The tensors of {self._sources[name]!r} in {self.directory} are packed like a matrix",
                f"a vector of {list(shape)}, as config.json says",
                "The weights and the config.json do not belong together",
            )
        rows, columns = shape
        return (columns, rows) if self._is_conv1d(name.removesuffix(".weight")) else (rows, columns)

    def _check_dense(self) -> None:
        """Types and shapes of what is not packed."""
        for name, source in self._sources.items():
            if name in self._modules:
                continue
            header = self.shards.headers[source]
            if header.dtype.is_floating_point and header.dtype not in FLOATS:
                raise InputError(
                    f"The tensor {source!r} of {header.file} has the type {header.dtype}, and no scale is beside it",
                    "a weight_scale or weight_scale_inv of the same module, without which its numbers mean nothing",
                    "The checkpoint is incomplete: download it or write it again",
                )
            if not header.dtype.is_floating_point:
                raise InputError(
                    f"The tensor {source!r} of {header.file} has the type {header.dtype}",
                    "floating-point numbers, or the packed tensors of a format that is supported",
                    "Whole numbers are codes of a format that cannot be told here: give a checkpoint in another format",
                )
            if header.shape != self.skeleton.shapes[name]:
                raise InputError(
                    f"The tensor {source!r} of {header.file} has shape {list(header.shape)}",
                    f"{list(self.skeleton.shapes[name])}, as config.json says",
                    "The weights and the config.json do not belong together",
                )

    def _unused(self) -> list[str]:
        """Name the tensors that no part of the model takes.

        Raises:
            InputError: one of them is a bias that changes what the model computes.
        """
        used = set(self._sources.values()) | {
            f"{module.name}.{suffix}" for module in self._modules.values() for suffix in self._layout(module).suffixes
        }
        unused = []
        for name in self.shards.headers:
            tied = any(name.startswith(copy.removesuffix("weight")) for copy in self.skeleton.tied)
            if name in used or tied or name.endswith(DERIVED):
                continue
            if name.endswith(".bias") and name.removesuffix(".bias") in {m.name for m in self._modules.values()}:
                self._require_zero(name)
                continue
            unused.append(name)
        return wrappers.warnings_of_unused(self.directory, unused, self._wrapped)

    def _require_zero(self, bias: str) -> None:
        """AutoGPTQ writes a zero bias for linears that have none."""
        if bool(self.shards.read(bias).any()):
            raise InputError(
                f"The tensor {bias!r} of {self.shards.headers[bias].file} is a bias that the model does not have",
                "no bias, or zeros",
                "The weights and the config.json do not belong together",
            )

    def _describe(self) -> dict[str, Any]:
        modules = [(module, self._layout(module)) for module in self._modules.values()]
        if not modules:
            return {}
        for module, layout in modules:
            layout.check(module)
        first, of = modules[0]
        described = of.describe(first)
        for module, layout in modules:
            layout.require_all(module)
            if layout.verify is not None:
                layout.verify(module)
        self.warnings += described.warnings
        return {**described.facts, "writer": writer_of(self.settings)}


def _row(directory: Path, settings: dict[str, Any]) -> Architecture:
    """The row of the table, or one that is inferred where transformers knows the model.

    Raises:
        InputError: there is no row, and none can be inferred.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = settings["model_type"]
    if model_type not in ARCHITECTURES and model_type in CONFIG_MAPPING:
        check_config(directory, settings)
        if (row := inferred.infer(transformers_config(directory, settings))) is not None:
            return row
    return architecture(model_type)


def _refuse_methods(directory: Path, settings: dict[str, Any]) -> None:
    method = settings.get("quant_method")
    if method is not None and (not isinstance(method, str) or method not in PACKED_FORMATS):
        raise InputError(
            f"{directory} is quantized with {method!r}, which is not supported",
            f"an unquantized model, one of {', '.join(PACKED_FORMATS)}, or a .gguf file",
            "Give a checkpoint in one of these formats",
        )


def _refuse_experts(directory: Path, config: dict[str, Any]) -> None:
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    key = next((key for key in keys if config.get(key)), None)
    known = [row.model_type for row in ARCHITECTURES.values() if row.experts is not None]
    if key is not None and config["model_type"] not in known:
        raise InputError(
            f"{directory} is a mixture-of-experts model ({key} = {config[key]}) of the model_type "
            f"{config['model_type']!r}, which is not supported",
            f"of mixtures of experts one of {', '.join(known)}",
            "Choose one of these, or a dense model",
        )


def _refuse_custom_code(directory: Path, config: dict[str, Any]) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if config.get("auto_map") and model_type not in CONFIG_MAPPING:
        raise InputError(
            f"{directory / 'config.json'} asks to run its own code (auto_map) for the model_type {model_type!r}",
            "a model_type that transformers itself knows",
            "Code from checkpoints is never run",
        )


def _refuse_tensors(shards: Shards) -> None:
    for name, header in shards.headers.items():
        scheme = next((what for suffix, what in REFUSED_SUFFIXES.items() if name.endswith("." + suffix)), None)
        if scheme:
            raise InputError(
                f"The tensor {name!r} of {header.file} shows that the checkpoint is {scheme}, which is not supported",
                f"an unquantized model, one of {', '.join(PACKED_FORMATS)}, or a .gguf file",
                "Give a checkpoint in one of these formats",
            )


def _layouts(shards: Shards, settings: dict[str, Any]) -> Layouts:
    """The layouts of the packed linears, none where there are none."""
    markers = {layout.marker for layouts in PACKED_FORMATS.values() for layout in layouts}
    present = {marker for marker in markers for name in shards.headers if name.endswith("." + marker)}
    method = settings.get("quant_method")
    if method is None and not present:
        return ()
    declared = PACKED_FORMATS[method or _undeclared(shards, present)]
    expected = {layout.marker for layout in declared}
    if not present or not present <= expected:
        raise InputError(
            f"{shards.directory} declares {declared[0].name}, but holds {sorted(present) or 'no packed'} tensors",
            f"packed linears with a {' or '.join(map(repr, sorted(expected)))} tensor each",
            "The config.json and the weights do not belong together",
        )
    return declared


def _undeclared(shards: Shards, present: set[str]) -> str:
    """The method of a checkpoint without a quantization config: of those with `qweight`, only GPTQ has `g_idx`."""
    if "qweight" in present:
        return "gptq" if any(name.endswith(".g_idx") for name in shards.headers) else "awq"
    candidates = (name for name, layouts in PACKED_FORMATS.items() if present <= {layout.marker for layout in layouts})
    return next(candidates, next(iter(PACKED_FORMATS)))  # of no method's: the error names what is there


def _skeleton(directory: Path, config: Any, architecture: Architecture) -> Skeleton:
    try:
        return skeleton(config, architecture)
    except Exception as error:  # a model class computes with whatever the config says: any exception speaks of it
        raise unusable(directory, error) from error
