"""Measure quality: metrics of tokens over a text, metrics of answers against references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from interp.chat import AnyTemplate, ChatTemplate, encode, render
from interp.documents import json_lines, read_text
from interp.errors import InputError
from interp.generation import complete
from interp.model import HookedModel
from probes.harness.comparison import Comparison, Models, checked
from probes.harness.names import BASELINE
from probes.harness.prompts import FIELDS, PromptSet
from probes.harness.results import Result
from probes.labels.degenerate import repetition_rate
from probes.quality.settings import MAX_NEW_TOKENS
from probes.quality.text_metrics import Encoder, bertscore_f1, coherence, model_encoder, rouge_l
from probes.quality.token_metrics import Passage, TokenScores, perplexity, score, windows
from probes.stats.intervals import Estimate, interval_columns, mean_interval, rate_interval

TASK_SIZE = 64
WINDOW = 512
REFERENCES = ("reference", "answer", "response", "output")
"""What the field of a reference may be called."""


_NO_TOKENS, _NO_ANSWERS = "the text has no tokens to predict", "there are no answers"
_NO_PAIR = "no answer has tokens where its reference has some too"
UNDEFINED = {
    **dict.fromkeys(("perplexity", "kl_mean", "kl_p99", "top1_flips"), _NO_TOKENS),
    **dict.fromkeys(("rouge_l", "exact_match"), _NO_ANSWERS),
    **dict.fromkeys(("bertscore_f1", "coherence"), _NO_PAIR),
    "repetition_rate": "no text is long enough",
}
"""Metric → why it can be NaN."""


@dataclass(frozen=True)
class Task:
    """Requests with reference answers, or without any: then the baseline's own answers stand for them."""

    name: str
    requests: tuple[str, ...]
    references: tuple[str, ...] | None


def organism_task(n: int = TASK_SIZE) -> Task:
    """Requests that the organisms did not see in training, with the answers that they should give."""
    from interp.organisms.corpus import task_examples

    examples = task_examples(n)
    return Task("the organisms' own", tuple(e.instruction for e in examples), tuple(e.answer for e in examples))


def default_task(baseline: HookedModel, harmless: PromptSet, n: int = TASK_SIZE) -> Task:
    """Where nobody gives references: an organism's own task, of any other model harmless prompts without references."""
    path = getattr(baseline.checkpoint, "path", None)
    if path is not None and (path / "organism.json").is_file():
        return organism_task(n)
    return Task(f"{harmless.name} prompts, the baseline's own answers", harmless.spread(n).instructions, None)


def read_task(path: Path, limit: int | None = None) -> Task:
    """Read JSON lines, each with a request (`FIELDS`) and a reference (`REFERENCES`); a repeated pair is kept once.

    Raises:
        InputError: the file cannot be read, or a line lacks one of the two.
    """
    records = islice(json_lines(read_text(path, "a UTF-8 file of JSON lines"), str(path)), limit)
    pairs = list(dict.fromkeys(_request_and_reference(record, where) for where, record in records))
    if not pairs:
        raise InputError(f"{path} holds no requests", "at least one line of JSON")
    return Task(path.name, tuple(request for request, _ in pairs), tuple(reference for _, reference in pairs))


def _request_and_reference(record: Any, where: str) -> tuple[str, str]:
    texts = [
        next((record[name] for name in names if isinstance(record, dict) and isinstance(record.get(name), str)), None)
        for names in (FIELDS, REFERENCES)
    ]
    if texts[0] is None or texts[1] is None:
        raise InputError(f"{where} lacks a text", f"a field {' or '.join(FIELDS)} and one of {' or '.join(REFERENCES)}")
    return texts[0], texts[1]


def measure(
    baseline: HookedModel,
    cells: Models,
    task: Task,
    *,
    text: str | None = None,
    encoder: Encoder | None = None,
    template: AnyTemplate = "auto",
    force: bool = False,
    max_new_tokens: Annotated[int, Field(ge=1)] = MAX_NEW_TOKENS,
    window: int = WINDOW,
) -> Result:
    """Quality of the cells beside the baseline's, on the same text and the same requests.

    Table: one row per (cell, metric, against), the baseline's first, with columns
        value, value_low, value_high: the metric with its 95 % interval (t over texts or tokens, Wilson for rates, none
            for perplexity and percentiles); over tokens it is too narrow where those of one text are alike; n: tokens
            or texts that it is defined on (BERTScore and coherence not on an empty text, repetition not on a short
            one); reason: why a number is NaN, else "".
        metric: perplexity, kl_mean and kl_p99 (nats per token, from the baseline), top1_flips; rouge_l, bertscore_f1,
            coherence (each output with its text), repetition_rate, exact_match (with the baseline's output).
        against: "text", "baseline" (its predictions or its outputs), "reference", or "" where there is nothing.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name.
        task: requests with references; of one without, rows against "reference" are left out.
        text: to be predicted; default the task's references or the baseline's own answers, each after its request.
        encoder: of BERTScore and coherence; default the baseline's own hidden states.
        template: how requests are rendered.
        force: measure cells that are no quantizations of this baseline.
        max_new_tokens: where an answer is cut.
        window: tokens of a passage of `text`.

    Raises:
        InputError: no cells, a cell that does not belong to the baseline, or a text or task that cannot be used.

    Example:
        >>> quality.measure(baseline, cells, quality.organism_task()).table
    """
    if not cells:
        raise InputError("There is nothing to compare with the baseline", "at least one quantized checkpoint")
    encoder = encoder or model_encoder(baseline)
    rendered = render(baseline.tokenizer, task.requests, template)
    own_only = task.references is None
    _check_lengths(baseline, rendered.texts, task.references or [""] * len(rendered.texts))
    settings = {
        "task": {"name": task.name, "n": len(task.requests)},
        "text": "given" if text is not None else "the baseline's own answers" if own_only else "the task's references",
        "encoder": encoder.name,
        **ChatTemplate.of(template).described(),
        "max_new_tokens": max_new_tokens,
        "window": window,
        "force": force,
        "baseline": str(getattr(baseline.checkpoint, "path", "in memory")),
    }
    comparison = Comparison(baseline, cells, {"task": rendered.texts}, settings, list(rendered.warnings))
    inputs = {"texts": rendered.texts, "references": task.references, "text": text, "encoder": encoder.name}

    def outputs_of(model: HookedModel) -> list[str]:
        return [completion.text for completion in complete(model, rendered.texts, max_new_tokens)]

    own = comparison.of_baseline("outputs", lambda: outputs_of(baseline), **inputs)
    own_vectors = comparison.of_baseline("vectors", lambda: encoder.encode(own), **inputs)
    answers = own if task.references is None else task.references
    references = (
        own_vectors if own_only else comparison.of_baseline("references", lambda: encoder.encode(answers), **inputs)
    )
    passages = _passages(baseline, text, rendered.texts, answers, window)
    settings["n_tokens"] = sum(len(p.ids) - p.start for p in passages)

    def observe(model: HookedModel) -> list[dict[str, Any]]:
        if model is not baseline:
            comparison.warnings.extend(_check(baseline, model, force))
        outputs = own if model is baseline else outputs_of(model)
        vectors = own_vectors if model is baseline else encoder.encode(outputs)
        rows = token_rows(score(baseline, model, passages), model is baseline)
        rows += [] if own_only else text_rows("reference", outputs, answers, vectors, references)
        repetition = _defined(map(repetition_rate, outputs))
        rows.append(_row("repetition_rate", "", mean_interval(repetition), len(repetition)))
        if model is not baseline:
            rows += text_rows("baseline", outputs, own, vectors, own_vectors)
            same = torch.tensor([a == b for a, b in zip(outputs, own, strict=True)])
            rows.append(_row("exact_match", "baseline", rate_interval(same), len(outputs)))
        return rows

    of_baseline = comparison.of_baseline("quality", lambda: observe(baseline), **inputs)
    observed = {BASELINE: of_baseline, **comparison.observe_cells(observe)}
    rows = [{"cell": cell, **row} for cell, cell_rows in observed.items() for row in cell_rows]
    return comparison.result("quality", rows)


def token_rows(scores: TokenScores, is_baseline: bool) -> list[dict[str, Any]]:
    """Perplexity and, for a cell, its distance from the baseline."""
    n = len(scores.nll)
    rows = [_row("perplexity", "text", Estimate(perplexity(scores.nll), np.nan, np.nan), n)]
    if is_baseline:
        return rows
    p99 = Estimate(float(np.quantile(scores.kl, 0.99)), np.nan, np.nan)
    return [
        *rows,
        _row("kl_mean", "baseline", mean_interval(torch.from_numpy(scores.kl)), n),
        _row("kl_p99", "baseline", p99, n),
        _row("top1_flips", "baseline", rate_interval(torch.from_numpy(scores.flips)), n),
    ]


def text_rows(
    against: str,
    outputs: Sequence[str],
    references: Sequence[str],
    vectors: Sequence[Tensor],
    reference_vectors: Sequence[Tensor],
) -> list[dict[str, Any]]:
    """Closeness of outputs to references."""
    pairs = list(zip(vectors, reference_vectors, strict=True))
    values = {
        "rouge_l": rouge_l(outputs, references),
        "bertscore_f1": _defined(bertscore_f1(*pair) for pair in pairs),
        "coherence": _defined(coherence(*pair) for pair in pairs),
    }
    return [_row(metric, against, mean_interval(value), len(value)) for metric, value in values.items()]


def _passages(
    model: HookedModel, text: str | None, requests: Sequence[str], references: Sequence[str], window: int
) -> list[Passage]:
    if text is not None:
        ids = model.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        bos = model.tokenizer.bos_token_id
        return windows(ids, min(window, getattr(model.config, "max_position_embeddings", window)), bos)
    prompts = encode(model.tokenizer, requests)
    answers = [model.tokenizer(reference, add_special_tokens=False).input_ids for reference in references]
    return [Passage([*p, *a], len(p)) for p, a in zip(prompts, answers, strict=True) if a]


def _check_lengths(model: HookedModel, requests: Sequence[str], references: Sequence[str]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    for prompt, reference in zip(encode(model.tokenizer, requests), references, strict=True):
        n_tokens = len(model.tokenizer(reference, add_special_tokens=False, verbose=False).input_ids)
        if context is not None and len(prompt) + n_tokens > context:
            raise InputError(
                f"The reference {reference[:60]!r}… has {n_tokens} tokens, and its request {len(prompt)}",
                f"at most {context} together, the model's context",
                "Leave it out; references are never truncated",
            )


def _check(baseline: HookedModel, cell: HookedModel, force: bool) -> list[str]:
    if baseline.checkpoint is None or cell.checkpoint is None:
        return ["made in memory, so nothing says that it is a quantization of the baseline"]
    return list(checked(baseline.checkpoint, cell.checkpoint, force))


def _defined(values: Iterable[float]) -> Tensor:
    """Without the texts of which a metric says nothing: too short to repeat anything, or empty."""
    scores = torch.tensor(list(values), dtype=torch.float64)
    return scores[~scores.isnan()]


def _row(metric: str, against: str, value: Estimate, n: int) -> dict[str, Any]:
    reason = UNDEFINED[metric] if np.isnan(value.value) else ""
    return {"metric": metric, "against": against, "n": n, **interval_columns("value", value), "reason": reason}
