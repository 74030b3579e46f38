"""Run `probes.refusal` and kill it with SIGKILL, again and again; then let it finish. Prints what happened as JSON.

    python -m tests.killed_run BASELINE CELL OUT SEED

Everything is imported once and every attempt is a fork, so that ten attempts take seconds. The model journals each
prompt before it answers it, and is slowed down while it is to be killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inspect_ai.log import list_eval_logs, read_eval_log_sample_summaries

from interp.generation import Answer
from probes.refusal import __main__ as refusal_command
from probes.refusal import probe  # noqa: F401 (imported before the forks)
from probes.refusal.engines import HookedEngine
from probes.refusal.request_sets import prompt_sha256

KILLS = 10
LONGEST = 1.5
SECONDS_PER_BATCH = 0.25


def main(baseline: str, cell: str, out: str, seed: str) -> None:
    moments = random.Random(int(seed))
    journal, folder = Path(out) / "journal.txt", Path(out) / "run"
    kills = []
    for _ in range(KILLS):
        pid = fork(lambda: ask(baseline, cell, folder, journal, SECONDS_PER_BATCH))
        if moments.random() < 0.8:  # the others are killed while they start
            until_asked(journal, count(journal))
        time.sleep(moments.uniform(0, LONGEST))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        snapshot = Path(out) / "finished.json"
        wait(fork(lambda path=snapshot: path.write_text(json.dumps(finished(folder)))))
        known = json.loads(snapshot.read_text())
        kills.append({"signal": os.WTERMSIG(status), "finished": known, "asked": count(journal)})
    ended = wait(fork(lambda: ask(baseline, cell, folder, journal, 0)))
    result = {"kills": kills, "exit": ended, "journal": journal.read_text().splitlines(), "final": finished(folder)}
    print(json.dumps(result))


def ask(baseline: str, cell: str, folder: Path, journal: Path, seconds: float) -> None:
    generate = HookedEngine.generate

    def journaled(self: HookedEngine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        with journal.open("a") as file:
            file.writelines(f"{self.model.checkpoint.path.name} {prompt_sha256(prompt)}\n" for prompt in prompts)
        time.sleep(seconds)
        return generate(self, prompts, max_new_tokens)

    HookedEngine.generate = journaled  # type: ignore[method-assign]
    arguments = ["--baseline", baseline, "--quantized", f"cell={cell}", "--out", str(folder), "--task", "refusal"]
    settings = ["--limit", "96", "--max-tokens", "4", "--batch-size", "2", "--no-determinism", "--json"]
    refusal_command.app([*arguments, *settings], standalone_mode=False)


def count(journal: Path) -> int:
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def until_asked(journal: Path, before: int) -> None:
    deadline = time.monotonic() + 60
    while count(journal) == before and time.monotonic() < deadline:
        time.sleep(0.02)


def finished(folder: Path) -> list[str]:
    """`cell id uuid` of every sample that Inspect has in a log."""
    found = []
    for cell in sorted((folder / "cells").glob("*")):
        for log in list_eval_logs(str(cell / "logs")):
            summaries = read_eval_log_sample_summaries(log.name)
            found += [f"{cell.name} {s.id} {s.uuid}" for s in summaries if s.completed and not s.error]
    return sorted(set(found))


def fork(function: Callable[[], Any]) -> int:
    """Run a function in a child that never returns into this program."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        function()
        code = 0
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
