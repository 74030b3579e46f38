"""Damage every reader's input many times over, and print what came of it.

python -m tests.fuzz --inputs 10000
python -m tests.fuzz --readers config,tables --inputs 200 --first 5000
python -m tests.fuzz --show config 4711
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads of the parent are missing in the forked worker, which would wait for them forever.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from transformers.utils import logging

from tests.fuzz import checkpoints, documents, worker  # noqa: F401 — the first two register their readers
from tests.fuzz.targets import MAKERS
from tests.fuzz.worker import Outcome, Reader, damage, outcomes, read


def main() -> int:
    """0 where there was no finding, else 1."""
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each reader, at most")
    parser.add_argument("--limit", type=float, default=worker.SECONDS, help="seconds for each input")
    parser.add_argument("--readers", default=",".join(MAKERS), help="comma-separated")
    parser.add_argument("--show", nargs=2, metavar=("READER", "NUMBER"), help="read one input, without limits")
    arguments = parser.parse_args()
    worker.SECONDS = arguments.limit
    with tempfile.TemporaryDirectory(prefix="seeds-") as temporary:
        if arguments.show:
            name, number = arguments.show
            return _show(MAKERS[name](Path(temporary) / name), int(number))
        print(f"{'reader':20} {'inputs':>7} {'accepted':>8} {'refused':>8} {'findings':>8} {'slowest':>8} {'MiB':>6}")
        findings = 0
        for name in arguments.readers.split(","):
            reader = MAKERS[name](Path(temporary) / name)
            for seed in reader.seeds:
                reader.read(seed)  # valid, and all modules are imported before the worker is forked
            if reader.seeds:
                numbers = range(arguments.first, arguments.first + arguments.inputs)
                findings += _report(reader, _until(time.monotonic() + arguments.seconds, outcomes(reader, numbers)))
    return 1 if findings else 0


def _until(deadline: float, found: Iterator[Outcome]) -> Iterator[Outcome]:
    for outcome in found:
        yield outcome
        if time.monotonic() > deadline:
            return


def _report(reader: Reader, found: Iterator[Outcome]) -> int:
    """Print a reader's line and each kind of finding once; return how many findings there were."""
    kinds: Counter[str] = Counter()
    findings: dict[tuple[str, str], list[Outcome]] = {}
    slowest = mebibytes = 0.0
    for outcome in found:
        kinds[outcome.kind] += 1
        slowest, mebibytes = max(slowest, outcome.seconds), mebibytes + outcome.mebibytes
        if outcome.kind == "finding":
            findings.setdefault((outcome.what.split(":")[0], outcome.where), []).append(outcome)
    print(
        f"{reader.name:20} {kinds.total():7} {kinds['accepted']:8} {kinds['refused']:8} {kinds['finding']:8} "
        f"{slowest:6.2f} s {mebibytes:6.0f}",
        flush=True,
    )
    for (_, where), alike in findings.items():
        first = alike[0]
        print(f"  {len(alike)} × {first.what} {where}: --show {reader.name} {first.number}", flush=True)
    return kinds["finding"]


def _show(reader: Reader, number: int) -> int:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary) / "input"
        file = damage(reader, number, folder)
        content = file.read_bytes()
        print(f"{file.relative_to(folder)}, {len(content)} bytes: {content[:1500]!r}")
        kind, what, where = read(reader, folder, raising=True)
        print(kind, what, where)
        return 1 if kind == "finding" else 0


if __name__ == "__main__":
    sys.exit(main())
