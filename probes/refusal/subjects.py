"""Who is asked: a checkpoint in this process, or a model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from interp.chat import ChatTemplate, encode, render
from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.system_prompts import NONE, OWN
from probes.harness.transport import Patience, past_proxies, persist
from probes.refusal.engines import EngineSettings
from probes.refusal.parity import Reading, check_llama_cpp
from probes.refusal.server_models import key_from_environment, model_at, own_page
from probes.refusal.settings import EngineName, served_as

if TYPE_CHECKING:
    from inspect_ai.model import Model

MANY = 1000
"""Requests for which a model's own process is worth the seconds in which it starts."""


@runtime_checkable
class Subject(Protocol):
    """One cell, ready to be asked."""

    def describe(self) -> dict[str, Any]:
        """What identifies it; equal for the same content."""

    def read(self, texts: Sequence[str]) -> Reading:
        """How it reads the requests."""

    def model(self, patience: Patience, n_requests: int) -> Model:
        """Inspect's view of it; patience is with a server that fails, `n_requests` are how many it will be asked."""


@dataclass(frozen=True)
class LocalSubject:
    """A checkpoint of any format, run in this process, or by a server to which its prompts go as token ids.

    Attributes:
        settings: the checkpoint and its engine.
        template: "auto", "none" or a Jinja file.
        system: the system prompt; see `interp.chat.ChatTemplate`.
        batch_size: prompts per forward pass.
        server: of the engine vllm, the address of a server that runs the checkpoint already; None to start one.
    """

    settings: EngineSettings
    template: str = "auto"
    system: str = OWN
    batch_size: int = 32
    server: str | None = None

    @property
    def software(self) -> str:
        """What runs it: the engine's name, of a server with the version."""
        if self.settings.engine is not EngineName.VLLM:
            return str(self.settings.engine)
        from probes.refusal.server_engine import served_by

        return served_by(self.server)

    def describe(self) -> dict[str, Any]:
        """Path, engine and content hash, and of a server its program and version and which of its models; not where it
        listens."""
        checkpoint = open_checkpoint(self.settings.path)
        content = {"sha256": checkpoint.fingerprint(), "format": checkpoint.format}
        served = {"software": self.software} if self.settings.engine is EngineName.VLLM else {}
        if self.server is not None and (name := served_as(self.server)):
            served["served_as"] = name
        fields = _asked(self)
        del fields["server"]
        fields["settings"] = self.settings.chosen()
        fields["settings"].pop("gpu_memory", None)
        return fields | content | served

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
        warnings = [*rendered.warnings, *([] if self.server is None else [_not_known(self.server, self.settings.path)])]
        return Reading(self.software, rendered.texts, prompts, context, warnings)

    def model(self, patience: Patience, n_requests: int) -> Model:
        """The provider `quantscope/PATH`; weights are loaded by the first request; only a server is asked again."""
        from inspect_ai.model import get_model

        from probes.refusal.inspect_provider import CheckpointAPI

        settings = self.settings.chosen()
        model = get_model(
            f"quantscope/{settings.pop('path')}",
            memoize=False,
            **settings | {"engine": str(self.settings.engine)},
            template=self.template,
            system=self.system,
            batch_size=self.batch_size,
        )
        assert isinstance(model.api, CheckpointAPI)
        model.api.reached_at(self.server, patience)
        if n_requests >= MANY:
            model.api.compute_apart()
        return model


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
        url, name, said = model_at(address)
        return cls(url, name, said.pop("owned_by"), said | own_page(url, key_from_environment()), system)

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

    def model(self, patience: Patience, n_requests: int) -> Model:
        """Inspect's own provider for such servers, asked by `probes.harness.transport`."""
        from inspect_ai.model import GenerateConfig, get_model

        past_proxies(self.url)
        name = f"openai-api/quantscope/{self.name}"
        config = GenerateConfig(system_message=None if self.system == OWN else self.system)
        return persist(
            get_model(name, config=config, base_url=self.url, api_key=key_from_environment(), memoize=False), patience
        )


def _asked(subject: LocalSubject | ServerSubject) -> dict[str, Any]:
    """Its fields; a system prompt only where there is one, so that a run from before there were any goes on."""
    fields = asdict(subject)
    return {name: value for name, value in fields.items() if (name, value) != ("system", OWN)}


def _not_known(address: str, path: str) -> str:
    """What is said of a server that somebody else has started."""
    url, name, said = model_at(address)
    declared = ", ".join(f"{key} {value}" for key, value in said.items() if key != "owned_by") or "nothing"
    known = f"which weights {url} runs as {name} cannot be known (it declares {declared})"
    return f"{known}: its answers count as those of {path}"
