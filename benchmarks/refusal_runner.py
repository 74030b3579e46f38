"""Throughput of the behavioural runner on an organism: batches of 32 against one prompt at a time.

    python -m benchmarks.refusal_runner --threads 2

"transformers" is its own `generate`, one prompt at a time; "model" is our generation alone; "runner" is all of it, from
rendering through Inspect's logs and buffer to the table, at the margin: the seconds that more prompts add, without the
second or two that a run takes to start; "apart" is the same with the model in a process of its own; "Inspect" is the
runner with a model that answers at once. What Inspect records of a sample costs several milliseconds of one core
whatever the model does, so for a model as small as this one it bounds the runner's gain from batches. Each number is
the best of the rounds, which other work on the machine disturbs least; the rounds alternate between what is compared.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from unittest.mock import patch

import torch
import typer

from interp.generation import Answer, generate
from interp.model import HookedModel
from interp.opening import load
from interp.organisms.training import train
from probes.harness.prompts import builtin
from probes.refusal import subjects
from probes.refusal.engines import EngineSettings, HookedEngine
from probes.refusal.probe import build_tasks
from probes.refusal.run import BehaviourRun
from probes.refusal.subjects import LocalSubject

BATCH_SIZE = 32
FEW, MANY = 64, 576
"""Prompts of the two runs whose difference is measured, numbered, so that no two are one."""


def model_seconds(model: HookedModel, batch_size: int, max_new_tokens: int) -> float:
    """Per prompt, over the built-in harmful requests."""
    prompts = sorted(model.token_ids(builtin("harmful").instructions, chat=True), key=len)
    started = time.perf_counter()
    for start in range(0, len(prompts), batch_size):
        generate(model, prompts[start : start + batch_size], max_new_tokens)
    return (time.perf_counter() - started) / len(prompts)


def transformers_seconds(model: HookedModel, max_new_tokens: int) -> float:
    """Per prompt, with the model's own `generate`."""
    prompts = model.token_ids(builtin("harmful").instructions, chat=True)
    started = time.perf_counter()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return (time.perf_counter() - started) / len(prompts)


def runner_seconds(path: Path, batch_size: int, max_new_tokens: int, apart: bool = False) -> float:
    """Per prompt, from the difference between a run of few prompts and one of many."""
    seconds = {}
    for n in (FEW, MANY):
        subject = LocalSubject(EngineSettings(str(path)), batch_size=batch_size)
        with tempfile.TemporaryDirectory() as folder, patch.object(subjects, "MANY", 0 if apart else MANY + 1):
            requests = Path(folder, "requests.txt")
            harmful = enumerate(islice(cycle(builtin("harmful").instructions), n))
            requests.write_text("\n".join(f"{number}. {text}" for number, text in harmful))
            run = BehaviourRun(
                Path(folder), build_tasks(["refusal"], harmful=str(requests)), max_new_tokens, 4 * batch_size
            )
            started = time.perf_counter()
            run.answers("organism", subject, "hooked")
            seconds[n] = time.perf_counter() - started
    return (seconds[MANY] - seconds[FEW]) / (MANY - FEW)


def inspect_seconds(path: Path, max_new_tokens: int) -> float:
    """Per prompt, of the runner alone: the model answers every prompt at once."""

    def at_once(engine: HookedEngine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        return [Answer(list(prompt[-10:]), True) for prompt in prompts]

    with patch.object(HookedEngine, "generate", at_once):
        return runner_seconds(path, BATCH_SIZE, max_new_tokens)


def main(threads: int = 2, max_new_tokens: int = 48, rounds: int = 5, organism: Path | None = None) -> None:
    torch.set_num_threads(threads)
    path = organism or train()
    model = load(path)
    measured: dict[str, Callable[[], float]] = {
        "transformers": lambda: transformers_seconds(model, max_new_tokens),
        "model, 1": lambda: model_seconds(model, 1, max_new_tokens),
        f"model, {BATCH_SIZE}": lambda: model_seconds(model, BATCH_SIZE, max_new_tokens),
        "runner, 1": lambda: runner_seconds(path, 1, max_new_tokens),
        f"runner, {BATCH_SIZE}": lambda: runner_seconds(path, BATCH_SIZE, max_new_tokens),
        f"apart, {BATCH_SIZE}": lambda: runner_seconds(path, BATCH_SIZE, max_new_tokens, apart=True),
        "Inspect": lambda: inspect_seconds(path, max_new_tokens),
    }
    model_seconds(model, BATCH_SIZE, max_new_tokens)  # allocators
    seconds = dict.fromkeys(measured, float("inf"))
    for _ in range(rounds):
        for name, measure in measured.items():
            seconds[name] = min(seconds[name], measure())
    for name, value in seconds.items():
        print(f"{name:14} {1e3 * value:7.1f} ms a prompt, {threads} threads")
    for what in ("model", "runner", "apart"):
        for one in ("transformers", "runner, 1"):
            print(f"{what}, {BATCH_SIZE}: {seconds[one] / seconds[f'{what}, {BATCH_SIZE}']:.1f}x {one}")


if __name__ == "__main__":
    typer.run(main)
