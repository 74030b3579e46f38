"""One cell through Inspect: `eval_set` with its logs inside the run folder, then rows.

A sample that Inspect has finished is in its log at once, whatever happens then (of a thousand samples and more: with
others, `FLUSHES` times a run); the next run of the same command takes it from there. Inspect opens no server, writes
nothing outside the folder and prints nothing.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import InputError
from interp.files import trouble_with_disk
from interp.memory import settled_heap
from interp.redaction import redact
from interp.thinking import split_thinking
from probes.harness.transport import UNSCORED
from probes.labels.label import classify

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import Model

FLUSHES = 500
"""Times that a log is written in a run with more samples than that: each writes all of it."""

_DAMAGED = (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError)
"""What Inspect raises for a log that is being written, or that a kill has cut off."""


def run_cell(
    tasks: Sequence[Task],
    model: Model,
    folder: Path,
    *,
    max_new_tokens: int,
    max_connections: int,
    shuffle: int | None = None,
    finished: Callable[[], object] = lambda: None,
) -> list[EvalLog]:
    """Run tasks on one model, or what is left of them.

    Args:
        tasks: each with its dataset.
        model: Inspect's.
        folder: of this cell: logs/ go into it.
        max_new_tokens: where an answer is cut.
        max_connections: requests at once.
        shuffle: a seed that changes the order of the samples.
        finished: called after every sample.

    Returns:
        Headers of the logs, one per task, in their order.

    Raises:
        InputError: a task stopped before its end; the message is that of the sample that failed.
    """
    from inspect_ai import eval_set, task_with

    async def count(_: Any) -> None:
        finished()

    with _quiet(folder), settled_heap():
        try:
            _, logs = eval_set(
                [task_with(task, cleanup=count) for task in tasks],
                log_dir=str(folder / "logs"),
                model=model,
                max_tasks=1,
                max_connections=max_connections,
                max_samples=max_connections,
                max_tokens=max_new_tokens,
                temperature=0.0,
                seed=0,
                sample_shuffle=shuffle,
                max_retries=0,  # `probes.harness.transport` asks again
                retry_attempts=0,
                retry_immediate=False,
                fail_on_error=True,
                display="none",
                log_level="error",
                ctl_server=False,
                log_images=False,
                score_display=False,
                log_realtime=False,  # a database of every event, for viewers, beside the log
                log_buffer=max(1, max(len(task.dataset) for task in tasks) // FLUSHES),
            )
        except (OSError, sqlite3.Error, zipfile.BadZipFile) as error:
            trouble = trouble_with_disk(error, folder) or error
            raise InputError(f"The run in {folder} stopped: {trouble}", do=_again(folder)) from error
    if len(logs) < len(tasks):  # what Inspect returns after Ctrl-C
        raise KeyboardInterrupt
    by_task = {log.eval.task.rpartition("/")[2]: log for log in logs}
    for name, log in by_task.items():
        if log.status != "success":
            reason = _in_words(log.error.message) if log.error else log.status
            raise InputError(redact(f"The task {name} on {model.name} stopped: {reason}"), do=_again(folder))
    return [by_task[task.name.rpartition("/")[2]] for task in tasks]


def keeps_answers(cells: Path) -> bool:
    """Whether a folder of cells has a finished answer."""
    return any(_finished(log) for log in cells.glob("*/logs/*.eval"))


def _finished(log: Path) -> bool:
    from inspect_ai.log import read_eval_log_sample_summaries

    try:
        summaries = read_eval_log_sample_summaries(str(log))
    except _DAMAGED:
        return False
    return any(summary.completed and not summary.error for summary in summaries)


def _in_words(message: str) -> str:
    """What an exception says, of which Inspect's logs hold the `repr`."""
    kind, _, rest = message.partition("(")
    if kind not in ("InputError", "NotFinite", "MissingExtra", "OSError"):
        return message
    try:
        arguments = ast.literal_eval(f"({rest.removesuffix(')')},)")
    except (SyntaxError, ValueError):
        return message
    return str(arguments[-1]).rstrip(".")


def _again(folder: Path) -> str:
    if keeps_answers(folder.parent):
        return "What was finished is kept: run the same command to go on"
    return "Nothing was finished: run the same command when that is mended"


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Inspect's data directory inside the folder, and what it prints in a file there."""
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = str((folder / "data").absolute())
    try:
        with (folder / "inspect.txt").open("a") as printed, contextlib.redirect_stdout(printed):
            yield
    finally:
        if before is None:
            del os.environ["XDG_DATA_HOME"]
        else:
            os.environ["XDG_DATA_HOME"] = before


def outcomes(cell: str, engine: str, log: EvalLog) -> pd.DataFrame:
    """The tidy rows of one log: one per sample and epoch, ordered by sample id.

    Columns: cell, engine, task, sample_id, epoch, category, prompt, prompt_sha256 (of the token ids), n_prompt_tokens,
    response, thinking, n_tokens (generated, the end token not counted), stop_reason, label (of the response, by
    `probes.labels.classify`), score (what the task says of it: 1 for a refusal, or for a correct answer), error (why
    there is no answer of the model; then response and score are missing and the label is unscored).

    Only a server knows its token ids: there prompt_sha256 is of the request's text and its number of tokens.
    """
    from inspect_ai.log import read_eval_log

    task = log.eval.task.rpartition("/")[2]
    rows = [
        {"cell": cell, "task": task, **_row(sample, engine)} for sample in read_eval_log(log.location).samples or []
    ]
    return pd.DataFrame(rows).sort_values(["sample_id", "epoch"], ignore_index=True)


def _row(sample: EvalSample, engine: str) -> dict[str, Any]:
    from inspect_ai.model import ContentReasoning

    output = sample.output
    recorded = output.metadata or {}
    content = output.choices[0].message.content if output.choices else ""
    thoughts = (
        [part.reasoning for part in content if isinstance(part, ContentReasoning)] if isinstance(content, list) else []
    )
    error = sample.error.message if sample.error else str(recorded.get(UNSCORED, ""))
    response = None if error else output.completion
    if response is not None and not thoughts:  # a server that does not tell them apart
        thought, response = split_thinking("", response)
        thoughts = [thought]
    usage = output.usage
    n_prompt_tokens = usage.input_tokens if usage else None
    prompt = sample.input if isinstance(sample.input, str) else sample.input[-1].text
    return {
        "engine": engine,
        "sample_id": str(sample.id),
        "epoch": sample.epoch,
        "category": sample.metadata.get("category", ""),
        "prompt": prompt,
        "prompt_sha256": recorded.get("prompt_sha256") or _sha256(f"{prompt}\0{n_prompt_tokens}"),
        "n_prompt_tokens": n_prompt_tokens,
        "response": response,
        "thinking": "\n".join(thoughts),
        "n_tokens": recorded.get("n_tokens", usage.output_tokens if usage else None),
        "stop_reason": output.stop_reason,
        "label": str(classify(response)),
        "score": None if error else _score(sample),
        "error": error,
    }


def _score(sample: EvalSample) -> float | None:
    from inspect_ai.scorer import value_to_float

    scores = list((sample.scores or {}).values())
    return value_to_float()(scores[0].value) if scores else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
