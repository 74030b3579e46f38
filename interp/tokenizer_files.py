"""Tokenizers and what lies beside them in a checkpoint: opened without running its code, damage told in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from interp.documents import read_json_object, require_file
from interp.errors import InputError

JSON_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
"""Small files of a tokenizer."""
FILES = ("tokenizer.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json")
"""Its other files, which its own library reads."""
UPGRADE = "if newer libraries wrote it, upgrade tokenizers and transformers"
"""What helps where a file is not damaged but unknown."""


def open_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checkpoint, as transformers makes it, tried on a short text.

    Args:
        directory: with the tokenizer's files; they never run code, are never asked about, and nothing is downloaded.

    Raises:
        InputError: there is none, or it is damaged, newer than the installed libraries, or asks to run its own code.
    """
    from transformers import AutoTokenizer

    _check_files(directory)
    with _readable(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        _try(tokenizer)
    return tokenizer


def gguf_tokenizer(file: Path, config: Any) -> Any:
    """The tokenizer that transformers makes of a GGUF's metadata, tried on a short text.

    Args:
        file: the .gguf file.
        config: of its model; with it the class of the tokenizer is known, and the file is parsed once instead of twice.

    Raises:
        InputError: as `open_tokenizer`.
    """
    with _readable(file):
        tokenizer = _class_for(file, config).from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False, local_files_only=True
        )
        _try(tokenizer)
    return tokenizer


def _class_for(file: Path, config: Any) -> Any:
    """The class that transformers' AutoTokenizer takes, which is asked only where files beside may say another one."""
    from transformers import AutoTokenizer, TokenizersBackend
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    if any((file.parent / name).exists() for name in ("tokenizer_config.json", "tekken.json")):
        return AutoTokenizer
    known: Any = TOKENIZER_MAPPING.get(type(config), TokenizersBackend)
    return known if issubclass(known, TokenizersBackend) else TokenizersBackend


def _readable(source: Path) -> AbstractContextManager[None]:
    return refused(
        f"{source} holds no tokenizer that transformers can read",
        "tokenizer.json or another tokenizer beside the weights",
        f"Download the tokenizer files again, give the baseline (load(path, like=baseline)), or, {UPGRADE}",
    )


def read_vocabulary(file: Path) -> dict[str, int]:
    """Token to id of a tokenizer.json, added tokens included.

    Raises:
        InputError: it is damaged, or newer than the installed library.
    """
    from tokenizers import Tokenizer

    require_file(file, "a tokenizer.json")
    with refused(
        f"{file} is not a tokenizer that the installed library can read",
        "a whole tokenizer.json of a version that it knows",
        f"Download it again, or, {UPGRADE}",
    ):
        return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


@contextmanager
def refused(found: str, expected: str, do: str) -> Iterator[None]:
    """What the libraries of tokenizers raise inside ends as an InputError.

    Args:
        found: what cannot be read; the library's own words follow in parentheses.
        expected: see `InputError`.
        do: see `InputError`.

    Raises:
        InputError: anything was raised.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # The Rust library raises plain `Exception`, its panics derive from `BaseException`, and transformers lets
        # through whatever its own code meets in these files.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{found} ({first_line(error)})", expected, do) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].strip()[:300]


def _check_files(directory: Path) -> None:
    """Before anything reads them: pipes, and JSON that is none."""
    for name in FILES:
        if (directory / name).exists():
            require_file(directory / name)
    for name in JSON_OBJECTS:
        if (directory / name).exists():
            read_json_object(directory / name)


def _try(tokenizer: Any) -> None:
    """What every prompt goes through; a setting of the wrong type shows only here."""
    ids = tokenizer(["How are you?"], add_special_tokens=False).input_ids[0]
    tokenizer.decode(tokenizer("How are you?").input_ids + ids, skip_special_tokens=True)
    tokenizer.special_tokens_map, tokenizer.all_special_ids, tokenizer.bos_token_id, tokenizer.eos_token_id  # noqa: B018
