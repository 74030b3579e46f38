"""A chat server on loopback that misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def say(text: str) -> Behaviour:
    """Answer properly."""

    def respond(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        send(handler, 200, json.dumps(body))

    return respond


def status(code: int, body: str | bytes = "{}", **headers: str) -> Behaviour:
    """Answer with an HTTP error, or with a body of one's own."""
    return lambda handler, request: send(handler, code, body, headers)


def repeat_the_key(code: int) -> Behaviour:
    """Put the caller's key into the error."""
    return lambda handler, request: send(
        handler, code, json.dumps({"error": {"message": f"bad key {handler.headers['Authorization']}"}})
    )


def sleep(seconds: float) -> Behaviour:
    return lambda handler, request: time.sleep(seconds)


def drip(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    """Send a byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.1)


def send(handler: BaseHTTPRequestHandler, code: int, body: str | bytes, headers: dict[str, str] | None = None) -> None:
    content = body.encode() if isinstance(body, str) else body
    given = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    handler.send_response(code)
    for name, value in (given | {name.replace("_", "-"): value for name, value in (headers or {}).items()}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


class Server:
    """Behaves as told, request by request; the last behaviour goes on for ever. `requests` holds what was asked."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.requests: list[dict[str, Any]] = []
        self.url = ""

    def next(self) -> Behaviour:
        return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]


@contextmanager
def serving(*behaviours: Behaviour) -> Iterator[Server]:
    server = Server(*behaviours)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                behave = server.next()
            with suppress(OSError):  # the client gave up
                behave(self, request)

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
