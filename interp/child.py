"""A child process that does one job after another: foreign writers, and models that answer beside Inspect's logs.

GPTQModel patches other libraries when it is imported, keeps thread pools and prints to the terminal; llama.cpp aborts
the process on a failed assertion and cannot be interrupted. In a child none of that reaches the process that measures:
its output goes to a log file, it is killed on Ctrl-C, and it pays for its imports once for all jobs.

A job is one line of JSON on the child's standard input; the answers are lines of JSON: `{"progress": [done, total]}`
any number of times, then `{"done": {...}}`, `{"refused": "..."}` (an `InputError`'s words) or `{"error": "..."}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from interp.errors import InputError
from interp.files import child_search_path

JobReport = Callable[[int, int], None]
"""Called with the units done and the units in all (layers, tensors)."""


class Child:
    """A child running `python -m module`, started by the first job and gone when the `with` block ends.

    Args:
        module: a module whose `__main__` calls `serve`.
        environment: variables set for the child only.
        command: what starts the child instead, where it has an interpreter of its own; `module` is then only its name.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, command: Sequence[str] | None = None
    ) -> None:
        self.module = module
        self.environment = dict(environment or {})
        self.command = list(command or [sys.executable, "-m", module])

    def __enter__(self) -> Child:
        self._resources = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the child and remove its working directory."""
        self._resources.close()

    def kill(self) -> None:
        """End the child at once, from any thread: the job that it is at fails."""
        if self._process is not None:
            self._process.kill()

    def _start(self, heard: bool) -> subprocess.Popen[str]:
        # GPTQModel writes `logs/` into its working directory.
        directory = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="quantscope-child-"))
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if heard else subprocess.DEVNULL,
            cwd=directory,
            env=os.environ | self.environment | {"PYTHONPATH": child_search_path(), "TMPDIR": directory},
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent, which then kills the child: one place decides
        )
        self._resources.enter_context(process)  # closes its pipes and waits for it
        self._resources.callback(process.kill)
        return process

    def run(self, job: Mapping[str, Any], log: Path | None = None, report: JobReport | None = None) -> dict[str, Any]:
        """Do one job and return what the child says about it.

        Args:
            job: what JSON can hold.
            log: where the child's output goes, which is kept; None for this process's standard error, of all jobs.
            report: told how far it is.

        Raises:
            InputError: the child refused the job or died; the message ends with what it said.
        """
        process = self._process = self._process or self._start(heard=log is None)
        assert process.stdin is not None
        assert process.stdout is not None
        job, where = dict(job), ""
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            job, where = job | {"log": str(log.resolve())}, f"Its log is {log}"
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                reply = json.loads(line)
                if "progress" in reply and report is not None:
                    report(*reply["progress"])
                elif "done" in reply:
                    return reply["done"]
                elif "refused" in reply:
                    raise InputError(reply["refused"], do=where)
                elif "error" in reply:
                    raise InputError(f"{self.module} failed: {reply['error']}", do=where)
        except BrokenPipeError:
            pass
        raise InputError(f"{self.module} ended with exit status {process.wait()} in the middle of its work", do=where)


def serve(handle: Callable[[dict[str, Any], JobReport], dict[str, Any]]) -> None:
    """The child's side: answer each job on standard input with what `handle(job, report)` returns."""
    replies = os.fdopen(os.dup(1), "w")

    def send(**reply: Any) -> None:
        print(json.dumps(reply), file=replies, flush=True)

    for line in sys.stdin:
        job = json.loads(line)
        _print_into(job.pop("log", None))
        try:
            result = handle(job, lambda done, total: send(progress=[done, total]))
        except InputError as error:
            send(refused=str(error))
        except Exception as error:  # whatever a foreign writer raises has to reach the parent
            traceback.print_exc()
            send(error=f"{type(error).__name__}: {error}")
        else:
            send(done=result)
        sys.stdout.flush()


def _print_into(log: str | None) -> None:
    """Where this process's output goes from now on; without a log where its errors go."""
    if log is None:
        os.dup2(2, 1)
        return
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
