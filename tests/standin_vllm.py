"""A stand-in for the program `vllm`, as far as it is called: `--version`, and `serve PATH` with its completions API.

It needs no more than Python, and answers from a file that the test has written (STANDIN_ANSWERS: token ids of a prompt
→ those of the answer, and its text). What the environment variable STANDIN says goes wrong: "dies" at the start, "never
answers", gives "text only" (no token ids, as other servers do), "misreads" prompts, lets a "filter" answer, or fails
the "first" request.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "9.8.7"


def put_on_path(folder: Any, monkeypatch: Any) -> None:
    """Have `vllm` be this file, in a test."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{os.path.abspath(__file__)}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def answer_of(request: dict[str, Any]) -> dict[str, Any]:
    """The completion that the test has worked out for these token ids."""
    prompt, ends = request["prompt"], request["stop_token_ids"]
    assert request["temperature"] == 0
    known = json.loads(Path(os.environ["STANDIN_ANSWERS"]).read_text())
    answer = known[" ".join(map(str, prompt))]
    tokens = answer["tokens"][: request["max_tokens"]]
    text_only = os.environ.get("STANDIN") == "text only"
    choice = {"index": 0, "text": answer["text"], "finish_reason": "stop" if tokens[-1] in ends else "length"}
    choice |= {} if text_only else {"token_ids": tokens, "prompt_token_ids": prompt}
    read = len(prompt) + (os.environ.get("STANDIN") == "misreads")
    usage = {"prompt_tokens": read, "completion_tokens": len(tokens), "total_tokens": read + len(tokens)}
    return {"id": "1", "object": "text_completion", "model": request["model"], "choices": [choice], "usage": usage}


def serve(options: argparse.Namespace) -> None:
    trouble, asked = os.environ.get("STANDIN", ""), list[int]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = [{"id": options.served_model_name, "owned_by": "vllm", "root": options.path}]
            pages = {"/version": {"version": VERSION}, "/v1/models": {"data": models}}
            self.send(200 if self.path in pages else 404, pages.get(self.path, {}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers.get("Authorization") != f"Bearer {os.environ.get('VLLM_API_KEY')}":
                return self.send(401, {"error": {"message": "wrong key"}})
            asked.append(1)
            if trouble == "first" and len(asked) == 1:
                return self.send(503, {"error": {"message": "busy"}})
            if trouble == "filter" and len(asked) == 1:
                return self.send(400, {"error": {"code": "content_filter", "message": "no"}})
            self.send(200, answer_of(request))

        def send(self, status: int, body: object) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print(VERSION)
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("path")
    for option in ("--host", "--served-model-name", "--generation-config", "--dtype", "--data-parallel-size"):
        parser.add_argument(option)
    parser.add_argument("--port", type=int)
    parser.add_argument("--no-enable-prefix-caching", action="store_true")
    options = parser.parse_args()
    if notes := os.environ.get("STANDIN_NOTES"):
        with open(notes, "a") as file:
            print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:]}), file=file)
    if os.environ.get("STANDIN") == "dies":
        print(f"the key is {os.environ['VLLM_API_KEY']}; CUDA is nowhere", file=sys.stderr)
        sys.exit(7)
    if os.environ.get("STANDIN") == "never answers":
        time.sleep(600)
    serve(options)


if __name__ == "__main__":
    main()
