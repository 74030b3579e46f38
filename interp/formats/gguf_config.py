"""A GGUF's metadata → what transformers makes of them, from a header that was read once.

transformers' own functions parse the file anew, three times for a config and a tokenizer, and the parser that they use
takes ten seconds for a vocabulary of 49,152 tokens. Its tables are used here, so that the result is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.formats.gguf_header import Header, read_header

NOT_READ = -1
"""What transformers' tables give for a field that its own code handles apart."""
WITHOUT_EXPERTS = ("llama", "mistral")
"""What Mixtral's files call themselves, too; transformers does not tell them apart."""
TEXT_PARTS = {"gemma3": "gemma3_text"}
"""A GGUF holds the text part alone of models that also see."""


def transformers_config(file: Path) -> Any:
    """The config that `AutoConfig.from_pretrained(directory, gguf_file=name)` makes.

    Raises:
        InputError: as `read_header`.
        ValueError: an architecture that transformers does not read from a GGUF, or a value that its config refuses.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = config_settings(read_header(file))
    return CONFIG_MAPPING[settings["model_type"]].from_dict(settings, name_or_path=str(file.parent))


def config_settings(header: Header) -> dict[str, Any]:
    """The settings that transformers' `load_gguf_checkpoint` finds in a header, under its config's names.

    Raises:
        ValueError: an architecture that transformers does not read from a GGUF.
    """
    from transformers.modeling_gguf_pytorch_utils import GGUF_CONFIG_DEFAULTS_MAPPING, GGUF_SUPPORTED_ARCHITECTURES

    stored, known = _architecture(header)
    if not {stored, known} & {*GGUF_SUPPORTED_ARCHITECTURES}:
        raise ValueError(f"it reads no {stored!r} model from a GGUF")
    if _n_experts(header, stored) and known in WITHOUT_EXPERTS:
        raise ValueError("it would make a dense model of a mixture of experts")
    defaults = GGUF_CONFIG_DEFAULTS_MAPPING.get(known) or GGUF_CONFIG_DEFAULTS_MAPPING.get(stored) or {}
    settings: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in header.tensors, **defaults}
    settings |= dict(_renamed(header, stored, known))
    if "vocab_size" not in settings and (tokens := header.fields.get("tokenizer.ggml.tokens")):
        settings["vocab_size"] = len(tokens.raw)
    settings["model_type"] = TEXT_PARTS.get(settings["model_type"], settings["model_type"])
    return settings


def _n_experts(header: Header, stored: str) -> int:
    count = header.fields.get(f"{stored}.expert_count")
    return 0 if count is None else count.contents()


def _architecture(header: Header) -> tuple[str, str]:
    """The file's name of the architecture, and transformers'; llama.cpp calls a Mistral a Llama."""
    stored = header.fields["general.architecture"].contents()
    name = header.fields.get("general.name")
    mistral = "llama" in stored and name is not None and name.raw == b"mistral"
    return stored, "mistral" if mistral else stored


def _renamed(header: Header, stored: str, known: str) -> Iterator[tuple[str, Any]]:
    """Every field that transformers' table has a name for, with its value."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    names: Any = GGUF_TO_TRANSFORMERS_MAPPING["config"]
    for key, field in header.fields.items():
        prefix, _, rest = key.replace(stored, known).partition(".")
        name = names.get(prefix, {}).get(rest)
        if name not in (None, NOT_READ):
            yield name, _value(field.contents(), stored, known)


def _value(value: Any, stored: str, known: str) -> Any:
    """Arrays of one element count as that element."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return value.replace(stored, known) if isinstance(value, str) else value
