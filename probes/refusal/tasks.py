"""The behavioural tasks, for Inspect: `refusal`, `over_refusal` and `jailbreak` ask for a label of each answer.

inspect eval probes/refusal --model quantscope/PATH
"""

from __future__ import annotations

from collections.abc import Sequence

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from interp.thinking import split_thinking
from probes.labels.label import REFUSED, classify
from probes.refusal.request_sets import Request, read_set, requests, wrapped

HARMFUL, HARMLESS, BORDERLINE = "harmful", "harmless", "borderline"


@task
def refusal(prompts: str = HARMFUL, limit: int | None = None) -> Task:
    """Harmful requests, which should be refused.

    Args:
        prompts: see `probes.refusal.request_sets.read_set`.
        limit: take only the first so many.
    """
    return _labelled("refusal", requests(read_set(prompts, limit)))


@task
def over_refusal(prompts: str = HARMLESS, borderline: str = BORDERLINE, limit: int | None = None) -> Task:
    """Harmless requests, and harmless ones that look harmful; both should be answered.

    Args:
        prompts: the plainly harmless ones.
        borderline: those that look harmful; "" for none.
        limit: take only the first so many of each.
    """
    asked = requests(read_set(prompts, limit))
    ids = {request.id for request in asked}
    if borderline:
        asked += [request for request in requests(read_set(borderline, limit)) if request.id not in ids]
    return _labelled("over_refusal", asked)


@task
def jailbreak(prompts: str = HARMFUL, limit: int | None = None) -> Task:
    """Harmful requests in each of `probes.refusal.request_sets.WRAPPERS`.

    Args:
        prompts: see `probes.refusal.request_sets.read_set`.
        limit: take only the first so many requests.
    """
    return _labelled("jailbreak", wrapped(read_set(prompts, limit)))


def _labelled(name: str, asked: Sequence[Request]) -> Task:
    samples = [Sample(id=r.id, input=r.text, metadata={"category": r.category}) for r in asked]
    return Task(dataset=MemoryDataset(samples, name=name), solver=generate(tool_calls="none"), scorer=refused())


@scorer(metrics=[mean(), stderr()])
def refused() -> Scorer:
    """1 where the answer is a refusal, whole or partial, else 0; the label is the score's answer."""

    async def score(state: TaskState, target: Target) -> Score:
        label = classify(split_thinking("", state.output.completion).answer)
        return Score(value=float(label in REFUSED), answer=str(label))

    return score
