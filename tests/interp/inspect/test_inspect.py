"""What a checkpoint is said to be, against transformers, the files themselves and the format's own sizes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from typer.testing import CliRunner

from interp import open_checkpoint
from interp.errors import InputError
from interp.formats.shards import Shards
from interp.inspect import summarize, summarize_pair
from interp.inspect.__main__ import app
from interp.inspect.headers import READ_BY_TRANSFORMERS, summary_of_headers
from interp.inspect.wording import WIDTH, sized
from interp.quantize.gguf_f16 import write_f16
from tests.cells import q8_0
from tests.tiny_models import CONFIGS, write


def test_a_dense_model_is_what_transformers_loads(tiny: Callable[[str], Path]) -> None:
    for name in ("llama", "gpt2", "gemma3_text", "gpt_neox"):
        found = open_checkpoint(tiny(name)).summary()
        model = AutoModelForCausalLM.from_pretrained(tiny(name))
        assert found.parameters == model.num_parameters()
        assert found.memory == {"float32": 4 * found.parameters} | dict.fromkeys(
            ("float16", "bfloat16"), 2 * found.parameters
        )
        assert (found.vocabulary, found.width) == tuple(model.get_input_embeddings().weight.shape)
        assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
        assert (found.architecture, found.blocks) == (model.config.model_type, model.config.num_hidden_layers)
        assert found.context == model.config.max_position_embeddings
        assert (found.format, found.writer, found.quantization) == ("dense", None, {})
        assert "none: not quantized" in str(found)


def test_the_request_is_rendered_by_the_models_own_template(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny("llama"))
    turn = [{"role": "user", "content": "Tell me."}]
    expected = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    found = summarize(open_checkpoint(tiny("llama")), "Tell me.")
    assert (found.template, found.rendered) == (True, expected)
    assert f"{len(tokenizer)} tokens" in found.tokenizer
    plain = write("llama", tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    found = open_checkpoint(plain).summary("Tell me.")
    assert (found.template, found.rendered) == (False, "Tell me.")
    for file in plain.glob("tokenizer*"):
        file.unlink()
    found = open_checkpoint(plain).summary()
    assert found.tokenizer.startswith("cannot be used: ")
    assert found.rendered == ""


@pytest.mark.parametrize(
    ("cell", "form"),
    [("autoawq_gemm", "awq"), ("gptqmodel_v1", "gptq"), ("compressed_w4a16", "compressed-tensors")],
)
def test_quantized_linears_are_counted(fixtures: Path, cell: str, form: str) -> None:
    found = open_checkpoint(fixtures / cell).summary()
    packed = [name for name in Shards(fixtures / cell).headers if name.endswith((".qweight", ".weight_packed"))]
    assert (found.format, found.quantization["bits"]) == (form, 4)
    assert sum(kind["quantized"] for kind in found.linears.values()) == len(packed)
    assert sum(kind["number"] for kind in found.linears.values()) == len(open_checkpoint(fixtures / cell).linears())
    assert 4 < found.bits_per_weight < 5
    assert found.disk >= (fixtures / cell / "model.safetensors").stat().st_size
    assert not found.embedding_quantized


def test_a_gguf_speaks_of_itself(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    found = open_checkpoint(q8_0(tiny("llama"), tmp_path / "cell.gguf")).summary()
    assert found.format == "gguf"
    assert found.embedding_quantized
    assert set(found.linears) == {
        *(f"self_attn.{kind}_proj" for kind in "qkvo"),
        *(f"mlp.{kind}_proj" for kind in ("gate", "up", "down")),
    }
    assert found.linears["self_attn.q_proj"]["bits"] == 8.5  # 32 codes of 8 bits and a scale of 16
    assert found.tokenizer.startswith("cannot be used")  # this file has none
    assert found.disk == (tmp_path / "cell.gguf").stat().st_size


@pytest.mark.parametrize("name", CONFIGS)
def test_headers_say_what_the_opened_checkpoint_says(name: str, tiny: Callable[[str], Path]) -> None:
    opened = open_checkpoint(tiny(name)).summary()
    assert summary_of_headers(tiny(name)) in (opened, None)


def test_the_header_of_a_gguf_says_what_the_opened_file_says(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_f16(tiny("llama"), tmp_path / "cell.gguf")
    found = summary_of_headers(tmp_path / "cell.gguf")
    assert found == open_checkpoint(tmp_path / "cell.gguf").summary()
    assert found is not None
    assert "How are you?" in found.rendered


def test_a_gguf_that_transformers_does_not_read_is_opened_to_say_so(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    assert set(READ_BY_TRANSFORMERS) <= set(GGUF_SUPPORTED_ARCHITECTURES)
    write_f16(tiny("phi"), tmp_path / "cell.gguf")
    assert summary_of_headers(tmp_path / "cell.gguf") is None


def test_headers_are_enough_for_plain_checkpoints(tiny: Callable[[str], Path]) -> None:
    enough = {name for name in CONFIGS if summary_of_headers(tiny(name)) is not None}
    assert {"llama", "qwen2", "qwen3", "mistral"} <= enough


@pytest.mark.parametrize("damage", ["a linear", "a block's norm", "a size", "packed", "no config", "code"])
def test_what_is_not_plain_is_opened(damage: str, tiny: Callable[[str], Path], fixtures: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(fixtures / "autoawq_gemm" if damage == "packed" else tiny("llama"), path)
    lost = {"a linear": "model.layers.1.mlp.up_proj.weight", "a block's norm": "model.layers.2.input_layernorm.weight"}
    if damage in lost:
        tensors = load_file(path / "model.safetensors")
        del tensors[lost[damage]]
        save_file(tensors, path / "model.safetensors")
    changes = {"a size": {"hidden_size": 64}, "code": {"auto_map": {"AutoModel": "x.Y"}}}
    if damage in changes:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes[damage]))
    if damage == "no config":
        (path / "config.json").unlink()
    assert summary_of_headers(path) is None


def test_lines_are_short_and_nothing_is_lost(fixtures: Path) -> None:
    found = open_checkpoint(fixtures / "autoawq_gemm").summary()
    long = [line for line in str(found).splitlines() if len(line) > WIDTH]
    assert all(len(line.split()) <= 2 for line in long)  # paths stay whole
    assert str(fixtures / "autoawq_gemm") in str(found)


def test_sizes_have_the_unit_that_fits() -> None:
    assert [sized(n) for n in (512, 1_500, 98_400_000, 538_060_032, 15e9)] == [
        *("512 bytes", "1.5 kB", "98.4 MB", "538 MB", "15.0 GB")
    ]


def test_pairs_are_told_from_others(tiny: Callable[[str], Path], fixtures: Path, tmp_path: Path) -> None:
    baseline, cell = open_checkpoint(tiny("llama")), open_checkpoint(q8_0(tiny("llama"), tmp_path / "cell.gguf"))
    pair = summarize_pair(baseline, cell)
    assert (pair.is_pair, pair.reason, pair.swapped) == (True, "", False)
    assert "yes: the second is a quantization of the first" in str(pair)
    swapped = summarize_pair(cell, baseline)
    assert (swapped.is_pair, swapped.swapped) == (False, True)
    assert "the first is a quantization of the second" in " ".join(str(swapped).split())
    other = summarize_pair(baseline, open_checkpoint(fixtures / "autoawq_gemm"))
    assert (other.is_pair, other.swapped) == (False, False)
    assert "Not a quantization of this baseline" in other.reason
    assert other.reason.split()[0] in str(other)


def test_the_command_prints_text_or_json(fixtures: Path) -> None:
    baseline, cell = fixtures / "fp16", fixtures / "autoawq_gemm"
    text = CliRunner().invoke(app, [str(baseline), str(cell)])
    assert text.exit_code == 0
    assert text.stdout.count("checkpoint  ") == 2
    assert "a pair      yes" in text.stdout
    about = json.loads(CliRunner().invoke(app, [str(baseline), str(cell), "--json"]).stdout)
    assert [found["format"] for found in about["checkpoints"]] == ["dense", "awq"]
    assert about["pair"]["is_pair"] is True
    assert json.loads(CliRunner().invoke(app, [str(cell), "--json"]).stdout)["pair"] is None


def test_a_path_that_is_no_checkpoint_is_bad_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "interp.inspect", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_two_that_are_no_pair_end_with_an_error_that_says_why(
    tiny: Callable[[str], Path], fixtures: Path, tmp_path: Path, options: list[str]
) -> None:
    cell = q8_0(tiny("llama"), tmp_path / "cell.gguf")
    stranger = CliRunner().invoke(app, [str(tiny("llama")), str(fixtures / "autoawq_gemm"), *options])
    swapped = CliRunner().invoke(app, [str(cell), str(tiny("llama")), *options])
    for ended, words in ((stranger, "is no quantization of"), (swapped, "Exchange the two")):
        assert isinstance(ended.exception, InputError)  # exit code 2, see `interp.cli.run`
        assert words in str(ended.exception)
        assert "checkpoint" in ended.stdout
        assert "next:" not in ended.output
    assert "Not a quantization of this baseline" in " ".join(stranger.stdout.split())
