"""Chat templates, run within bounds: a few seconds, some memory, a text of sensible length.

One child process renders all of them (`interp.template_worker`), with transformers' own function, so that what comes
back is what `tokenizer.apply_chat_template` returns. It costs a second to start and a fraction of a millisecond a text.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from threading import Lock, Timer
from typing import Any

from interp.files import child_search_path

SECONDS = 2
"""Seconds of computation for one text."""
PATIENCE = 60
"""Seconds by the clock for one text, on a machine where others compute too."""
MEMORY = 512 * 2**20
"""Bytes that rendering may take beside the program itself."""
READY = "ready"
"""The child's first line."""
TOO_LARGE = f"it makes a text that is too large, or needs more than {MEMORY >> 20} MiB"


class TemplateFailed(Exception):
    """A template cannot be rendered; the message says why, in the middle of a sentence."""


class TemplateUnbounded(TemplateFailed):
    """It runs too long, takes too much memory or makes too long a text."""


def size_limit(job: int) -> int:
    """Characters that a rendered text may have.

    Args:
        job: characters of messages, template and variables together.
    """
    return 2**20 + 4 * job


def render_template(source: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """One conversation as text.

    Args:
        source: the Jinja template.
        messages: the conversation.
        variables: what else the template can use; `tools`, `add_generation_prompt`, `bos_token` …

    Raises:
        TemplateFailed: it raises an error or draws at random.
        TemplateUnbounded: it exceeds its bounds.

    Example:
        >>> render_template("{{ messages[0].content }}!", [{"role": "user", "content": "Hello"}])
        'Hello!'
    """
    return _WORKER.render({"source": source, "messages": [dict(message) for message in messages], **variables})


def warm() -> None:
    """Start the child process ahead of the first template, beside other work: it takes a second or two."""
    _WORKER.start()


class _Worker:
    """The child process, started when it is needed, and again after a template has ended it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, job: Mapping[str, Any]) -> str:
        line = json.dumps(job, default=str) + "\n"
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            watch = Timer(PATIENCE, process.kill)
            watch.daemon = True
            watch.start()
            try:
                process.stdin.write(line)
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            except BaseException:  # interrupted: its answer would be taken for the next job's
                process.kill()
                raise
            finally:
                watch.cancel()
            if not answer:
                raise TemplateUnbounded(_death(process.wait()))
        reply = json.loads(answer)
        if "error" in reply:
            raise (TemplateUnbounded if reply["error"] == TOO_LARGE else TemplateFailed)(reply["error"])
        return str(reply["text"])

    def start(self) -> None:
        """Have the child ready."""
        with self._lock:
            self._running()

    def _running(self) -> subprocess.Popen[str]:
        """The living child of this process: a fork must not share its parent's."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process, self._owner = _start(), os.getpid()
        return self._process

    def close(self) -> None:
        """End the child."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()


def _start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "interp.template_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": child_search_path()},
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for the parent
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != READY:
        raise RuntimeError(f"The process that renders chat templates did not start (exit status {process.wait()})")
    return process


def _death(status: int) -> str:
    too_long = {-getattr(signal, name, 0) for name in ("SIGXCPU", "SIGKILL")}
    return f"it runs longer than {SECONDS} s" if status in too_long else f"it ends the program ({status})"


_WORKER = _Worker()
atexit.register(_WORKER.close)
