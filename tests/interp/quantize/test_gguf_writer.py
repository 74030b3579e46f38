"""The F16 file, judged by llama.cpp: its tokens and its logits have to be the Hugging Face model's."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.quantize.gguf_f16 import interleave_rotary, write_f16
from tests.writer_models import ARCHITECTURES, CALIBRATION, CHAT_TEMPLATE, write_checkpoint

llama_cpp = pytest.importorskip("llama_cpp")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    architecture: (architecture, {}) for architecture in ARCHITECTURES
} | {
    "llama with biases": ("llama", {"attention_bias": True}),
    "llama with narrow heads": ("llama", {"head_dim": 32}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2, untied": ("qwen2", {"tie_word_embeddings": False}),
    "mistral with a window as long as the context": ("mistral", {"sliding_window": 384}),
    "llama, no BOS, unused ids": ("llama", {"adds_bos": False, "vocab_size": 600}),
}
TEXTS = [
    *CALIBRATION[:6],
    "",
    " leading  double   spaces and trailing   ",
    "it's they're I'll WE'VE 1905 12345",
    "a\r\nb \n\n c\t\td",
    "図書館 Ünïcødé 🙂🙂 ½ ² Ⅷ \u00a0nbsp\u3000wide",
    "<|user|>hi<|end|><|assistant|>",
    "x=1;y+=2//z <not|special> <|user",
]


@pytest.fixture(scope="module", params=VARIANTS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its F16 file."""
    architecture, overrides = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp("gguf")
    source = write_checkpoint(architecture, directory / "source", **overrides)
    write_f16(source, directory / "f16.gguf")
    return source, directory / "f16.gguf"


@pytest.fixture(scope="module")
def runtime(written: tuple[Path, Path]) -> Iterator[Any]:
    model = llama_cpp.Llama(str(written[1]), n_ctx=256, logits_all=True, verbose=False)
    yield model
    model.close()


def test_llama_cpp_tokenizes_alike(written: tuple[Path, Path], runtime: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(written[0])

    @settings(max_examples=50, deadline=None)
    @given(st.text(st.characters(codec="ascii") | st.sampled_from("éßñ漢字🙂’—\u00a0½"), max_size=40))
    def check(text: str) -> None:
        text = unicodedata.normalize("NFC", text)  # llama.cpp leaves out Qwen2's normalization
        assert runtime.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"]

    for text in TEXTS:
        assert runtime.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"]
    check()


def test_llama_cpp_computes_the_same_logits(written: tuple[Path, Path], runtime: Any) -> None:
    ids = AutoTokenizer.from_pretrained(written[0])(" ".join(CALIBRATION[:4]))["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(written[0], dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    runtime.reset()
    runtime.eval(ids)
    found = torch.tensor(np.array(runtime.scores[: len(ids)]))
    assert len(ids) > 64
    # float16 products and cache against float32 make up to 0.007; any wrong hyperparameter makes more than 0.6.
    assert (found - expected).abs().max() < 0.02
    assert expected.std() > 0.5
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.98


def test_special_tokens_and_template(written: tuple[Path, Path], runtime: Any) -> None:
    assert runtime.token_bos() == 1
    assert runtime.token_eos() == 2
    assert runtime.metadata["tokenizer.ggml.padding_token_id"] == "0"
    assert runtime.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_weights_are_exact(written: tuple[Path, Path]) -> None:
    source, file = open_checkpoint(written[0]), open_checkpoint(written[1])
    assert set(file.names()) == set(source.names())
    for name in source.names():
        assert torch.equal(file.tensor(name, torch.float32), source.tensor(name, torch.float32)), name
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(written[1]).tensors}
    assert {kind for name, kind in types.items() if "norm" in name or name.endswith("bias")} == {"F32"}
    assert {kind for name, kind in types.items() if "norm" not in name and name.endswith("weight")} == {"F16"}


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3))
def test_interleaving_is_undone_by_its_inverse(n_heads: int, half: int, width: int) -> None:
    rows = torch.arange(n_heads * 2 * half * width).reshape(-1, width)
    stored = interleave_rotary(rows, n_heads)
    assert torch.equal(stored.reshape(n_heads, half, 2, width).swapaxes(1, 2).reshape(rows.shape), rows)


@pytest.mark.parametrize(
    ("architecture", "change", "said"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type"),
        ("mistral", {"sliding_window": 64}, "sliding_window"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, architecture: str, change: dict[str, Any], said: str
) -> None:
    source = write_checkpoint(architecture, tmp_path / "source", **change)
    with pytest.raises(InputError, match=said):
        write_f16(source, tmp_path / "f16.gguf")
    assert not (tmp_path / "f16.gguf").exists()


def test_unknown_architectures_are_refused(fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantized already"):
        write_f16(fixtures / "gptqmodel_v1", tmp_path / "f16.gguf")


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint("llama", tmp_path / "source")
    file = source / "tokenizer.json"
    description = json.loads(file.read_text())
    description["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(description))
    with pytest.raises(InputError, match="GPT-2 or Qwen2"):
        write_f16(source, tmp_path / "f16.gguf")


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint("llama", tmp_path / "source")
    file = source / "model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj"):
        write_f16(source, tmp_path / "f16.gguf")
