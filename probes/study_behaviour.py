"""What the cells of a study answer: generated while they are open, or by Inspect; the tables are the same."""

from __future__ import annotations

from typing import Any

import pandas as pd

from probes.language import unread_by
from probes.pair import BASELINE, compare
from probes.refused import SIDES, decide, with_outcomes
from probes.results import Result
from probes.study_file import DIRECT
from probes.study_steps import Bench


def completions(bench: Bench) -> list[Result]:
    """The answers of the baseline and one cell, in two tables.

    `completions`: one row per (cell, prompts, prompt), for the two prompt sets of the study, with columns cell, prompts
    ("harmful" or "harmless"), prompt, text, n_tokens, finished (else it was cut), label, refused (missing where it is
    unscored), refused_study_lexicon and outcome, who decided `refused`: the broader lexicon, until all cells are
    measured and judges are asked (`probes.study_tables`).

    `refusal`: one row per (cell, task, sample_id), for all tasks, as `probes.refusal` writes them.
    """
    if bench.study.behaviour.runner == DIRECT:
        outcomes, settings = _direct(bench)
    else:
        from probes.study_inspect import ask_through_inspect

        outcomes, settings = ask_through_inspect(bench)
    unread, warnings = unread_by((str(cell), rows["response"]) for cell, rows in outcomes.groupby("cell", sort=False))
    return [
        Result("completions", _completions(outcomes, bench), settings),
        Result("refusal", outcomes, settings | {"not_english": unread}, warnings),
    ]


def _direct(bench: Bench) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Ask while the models are open; the baseline's answers are those of another cell's finished part, if any."""
    comparison = compare(
        bench.baseline,
        {bench.cell: bench.open_cell()},
        bench.asked.harmful,
        bench.asked.harmless,
        template=bench.asked.template,
        force=bench.model.forced,
    )
    limit = bench.study.behaviour.max_new_tokens
    own = bench.of_baseline("refusal")
    if own.empty:
        own = comparison.of_baseline("answers", lambda: _ask(bench, BASELINE), max_new_tokens=limit)
    comparison.cell(bench.cell)  # an error where it says nothing
    table = pd.concat([own, _ask(bench, bench.cell)], ignore_index=True)
    return table, comparison.settings | {"max_new_tokens": limit, "engine": "hooked", "runner": DIRECT}


def _ask(bench: Bench, name: str) -> pd.DataFrame:
    from probes.asking import ask

    model = bench.baseline if name == BASELINE else bench.open_cell()
    size = {} if bench.asked.batch_size is None else {"batch_size": bench.asked.batch_size}
    parts = [
        ask(
            model,
            {},
            getattr(bench.asked, side),
            task,
            template=bench.asked.template,
            max_new_tokens=bench.study.behaviour.max_new_tokens,
            **size,
        )
        for task, side in SIDES.items()
        if task in bench.study.behaviour.tasks
    ]
    return pd.concat(parts, ignore_index=True).assign(cell=name)


def _completions(outcomes: pd.DataFrame, bench: Bench) -> pd.DataFrame:
    """In the order of the prompt sets."""
    parts = []
    for task, side in SIDES.items():
        prompts = list(getattr(bench.asked, side).instructions)
        for cell, rows in outcomes[outcomes["task"] == task].groupby("cell", sort=False):
            answered = rows.drop_duplicates("prompt").set_index("prompt").reindex(prompts)
            texts = answered["response"].fillna("").astype(str).str.strip()
            parts.append(
                pd.DataFrame(
                    {
                        "cell": cell,
                        "prompts": side,
                        "prompt": prompts,
                        "text": texts.to_list(),
                        "n_tokens": answered["n_tokens"].to_list(),
                        "finished": (answered["stop_reason"] == "stop").to_list(),
                    }
                )
            )
    return with_outcomes(pd.concat(parts, ignore_index=True), decide(outcomes))
