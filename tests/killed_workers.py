"""Two workers on one study, of which one is killed with SIGKILL again and again and started anew.

    python -m tests.killed_workers FILE OUT SEED [KILLS]

Everything is imported once and every worker is a fork. A journal tells of every part that a worker begins and ends, and
of every kill; parts are slowed down while workers are to be killed. Prints as JSON: the journal, and what went wrong.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from probes.harness.results import Result
from probes.study import run as studies
from probes.study.reader import read_study
from probes.study.state import RunFolder, StudyPart
from probes.study.step import Step, StepContext
from tests.killed_run import count, fork, until_asked, wait

KILLS, WORKERS = 4, 2
SECONDS_PER_PART = 0.4
BEGUN, ENDED, KILLED = "begun", "ended", "killed"


def main(file: str, out: str, seed: str, kills: str = str(KILLS)) -> None:
    moments, journal, folder = random.Random(int(seed)), Path(out) / "journal.txt", Path(out) / "run"
    workers = [fork(lambda: work(file, folder, journal, SECONDS_PER_PART)) for _ in range(WORKERS)]
    killed = 0
    for _ in range(int(kills)):
        until_asked(journal, count(journal))
        time.sleep(moments.uniform(0, 1.5 * SECONDS_PER_PART))
        victim = workers.pop(moments.randrange(WORKERS))
        os.kill(victim, signal.SIGSTOP)  # so that it begins nothing between the note and its end
        note(journal, KILLED, victim)
        os.kill(victim, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(victim, 0)[1])  # else it had ended before
        workers.append(fork(lambda: work(file, folder, journal, SECONDS_PER_PART)))
    codes = [wait(worker) for worker in workers]
    codes.append(wait(fork(lambda: work(file, folder, journal, 0))))
    story = [line.split(" ") for line in journal.read_text().splitlines()]
    print(json.dumps({"killed": killed, "codes": codes, "wrong": list(wrong(story)), "journal": story}))


def note(journal: Path, what: str, pid: int, part: Sequence[str] = ()) -> None:
    with journal.open("a") as lines:
        lines.write(" ".join([str(pid), what, *part]) + "\n")


def work(file: str, folder: Path, journal: Path, seconds: float) -> None:
    """Measure the study, and journal."""
    measured, written = Step.results, RunFolder.write

    def slow(self: Step, context: StepContext, options: Mapping[str, Any]) -> list[Result]:
        note(journal, BEGUN, os.getpid(), (context.model.name, context.cell, self.name))
        time.sleep(seconds)
        return measured(self, context, options)

    def write(self: RunFolder, part: StudyPart, key: str, results: Sequence[Result], took: float) -> None:
        written(self, part, key, results, took)
        note(journal, ENDED, os.getpid(), part)

    Step.results, RunFolder.write = slow, write  # type: ignore[method-assign]
    studies._report = lambda path: None  # type: ignore[assignment]
    studies.run_study(read_study(file), folder)


def wrong(story: Sequence[Sequence[str]]) -> Iterator[str]:
    """What must not happen: a part that is begun after it was ended, or while another worker is at it."""
    ended: set[tuple[str, ...]] = set()
    at_work: dict[str, tuple[str, ...]] = {}
    for pid, what, *names in story:
        part = tuple(names)
        if what == BEGUN and part in ended:
            yield f"{part} is measured again"
        if what == BEGUN and part in at_work.values():
            yield f"{part} is measured by two"
        if what == BEGUN:
            at_work[pid] = part
        else:
            at_work.pop(pid, None)
        ended |= {part} if what == ENDED else set()


if __name__ == "__main__":
    main(*sys.argv[1:])
