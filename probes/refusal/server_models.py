"""What an OpenAI-compatible server says of itself and of its models: vLLM, llama.cpp, Ollama …"""

from __future__ import annotations

import hashlib
import os
from typing import Any
from urllib.parse import urlsplit

from interp.documents import parse_json
from interp.errors import InputError
from probes.harness.transport import ServerFailure, fetch, fetch_page, read_models
from probes.refusal.settings import served_as

KEY_VARIABLE = "QUANTSCOPE_API_KEY"
"""The environment variable with the key of a server that wants one."""
DECLARED = ("root", "parent", "max_model_len", "meta")
"""What vLLM and llama.cpp say of a model beside its name, in their lists of models."""


def key_from_environment() -> str:
    """The user's key, or what is sent where there is none."""
    return os.environ.get(KEY_VARIABLE) or "none"


def check_address(url: str) -> None:
    """An address is kept in logs and tables, which a key must never be.

    Raises:
        InputError: it holds a password or a query, or is no address.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"The address of a server cannot be read ({error})", "http://HOST:PORT/v1") from None
    if "@" in parts.netloc or parts.query:
        raise InputError(
            f"The address of the server {host} holds a password or a query",
            "an address like http://HOST:PORT/v1",
            f"Put the key into the environment variable {KEY_VARIABLE}",
        )
    if not host:
        raise InputError(f"The address {url} names no server", "an address like http://HOST:PORT/v1")


def list_models(url: str, key: str) -> dict[str, dict[str, Any]]:
    """The server's models: who it says owns each, and what of the rest stays the same when it restarts.

    Raises:
        InputError: nothing answers there, or it wants another key.
    """
    try:
        models = read_models(fetch(f"{url.rstrip('/')}/models", key))
    except ServerFailure as failure:
        if failure.status in (401, 403):
            raise InputError(
                f"The server at {url} does not accept the key ({failure})",
                do=f"Set the environment variable {KEY_VARIABLE}",
            ) from None
        raise InputError(
            f"No OpenAI-compatible server answers at {url} ({failure})",
            "a server that lists its models at URL/models",
            "Start it, or correct the address, and run the same command to go on",
        ) from None
    return {
        name: {"owned_by": str(description.get("owned_by") or "unknown")}
        | {field: description[field] for field in DECLARED if description.get(field) is not None}
        for name, description in models.items()
    }


def own_page(url: str, key: str) -> dict[str, Any]:
    """What llama.cpp's own server says of its model; other servers have no such page."""
    try:
        props = parse_json(fetch(f"{url.rstrip('/').removesuffix('/v1')}/props", key), "props")
    except (ServerFailure, InputError):
        return {}
    if not isinstance(props, dict):
        return {}
    identity = {name: props[name] for name in ("model_path", "build_info") if isinstance(props.get(name), str)}
    if isinstance(template := props.get("chat_template"), str):
        identity["chat_template_sha256"] = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return identity


def model_at(address: str) -> tuple[str, str, dict[str, Any]]:
    """Address of the server, name of the model and what is said of it, for `URL#NAME` or the first model at `URL`.

    Raises:
        InputError: nothing answers there, it wants a key or the address holds one, or it has no such model.
    """
    url, name = address.partition("#")[0], served_as(address)
    check_address(url)
    models = list_models(url, key_from_environment())
    if not models or (name and name not in models):
        raise InputError(
            f"The server at {url} has {f'no model {name!r}' if name else 'no models'}",
            f"one of {', '.join(models)}" if models else "at least one model",
            "Give its name as URL#NAME",
        )
    name = name or next(iter(models))
    return url, name, models[name]


def software(url: str, owner: str, key: str) -> str:
    """A server's program with its version: by vLLM's page /version, llama.cpp's /props, or the header `Server`.

    Args:
        url: of the API.
        owner: who the server says owns the model, by which servers are told apart.
        key: of the server.
    """
    base = url.rstrip("/").removesuffix("/v1")
    try:
        said = parse_json(fetch(f"{base}/version", key), "its version")
    except (ServerFailure, InputError):
        said = None
    version = said.get("version") if isinstance(said, dict) else said
    if isinstance(version, str) and version:
        return f"{owner} {version}"
    if build := own_page(url, key).get("build_info"):
        return f"{owner} {build}"
    try:
        header = fetch_page(f"{url.rstrip('/')}/models", key)[1]
    except ServerFailure:
        header = ""
    return f"{owner} ({header})" if header else owner
