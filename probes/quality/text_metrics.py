"""How close an output is to a reference: ROUGE-L, BERTScore and coherence, with any encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batching import PAD
from interp.model import HookedModel
from interp.tokenizer_files import refused

ENCODED_AT_ONCE = 16
MANY_TOKENS = 8192
"""Where a text is cut for an encoder that names no longest text."""


@dataclass(frozen=True)
class Encoder:
    """Turns texts into contextual token vectors.

    Attributes:
        name: what it is, for every number that it yields.
        encode: texts → for each [token, width], special tokens left out; a text without tokens has no rows.
    """

    name: str
    encode: Callable[[Sequence[str]], list[Tensor]]


def rouge_l(outputs: Sequence[str], references: Sequence[str]) -> Float[Tensor, " text"]:
    """ROUGE-L F1 of each output with its reference (Lin 2004; the package rouge-score, with stemming)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, outputs, strict=True)
    return torch.tensor([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs], dtype=torch.float64)


def bertscore_f1(output: Float[Tensor, "output width"], reference: Float[Tensor, "reference width"]) -> float:
    """BERTScore-F1 of two texts from their token vectors (Zhang et al. 2020, arXiv:1904.09675; no idf, no rescaling).

    Precision: mean over the output's tokens of the largest cosine with a token of the reference; recall: the other way
    round; F1: their harmonic mean. NaN where one of the two has no tokens.
    """
    if not len(output) or not len(reference):
        return nan
    cosines = _unit(output) @ _unit(reference).T
    precision, recall = cosines.max(1).values.mean(), cosines.max(0).values.mean()
    return float(2 * precision * recall / (precision + recall))


def coherence(output: Float[Tensor, "output width"], reference: Float[Tensor, "reference width"]) -> float:
    """Cosine of the mean token vectors of two texts; NaN where one of the two has no tokens."""
    if not len(output) or not len(reference):
        return nan
    return float(torch.cosine_similarity(output.double().mean(0), reference.double().mean(0), dim=0))


def _unit(vectors: Float[Tensor, "token width"]) -> Float[Tensor, "token width"]:
    return torch.nn.functional.normalize(vectors.double(), dim=-1)


def model_encoder(model: HookedModel) -> Encoder:
    """The last hidden states of the baseline: no encoder is needed, but a decoder's cosines are all high."""

    def encode(texts: Sequence[str]) -> list[Tensor]:
        # One BOS in front, as the model is used to; its own vector is left out.
        bos = model.tokenizer.bos_token_id
        first = [] if bos is None else [bos]
        encoded = [[*first, *model.tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
        return [_hidden(model, ids)[len(first) :] for ids in encoded]

    name = f"hidden states of the baseline {getattr(model.checkpoint, 'path', 'in memory')}"
    return Encoder(name, encode)


def load_encoder(path: str, device: str | None = None) -> Encoder:
    """A transformers encoder from a directory or a hub id; token vectors are its last hidden states.

    Raises:
        InputError: not an encoder that transformers can open.
    """
    from transformers import AutoModel, AutoTokenizer

    with refused(
        f"The encoder {path} cannot be opened",
        "a directory or hub id of a transformers encoder that runs no code of its own",
        "Give another encoder, or leave it out to take the baseline's hidden states",
    ):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        hf = AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    hf = hf.eval().to(device or "cpu")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= hf.get_input_embeddings().num_embeddings:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    longest = min(tokenizer.model_max_length, getattr(hf.config, "max_position_embeddings", MANY_TOKENS))

    def encode(texts: Sequence[str]) -> list[Tensor]:
        vectors: list[Tensor] = []
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            batch = tokenizer(
                list(texts[start : start + ENCODED_AT_ONCE]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            keep = (batch.pop("special_tokens_mask") == 0) & (batch["attention_mask"] == 1)
            with torch.no_grad():
                hidden = hf(**batch.to(hf.device)).last_hidden_state.float().cpu()
            vectors += [row[mask] for row, mask in zip(hidden, keep, strict=True)]
        return vectors

    return Encoder(path, encode)


def _hidden(model: HookedModel, ids: Sequence[int]) -> Float[Tensor, "token width"]:
    if not ids:
        return torch.empty(0, model.config.hidden_size)
    with torch.no_grad():
        output = model.hf.base_model(torch.tensor([list(ids)], device=model.hf.device), use_cache=False)
    return output.last_hidden_state[0].float().cpu()
