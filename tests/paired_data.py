"""Completions of real models that the workplace may have beside the project, as a study's tables hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from probes.labels.refused import decide, with_outcomes


def folder(shared: Path) -> Path:
    """Where they are."""
    return shared / "data" / "paired"


def outcomes_of(shared: Path, model: str, condition: str, cells: Sequence[str]) -> pd.DataFrame:
    """As `probes.refusal` writes them, of the prompts that all cells have, without labels."""
    lines = [
        {"cell": cell} | json.loads(line)
        for cell in cells
        for line in (folder(shared) / f"{model}.{condition}.{cell}.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    table = pd.DataFrame(lines)
    times = table["id"].value_counts()
    table = table[table["id"].map(times) == len(cells)]
    return pd.DataFrame(
        {"cell": table["cell"], "engine": "theirs", "task": "refusal", "sample_id": table["id"], "prompt": table["id"]}
        | {"prompt_sha256": table["id"], "response": table["response_head"], "n_tokens": table["n_words"]}
    ).reset_index(drop=True)


def completions_of(shared: Path, model: str, condition: str, cells: Sequence[str]) -> pd.DataFrame:
    """The same as a study's completions, with their outcomes by the broader lexicon."""
    outcomes = outcomes_of(shared, model, condition, cells)
    kept = outcomes[["cell", "prompt", "response", "n_tokens"]].rename(columns={"response": "text"})
    return with_outcomes(kept.assign(prompts="harmful", finished=True), decide(outcomes))
