"""Exports beside what other programs say: the writers' own dequantization, transformers' loading, the source's bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from interp import Checkpoint, load, open_checkpoint
from interp.dequantize import write as module
from interp.dequantize.__main__ import app
from interp.errors import InputError, NotFinite
from interp.quantize.cells import read_record
from interp.quantize.gguf_f16 import write_f16
from tests import writer_models
from tests.cells import q8_0
from tests.interp.test_checkpoint import REFERENCES
from tests.tiny_models import DENSE, NO_GGUF

TEXTS = ["How are you?", "The river bends twice before it reaches the old mill."]


def logits(directory: Path, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """What transformers computes of a directory, without anything of ours."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits[0, -1] for text in TEXTS]


def equals(export: Path, source: Checkpoint, dtype: torch.dtype | None = None) -> bool:
    written = open_checkpoint(export)
    assert written.format == "dense"
    assert written.names() == source.names()
    expected = {name: source.tensor(name) for name in source.names()}
    return all(torch.equal(written.tensor(n).double(), t.to(dtype or t.dtype).double()) for n, t in expected.items())


@pytest.mark.parametrize("name", ["fp16", *sorted(REFERENCES)])
def test_every_format_is_exported_exactly_and_transformers_computes_the_same(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(fixtures / name)
    record = source.export(tmp_path / "dense")
    assert equals(tmp_path / "dense", source)
    assert record.details["rounded"] == 0
    if name in REFERENCES:
        written = open_checkpoint(tmp_path / "dense")
        for key, weight in load_file(fixtures / f"{REFERENCES[name]}.reference.safetensors").items():
            assert torch.equal(written.tensor(key).double(), weight.double())
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    ours = load(fixtures / name).logits(TEXTS)
    torch.testing.assert_close(torch.stack(logits(tmp_path / "dense")), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(DENSE) - {*NO_GGUF}))
def test_a_gguf_of_every_architecture_with_its_baselines_config(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    arch = open_checkpoint(tiny(name)).architecture.gguf
    file = q8_0(tiny(name), tmp_path / "model.gguf", arch)
    source = open_checkpoint(file)
    record = source.export(tmp_path / "dense", like=open_checkpoint(tiny(name)))
    assert equals(tmp_path / "dense", source)
    assert record.details["dtype"] == "float32"  # eight bits times a float16 scale fit neither narrow type
    ours = load(file, like=tiny(name)).logits(TEXTS)
    torch.testing.assert_close(torch.stack(logits(tmp_path / "dense")), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_a_gguf_alone_has_all_that_the_directory_needs(architecture: str, tmp_path: Path) -> None:
    directory = writer_models.write_checkpoint(architecture, tmp_path / "model")
    write_f16(directory, tmp_path / "F16.gguf")
    open_checkpoint(tmp_path / "F16.gguf").export(tmp_path / "dense")
    torch.testing.assert_close(logits(tmp_path / "dense"), logits(directory), rtol=1e-4, atol=1e-4)
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "dense", directory))
    assert ours.chat_template == theirs.chat_template
    for text in writer_models.CALIBRATION:
        assert ours(text).input_ids == theirs(text).input_ids


def test_exact_is_the_narrowest_type_that_holds_every_number(fixtures: Path, tmp_path: Path) -> None:
    chosen = {name: open_checkpoint(fixtures / name).export(tmp_path / name).details["dtype"] for name in REFERENCES}
    norms = open_checkpoint(fixtures / "gptqmodel_v1").tensor("model.norm.weight")
    assert norms.dtype is torch.bfloat16
    assert torch.equal(norms.half().float(), norms.float())  # so float16 holds these, too
    assert set(chosen.values()) == {"float16"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_type_that_is_asked_for(dtype: str, fixtures: Path, tmp_path: Path) -> None:
    source = open_checkpoint(fixtures / "autoawq_gemm")
    record = source.export(tmp_path / "dense", dtype)
    assert equals(tmp_path / "dense", source, getattr(torch, dtype))
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["dtype"] == dtype
    assert any("rounded to bfloat16" in note for note in record.notes) == (dtype == "bfloat16")
    assert record.details["largest_rounding"] <= 2**-8


def test_files_of_weights_are_no_larger_than_asked(fixtures: Path, tmp_path: Path) -> None:
    source = open_checkpoint(fixtures / "autoawq_gemm")
    source.export(tmp_path / "dense", shard_gb=270e-6)
    sizes = {
        file.name: sum(tensor.nbytes for tensor in load_file(file).values())
        for file in (tmp_path / "dense").glob("*.safetensors")
    }
    assert len(sizes) > 2
    assert max(sizes.values()) <= 270_000
    index = json.loads((tmp_path / "dense" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert equals(tmp_path / "dense", source)
    assert logits(tmp_path / "dense")[0].isfinite().all()


def test_an_unembedding_of_its_own_stays_its_own(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    tied = json.loads((tiny("qwen2") / "config.json").read_text())["tie_word_embeddings"]
    model = AutoModelForCausalLM.from_pretrained(tiny("qwen2"), dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].roll(1, 0).contiguous()
    source = tmp_path / "source"
    model.save_pretrained(source)
    AutoTokenizer.from_pretrained(tiny("qwen2")).save_pretrained(source)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    open_checkpoint(source).export(tmp_path / "dense")
    written = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert (tied, written["tie_word_embeddings"]) == (True, False)
    ours = load(source).logits(TEXTS)
    torch.testing.assert_close(torch.stack(logits(tmp_path / "dense")), ours, rtol=1e-4, atol=1e-4)


def test_the_record_says_what_the_weights_were(fixtures: Path, tmp_path: Path) -> None:
    source = open_checkpoint(fixtures / "gptqmodel_v1")
    source.export(tmp_path / "cell")
    record = read_record(tmp_path / "cell")
    assert record is not None
    assert record.details["source"]["sha256"] == source.fingerprint()
    assert "dequantized from gptq" in record.notes[0]
    assert not open_checkpoint(fixtures / "fp16").export(tmp_path / "dense").notes


def test_what_is_written_wrongly_is_noticed_and_not_kept(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def damaged(tensors: dict[str, torch.Tensor], file: Path, **more: Any) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].flip(0)
        save_file(tensors, file, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", damaged)
    with pytest.raises(InputError, match=r"model\.norm\.weight.* other numbers than were written"):
        open_checkpoint(fixtures / "autoawq_gemm").export(tmp_path / "dense")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_a_type_cannot_hold_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny("llama").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    state = load_file(source / "model.safetensors")
    state["model.norm.weight"][0] = 70000.0
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match=r"cannot hold \(the largest is 70000\)"):
        open_checkpoint(source).export(tmp_path / "dense", "float16")
    assert not (tmp_path / "dense").exists()


def test_bad_input_is_told_before_anything_is_written(fixtures: Path, tmp_path: Path) -> None:
    source = open_checkpoint(fixtures / "autoawq_gemm")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already, and nothing is replaced"):
        source.export(tmp_path / "there")
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="no type 'int8' to export to"):
        source.export(tmp_path / "dense", "int8")


def test_progress_counts_what_is_written_and_what_is_read_again(fixtures: Path, tmp_path: Path) -> None:
    source, seen = open_checkpoint(fixtures / "autoawq_gemm"), []
    source.export(tmp_path / "dense", report=lambda done, total: seen.append((done, total)))
    n = len(source.names())
    assert seen == [(step, 2 * n) for step in range(1, 2 * n + 1)]


def test_the_command(fixtures: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(fixtures / "autoawq_gemm"), str(tmp_path / "dense"), "--dtype", "float16"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'dense'}\n"
    assert "tensors in float16" in done.stderr
    assert "they are not the model from before quantization" in " ".join(done.stderr.split())
    assert equals(tmp_path / "dense", open_checkpoint(fixtures / "autoawq_gemm"))


def test_shards_are_cut_before_they_grow_too_large() -> None:
    sizes = {"a": 4, "b": 4, "c": 100, "d": 1}
    assert list(module._shards(sizes, 2, 16.0)) == [["a", "b"], ["c"], ["d"]]
