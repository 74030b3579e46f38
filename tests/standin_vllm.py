"""A stand-in for the program `vllm`, as far as it is called: `--version`, and `serve PATH` with its completions API.

transformers' own `generate` answers, one prompt at a time. What the environment variable STANDIN says goes wrong:
"dies" at the start, "never answers", gives "text only" (no token ids, as other servers do), "misreads" prompts, lets a
"filter" answer, or fails the "first" request.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

VERSION = "9.8.7"


def put_on_path(folder: Any, monkeypatch: Any) -> None:
    """Have `vllm` be this file, in a test."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{os.path.abspath(__file__)}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


class Model:
    """The checkpoint, in float32."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch, self.lock, self.asked = torch, Lock(), 0
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt, ends = request["prompt"], request["stop_token_ids"]
        assert request["temperature"] == 0
        assert isinstance(prompt, list)
        with self.lock, self.torch.no_grad():
            ids = self.torch.tensor([prompt])
            output = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), do_sample=False, repetition_penalty=1.0,
                max_new_tokens=request["max_tokens"], eos_token_id=ends, pad_token_id=0,
            )  # fmt: skip
        tokens = output[0, len(prompt) :].tolist()
        finished = tokens[-1] in ends
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "finish_reason": "stop" if finished else "length",
        }
        if os.environ.get("STANDIN") != "text only":
            choice |= {"token_ids": tokens, "prompt_token_ids": prompt}
        read = len(prompt) + (os.environ.get("STANDIN") == "misreads")
        usage = {"prompt_tokens": read, "completion_tokens": len(tokens), "total_tokens": read + len(tokens)}
        return {"id": "1", "object": "text_completion", "model": request["model"], "choices": [choice], "usage": usage}


def serve(options: argparse.Namespace) -> None:
    model, trouble = Model(options.path), os.environ.get("STANDIN", "")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = [{"id": options.served_model_name, "owned_by": "vllm", "root": options.path}]
            pages = {"/version": {"version": VERSION}, "/v1/models": {"data": models}}
            self.send(200 if self.path in pages else 404, pages.get(self.path, {}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers.get("Authorization") != f"Bearer {os.environ.get('VLLM_API_KEY')}":
                return self.send(401, {"error": {"message": "wrong key"}})
            model.asked += 1
            if trouble == "first" and model.asked == 1:
                return self.send(503, {"error": {"message": "busy"}})
            if trouble == "filter" and model.asked == 1:
                return self.send(400, {"error": {"code": "content_filter", "message": "no"}})
            self.send(200, model.complete(request))

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
