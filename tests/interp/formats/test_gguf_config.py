from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from transformers import AutoConfig, AutoTokenizer

from interp.architectures import ARCHITECTURES
from interp.formats.gguf_config import transformers_config
from interp.tokenizer_files import gguf_tokenizer
from tests.gguf_files import write_gguf
from tests.interp.formats.test_formats_gguf import state_of
from tests.tiny_models import IN_GGUF

WITHOUT = ("gemma", "gpt_neox", "granite", "ministral3", "olmo2", "olmo3", "phi", "smollm3")
"""Architectures that transformers does not read from a GGUF."""
F16 = gguf.GGMLQuantizationType.F16
LETTERS = [*"abcdefghijklmnopqrstuvwxyzHowareu?", "Ġ", "<|end|>"]


@pytest.mark.parametrize("model_type", sorted({*IN_GGUF} - {*WITHOUT}))
def test_the_config_is_the_one_that_transformers_makes(model_type: str, tmp_path: Path) -> None:
    state, config = state_of(model_type)
    more = {"general__name": "mistral"} if model_type == "mistral" else {"tokenizer__ggml__eos_token_id": 7}
    name = ARCHITECTURES[model_type].gguf
    file = write_gguf(tmp_path / "m.gguf", state, config, name, F16, tokenizer__ggml__tokens=LETTERS, **more)
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf", local_files_only=True)
    ours = transformers_config(file)
    assert type(ours) is type(theirs)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.name_or_path == theirs.name_or_path


@pytest.mark.parametrize("model_type", WITHOUT)
def test_what_transformers_does_not_read_is_told(model_type: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", *state_of(model_type), ARCHITECTURES[model_type].gguf, F16)
    with pytest.raises(ValueError, match="not supported yet"):
        AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf", local_files_only=True)
    with pytest.raises(ValueError, match="it reads no"):
        transformers_config(file)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt2"])
def test_the_tokenizer_is_the_one_that_transformers_makes(model_type: str, tmp_path: Path) -> None:
    tokenizer = {"model": "gpt2", "pre": "qwen2", "tokens": LETTERS, "merges": ["a r", "ar e"]}
    tokenizer |= {"token_type": [1] * (len(LETTERS) - 1) + [3], "eos_token_id": len(LETTERS) - 1}
    tokenizer["tokens"] = [*LETTERS[:-3], "ar", "are", *LETTERS[-3:]]
    tokenizer["token_type"] = [1, 1, *tokenizer["token_type"]]
    fields = {f"tokenizer__ggml__{key}": value for key, value in tokenizer.items()}
    name = ARCHITECTURES[model_type].gguf
    more = {"general__name": "mistral"} if model_type == "mistral" else {}
    file = write_gguf(tmp_path / "m.gguf", *state_of(model_type), name, F16, **fields, **more)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf", local_files_only=True)
    ours = gguf_tokenizer(file, transformers_config(file))
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
