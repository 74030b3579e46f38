"""What a model needs besides its weights, as its own checkpoint has it: beside the weights, or in a GGUF's metadata."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, StrictInt

from interp.documents import checked, read_json_object
from interp.errors import InputError
from interp.formats.gguf_config import transformers_config
from interp.pairs.configs import metadata_differences
from interp.tokenizer_files import gguf_tokenizer, open_tokenizer, refused

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint

_GIVE_BASELINE = (
    "Give the checkpoint directory that the file was made from: load(path, like=baseline), or --like or --baseline on "
    "the command line"
)


@dataclass(frozen=True)
class Surroundings:
    """What a model needs besides its weights."""

    config: Any
    tokenizer: Any
    generation_config: Any


def surroundings_of(checkpoint: Checkpoint, like: Checkpoint | None) -> Surroundings:
    """Config (without quantization), tokenizer and generation config; a GGUF takes all three from `like`.

    Raises:
        InputError: as `own_surroundings`; a baseline of another architecture.
    """
    if like is None:
        return own_surroundings(checkpoint)
    if like.architecture.gguf != checkpoint.architecture.gguf:
        raise InputError(
            f"{checkpoint.path} is a {checkpoint.architecture.model_type} model and its baseline {like.path} is a "
            f"{like.architecture.model_type} model",
            "two of one architecture",
            "Give the checkpoint that the file was made from",
        )
    beside = own_surroundings(like)
    return beside if checkpoint.config is None else replace(beside, config=checkpoint.config)


def own_surroundings(checkpoint: Checkpoint) -> Surroundings:
    """Config (without quantization), tokenizer and generation config of a checkpoint; a GGUF has no generation config.

    Raises:
        InputError: a directory without tokenizer files; a GGUF whose metadata transformers cannot turn into a config
            and a tokenizer, or of which it makes another model than the metadata say.
    """
    if checkpoint.config is None:
        return _within_gguf(checkpoint)
    directory = checkpoint.path
    return Surroundings(checkpoint.config, open_tokenizer(directory), _generation_config(directory))


class _Generation(BaseModel):
    """What is used of a generation config.

    Attributes:
        eos_token_id: tokens that end an answer.
    """

    model_config = ConfigDict(extra="allow")

    eos_token_id: StrictInt | list[StrictInt] | None = None


def _generation_config(directory: Path) -> Any:
    """None where there is none."""
    from transformers import GenerationConfig

    file = directory / "generation_config.json"
    if not file.exists():
        return None
    checked(_Generation, read_json_object(file), str(file))
    with refused(f"{file} cannot be used", "a JSON object of settings", "Download it again or remove it"):
        return GenerationConfig.from_pretrained(directory, local_files_only=True)


def _within_gguf(checkpoint: Checkpoint) -> Surroundings:
    """What transformers makes of a GGUF's own metadata."""
    file = checkpoint.path
    problem = f"transformers cannot make a config and a tokenizer of the metadata in {file}"
    with refused(problem, "metadata that it knows, or a baseline to take them from", _GIVE_BASELINE):
        config = transformers_config(file)
        differences = metadata_differences(config, checkpoint.metadata())
    if differences:
        raise InputError(
            f"transformers makes another model of the metadata in {file}: {'; '.join(differences)}",
            "a config that computes what the file says",
            _GIVE_BASELINE,
        )
    return Surroundings(config, gguf_tokenizer(file, config), None)
