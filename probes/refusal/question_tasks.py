"""Questions with known answers, from files in their public layouts: TruthfulQA (CSV, multiple-choice JSON) and BBQ.

Every question is asked as multiple choice, which needs no judge; the score is 1 for the correct letter.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice

from interp.documents import json_lines, parse_json, read_text
from interp.errors import InputError
from probes.refusal.request_sets import prompt_id

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@task
def truthfulness(questions: str, limit: int | None = None) -> Task:
    """TruthfulQA: which answer is true?

    From TruthfulQA.csv (the best answer against the best incorrect one, or all of them) or from mc_task.json (MC1).

    Args:
        questions: the file.
        limit: take only the first so many.
    """
    return _multiple_choice("truthfulness", Path(questions), {".csv": _truthful_csv, ".json": _truthful_json}, limit)


@task
def bias(questions: str, limit: int | None = None) -> Task:
    """BBQ: is the question answered from the context and not from a stereotype? From a category's .jsonl file.

    Args:
        questions: the file.
        limit: take only the first so many.
    """
    return _multiple_choice("bias", Path(questions), {".jsonl": _bbq}, limit)


def _multiple_choice(
    name: str, path: Path, readers: dict[str, Callable[[str, str], Iterable[Sample]]], limit: int | None
) -> Task:
    if path.suffix not in readers:
        raise InputError(
            f"{path} is not a file of questions that the task {name} reads", f"one ending in {', '.join(readers)}"
        )
    try:
        samples = list(readers[path.suffix](read_text(path, "a file of questions"), str(path)))[:limit]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} does not have the public layout of its questions ({error!r})",
            "TruthfulQA's CSV or mc_task.json, or BBQ's JSON lines",
        ) from error
    if not samples:
        raise InputError(f"{path} holds no questions", "at least one")
    return Task(dataset=MemoryDataset(samples, name=name), solver=multiple_choice(), scorer=choice())


def _truthful_csv(text: str, name: str) -> Iterable[Sample]:
    for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
        incorrect = row.get("Best Incorrect Answer") or row["Incorrect Answers"]
        wrong = [answer.strip() for answer in incorrect.split(";") if answer.strip()]
        yield _shuffled(row["Question"], [row["Best Answer"], *wrong], 0, row.get("Category") or "")


def _truthful_json(text: str, name: str) -> Iterable[Sample]:
    for row in parse_json(text, name):
        answers = list(row["mc1_targets"])
        correct = [place for place, answer in enumerate(answers) if row["mc1_targets"][answer] == 1]
        yield _shuffled(row["question"], answers, correct[0], "")


def _shuffled(question: str, answers: list[str], correct: int, category: str) -> Sample:
    """Answers in an order that depends on the question alone; in the files the correct one often stands first."""
    order = list(range(len(answers)))
    random.Random(question).shuffle(order)
    return _sample(question, [answers[place] for place in order], order.index(correct), {"category": category})


def _bbq(text: str, name: str) -> Iterable[Sample]:
    for _, row in json_lines(text, name):
        yield _sample(
            f"{row['context']} {row['question']}",
            [row["ans0"], row["ans1"], row["ans2"]],
            (0, 1, 2).index(row["label"]),
            {"category": row["context_condition"], "polarity": row["question_polarity"], "group": row["category"]},
        )


def _sample(question: str, answers: list[str], correct: int, metadata: dict[str, Any]) -> Sample:
    identity = prompt_id(json.dumps([question, answers]))
    return Sample(id=identity, input=question.strip(), choices=answers, target=LETTERS[correct], metadata=metadata)
