"""A vLLM server of our own, for one checkpoint: started on a free port of this machine, waited for, and stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event
from typing import IO

from interp.errors import InputError
from interp.redaction import redact
from probes.harness.transport import ServerFailure, fetch, read_models
from probes.refusal.stopped import Stopped

PROGRAM = "vllm"
"""Looked for on the PATH: vLLM has packages of its own, and is best installed into an environment of its own."""
GUARD = Path(__file__).with_name("server_guard.py")
SERVED_AS = "quantscope"
START = 1800.0
"""Seconds in which a server has to answer; vLLM reads the weights and compiles first."""
LOOK = 0.2
"""Seconds between two looks at a server that starts."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""The checkpoint is a path: nothing is downloaded, and nobody is told of it."""
VERSION_PATIENCE = 180.0
"""Seconds for `vllm --version`, which imports torch."""
LAST_LINES = 12
"""Of what a server printed that are repeated when it does not start."""


def program() -> str:
    """Where vLLM is.

    Raises:
        InputError: nowhere on the PATH.
    """
    place = shutil.which(PROGRAM)
    if place is None:
        raise InputError(
            f"The engine vllm needs the program {PROGRAM}, which is not on the PATH",
            do="Install vLLM, which needs a GPU, in an environment of its own and put its bin folder on the PATH, or "
            "give the address of a server that runs already",
        )
    return place


@cache
def version(place: str) -> str:
    """What a vLLM says its version is.

    Args:
        place: of the program.

    Raises:
        InputError: it says none, or not in time.
    """
    try:
        said = subprocess.run(
            [place, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{place} --version gives no version ({error})", "an installed vLLM") from None
    words = said.stdout.split()
    if said.returncode != 0 or not words:
        raise InputError(f"{place} --version gives no version ({_tail(said.stderr)})", "an installed vLLM")
    return words[-1]


class ServerProcess:
    """A server of one checkpoint on this machine, until `stop`, or until this process ends in whatever way.

    Args:
        path: the checkpoint.
        options: of `vllm serve`, beside address and name.

    Attributes:
        url: of its API.
        key: that it wants, made for this server.

    Raises:
        InputError: there is no vLLM.
    """

    def __init__(self, path: str, options: Sequence[str]) -> None:
        port = _free_port()
        self.path, self.url, self.key = path, f"http://127.0.0.1:{port}/v1", secrets.token_hex(16)
        address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_AS]
        command = [program(), "serve", path, *address, *options]
        self._printed: IO[bytes] = tempfile.TemporaryFile(prefix="quantscope-server-")  # noqa: SIM115 (until `stop`)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(GUARD), *command],
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            env=os.environ | OFFLINE | {"VLLM_API_KEY": self.key},
            start_new_session=True,  # Ctrl-C reaches this process, which then stops the server: one place decides
        )

    def wait(self, stopped: Event, patience: float | None = None) -> None:
        """Until it answers.

        Args:
            stopped: ends the waiting.
            patience: seconds; None for `START`.

        Raises:
            InputError: it ended, or does not answer in time; the message has the end of what it printed.
            Stopped: nobody waits for it any more.
        """
        patience = START if patience is None else patience
        deadline = time.monotonic() + patience
        while not self._answers():
            if stopped.wait(LOOK):
                raise Stopped
            if (status := self._guard.poll()) is not None:
                raise self._failure(f"ended with exit status {status} before it answered")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer within {patience:g} s")

    def stop(self) -> None:
        """Tell it to stop, and wait until it has."""
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.close()
        self._guard.wait()
        self._printed.close()

    def _answers(self) -> bool:
        with suppress(ServerFailure):
            return SERVED_AS in read_models(fetch(f"{self.url}/models", self.key, timeout=5))
        return False

    def ended(self) -> InputError | None:
        """What to say of a server that ended by itself; None where it runs."""
        status = self._guard.poll()
        return None if status is None else self._failure(f"ended with exit status {status}")

    def _failure(self, what: str) -> InputError:
        self._printed.seek(0)
        said = redact(_tail(self._printed.read().decode("utf-8", "replace").replace(self.key, "[key]")))
        return InputError(
            f"vLLM's server of {Path(self.path).name} {what}" + (f"; its last lines: {said}" if said else ""),
            "a checkpoint that this vLLM can run on this machine",
            "See what it says, or run the cell in another engine",
        )


def _tail(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines()[-LAST_LINES:] if line.strip())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
