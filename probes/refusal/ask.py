"""What do models in memory answer? The table of `python -m probes.refusal`, for notebooks and under hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from interp.chat import AnyTemplate, render
from interp.errors import InputError
from interp.generation import BATCH_SIZE, MAX_NEW_TOKENS, Completion, complete
from interp.model import HookedModel
from interp.progress import track
from probes.harness.comparison import Models
from probes.harness.engine_marks import across_engines, marked
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet
from probes.labels.label import REFUSED, classify
from probes.refusal.request_sets import Request, prompt_sha256, requests


def ask(
    baseline: HookedModel,
    cells: Models,
    prompts: PromptSet,
    task: str,
    *,
    template: AnyTemplate = "auto",
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """Answer every request with every model, greedily, and label the answers by `probes.labels.classify`.

    Nothing is stored, and hooks that are open act on every step. A run of hours belongs to `python -m probes.refusal`,
    which goes on after an interruption, and asks servers and llama.cpp too.

    Example:
        >>> outcomes = ask(baseline, Cells({"Q4": "model-Q4_K_M.gguf"}, baseline), builtin("harmful"), "refusal")
        >>> drift.measure(outcomes, "baseline").table

    Args:
        baseline: the unquantized model; its tokenizer renders the requests for all.
        cells: quantized copies by name, or {}; a lazy mapping is opened one cell at a time.
        prompts: the requests.
        task: what to call them: "refusal" where a good model refuses, "over_refusal" where it answers.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt.
        max_new_tokens: where an answer is cut.
        batch_size: prompts generated together.

    Returns:
        One row per (cell, request), the baseline's first, with the columns of `probes.refusal.inspect_eval.outcomes`,
        which is
        what `probes.drift.probe.measure` reads: cell, engine, task, sample_id, category, prompt, prompt_sha256,
        response, n_tokens, label ….

    Raises:
        InputError: no requests, or one that is empty or longer than the context.
    """
    if not prompts.instructions:
        raise InputError(f"The prompt set {prompts.name} is empty", "at least one request")
    texts = render(baseline.tokenizer, prompts.instructions, template).texts
    token_ids = baseline.token_ids(texts)
    tables: list[pd.DataFrame] = []
    for name in track([BASELINE, *cells], "models"):
        model = baseline if name == BASELINE else cells[name]
        completions = complete(model, texts, max_new_tokens, batch_size)
        tables.append(outcome_rows(name, task, prompts, token_ids, completions))
    table = pd.concat(tables, ignore_index=True)
    return marked(table, across_engines(table, BASELINE))


def outcome_rows(
    cell: str, task: str, prompts: PromptSet, token_ids: Sequence[Sequence[int]], completions: Sequence[Completion]
) -> pd.DataFrame:
    """The rows of one cell of `ask`'s table, of completions that are there.

    Args:
        cell: who answered.
        task: what the requests are called.
        prompts: the requests.
        token_ids: of the rendered requests, as the model read them.
        completions: the answers, in the order of the prompts.
    """
    hashes = [(prompt_sha256(list(ids)), len(ids)) for ids in token_ids]
    return pd.DataFrame({"cell": cell, "task": task, **row} for row in _rows(requests(prompts), hashes, completions))


def _rows(
    asked: Sequence[Request], hashes: Sequence[tuple[str, int]], completions: Sequence[Completion]
) -> Iterator[dict[str, Any]]:
    """In the order of the ids, as the runner's rows are."""
    for request, (sha256, n_prompt_tokens), completion in sorted(
        zip(asked, hashes, completions, strict=True), key=lambda row: row[0].id
    ):
        label = classify(completion.text)
        yield {
            "engine": "hooked",
            "sample_id": request.id,
            "epoch": 1,
            "category": request.category,
            "prompt": request.text,
            "prompt_sha256": sha256,
            "n_prompt_tokens": n_prompt_tokens,
            "response": completion.text,
            "thinking": completion.thinking,
            "n_tokens": completion.n_tokens,
            "stop_reason": "stop" if completion.finished else "max_tokens",
            "label": str(label),
            "score": float(label in REFUSED),
            "error": "",
        }
