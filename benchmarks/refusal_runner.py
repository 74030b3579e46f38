"""Throughput of the behavioural runner on an organism: batches of 32 against one prompt at a time.

    python -m benchmarks.refusal_runner --threads 2

"transformers" is its own `generate`, one prompt at a time; "model" is our generation alone; "runner" is all of it, from
rendering through Inspect's logs and buffer to the table, at the margin: the seconds that more prompts add, without the
second or two that a run takes to start. Inspect's record of a sample costs a few milliseconds whatever the model does,
so for a model as small as this one the two differ.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import typer

from interp.model import HookedModel, load
from interp.organisms import train
from probes.engines import EngineSettings
from probes.generation import generate
from probes.prompts import builtin
from probes.refusal import build_tasks
from probes.run_folder import RunFolder
from probes.subjects import LocalSubject

BATCH_SIZE = 32


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


def runner_seconds(path: Path, batch_size: int, max_new_tokens: int) -> float:
    """Per prompt, from the difference between a run of 32 and one of 128."""
    seconds = {}
    for limit in (32, 128):
        subject = LocalSubject(EngineSettings(str(path)), batch_size=batch_size)
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder), build_tasks(["refusal"], limit=limit), max_new_tokens, 4 * batch_size)
            started = time.perf_counter()
            run.answers("organism", subject, "hooked")
            seconds[limit] = time.perf_counter() - started
    return (seconds[128] - seconds[32]) / 96


def main(threads: int = 2, max_new_tokens: int = 48, rounds: int = 3, organism: Path | None = None) -> None:
    torch.set_num_threads(threads)
    path = organism or train()
    model = load(path)
    model_seconds(model, BATCH_SIZE, max_new_tokens)  # allocators
    for _ in range(rounds):
        print(f"transformers, {threads} threads: {1e3 * transformers_seconds(model, max_new_tokens):.1f} ms a prompt")
        for what, measured in (
            ("model", [model_seconds(model, size, max_new_tokens) for size in (1, BATCH_SIZE)]),
            ("runner", [runner_seconds(path, size, max_new_tokens) for size in (1, BATCH_SIZE)]),
        ):
            single, batched = (1e3 * seconds for seconds in measured)
            print(f"{what}, {threads} threads: {single:.1f} → {batched:.1f} ms a prompt, {single / batched:.1f}x")


if __name__ == "__main__":
    typer.run(main)
