"""Batches that bound both prompts and tokens."""

from __future__ import annotations

import pytest

from interp.batching import TEXTS_AT_ONCE
from interp.errors import InputError
from tests.exchanges import baseline

TEXTS = [f"Why {'so ' * (i % 7)}late?" for i in range(150)]


@pytest.mark.parametrize("batch_size", [None, 3, 100])
def test_no_batch_exceeds_the_cap_and_the_budget(batch_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = baseline()
    longest = max(map(len, model.token_ids(TEXTS)))
    for budget, cap in ((8192, 64), (10 * longest, 64)):
        monkeypatch.setattr("interp.batching.BATCH_TOKENS", budget)
        found = list(model.batches(TEXTS, batch_size=batch_size, at_most=TEXTS_AT_ONCE))
        shapes = [tuple(batch.inputs["input_ids"].shape) for batch in found]
        assert max(rows for rows, _ in shapes) <= min(cap, batch_size or cap)
        if batch_size is None:
            assert all(rows * width <= budget for rows, width in shapes)
        assert sorted(i for batch in found for i in batch.indices.tolist()) == list(range(len(TEXTS)))
    if batch_size is None:
        assert shapes[0][0] == 10


def test_no_prompts() -> None:
    with pytest.raises(InputError, match="no prompts"):
        baseline().batches([])
