"""Architectures without a row: inferred from names, refused where the numbers disagree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from interp import architectures, load, open_checkpoint
from interp.errors import InputError
from interp.formats import huggingface
from interp.inferred import infer
from probes.harness.comparison import alone, compare
from tests.cells import HARMFUL, HARMLESS
from tests.tiny_models import CONFIGS, TEXTS, tokenizer

Tiny = Callable[[str], Path]
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def written(config: Any, directory: Path) -> Path:
    """A random model of a config, float32, with its tokenizer."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def without_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that has none for what it usually has."""
    monkeypatch.setattr(architectures, "ARCHITECTURES", {})
    monkeypatch.setattr(huggingface, "ARCHITECTURES", {})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("config", [transformers.SeedOssConfig, transformers.HeliumConfig])
def test_a_model_of_common_names_that_no_row_is_there_for(config: Any, stream: bool, tmp_path: Path) -> None:
    path = written(config(**SIZES), tmp_path)
    model = load(path, stream=stream)
    assert model.architecture.inferred
    (warning,) = model.checkpoint.warnings
    assert f"the architecture '{config.model_type}' has no row in the table" in warning
    bare = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([model.token_ids(TEXTS)[0]])
    with torch.no_grad():
        theirs = bare(ids, output_hidden_states=True)
    acts = model.activations(TEXTS[:1], ["blocks.1.hook_resid_pre", "hook_embed", "ln_final.hook_normalized"])
    for name, state in zip(acts, (1, 0, 2), strict=True):
        torch.testing.assert_close(acts[name][0], theirs.hidden_states[state][0, -1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.logits(TEXTS[:1])[0], theirs.logits[0, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("without_rows")
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "smollm3", "gemma"])
def test_what_is_inferred_is_what_the_table_says(name: str) -> None:
    row = infer(CONFIGS[name]())
    assert row is not None
    known = architectures.Architecture(name, name)
    for part in ("blocks", "embed", "final_norm", "attention_in", "attention_out", "mlp_in", "mlp_out", "mid"):
        assert getattr(row, part) == getattr(known, part)
    assert (row.scaled_by_norm, row.scaled_by_linear) == ((), ())


@pytest.mark.usefixtures("without_rows")
@pytest.mark.parametrize(
    "name", ["gemma2", "gemma3_text", "olmo2", "phi", "phi3", "gpt2", "gpt_neox", "mixtral", "gpt_oss"]
)
def test_other_names_and_other_norms_are_not_taken_for_common_ones(name: str) -> None:
    assert infer(CONFIGS[name]()) is None


@pytest.mark.usefixtures("without_rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_common_names_whose_numbers_disagree_are_refused(dtype: torch.dtype, tiny: Tiny) -> None:
    """Granite's modules have the common names; what they give is multiplied before it is added."""
    assert open_checkpoint(tiny("granite")).architecture.inferred
    with pytest.raises(InputError, match=r"in block 0 what is added differs from what attention or MLP gives by 78%"):
        load(tiny("granite"), dtype=dtype)
    assert load(tiny("llama"), dtype=dtype).architecture.inferred


@pytest.mark.parametrize("model_type", ["bloom", "bert", "t5", "nothing"])
def test_what_cannot_be_inferred_is_refused_by_name(model_type: str, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}", "num_hidden_layers": 2}}')
    with pytest.raises(InputError, match=f"The architecture '{model_type}' is not supported"):
        open_checkpoint(tmp_path)


def test_what_is_measured_of_it_says_so(tmp_path: Path) -> None:
    """Of a model by itself, and of a cell of it."""
    path = written(transformers.SeedOssConfig(**SIZES), tmp_path)
    model = load(path)
    for comparison in (alone(model, HARMFUL, HARMLESS), compare(model, {"cell": load(path)}, HARMFUL, HARMLESS)):
        assert [w.partition(":")[0] for w in comparison.warnings if "has no row in the table" in w] != []
