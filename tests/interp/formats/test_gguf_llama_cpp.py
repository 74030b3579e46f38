"""Files as the converter writes them, run by llama.cpp: its logits say that names, permutations and settings are right.

`tests.gguf_files` transcribes the converter; that the reader undoes it means something only where llama.cpp computes
the model that was converted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from interp.architectures import ARCHITECTURES
from interp.checkpoint import open_checkpoint
from interp.experts import named_weights
from interp.pairs.configs import GGUF_KEYS, metadata_differences
from tests.gguf_files import write_gguf
from tests.tiny_models import CONFIGS, bare_model

llama_cpp = pytest.importorskip("llama_cpp")
F32 = gguf.GGMLQuantizationType.F32
WRITTEN_ALWAYS = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
"""What `write_gguf` writes by itself."""
OWN: dict[str, dict[str, Any]] = {
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "layer_types": None},
    "olmo3": {"num_hidden_layers": 4, "layer_types": [*["sliding_attention"] * 3, "full_attention"]},
    "phi3": {"sliding_window": None},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "olmoe": {"num_key_value_heads": 4},
    "mixtral": {"sliding_window": None},
    "qwen3_moe": {"mlp_only_layers": []},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.0,
            "original_max_position_embeddings": 96,
        }
    },
}
"""Settings that llama.cpp has built in, and that a config must have to be converted."""
METADATA: dict[str, dict[str, Any]] = {"olmo3": {"attention__sliding_window_pattern": [True, True, True, False]}}
"""What the converter writes further."""


def settings_of(config: Any, name: str) -> dict[str, Any]:
    """The metadata of a config, by the table that checks pairs."""
    stored = {key: value(config) for key, value in GGUF_KEYS.items() if key not in WRITTEN_ALWAYS}
    fields = {f"{name}__{key.replace('.', '__')}": value for key, value in stored.items() if value is not None}
    vocabulary = {f"{name}__vocab_size": config.vocab_size, "tokenizer__ggml__model": "no_vocab"}
    return fields | vocabulary


def logits_of_llama_cpp(file: Path, ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary], everything in float32."""
    model = llama_cpp.Llama(str(file), n_ctx=96, logits_all=True, verbose=False, type_k=0, type_v=0)
    try:
        model.eval(ids)
        return torch.tensor(np.array(model.scores[: len(ids)]))
    finally:
        model.close()


NAMES = (
    *("gemma", "granite", "llama", "ministral3", "olmo2", "olmo3", "phi3", "smollm3"),
    *("gpt_oss", "mixtral", "olmoe", "qwen3_moe"),
)


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_computes_the_model_that_the_reader_reads(name: str, tmp_path: Path) -> None:
    model = bare_model(name, **OWN.get(name, {}))
    row = ARCHITECTURES[name]
    more = {f"{row.gguf}__{key}": value for key, value in METADATA.get(name, {}).items()}
    state = {key: parameter.detach() for key, parameter in model.named_parameters()}
    file = write_gguf(
        tmp_path / "m.gguf", state, model.config, row.gguf, F32, **settings_of(model.config, row.gguf), **more
    )
    ids = torch.randint(3, 320, (64,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    found = logits_of_llama_cpp(file, ids.tolist())
    print(f"{name}: {float((found - expected).abs().max() / expected.abs().max()):.1e}")
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    checkpoint = open_checkpoint(file)
    for key, parameter in named_weights(model, row):
        torch.testing.assert_close(checkpoint.tensor(key), parameter, rtol=0, atol=1e-6)
    assert metadata_differences(model.config, checkpoint.metadata()) == []


def test_granites_multipliers_are_compared() -> None:
    config = CONFIGS["granite"]()
    for key in ("attention.scale", "embedding_scale", "residual_scale", "logit_scale"):
        assert len(metadata_differences(config, {key: 3.25})) == 1
        assert metadata_differences(config, {key: GGUF_KEYS[key](config)}) == []
