from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizer

from interp import load
from interp.errors import InputError
from probes.quality.text_metrics import bertscore_f1, coherence, load_encoder, model_encoder, rouge_l

VECTORS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def random_vectors(generator: np.random.Generator, width: int = 5) -> torch.Tensor:
    return torch.from_numpy(generator.normal(size=(generator.integers(1, 9), width)))


def slow_f1(output: torch.Tensor, reference: torch.Tensor) -> float:
    """BERTScore's formulas, spelled out."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    precision = sum(max(cosine(a, b) for b in reference.tolist()) for a in output.tolist()) / len(output)
    recall = sum(max(cosine(a, b) for a in output.tolist()) for b in reference.tolist()) / len(reference)
    return 2 * precision * recall / (precision + recall)


@given(VECTORS)
def test_bertscore_is_its_definition(generator: np.random.Generator) -> None:
    output, reference = random_vectors(generator), random_vectors(generator)
    assert bertscore_f1(output, reference) == pytest.approx(slow_f1(output, reference), rel=1e-9)
    assert bertscore_f1(output, reference) == pytest.approx(bertscore_f1(reference, output))
    assert bertscore_f1(output, output * 3) == pytest.approx(1)


def test_bertscore_is_the_packages() -> None:
    utils = pytest.importorskip("bert_score.utils")
    generator = np.random.default_rng(0)
    for _ in range(20):
        output, reference = (torch.from_numpy(generator.normal(size=(generator.integers(3, 9), 5))) for _ in range(2))

        def given(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """Vectors, mask and weights; the package changes them in place."""
            return vectors[None].clone(), torch.ones(1, len(vectors)), torch.ones(1, len(vectors))

        _, _, expected = utils.greedy_cos_idf(*given(reference), *given(output))
        assert bertscore_f1(output, reference) == pytest.approx(float(expected), rel=1e-6)


def test_coherence_is_the_cosine_of_means() -> None:
    assert coherence(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0]])) == pytest.approx(1)
    assert coherence(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])) == pytest.approx(math.sqrt(0.5))


def test_an_empty_text_has_no_score() -> None:
    empty = torch.empty(0, 4)
    for pair in ((empty, torch.ones(2, 4)), (torch.ones(2, 4), empty), (empty, empty)):
        assert math.isnan(bertscore_f1(*pair))
        assert math.isnan(coherence(*pair))


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "the cat mat": 3 of 4 and 3 of 6 words
    found = rouge_l(["the cat the mat", "", "no overlap"], ["the cat sat on the mat", "the cat", "at all"])
    precision, recall = 4 / 4, 4 / 6  # "the cat the mat" is a subsequence of the reference
    assert found.tolist() == pytest.approx([2 * precision * recall / (precision + recall), 0, 0])


def test_the_models_own_hidden_states(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    encoder = model_encoder(model)
    assert "hidden states of the baseline" in encoder.name
    hello, empty = encoder.encode(["Hello there", ""])
    ids = model.tokenizer("Hello there", add_special_tokens=False).input_ids
    expected = model.hf.base_model(torch.tensor([[model.tokenizer.bos_token_id, *ids]])).last_hidden_state[0, 1:]
    torch.testing.assert_close(hello, expected.detach())
    assert len(empty) == 0


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_an_encoder_from_a_path_leaves_special_tokens_out_and_does_not_mind_batches(bert: Path) -> None:
    encoder = load_encoder(str(bert))
    texts = ["the cat sat", "the mat", "", "cat"]
    together = encoder.encode(texts)
    assert [len(vectors) for vectors in together] == [3, 2, 0, 1]
    for text, vectors in zip(texts, together, strict=True):
        torch.testing.assert_close(encoder.encode([text])[0], vectors, atol=1e-6, rtol=1e-5)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        load_encoder(str(tmp_path))
