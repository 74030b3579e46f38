"""The child process that renders chat templates; see `interp.templates`.

A template is a program from somebody else. transformers' own sandbox keeps it from files and from Python's internals,
but not from running for ever or from taking all memory, so it runs here under limits that the system holds.

A job is one line of JSON on standard input, its answer one on standard output: `{"text": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any, NoReturn

import jinja2.utils
from transformers.utils.chat_template_utils import render_jinja_template

from interp.templates import MEMORY, READY, SECONDS, TOO_LARGE, size_limit

try:
    import resource
except ImportError:  # Windows, where only the parent's clock limits a template
    resource = None  # type: ignore[assignment]


def main() -> None:
    """Answer every job until the parent is gone."""
    for module in (random, jinja2.utils):  # jinja's filter `random` and its function `lipsum`
        module.choice = module.randrange = _refuse_chance  # type: ignore[attr-defined]
    _limit_memory()
    print(READY, flush=True)
    for line in sys.stdin:
        _limit_time()
        print(json.dumps(_answer(json.loads(line), len(line))), flush=True)


def _answer(job: dict[str, Any], size: int) -> dict[str, str]:
    try:
        rendered: Any = render_jinja_template([job.pop("messages")], chat_template=job.pop("source"), **job)
        ((text,), _) = rendered
    except MemoryError:
        return {"error": TOO_LARGE}
    except Exception as error:  # the expressions of a template raise whatever Python operations raise
        return {"error": _one_line(error)}
    return {"text": text} if len(text) <= size_limit(size) else {"error": TOO_LARGE}


def _one_line(error: Exception) -> str:
    return (" ".join(str(error)[:1000].split()) or type(error).__name__)[:300]


def _refuse_chance(*_: object) -> NoReturn:
    raise ValueError("it draws at random, so that no two renderings are the same")


def _limit_memory() -> None:
    """What is in use now, and `MEMORY` more."""
    if resource is None or not sys.platform.startswith("linux"):
        return
    with open("/proc/self/statm") as sizes:
        in_use = int(sizes.read().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, in_use + MEMORY)
    _lower(resource.RLIMIT_CORE, 0)


def _limit_time() -> None:
    """`SECONDS` of computation more than have been used; the system then ends this process."""
    if resource is not None:
        _lower(resource.RLIMIT_CPU, int(time.process_time()) + 1 + SECONDS)


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
