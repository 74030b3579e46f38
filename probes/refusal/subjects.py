"""Who is asked: a checkpoint in this process, or a model behind an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from interp.chat import ChatTemplate, encode, render
from interp.checkpoint import open_checkpoint
from interp.documents import parse_json
from interp.errors import InputError
from interp.system_prompts import NONE, OWN
from probes.harness.transport import Patience, ServerFailure, fetch, persist, read_models
from probes.refusal.engines import EngineSettings
from probes.refusal.parity import Reading, check_llama_cpp
from probes.refusal.settings import EngineName

if TYPE_CHECKING:
    from inspect_ai.model import Model

KEY_VARIABLE = "QUANTSCOPE_API_KEY"
"""The environment variable with the key of a server that wants one."""


DECLARED = ("root", "parent", "max_model_len", "meta")
"""What vLLM and llama.cpp say of a model beside its name, in their lists of models."""


@runtime_checkable
class Subject(Protocol):
    """One cell, ready to be asked."""

    def describe(self) -> dict[str, Any]:
        """What identifies it; equal for the same content."""

    def read(self, texts: Sequence[str]) -> Reading:
        """How it reads the requests."""

    def model(self, patience: Patience) -> Model:
        """Inspect's view of it; patience is with a server that fails."""


@dataclass(frozen=True)
class LocalSubject:
    """A checkpoint of any format, run in this process.

    Attributes:
        settings: the checkpoint and its engine.
        template: "auto", "none" or a Jinja file.
        system: the system prompt; see `interp.chat.ChatTemplate`.
        batch_size: prompts per forward pass.
    """

    settings: EngineSettings
    template: str = "auto"
    system: str = OWN
    batch_size: int = 32

    def describe(self) -> dict[str, Any]:
        """Path, engine and content hash."""
        checkpoint = open_checkpoint(self.settings.path)
        content = {"sha256": checkpoint.fingerprint(), "format": checkpoint.format}
        return _asked(self) | content

    def read(self, texts: Sequence[str]) -> Reading:
        """Render and encode the requests; reads no weights.

        Raises:
            InputError: no tokenizer or template, or llama.cpp's own tokenizer reads the rendered prompts differently.
        """
        around = self.settings.surroundings()
        rendered = render(around.tokenizer, texts, ChatTemplate(self.template, self.system))
        prompts = encode(around.tokenizer, rendered.texts)
        if self.settings.engine is EngineName.LLAMA_CPP:
            check_llama_cpp(open_checkpoint(self.settings.path).path, around.tokenizer, rendered.texts, prompts)
        context = getattr(around.config, "max_position_embeddings", None)
        return Reading(str(self.settings.engine), rendered.texts, prompts, context, rendered.warnings)

    def model(self, patience: Patience) -> Model:
        """The provider `quantscope/PATH`; weights are loaded by the first request, and nothing is asked again."""
        from inspect_ai.model import get_model

        settings = asdict(self.settings)
        return get_model(
            f"quantscope/{settings.pop('path')}",
            memoize=False,
            **settings | {"engine": str(self.settings.engine)},
            template=self.template,
            system=self.system,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True)
class ServerSubject:
    """A model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama …; the server renders and tokenizes.

    Attributes:
        url: of the API, e.g. http://localhost:8000/v1.
        name: the model's name there.
        software: who the server says owns the model, which tells servers apart.
        declared: what else it says of the model: its list of models, and llama.cpp's own server at /props.
        system: the system prompt that is sent with each request; "auto" sends none.
    """

    url: str
    name: str
    software: str
    declared: dict[str, Any] = field(default_factory=dict)
    system: str = OWN

    @classmethod
    def at(cls, address: str, system: str = OWN) -> ServerSubject:
        """The model at `URL#NAME`, or the first one that the server at `URL` lists.

        Raises:
            InputError: nothing answers there, it wants a key or the address holds one, or it has no such model; it is
                to be told nothing in the place of its template's own system prompt.
        """
        if system == NONE:
            raise InputError(
                f"The server at {address.partition('#')[0]} renders prompts itself, with its template's system prompt",
                "a system prompt that can be sent, or auto",
                f"Leave --system {NONE} out, or give the words of one",
            )
        url, _, name = address.partition("#")
        _check_address(url)
        models = _models(url)
        if not models or (name and name not in models):
            raise InputError(
                f"The server at {url} has {f'no model {name!r}' if name else 'no models'}",
                f"one of {', '.join(models)}" if models else "at least one model",
                "Give its name as URL#NAME",
            )
        name = name or next(iter(models))
        return cls(url, name, models[name].pop("owned_by"), models[name] | _props(url), system)

    def describe(self) -> dict[str, Any]:
        """Address, name, software and what it declares; no server says which weights it has."""
        return _asked(self)

    def read(self, texts: Sequence[str]) -> Reading:
        """The requests as they are sent; only the server knows their tokens."""
        declared = ", ".join(self.declared) or "nothing more"
        warnings = [
            f"{self.url} renders and tokenizes the prompts itself: only their numbers of tokens are compared",
            f"which weights {self.url} runs as {self.name} cannot be known (it declares {declared}): if they change, "
            "give another folder with --out",
        ]
        return Reading(f"server ({self.software})", list(texts), None, None, warnings)

    def model(self, patience: Patience) -> Model:
        """Inspect's own provider for such servers, asked by `probes.harness.transport`."""
        from inspect_ai.model import GenerateConfig, get_model

        name = f"openai-api/quantscope/{self.name}"
        config = GenerateConfig(system_message=None if self.system == OWN else self.system)
        return persist(get_model(name, config=config, base_url=self.url, api_key=_key(), memoize=False), patience)


def _asked(subject: LocalSubject | ServerSubject) -> dict[str, Any]:
    """Its fields; a system prompt only where there is one, so that a run from before there were any goes on."""
    fields = asdict(subject)
    return {name: value for name, value in fields.items() if (name, value) != ("system", OWN)}


def _key() -> str:
    return os.environ.get(KEY_VARIABLE) or "none"


def _check_address(url: str) -> None:
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


def _models(url: str) -> dict[str, dict[str, Any]]:
    """The server's models: who it says owns each, and what of the rest stays the same when it restarts."""
    try:
        models = read_models(fetch(f"{url.rstrip('/')}/models", _key()))
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


def _props(url: str) -> dict[str, Any]:
    """What llama.cpp's own server says of its model; other servers have no such page."""
    try:
        props = parse_json(fetch(f"{url.rstrip('/').removesuffix('/v1')}/props", _key()), "props")
    except (ServerFailure, InputError):
        return {}
    if not isinstance(props, dict):
        return {}
    identity = {name: props[name] for name in ("model_path", "build_info") if isinstance(props.get(name), str)}
    if isinstance(template := props.get("chat_template"), str):
        identity["chat_template_sha256"] = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return identity
