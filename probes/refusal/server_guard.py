"""The process between this one and a server that it started: the server ends when this one does, however that ends.

`python server_guard.py COMMAND …` runs the command and watches its own standard input, which whoever
started it holds open. At its end (also after `kill -9`, which lets nobody clean up) the command's processes are told
to stop, and are killed if they do not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread

PATIENCE = 15.0
"""Seconds between the wish to stop and the end."""


def main() -> None:
    """Run the command line's command until it ends or standard input does; exit with its status."""
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    # A thread: the handler runs inside `wait`, and nobody else would learn that the server has ended.
    signal.signal(signal.SIGTERM, lambda *_: Thread(target=_end, args=[server], daemon=True).start())
    Thread(target=_watch, args=[server], daemon=True).start()
    status = server.wait()
    _kill(server)  # workers that it left behind
    sys.exit(status if status >= 0 else 128 - status)


def _watch(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill(server)


def _kill(server: subprocess.Popen[bytes]) -> None:
    """All processes of the server's group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
