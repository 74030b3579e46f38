"""Keys stay out of logs, tables and messages, also where a server repeats them in its errors."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

_SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST_SECRET = 6
_REDACTED = "[key]"


def redact(text: str) -> str:
    """Replace the values of environment variables that hold keys, which servers like to repeat in their errors."""
    secrets = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name)}
    for secret in sorted((value for value in secrets if len(value) >= _SHORTEST_SECRET), key=len, reverse=True):
        text = text.replace(secret, _REDACTED)
    return text


def redacting(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A call of the openai client whose errors, of the same kind as before, hold no keys."""
    from openai import APIError

    @functools.wraps(call)
    async def redacted(*arguments: Any, **options: Any) -> Any:
        try:
            return await call(*arguments, **options)
        except APIError as error:
            error.args = tuple(redact(str(argument)) for argument in error.args)
            error.message = redact(error.message)
            error.body = json.loads(redact(json.dumps(error.body, default=str)))
            raise

    return redacted
