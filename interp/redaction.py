"""Keys stay out of logs, tables and messages, also where a server repeats them in its errors or answers."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote, unquote_plus

_SECRET_NAME = re.compile(
    r"(^|[_-])(api_?)?(keys?|tokens?|secrets?|password|passwd|passphrase|credentials?|bearer|auth)([_-]|$)", re.I
)
"""Names of variables and of parameters of an address that hold keys."""
_URL = re.compile(r"[a-z][a-z0-9+.-]*://([^/\s@]*@)?[^\s?#]*(\?[^\s#]*)?", re.I)
_USER = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@\"'<>]+@", re.I)
_PARAMETER = re.compile(r"([?&]([\w.-]+)=)([^&\s#\"'<>]+)")
_BEARER = re.compile(r"\b(bearer\s+|basic\s+|authorization[\"']?\s*[:=]\s*[\"']?)(?!bearer|basic)[\w.~+/=-]{12,}", re.I)
_KNOWN_SHAPE = re.compile(r"\b(sk-|sk_|hf_|gsk_|xai-|ghp_|nvapi-|AIza)[\w-]{16,}")
_SHORTEST_SECRET = 6
_REDACTED = "[key]"


def redact(text: str) -> str:
    """A message of anybody without keys: those of `without_known_keys`, and what looks like one.

    What looks like one: user and password of an address, its parameters named as keys are, what follows "Bearer", and
    the usual shapes ("sk-…", "hf_…").
    """
    text = without_known_keys(text)
    text = _USER.sub(rf"\1{_REDACTED}@", text)
    text = _PARAMETER.sub(lambda match: match[1] + (_REDACTED if _SECRET_NAME.search(match[2]) else match[3]), text)
    text = _BEARER.sub(rf"\1{_REDACTED}", text)
    return _KNOWN_SHAPE.sub(_REDACTED, text)


def without_known_keys(text: str) -> str:
    """A model's answer, or any other text that should stay as it is, without the keys in environment variables."""
    forms = {form for secret in _secrets() for form in _forms(secret)}
    for form in sorted((form for form in forms if len(form) >= _SHORTEST_SECRET), key=len, reverse=True):
        text = text.replace(form, _REDACTED)
    return text


def _secrets() -> Iterator[str]:
    """Values of variables named as keys are, and passwords and keys inside addresses, whatever their variable."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not os.path.isabs(value):  # SSH_AUTH_SOCK, HF_TOKEN_PATH
            yield value
        if "://" in value:
            yield from _in_address(value)


def _in_address(value: str) -> Iterator[str]:
    for user, query in _URL.findall(value):
        if ":" in user:
            password = user[:-1].partition(":")[2]
            yield from {user[:-1], unquote(user[:-1]), password, unquote(password)}
        for _, name, parameter in _PARAMETER.findall(query):
            if _SECRET_NAME.search(name):
                yield from {parameter, unquote_plus(parameter)}


def _forms(secret: str) -> set[str]:
    """How a key may be written down: as it is, in JSON, in an address, in Python, in HTTP's basic authentication."""
    encoded = base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode()
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="", errors="replace"), encoded}
