"""A path, or a Hugging Face hub id that has to be downloaded first."""

from __future__ import annotations

import os
import re
from pathlib import Path

from interp.errors import InputError, what_lies_beside

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
SAFE_FILES = ("*.safetensors", "*.json", "*.jinja", "*.gguf", "tokenizer*", "*.model", "*.txt")
"""What is downloaded: no pickles and no code."""


def resolve(path: str | Path) -> Path:
    """The local path of a checkpoint, downloading it if `path` is a hub id and nothing on disk has that name.

    A `Path`, and a string that starts with `.`, `/` or `~` or ends in `.gguf`, is never taken for a hub id.

    Raises:
        InputError: the path does not exist, or the hub has no such model.
    """
    local = Path(os.path.expanduser(path))  # a user who is not there, a name too long: no path, and no exception
    if os.path.exists(local):
        return local
    if isinstance(path, Path) or not HUB_ID.match(path) or path.endswith((".gguf", ".safetensors")):
        raise InputError(
            f"{path} does not exist",
            "a directory, a .gguf file, or a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct'",
            what_lies_beside(local) or "Check the path",
        )
    if os.path.isdir(local.parent):
        raise InputError(
            f"{path} does not exist, although its parent directory does",
            "a directory or a .gguf file",
            f"{what_lies_beside(local) or 'Check the path'} To mean the hub id, run from a directory that has no "
            f"'{local.parent}' in it",
        )
    return _download(path)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(SAFE_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"No path is called {hub_id!r}, and as a hub id it could not be downloaded ({error})",
            "a directory, a .gguf file, or the id of a model on the hub",
            "Check the spelling, the network and, for a gated model, that you are logged in",
        ) from error
