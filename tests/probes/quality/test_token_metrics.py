from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from interp import load
from interp.errors import InputError, NotFinite
from interp.model import HookedModel
from probes.quality.token_metrics import BATCH_TOKENS, Passage, divergence, perplexity, score, windows

LENGTHS = (3, 40, 17, 40, 2)


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


@pytest.fixture(scope="module")
def damaged(tiny: Callable[[str], Path]) -> HookedModel:
    other = load(tiny("llama"))
    generator = torch.Generator().manual_seed(1)
    for parameter in other.hf.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    generator = np.random.default_rng(0)
    return [Passage(generator.integers(3, 300, length).tolist()) for length in LENGTHS]


def test_perplexity_is_transformers_own_loss(
    model: HookedModel, damaged: HookedModel, passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for passage in passages:
        ids = torch.tensor([list(passage.ids)])
        losses += [float(damaged.hf(ids, labels=ids).loss)] * (len(passage.ids) - 1)
    for budget in (BATCH_TOKENS, 50):  # all in one batch, or nearly each alone
        monkeypatch.setattr("probes.quality.token_metrics.BATCH_TOKENS", budget)
        scores = score(model, damaged, passages)
        assert len(scores.nll) == sum(LENGTHS) - len(LENGTHS)
        assert perplexity(scores.nll) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_only_tokens_from_start_are_scored(model: HookedModel, passages: list[Passage]) -> None:
    whole = score(model, model, [passages[1]])
    part = score(model, model, [Passage(passages[1].ids, 30)])
    np.testing.assert_allclose(part.nll, whole.nll[29:], rtol=1e-6)


def test_kl_and_flips_are_those_of_the_bare_models(
    model: HookedModel, damaged: HookedModel, passages: list[Passage]
) -> None:
    scores = score(model, damaged, passages)
    kl, flips = [], []
    for passage in passages:
        p, q = (m.hf(torch.tensor([list(passage.ids)])).logits[0, :-1].detach().double() for m in (model, damaged))
        kl += entropy(p.softmax(-1).numpy(), q.softmax(-1).numpy(), axis=1).tolist()
        flips += (p.argmax(-1) != q.argmax(-1)).tolist()
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-4, atol=1e-9)
    assert scores.flips.tolist() == flips
    assert scores.flips.any()


def test_a_model_does_not_diverge_from_itself(model: HookedModel, passages: list[Passage]) -> None:
    scores = score(model, model, passages)
    assert scores.kl.max() == 0
    assert not scores.flips.any()


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_divergence_is_torch_kl_div_and_never_negative(values: list[float], source: object) -> None:
    p = torch.tensor(values, dtype=torch.float64)
    q = p.flip(0)
    found = divergence(p, q)
    expected = torch.nn.functional.kl_div(q.log_softmax(0), p.log_softmax(0), log_target=True, reduction="sum")
    torch.testing.assert_close(found, expected.clamp_min(0), atol=1e-12, rtol=1e-9)
    assert divergence(p, p + 7.0) < 1e-12


def test_forbidden_tokens_cost_nothing_and_nan_is_not_hidden() -> None:
    masked = torch.tensor([0.0, 1.0, -torch.inf])
    assert divergence(masked, masked) == 0
    assert divergence(torch.tensor([0.0, torch.nan]), torch.tensor([0.0, 1.0])).isnan()


def test_nan_is_reported(tiny: Callable[[str], Path], model: HookedModel, passages: list[Passage]) -> None:
    broken = load(tiny("llama"))
    next(iter(broken.hf.parameters())).data.fill_(torch.nan)
    with pytest.raises(NotFinite):
        score(model, broken, passages)
    with pytest.raises(NotFinite):
        score(broken, model, passages)


@given(st.integers(2, 60), st.integers(3, 20), st.booleans())
def test_windows_cover_the_text_once(length: int, size: int, has_bos: bool) -> None:
    ids = list(range(100, 100 + length))
    parts = [list(passage.ids) for passage in windows(ids, size, 7 if has_bos else None)]
    assert all(len(part) <= size for part in parts)
    if has_bos:
        assert all(part.pop(0) == 7 for part in parts)
    covered = [token for part in parts for token in part]
    assert covered == ids[: len(covered)]
    assert length - len(covered) <= (0 if has_bos else 1)  # without a BOS a last token alone cannot be scored


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        windows([5], 10, None)
