"""Ask a model that may fail: a limit of time for each answer, a bounded number of attempts, messages without keys.

Inspect's own retries end in an error that hides the last one, have no limit of time, and what a server says instead of
the model is taken for the model's answer. Its providers for OpenAI-compatible servers are asked through `guard`.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import anyio

from interp.documents import parse_json
from interp.errors import InputError
from interp.redaction import redact, without_known_keys
from probes.harness.server_replies import (
    NotTheModelsWord,
    TextCompletion,
    UnreadableReply,
    error_body,
    error_message,
    one_line,
    read_completion,
    read_text_completion,
    refused_because,
)

if TYPE_CHECKING:
    from inspect_ai.model import Model, ModelOutput
    from openai.types.chat import ChatCompletion

UNSCORED = "unscored"
"""Key of an output's metadata: why it is not the model's answer."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts at most, also where the server asks for more."""
MOST_BYTES = 2**26
"""A longer reply is no answer."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Patience:
    """How a model that fails is asked again.

    Attributes:
        retries: after a failure, before giving up.
        backoff: seconds before the first retry, doubled for each further one.
        timeout: seconds for one answer, its time in a server's queue included.
    """

    retries: int = 5
    backoff: float = 1.0
    timeout: int | float = 600


class ServerFailure(Exception):
    """A server did not answer; the message says how, without keys.

    Args:
        message: in words.
        status: of HTTP; None where nothing came, or something that cannot be read.
        pause: seconds that the server asks to wait.
    """

    def __init__(self, message: str, status: int | None = None, pause: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.pause = status, pause


class GaveUp(Exception):
    """It kept failing; the message says how the last attempt did."""


async def patiently(
    ask: Callable[[], Awaitable[Found]],
    patience: Patience,
    failures: tuple[type[Exception], ...] = (ServerFailure, TimeoutError),
) -> Found:
    """What `ask` gives, asked again after failures.

    Args:
        ask: one attempt.
        patience: how many, and how long each may take.
        failures: what counts as one.

    Raises:
        GaveUp: the last attempt failed, too, or another one is useless.
    """
    for attempt in range(patience.retries + 1):
        try:
            with anyio.fail_after(patience.timeout):
                return await ask()
        except failures as error:
            cause = _cause(error)
            if attempt == patience.retries or _is_final(cause):
                times = "once" if attempt == 0 else f"{attempt + 1} times"
                raise GaveUp(f"{_in_words(cause, patience)} (asked {times})") from None
            await anyio.sleep(min(LONGEST_PAUSE, max(patience.backoff * 2**attempt, getattr(cause, "pause", 0.0))))
    raise AssertionError("unreachable")


def guard(model: Model, timeout: int | float) -> Model:
    """Have an Inspect model behind an OpenAI-compatible server asked by us; any other model is left as it is.

    Its failures are `ServerFailure`. What is not the model's answer comes as an output without text and with the reason
    in its metadata, under `UNSCORED`.

    Args:
        model: changed in place.
        timeout: seconds for one answer.
    """
    from inspect_ai.model._providers.openai_compatible import OpenAICompatibleAPI

    if not isinstance(model.api, OpenAICompatibleAPI):
        return model
    api: Any = model.api
    generate = api.generate

    async def complete(request: dict[str, Any], _: Any) -> ChatCompletion:
        return await _complete(api, request, timeout)

    async def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return await generate(*arguments, **options)
        except NotTheModelsWord as word:
            return unscored(api.model_name, str(word))

    api._generate_completion, api.generate = complete, guarded
    return model


def persist(model: Model, patience: Patience) -> Model:
    """A guarded model that asks again by itself.

    Args:
        model: changed in place.
        patience: with its server.

    Raises:
        InputError: by the model, where the server keeps failing.
    """
    api: Any = guard(model, patience.timeout).api
    generate = api.generate

    async def persistent(*arguments: Any, **options: Any) -> Any:
        try:
            return await patiently(lambda: generate(*arguments, **options), patience)
        except GaveUp as gave_up:
            raise InputError(f"The server at {redact(str(api.base_url))} failed: {gave_up}") from None

    api.generate = persistent
    return model


def fetch(address: str, key: str, timeout: int | float = 10) -> str:
    """The text at an address of a server.

    Args:
        address: of http or https; nobody is followed to another one.
        key: of the server.
        timeout: seconds for it all.

    Raises:
        ServerFailure: there is none.
    """
    return fetch_page(address, key, timeout)[0]


def fetch_page(address: str, key: str, timeout: int | float = 10) -> tuple[str, str]:
    """As `fetch`, and what the header `Server` of the reply says, "" where there is none."""
    import httpx2

    past_proxies(address)
    deadline, content = time.monotonic() + timeout, bytearray()
    try:
        client = httpx2.Client(timeout=timeout, follow_redirects=False, headers={"Authorization": f"Bearer {key}"})
        with client, client.stream("GET", address) as reply:
            for part in reply.iter_bytes():
                content += part
                if len(content) > MOST_BYTES or time.monotonic() > deadline:
                    raise ServerFailure("its reply does not end")
    except httpx2.TimeoutException:
        raise ServerFailure(f"no answer within {timeout:g} s") from None
    # An address or a key that cannot be sent raises ValueError (InvalidURL and UnicodeError are its kinds).
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise _no_connection(error) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ServerFailure("its reply is not UTF-8 text") from None
    if not reply.is_success:
        raise _refusal(reply, error_body(text))
    return without_known_keys(text), one_line(without_known_keys(reply.headers.get("server", "")))


def read_models(text: str) -> dict[str, dict[str, Any]]:
    """What a server says of each of its models, by name, in their order.

    Args:
        text: the body of its list of models.

    Raises:
        ServerFailure: it is no such list.
    """
    try:
        content = parse_json(text, "its list of models")
    except InputError as error:
        page = one_line(text)
        raise ServerFailure(page if page.startswith("a page") else str(error)) from None
    listed = content.get("data") if isinstance(content, dict) else content
    if not isinstance(listed, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in listed):
        raise ServerFailure("what it says is no list of models")
    return {model["id"]: model for model in listed}


def _refusal(reply: Any, body: object) -> ServerFailure:
    """Of an HTTP error or a redirection."""
    location = reply.headers.get("location", "") if 300 <= reply.status_code < 400 else ""
    text = f"it redirects to {location}: give that address" if location else error_message(body)
    asked = reply.headers.get("retry-after", "")
    pause = float(asked) if asked.isascii() and asked.isdecimal() else 0.0
    return ServerFailure(redact(f"HTTP {reply.status_code}" + (f": {text}" if text else "")), reply.status_code, pause)


def _no_connection(error: BaseException) -> ServerFailure:
    return ServerFailure(redact(f"the connection failed: {one_line(str(error)) or type(error).__name__}"))


async def _complete(api: Any, request: dict[str, Any], timeout: int | float) -> ChatCompletion:
    """One request to the server. The openai package retries nothing and follows nobody to another address."""
    api.http_client.follow_redirects = False
    client = api.client.with_options(max_retries=0, timeout=timeout)
    return await _reply(client.chat.completions.with_streaming_response.create(**request), read_completion, timeout)


async def complete_tokens(url: str, key: str, request: dict[str, Any], timeout: int | float) -> TextCompletion:
    """One request to a server's `/v1/completions`, whose prompt may be token ids.

    Args:
        url: of the API.
        key: of the server.
        request: the body.
        timeout: seconds for the answer.

    Raises:
        ServerFailure: it did not answer.
        NotTheModelsWord: the answer is not the model's.
    """
    import httpx2
    import openai

    past_proxies(url)
    limits = httpx2.Limits(max_keepalive_connections=0)  # connections live no longer than the event loop they are of
    async with (
        httpx2.AsyncClient(follow_redirects=False, limits=limits, verify=_trusted()) as http,
        openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout, http_client=http) as client,
    ):
        asked = client.completions.with_streaming_response.create(**request)
        return await _reply(asked, read_text_completion, timeout)


@cache
def _trusted() -> ssl.SSLContext:
    """Whom to believe; reading the certificates takes longer than most requests."""
    import httpx2

    return httpx2.create_ssl_context()


def past_proxies(address: str) -> None:
    """See that what is sent to this machine itself, keys included, goes through no proxy of the environment.

    Args:
        address: of a server; nothing is done for one of another machine.
    """
    try:
        host = urlsplit(address).hostname or ""
        local = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if local and host not in known.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [known, host]))


async def _reply(asked: AbstractAsyncContextManager[Any], read: Callable[[str], Found], timeout: int | float) -> Found:
    """What the body of a server's reply says."""
    import httpx2
    import openai

    try:
        async with asked as reply:
            return read(without_known_keys(await _body(reply)))
    except openai.APIStatusError as error:
        if reason := refused_because(error.status_code, error.body):
            raise NotTheModelsWord(redact(reason)) from None
        raise _refusal(error.response, error.body) from None
    except openai.APITimeoutError:
        raise ServerFailure(f"no answer within {timeout:g} s") from None
    except UnreadableReply as unreadable:
        raise ServerFailure(redact(f"its reply cannot be read: {unreadable}")) from None
    except (openai.OpenAIError, httpx2.HTTPError) as error:
        raise _no_connection(error.__cause__ or error) from None  # openai says "Connection error." and nothing else


async def _body(reply: Any) -> str:
    content = bytearray()
    async for part in reply.iter_bytes():
        content += part
        if len(content) > MOST_BYTES:
            raise UnreadableReply(f"it is longer than {MOST_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableReply("it is not UTF-8 text") from None


def unscored(name: str, reason: str) -> ModelOutput:
    """An output of a model without text, because what came is not its answer."""
    from inspect_ai.model import ModelOutput

    output = ModelOutput.from_content(name, "", stop_reason="content_filter")
    output.metadata = {UNSCORED: reason}
    return output


def _cause(error: BaseException) -> BaseException:
    """What Inspect's own retrying hides."""
    from tenacity import RetryError

    hidden = error.last_attempt.exception() if isinstance(error, RetryError) else None
    return hidden or error


def _is_final(error: BaseException) -> bool:
    """Whether trying again is useless: the request or the key is refused, it lies elsewhere, our own input is bad."""
    status = error.status if isinstance(error, ServerFailure) else getattr(error, "status_code", None)
    return isinstance(error, InputError) or (
        isinstance(status, int) and 300 <= status < 500 and status not in (408, 409, 425, 429)
    )


def _in_words(error: BaseException, patience: Patience) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {patience.timeout:g} s"
    if isinstance(error, (InputError, ServerFailure)):
        return redact(str(error).rstrip("."))
    message = one_line(str(error))
    return redact(f"{type(error).__name__}: {message}" if message else type(error).__name__)
