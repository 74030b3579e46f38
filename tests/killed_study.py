"""Run a study and kill it with SIGKILL, again and again; then let it finish. Prints what happened as JSON.

    python -m tests.killed_study FILE OUT SEED

Everything is imported once and every attempt is a fork. Every step is journaled before it measures, and is slowed down
while it is to be killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes.harness.results import Result
from probes.study import run as study_run
from probes.study.reader import read_study
from probes.study.state import PartStatus
from probes.study.step import Step, StepContext
from tests.killed_run import count, fork, until_asked, wait

KILLS = 5
SECONDS_PER_STEP = 0.3
measured = Step.results


def main(file: str, out: str, seed: str) -> None:
    moments = random.Random(int(seed))
    journal, folder = Path(out) / "journal.txt", Path(out) / "run"
    kills = []
    for _ in range(KILLS):
        pid = fork(lambda: run(file, folder, journal, SECONDS_PER_STEP))
        until_asked(journal, count(journal))
        time.sleep(moments.uniform(0, 3 * SECONDS_PER_STEP))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        snapshot = Path(out) / "done.json"
        wait(fork(lambda path=snapshot: path.write_text(json.dumps(done(file, folder)))))
        asked = count(journal)
        kills.append({"signal": os.WTERMSIG(status), "done": json.loads(snapshot.read_text()), "asked": asked})
    ended = wait(fork(lambda: run(file, folder, journal, 0)))
    print(json.dumps({"kills": kills, "exit": ended, "journal": journal.read_text().splitlines()}))


def run(file: str, folder: Path, journal: Path, seconds: float) -> None:
    def journaled(self: Step, context: StepContext, options: Mapping[str, Any]) -> list[Result]:
        with journal.open("a") as lines:
            lines.write(f"{context.cell} {self.name}\n")
        time.sleep(seconds)
        return measured(self, context, options)

    Step.results = journaled  # type: ignore[method-assign]
    study_run._report = lambda path: None  # type: ignore[assignment]
    study_run.run_study(read_study(file), folder)


def done(file: str, folder: Path) -> list[str]:
    table = study_run.study_status(read_study(file), folder)
    return [f"{row.cell} {row.step}" for row in table[table["status"] == PartStatus.DONE].itertuples()]


if __name__ == "__main__":
    main(*sys.argv[1:])
