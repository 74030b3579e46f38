"""How much do answers change that should not? A model against itself: again, or on another engine."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from probes.intervals import rate_interval
from probes.labels import REFUSED
from probes.per_prompt import SAMPLE, per_prompt
from probes.tables import interval_columns


def flips(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """Compare the outcomes of two runs on the prompts that both have; several answers to one prompt count once.

    Returns:
        n: pairs; n_flips and flip_rate (with its Wilson interval): refused in one and not in the other;
        n_responses_changed: texts that are not the same.
    """
    first, second = per_prompt(first), per_prompt(second, like=first)
    pairs = first.merge(second, on=SAMPLE, suffixes=("_first", "_second"), validate="one_to_one")
    refused = [pairs[f"label_{side}"].isin(list(REFUSED)).to_numpy() for side in ("first", "second")]
    flipped = refused[0] != refused[1]
    return {
        "n": len(pairs),
        "n_flips": int(flipped.sum()),
        **interval_columns("flip_rate", rate_interval(torch.from_numpy(flipped))),
        "n_responses_changed": int((pairs["response_first"] != pairs["response_second"]).sum()),
    }
