"""A tokenizer as the files describe it: how many tokens, the chat template, and what a request looks like rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.chat import render
from interp.documents import read_json_object, read_text
from interp.formats.gguf_header import Header
from interp.tokenizer_files import read_vocabulary

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What templates call the special tokens."""
GGUF_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class StoredTokenizer:
    """What `interp.chat.render` asks of a tokenizer; the names are transformers'.

    Attributes:
        name_or_path: for messages.
        n_tokens: added ones included.
        chat_template: the Jinja source, or None.
        special_tokens_map: name of a special token → its text.
    """

    name_or_path: str
    n_tokens: int
    chat_template: str | None
    special_tokens_map: Mapping[str, str]

    @property
    def description(self) -> str:
        """For a summary."""
        return f"{self.n_tokens:,} tokens"

    @property
    def speaks_for_itself(self) -> bool:
        """Whether the template takes no special token that the files leave to transformers."""
        return not any(name in (self.chat_template or "") and name not in self.special_tokens_map for name in SPECIAL)

    def rendered(self, request: str) -> str:
        """The request as the model reads it.

        Raises:
            InputError: as `interp.chat.render`.
        """
        return render(self, request).texts[0]


def hugging_face_tokenizer(directory: Path) -> StoredTokenizer | None:
    """The tokenizer of tokenizer.json and its config; None where transformers has to make it.

    Raises:
        InputError: a damaged file.
    """
    file, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
    others = ("chat_template.json", "special_tokens_map.json", "added_tokens.json", "chat_templates")
    if not (file.exists() and config.exists()) or any((directory / name).exists() for name in others):
        return None
    settings, template = read_json_object(config), directory / "chat_template.jinja"
    source: Any = read_text(template) if template.exists() else settings.get("chat_template")
    if settings.get("auto_map") or not (source is None or isinstance(source, str)):
        return None
    special = {name: token for name in SPECIAL if (token := _text(settings.get(name))) is not None}
    return _usable(StoredTokenizer(str(directory), len(read_vocabulary(file)), source, special))


def gguf_tokenizer(path: Path, header: Header) -> StoredTokenizer | None:
    """The tokenizer in a GGUF's metadata; None where it has none.

    Raises:
        UnicodeDecodeError: a token that is no text.
    """
    if not {"tokenizer.ggml.model", "tokenizer.ggml.tokens"} <= set(header.fields):
        return None
    tokens = header.fields["tokenizer.ggml.tokens"].contents()
    ids = {called: header.fields.get(f"tokenizer.ggml.{name}_token_id") for name, called in GGUF_SPECIAL.items()}
    numbers = {called: int(field.contents()) for called, field in ids.items() if field is not None}
    special = {called: tokens[number] for called, number in numbers.items() if number < len(tokens)}
    template = header.fields.get(TEMPLATE)
    source = None if template is None else str(template.contents())
    return _usable(StoredTokenizer(str(path.parent), len(tokens), source, special))


def _usable(tokenizer: StoredTokenizer) -> StoredTokenizer | None:
    return tokenizer if tokenizer.speaks_for_itself else None


def _text(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a text, or an object with one."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
