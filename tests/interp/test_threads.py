from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from interp import load, threads


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_small_model_is_computed_with_one_thread(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llama"))
    monkeypatch.setattr(threads, "SMALL", 1)
    threads.fit_threads(model)
    assert torch.get_num_threads() == 2
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads.fit_threads(model)
    assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads.fit_threads(model)
    assert torch.get_num_threads() == 1
