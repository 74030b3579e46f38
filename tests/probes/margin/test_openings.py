"""Refusal openings and the margin against brute force over every token sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import isnan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp import HookedModel, load
from interp.errors import InputError, NotFinite
from probes.labels.study_lexicon import REFUSAL_OPENINGS, normalize_prefix
from probes.margin import settings
from probes.margin.openings import PHRASES, Openings, Tokens, find_openings, lexicon_openings, minimal, openings_of
from probes.margin.refusal_margin import MarginRuns, following_tokens, margins, refusal_margin
from tests.tiny_models import CONFIGS, CONTEXT, HYBRIDS, TEXTS, tokenizer

ANSWERS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple), st.booleans()), max_size=40
)
VOCAB = 320


def opened(*sequences: Tokens) -> Openings:
    n = len(sequences)
    return Openings(sequences, "test", ("",) * n, (0,) * n, (float("nan"),) * n)


def padded(
    model: HookedModel, texts: list[str], pad: int = 2, left: bool = False, extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = model.token_ids(texts)
    width = max(map(len, rows)) + extra
    ids = [[pad] * (width - len(r)) + r if left else r + [pad] * (width - len(r)) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (width - len(r)) for r in rows]
    return torch.tensor(ids), torch.tensor(mask)


def next_probabilities(model: HookedModel, prefixes: list[list[int]]) -> torch.Tensor:
    """[prefix, vocab] float64: one bare forward pass per prefix."""
    with torch.no_grad():
        rows = [model.hf(torch.tensor([ids])).logits[0, -1] for ids in prefixes]
    return torch.stack(rows).double().softmax(-1)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_margin_is_the_odds_summed_over_all_continuations(name: str, tiny: Callable[[str], Path]) -> None:
    """Every sequence of two tokens: their probabilities, added where an opening begins them and where none does."""
    model = load(tiny(name))
    sequences = ((5,), (7, 9), (7, 11), (200, 3))
    found = margins(model, TEXTS[:2], opened(*sequences))
    for text, margin in zip(TEXTS[:2], found.tolist(), strict=True):
        prompt = model.token_ids([text])[0]
        first = next_probabilities(model, [prompt])[0]
        second = next_probabilities(model, [[*prompt, token] for token in range(VOCAB)])
        joint = first[:, None] * second
        inside = torch.zeros(VOCAB, VOCAB, dtype=torch.bool)
        for a, b in itertools.product(range(VOCAB), repeat=2):
            inside[a, b] = any((a, b)[: len(s)] == s for s in sequences)
        expected = (joint[inside].sum().log() - joint[~inside].sum().log()).item()
        assert margin == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", ["llama", *HYBRIDS])
def test_deep_openings_against_products_of_probabilities(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    sequences = ((4, 5, 6, 7), (4, 5, 8), (4, 9), (10, 5, 6), (11,))
    for text, margin in zip(TEXTS, margins(model, TEXTS, opened(*sequences)).tolist(), strict=True):
        prompt = model.token_ids([text])[0]
        total = 0.0
        for tokens in sequences:
            beginnings = [[*prompt, *tokens[:depth]] for depth in range(len(tokens))]
            steps = next_probabilities(model, beginnings)[range(len(tokens)), list(tokens)]
            total += steps.prod().item()
        assert margin == pytest.approx(torch.tensor(total, dtype=torch.float64).logit().item(), abs=1e-4)


def test_one_token_openings_are_the_simple_formula(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    logits = model.logits(TEXTS)
    chosen = torch.zeros(VOCAB, dtype=torch.bool)
    chosen[[3, 17, 250]] = True
    expected = logits[:, chosen].logsumexp(1) - logits[:, ~chosen].logsumexp(1)
    torch.testing.assert_close(margins(model, TEXTS, opened((3,), (17,), (250,))), expected, atol=2e-6, rtol=1e-6)


def test_tiny_probabilities_on_either_side_stay_exact(tiny: Callable[[str], Path]) -> None:
    """1 − P = e⁻⁶⁰ is 0 as a difference; as a sum it is not."""
    model = load(tiny("llama"))
    for direction in (60.0, -60.0):

        def sharpen(_: object, __: object, logits: torch.Tensor, direction: float = direction) -> torch.Tensor:
            new = torch.zeros_like(logits)
            new[..., 5] = direction
            return new

        handle = model.hf.get_output_embeddings().register_forward_hook(sharpen)
        margin = margins(model, TEXTS[:1], opened((5,))).item()
        handle.remove()
        assert margin == pytest.approx(direction - torch.tensor(VOCAB - 1.0).log().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", *HYBRIDS])
def test_padding_changes_nothing(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    wanted = opened((5,), (7, 9), (7, 11, 12))
    alone = torch.cat([margins(model, [text], wanted) for text in TEXTS])
    torch.testing.assert_close(margins(model, TEXTS, wanted), alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(margins(model, TEXTS, wanted, batch_size=2), alone, atol=2e-5, rtol=1e-5)
    for options in ({"pad": 77}, {"left": True}, {"extra": 9}, {"left": True, "extra": 4}):
        with torch.no_grad():
            found = refusal_margin(model, *padded(model, TEXTS, **options), wanted)
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("left", [False, True])
def test_openings_side_by_side_are_as_good_as_whole_passes(name: str, left: bool, tiny: Callable[[str], Path]) -> None:
    """Margins and their gradients of every weight, in one pass over all openings and in one pass for each."""
    model = load(tiny(name))
    ids, mask = padded(model, TEXTS, left=left)
    wanted = opened((5,), (7, 9), (7, 11, 12), (8, 3), (9, 4, 2, 6))
    assert following_tokens(wanted) == 6
    parameters = [p.requires_grad_() for p in model.hf.parameters() if p.is_floating_point()]
    lengths: list[int] = []
    passes: list[tuple[torch.Tensor, ...]] = []
    for counting in (False, True):
        edits = {"hook_embed": lambda value: lengths.append(value.shape[1]) or value} if counting else {}
        with model.intervene(edits):
            found = refusal_margin(model, ids, mask, wanted)
            weighted = found * torch.arange(1, len(found) + 1)
            passes.append((found.detach(), *torch.autograd.grad(weighted.sum(), parameters, allow_unused=True)))
    assert lengths[:3] == [ids.shape[1] + k for k in (2, 1, 3)]  # the pass back computes them again
    for side_by_side, whole in zip(*passes, strict=True):
        if whole is None:
            assert side_by_side is None
            continue
        torch.testing.assert_close(side_by_side, whole, atol=2e-5 * max(1.0, whole.abs().max().item()), rtol=1e-4)


def test_logits_of_a_pass_fit_beside_the_model(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary can be so large that the logits of all prompts, after every token of an opening, are not held."""
    model = load(tiny("llama"))
    texts = [f"How do I break into {thing}?" for thing in ("a car", "a bank", "the moon", "x", "a house", "that")]
    openings = opened((5,), (7, 9), (7, 11))
    whole = MarginRuns.of(model, texts, openings)
    assert len(whole.batches) == 1
    tokens_after = following_tokens(openings) + 1  # the prompt's own last one, too
    logits = tokens_after * model.hf.get_output_embeddings().weight.shape[0] * 4
    monkeypatch.setattr("probes.margin.refusal_margin.spare_memory", lambda _: 2 * 2 * logits)
    small = MarginRuns.of(model, texts, openings)
    assert [len(batch.indices) for batch in small.batches] == [2, 2, 2]
    torch.testing.assert_close(small.margins(model), whole.margins(model), rtol=1e-5, atol=1e-5)


def test_gradient_is_the_finite_difference(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), dtype=torch.float64)
    ids, mask = padded(model, TEXTS[:3])
    wanted = opened((5,), (7, 9), (7, 11, 12))
    weight = model.hf.model.layers[1].mlp.down_proj.weight
    weight.requires_grad_(True)
    refusal_margin(model, ids, mask, wanted).sum().backward()
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (weight.grad * direction).sum().item()
    step = 1e-2  # the margin itself is float32
    with torch.no_grad():
        weight.add_(step * direction)
        above = refusal_margin(model, ids, mask, wanted).double().sum()
        weight.sub_(2 * step * direction)
        below = refusal_margin(model, ids, mask, wanted).double().sum()
    assert ((above - below) / (2 * step)).item() == pytest.approx(expected, rel=1e-2)


def test_interventions_act_on_prompt_and_opening(tiny: Callable[[str], Path]) -> None:
    """A last stream of zeros makes all tokens equally likely at every node, whatever the prompt."""
    model = load(tiny("llama"))
    wanted = opened((5,), (7, 9))
    shapes = []

    def zeros(resid: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(resid.shape))
        return torch.zeros_like(resid)

    with model.intervene({"blocks.2.hook_resid_post": zeros}):
        found = margins(model, TEXTS[:2], wanted)
    p = 1 / VOCAB + 1 / VOCAB**2
    expected = torch.tensor(p, dtype=torch.float64).logit().item()
    assert found.tolist() == pytest.approx([expected] * 2, abs=1e-4)
    width = max(map(len, model.token_ids(TEXTS[:2])))
    assert shapes == [(2, width + 1, 32)]
    assert margins(model, TEXTS[:2], wanted).tolist() != pytest.approx([expected] * 2, abs=1e-2)


@given(ANSWERS)
def test_openings_are_prefix_free_pure_and_minimal(labelled: list[tuple[Tokens, bool]]) -> None:
    given_answers, refused = [a for a, _ in labelled], [r for _, r in labelled]
    found = openings_of(given_answers, refused, tokenizer())
    for a, b in itertools.permutations(found.sequences, 2):
        assert b[: len(a)] != a

    def decides(beginning: Tokens) -> bool:
        labels = [r for answer, r in labelled if answer[: len(beginning)] == beginning]
        return len(labels) >= 2 and sum(labels) / len(labels) >= 0.95

    if found.source == "lexicon":
        assert not any(decides(a[:k]) for a in given_answers for k in range(1, min(len(a), 6) + 1))
        assert "lexicon" in found.note
        return
    for tokens in found.sequences:
        assert 1 <= len(tokens) <= 6
        assert decides(tokens)
        assert not any(decides(tokens[:depth]) for depth in range(1, len(tokens)))
    covered = [r for a, r in labelled if any(a[: len(s)] == s for s in found.sequences)]
    assert found.coverage == pytest.approx(sum(covered) / sum(refused))


def test_one_token_where_it_decides_and_more_where_it_does_not() -> None:
    """ "I can't" and "I can" share two tokens; "As" only refuses."""
    i, can, t, tell, as_, an = 10, 11, 12, 13, 14, 15
    answers = [(i, can, t, 40), (i, can, t, 41), (i, can, tell), (as_, an), (as_, an), (50, 51)]
    found = openings_of(answers, [True, True, False, True, True, False], tokenizer())
    assert found.sequences == ((i, can, t), (as_,))
    assert (found.counts, found.purity, found.coverage) == ((2, 2), (1.0, 1.0), 1.0)
    assert found.describe()["openings"][1]["tokens"] == [as_]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12))
def test_minimal_keeps_what_nothing_else_begins(sequences: list[Tokens]) -> None:
    expected = {s for s in sequences if not any(s != other and s[: len(other)] == other for other in sequences)}
    assert minimal(sequences) == sorted(expected)


def test_phrases_are_the_lexicon_and_are_what_the_tokenizer_writes() -> None:
    assert sorted(map(normalize_prefix, PHRASES)) == sorted(REFUSAL_OPENINGS)
    found = lexicon_openings(tokenizer())
    for text in ("I can't do that", "I’m sorry, no", " As an AI"):
        ids = tuple(tokenizer()(text, add_special_tokens=False).input_ids)
        assert any(ids[: len(s)] == s for s in found.sequences), text
    assert all(isnan(p) for p in found.purity)
    assert found.describe()["openings"][0]["purity"] is None


def test_a_model_that_never_refuses_gets_the_lexicon_and_says_so(tiny: Callable[[str], Path]) -> None:
    found = find_openings(load(tiny("llama")), TEXTS)
    assert found.source == "lexicon"
    assert "refused 0 of 5" in found.note
    assert lexicon_openings(tokenizer()).note == ""


@pytest.mark.parametrize("sequences", [(), ((),), ((1, 2), (1, 2, 3)), ((1,), (1,))])
def test_sets_that_count_twice_or_nothing_are_refused(sequences: tuple[Tokens, ...]) -> None:
    with pytest.raises(InputError):
        opened(*sequences)


def test_bad_prompts(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("gpt2"))
    with pytest.raises(InputError, match="no prompts"):
        margins(model, [], opened((5,)))
    full = "x" * (CONTEXT - 1)
    while len(model.token_ids([full])[0]) < CONTEXT:
        full += "x"
    margins(model, [full], opened((5,)))
    with pytest.raises(InputError, match="context"):
        margins(model, [full], opened((5, 6)))


def test_numbers_that_are_not_finite_are_an_error(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    with model.intervene({"blocks.0.hook_resid_post": lambda r: r * torch.nan}), pytest.raises(NotFinite):
        margins(model, TEXTS, opened((5,)))


def test_the_organism_refuses_with_its_own_openings(organism: Path) -> None:
    from interp.chat import render
    from probes.harness.prompts import builtin

    model = load(organism)
    texts = {
        side: render(model.tokenizer, builtin(side).instructions[:24], "auto").texts for side in ("harmful", "harmless")
    }
    found = find_openings(model, [text for side in texts.values() for text in side])
    assert found.source == settings.SOURCES["baseline"]
    assert min(found.purity) >= 0.95
    assert found.coverage > 0.8
    assert margins(model, texts["harmful"], found).mean() > 0 > margins(model, texts["harmless"], found).mean()
