"""config.json of a Hugging Face directory: held against a schema, then made a transformers config that runs nothing.

Only what the file says of the model reaches transformers. What it says of how to run it (attention kernels to download,
code, labels of classifiers) is left out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from interp.documents import checked, read_json_object
from interp.errors import InputError
from interp.formats.skeleton import MAX_BLOCKS

QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where AutoGPTQ, AutoAWQ and ModelOpt wrote the quantization config before it moved into config.json."""
NOT_OF_THE_MODEL = (
    *(
        "quantization_config",
        "compression_config",
        "quantization",
        "auto_map",
        "num_labels",
        "id2label",
        "label2id",
        "problem_type",
    ),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal", "use_kernels"),
    *("name_or_path", "_name_or_path", "output_hidden_states", "output_attentions", "return_dict", "torchscript"),
)
"""Keys that say nothing of what the model computes. An attention implementation can be the name of a repository of
kernels, which transformers would download and run."""
SHARES = ("partial_rotary_factor", "rotary_pct")
"""Keys, at any depth, that are a share from 0 to 1: of a head's width, which no tensor of the file bounds."""

Size = Annotated[int, Field(ge=1, lt=2**31)]
Blocks = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=-1, lt=2**31)]
FloatingType = Literal["float16", "bfloat16", "float32", "float64", "auto"]


class ModelConfig(BaseModel, extra="allow", strict=True):
    """The keys of config.json from which sizes, types and tokens are taken; transformers checks the others."""

    model_type: str
    num_hidden_layers: Blocks | None = None
    n_layer: Blocks | None = None
    hidden_size: Size | None = None
    n_embd: Size | None = None
    intermediate_size: Size | None = None
    n_inner: Size | None = None
    vocab_size: Size | None = None
    num_attention_heads: Size | None = None
    n_head: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size | None = None
    n_positions: Size | None = None
    rms_norm_eps: Epsilon | None = None
    layer_norm_eps: Epsilon | None = None
    layer_norm_epsilon: Epsilon | None = None
    rope_theta: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    dtype: FloatingType | None = None
    torch_dtype: FloatingType | None = None
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | list[TokenId] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None


def read_config(directory: Path) -> dict[str, Any]:
    """config.json, checked.

    Raises:
        InputError: missing, not a JSON object, or a key of another type or out of range.
    """
    file = directory / "config.json"
    if not file.exists():
        raise InputError(
            f"{directory} is not a checkpoint: it has no config.json",
            "a directory with config.json and safetensors files, or a .gguf file",
            "Give the directory that holds the model",
        )
    settings = read_json_object(file)
    if not isinstance(settings.get("model_type"), str):
        raise InputError(
            f"{file} has the model_type {settings.get('model_type')!r}",
            "the name of an architecture",
            "Restore the config the model was saved with",
        )
    return settings


def check_config(directory: Path, settings: dict[str, Any]) -> None:
    """Hold the keys that are used against `ModelConfig`, and every number against what numbers can be.

    Raises:
        InputError: a key of another type or out of range.
    """
    where = f"{directory / 'config.json'} is not a usable model config"
    checked(ModelConfig, settings, where)
    for key, value in _numbers("", settings):
        share = key.rpartition(".")[2] in SHARES
        if not math.isfinite(value) or (share and not 0 < value <= 1):
            raise InputError(
                f"{where}: {key} is {value}",
                "a share of a head, from 0 to 1" if share else "a finite number",
                "Restore the file as it was written",
            )


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number of a JSON document with the keys that lead to it."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _numbers(f"{key}.{name}" if key else name, child)
    elif isinstance(value, list):
        for child in value:
            yield from _numbers(key, child)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def quantization_settings(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The quantization config, wherever the writer put it; `{}` where there is none.

    Raises:
        InputError: it is no JSON object.
    """
    candidates = (config.get(key) for key in ("quantization_config", "compression_config", "quantization"))
    settings = next((settings for settings in candidates if settings is not None), None)
    for name in QUANTIZATION_FILES:
        if settings is None and (directory / name).exists():
            settings = read_json_object(directory / name)
    if settings is not None and not isinstance(settings, dict):
        raise InputError(
            f"The quantization config of {directory} is {settings!r}",
            "a JSON object",
            "Restore the config that the quantizer wrote",
        )
    return settings or {}


def writer_of(settings: dict[str, Any]) -> str | None:
    """The quantizer that a quantization config names in `meta`, None where it names none."""
    meta = settings.get("meta")
    quantizer = meta.get("quantizer") if isinstance(meta, dict) else None
    named = quantizer if isinstance(quantizer, list) else [quantizer]
    return ", ".join(name for name in named if isinstance(name, str)) or None


def transformers_config(directory: Path, settings: dict[str, Any]) -> Any:
    """The transformers config of what config.json says of the model.

    Args:
        directory: where config.json is, for messages.
        settings: what it says; see `read_config`.

    Raises:
        InputError: transformers cannot make a config of it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = settings["model_type"]
    if model_type == "mistral" and "layer_types" in settings:  # as transformers' AutoConfig does
        model_type = "ministral"
    config_class = CONFIG_MAPPING[model_type]
    model_settings = {key: value for key, value in settings.items() if _of_the_model(key, config_class)}
    try:
        config = config_class.from_dict(model_settings | {"model_type": model_type}, name_or_path=str(directory))
    except Exception as error:  # a config class computes with whatever the file says: any exception speaks of the file
        raise unusable(directory, error) from error
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        config.pad_token_id = None  # fine-tunes of Llama 2 add one without a row; PyTorch would not build the embedding
    return config


def _of_the_model(key: str, config_class: type) -> bool:
    """Whether a key is a setting, and no part of how transformers' class works (a method, its map of names)."""
    part = inspect.getattr_static(config_class, key, None)
    settable = type(part) is property and part.fset is not None
    setting = part is None or settable or key in {field.name for field in fields(config_class)}
    return setting and key not in NOT_OF_THE_MODEL


def unusable(directory: Path, error: Exception | str) -> InputError:
    """An error about a config.json that transformers cannot use."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"{directory / 'config.json'} is not a usable model config ({reason[:500]})",
        "the config the model was saved with",
    )
