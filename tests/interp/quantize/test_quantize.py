"""Cells written by GPTQModel and llama.cpp, judged by those programs' own dequantization."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from interp.architectures import architecture
from interp.checkpoint import open_checkpoint
from interp.child import Child, JobReport
from interp.errors import InputError, MissingExtra
from interp.files import sha256
from interp.quantize import __main__ as quantize_command
from interp.quantize import calibration, write
from interp.quantize.cells import CellRecord, Job, content_hash, read_record
from interp.quantize.gptqmodel_jobs import gptqmodel_job, group_size_for, unsound_folds
from interp.quantize.gptqmodel_worker import ENVIRONMENT
from interp.quantize.settings import LADDER, OF_BITS
from probes.harness.prompts import BUILTIN, builtin
from probes.labels.refused import refuses
from tests.writer_models import CALIBRATION, write_checkpoint

for extra in ("gptqmodel", "llama_cpp"):
    if importlib.util.find_spec(extra) is None:
        pytest.skip(f"{extra} is not installed", allow_module_level=True)

GGUF_LADDER = LADDER[2:]
PLAIN = {"group_size": 128}
GPTQ = PLAIN | {"act_order": False}
JOBS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama/AWQ": ("llama", "AWQ", PLAIN),
    "llama/GPTQ": ("llama", "GPTQ", GPTQ),
    "qwen2/AWQ": ("qwen2", "AWQ", {"group_size": 64}),
    "qwen2/GPTQ": ("qwen2", "GPTQ", {"group_size": 64, "act_order": True}),
    "phi/AWQ": ("phi", "AWQ", PLAIN),
    "phi/GPTQ": ("phi", "GPTQ", {"group_size": -1, "act_order": False}),
    "llama/GPTQ-3bit": ("llama", "GPTQ", GPTQ | {"group_size": 32, "bits": 3}),
    "again/AWQ": ("llama", "AWQ", PLAIN),
    "again/GPTQ": ("llama", "GPTQ", GPTQ),
}
ROUNDING = 0.13
"""Four bits in groups of 128 lose about a tenth of normally distributed weights."""
WRITTEN = [name for name in JOBS if not name.startswith("again")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sources")
    return {name: write_checkpoint(name, directory / name) for name in ("llama", "qwen2", "phi")}


@pytest.fixture(scope="module")
def cells(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GPTQModel's cells; it is imported once, in one child, which also keeps what GPTQModel dequantizes them to."""
    out = tmp_path_factory.mktemp("cells")
    before = set(os.listdir())
    eager = {"TORCHDYNAMO_DISABLE": "1"}  # GPTQModel would compile its dequantization, for half a minute
    with Child("tests.gptqmodel_oracle", ENVIRONMENT | eager) as process:
        for name, (source, cell, settings) in JOBS.items():
            gptqmodel_job(process, cell, open_checkpoint(sources[source]), out / name, CALIBRATION, settings).write()
    assert set(os.listdir()) == before  # GPTQModel would leave its logs in the working directory
    return {name: out / name for name in JOBS}


@pytest.fixture(scope="module")
def ladder(sources: dict[str, Path], cells: dict[str, Path]) -> dict[str, Path]:
    """All cells of the Llama through `write_cells`, which finds AWQ and GPTQ there already."""
    return write.write_cells(sources["llama"], cells["llama/AWQ"].parent, CALIBRATION)


def stored(cell: Path) -> dict[str, torch.Tensor]:
    with safe_open(cell / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", WRITTEN)
def test_dense_weights_are_gptqmodels_own(cells: dict[str, Path], name: str) -> None:
    reference = load_file(cells[name] / "reference.dequantized")
    checkpoint = open_checkpoint(cells[name])
    assert sorted(reference) == sorted(checkpoint.linears())
    for linear, expected in reference.items():
        assert torch.equal(checkpoint.weight(linear, torch.float16), expected.T), linear


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_not_quantized_is_float16(cells: dict[str, Path], name: str) -> None:
    assert {tensor.dtype for tensor in stored(cells[name]).values()} == {torch.float16, torch.int32}
    assert json.loads((cells[name] / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("name", WRITTEN)
def test_settings_reach_the_file(cells: dict[str, Path], name: str) -> None:
    _, cell, settings = JOBS[name]
    tensors = stored(cells[name])
    prefix = "model.layers.1.mlp.fc1" if name.startswith("phi") else "model.layers.1.mlp.up_proj"
    groups = 1 if settings["group_size"] == -1 else 256 // settings["group_size"]
    assert tensors[f"{prefix}.scales"].shape == (groups, {"phi": 256}.get(name, 256))
    if cell == "GPTQ":
        steps = tensors[f"{prefix}.g_idx"].diff()
        assert bool((steps < 0).any()) is settings["act_order"]


def test_bits_and_group_size_are_those_asked_for(cells: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(cells["llama/GPTQ-3bit"])
    assert (checkpoint.quantization["bits"], checkpoint.quantization["group_size"]) == (3, 32)
    weights = 5 * 256 * 256 + 2 * 128 * 256  # k and v have half as many outputs
    stored_bits = (
        3 + (16 + 3) / 32 + 7 * 32 * 256 / weights
    )  # codes, a scale and a zero point a group, an index an input
    assert checkpoint.bits_per_weight() == pytest.approx(stored_bits)


def wide(hidden: int, intermediate: int, tmp_path: Path) -> Path:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 1}
    return write_checkpoint("llama", tmp_path / f"{hidden}x{intermediate}", **sizes)


@pytest.mark.parametrize(
    ("hidden", "intermediate", "size"), [(256, 384, 128), (192, 512, 64), (256, 192, 64), (256, 352, 32)]
)
def test_the_group_size_is_the_largest_that_divides_all_inputs(
    hidden: int, intermediate: int, size: int, tmp_path: Path
) -> None:
    assert group_size_for(open_checkpoint(wide(hidden, intermediate, tmp_path))) == size


def test_what_cannot_be_written_is_said_before_anything_is(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = wide(256, 208, tmp_path)
    scaled = write_checkpoint("llama", tmp_path / "scaled", rope_parameters={"rope_type": "linear", "factor": 2.0})
    monkeypatch.setattr(Job, "write", lambda *_: pytest.fail("something was written"))
    out = tmp_path / "out"
    refused: list[tuple[str, Any]] = [
        ("208 inputs, which none of 128, 64, 32", lambda: write.write_cells(odd, out, CALIBRATION, ["AWQ", "GPTQ"])),
        ("AWQ of 3 bits.*GPTQ of 3 bits alone", lambda: write.write_cells(sources["llama"], out, CALIBRATION, bits=3)),
        ("GPTQ of 5 bits cannot", lambda: write.write_cells(sources["llama"], out, CALIBRATION, ["GPTQ"], bits=5)),
        ("rope_type", lambda: write.write_cells(scaled, out, CALIBRATION, ["AWQ", "Q4_K_M"])),
        ("is not a file", lambda: write.write_cells(odd, out, CALIBRATION, ["Q2_K"], f16=tmp_path / "no.gguf")),
    ]
    for said, attempt in refused:
        with pytest.raises(InputError, match=said):
            attempt()
    assert not out.exists()


def test_other_bits_and_groups_go_to_places_of_their_own(sources: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sources["llama"])
    assert write._called("GPTQ", checkpoint, None, 4) == write._called("GPTQ", checkpoint, 128, 4) == "GPTQ"
    assert write._called("GPTQ", checkpoint, 32, 3) == "GPTQ-3bit-g32"
    assert (OF_BITS["GPTQ-2bit"], OF_BITS["GPTQ-3bit"]) == (("GPTQ", 2), ("GPTQ", 3))  # as a study names them
    odd = open_checkpoint(wide(256, 208, tmp_path))  # no usual size divides 208, so that one has to be asked for
    assert write._called("GPTQ", odd, -1, 4) == "GPTQ-g-1"


def test_built_in_chats_are_in_the_models_template_and_ask_what_no_probe_asks(sources: dict[str, Path]) -> None:
    texts = calibration.calibration_of(sources["llama"])
    assert isinstance(texts, calibration.BuiltinChats)
    assert len(texts) == len(set(texts)) == 128
    assert texts[0].startswith("<|user|>Why does bread dough rise?<|end|><|assistant|>Yeast")
    assert texts[0].endswith("gives it more flavor.")
    assert all(text.startswith("<|user|>") and not text.endswith("<|end|>") for text in texts)
    asked = {request for name in BUILTIN for request in builtin(name).instructions}
    assert not [request for request in asked if any(request in text for text in texts)]
    assert not refuses([text.rpartition("<|assistant|>")[2] for text in texts]).any()


def test_records_name_the_built_in_chats(sources: dict[str, Path], tmp_path: Path) -> None:
    settings = {}
    for texts in (calibration.calibration_of(sources["llama"]), CALIBRATION):
        with Child("unused") as process:
            job = gptqmodel_job(process, "GPTQ", open_checkpoint(sources["llama"]), tmp_path / "x", texts, GPTQ)
        settings[len(texts)] = job.planned.settings
    assert settings[128]["calibration"] == "built-in chats"
    assert "calibration" not in settings[len(CALIBRATION)]


@pytest.mark.parametrize("cell", ["AWQ", "GPTQ"])
def test_writing_again_gives_the_same_bytes(cells: dict[str, Path], cell: str) -> None:
    first, second = cells[f"llama/{cell}"], cells[f"again/{cell}"]
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256(first / file) == sha256(second / file)


def folded(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], folds: Any) -> dict[str, torch.Tensor]:
    """The baseline in float64 after the scale moves that made its biases the cell's, and no rounding at all."""
    moved = {name: tensor.double() for name, tensor in before.items()}
    for block in ("model.layers.0", "model.layers.1"):
        for producer, consumers in folds:
            scale = before[f"{block}.{producer}.bias"].double() / after[f"{block}.{producer}.bias"].double()
            for part in ("weight", "bias"):
                name = f"{block}.{producer}.{part}"
                moved[name] = moved[name] / (scale[:, None] if moved[name].ndim == 2 else scale)
            for consumer in consumers:
                moved[f"{block}.{consumer}.weight"] = moved[f"{block}.{consumer}.weight"] * scale
    return moved


class Change:
    """Root mean square change of a model's logits, relative to their standard deviation, with other weights."""

    def __init__(self, source: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
        self.baseline = self._logits()

    def __call__(self, tensors: dict[str, torch.Tensor]) -> float:
        self.model.load_state_dict(tensors)
        return ((self._logits() - self.baseline).square().mean().sqrt() / self.baseline.std()).item()

    def _logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.arange(6, 70)[None]).logits


def test_phi_awq_is_damaged_by_its_writer_and_says_so(sources: dict[str, Path], cells: dict[str, Path]) -> None:
    """GPTQModel chains Phi's linears and moves scales along the chain, through q → k and through the GELU."""
    record = read_record(cells["phi/AWQ"])
    assert len(record.notes) == 1
    assert "mlp.fc1 → mlp.fc2" in record.notes[0]
    for name in WRITTEN:
        assert read_record(cells[name]).notes == record.notes[: name == "phi/AWQ"]
    before, after = load_file(sources["phi"] / "model.safetensors"), stored(cells["phi/AWQ"])
    folds = record.details["folds"]
    # The moves are what was done to the weights: what is left is the rounding.
    moved, checkpoint = folded(before, after, folds), open_checkpoint(cells["phi/AWQ"])
    for linear in checkpoint.linears():
        written, expected = checkpoint.weight(linear, torch.float64), moved[f"{linear}.weight"]
        assert (written - expected).norm() < ROUNDING * expected.norm(), linear
    change = Change(sources["phi"])
    sound = [fold for fold in folds if not unsound_folds([fold], architecture("phi"))]
    assert sound == [["self_attn.v_proj", ["self_attn.dense"]]]
    assert change(folded(before, after, sound)) < 1e-6
    for fold in folds:
        assert (change(folded(before, after, [fold])) > 1e-3) is (fold not in sound), fold
    assert change(moved) > 0.05


def test_sound_folds_are_told_from_unsound_ones() -> None:
    llama, phi = architecture("llama"), architecture("phi")
    attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    sound = [["input_layernorm", attention], ["mlp.up_proj", ["mlp.down_proj"]]]
    assert unsound_folds(sound, llama) == []
    assert unsound_folds([["input_layernorm", attention[:2]]], llama) != []
    assert unsound_folds([["mlp.gate_proj", ["mlp.down_proj"]]], llama) == ["mlp.gate_proj → mlp.down_proj"]
    sound = [["input_layernorm", [*attention, "mlp.fc1"]], ["self_attn.v_proj", ["self_attn.dense"]]]
    assert unsound_folds(sound, phi) == []


def test_ladder_loses_more_with_fewer_bits(sources: dict[str, Path], ladder: dict[str, Path]) -> None:
    assert list(ladder) == list(LADDER)
    weight = open_checkpoint(sources["llama"]).weight("model.layers.1.mlp.gate_proj").numpy()
    errors = []
    for kind in GGUF_LADDER:
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(ladder[kind]).tensors}
        stored_gate = tensors["blk.1.ffn_gate.weight"]
        errors.append(float(np.linalg.norm(gguf.dequantize(stored_gate.data, stored_gate.tensor_type) - weight)))
    assert errors == sorted(errors)
    assert errors[0] < 0.02 * np.linalg.norm(weight) < errors[-1]


def test_ladder_is_llama_cpps_own_mixture(ladder: dict[str, Path]) -> None:
    """https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp: "_M" keeps some tensors at 6 bits."""
    types = {kind: read_record(ladder[kind]).details["tensor_types"] for kind in GGUF_LADDER}
    assert set(types["Q8_0"]) == {"Q8_0"}
    assert set(types["Q6_K"]) == {"Q6_K"}
    assert set(types["Q5_K_M"]) == {"Q5_K", "Q6_K"}
    assert set(types["Q4_K_M"]) == {"Q4_K", "Q6_K"}
    assert set(types["Q3_K_S"]) == {"Q3_K", "Q6_K"}
    assert types["Q2_K"]["Q2_K"] > 0
    assert all(read_record(ladder[kind]).notes == [] for kind in GGUF_LADDER)


def test_rows_that_k_quants_cannot_take_are_noted(tmp_path: Path) -> None:
    source = write_checkpoint("llama", tmp_path / "source", hidden_size=192, intermediate_size=256)
    notes = {
        kind: read_record(write.gguf(write.gguf_f16(source, tmp_path / "F16"), tmp_path / kind, kind)).notes
        for kind in ("Q8_0", "Q4_K_M")
    }
    assert notes["Q8_0"] == []
    assert len(notes["Q4_K_M"]) == 1
    assert "rows of 192" in notes["Q4_K_M"][0]
    assert "Q5_0" in notes["Q4_K_M"][0]


def test_finished_cells_are_not_written_again(
    sources: dict[str, Path], ladder: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError("a writer was started")

    monkeypatch.setattr(Child, "run", never)
    out, seen = ladder["AWQ"].parent, []
    assert write.write_cells(sources["llama"], out, CALIBRATION, progress=lambda *s: seen.append(s)) == ladder
    assert seen == [(cell, 1.0) for cell in LADDER]
    assert write.awq(sources["llama"], out / "AWQ", CALIBRATION) == ladder["AWQ"]
    with pytest.raises(AssertionError, match="started"):
        write.gptq(sources["llama"], out / "GPTQ", CALIBRATION[:-1])
    with pytest.raises(AssertionError, match="started"):
        write.gptq(sources["llama"], out / "GPTQ", CALIBRATION, act_order=True)
    assert read_record(out / "GPTQ") is not None


def test_every_file_of_a_checkpoint_counts(sources: dict[str, Path], tmp_path: Path) -> None:
    seen = {content_hash(sources["llama"])}
    for file in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        copy = tmp_path / file
        copy.mkdir()
        for original in sources["llama"].iterdir():
            changed = b" " if original.name == file else b""
            (copy / original.name).write_bytes(original.read_bytes() + changed)
        seen.add(content_hash(copy))
    assert len(seen) == 5


@pytest.fixture
def stubborn() -> Iterator[Child]:
    with Child("tests.stubborn_writer") as process:
        yield process


def stubborn_job(process: Child, out: Path, ending: str) -> Job:
    def fill(weights: Path, log: Path, report: JobReport | None) -> Any:
        return process.run({"out": str(weights), "ending": ending}, log, report), []

    return Job(CellRecord("AWQ", "stubborn", {}, {}, ending), out, fill)


@pytest.mark.parametrize(
    ("ending", "said"), [("raise", "no calibration reached this layer"), ("die", "exit status -6")]
)
def test_a_failed_writer_leaves_what_was_there(tmp_path: Path, stubborn: Child, ending: str, said: str) -> None:
    out = tmp_path / "AWQ"
    with pytest.raises(InputError, match=said) as failure:
        stubborn_job(stubborn, out, ending).write()
    assert "AWQ.log" in str(failure.value)
    assert "half of it is written" in (tmp_path / "AWQ.log").read_text()
    assert os.listdir(tmp_path) == ["AWQ.log"]


def test_an_interrupted_writer_is_killed(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert (done, total) == (1, 2)
        raise KeyboardInterrupt

    with Child("tests.stubborn_writer") as process:
        job = stubborn_job(process, tmp_path / "AWQ", "return")
        child = json.loads((job.write() / "quantscope.json").read_text())["details"]
        written = sha256(tmp_path / "AWQ" / "quantscope.json")
        with pytest.raises(KeyboardInterrupt):
            stubborn_job(process, tmp_path / "AWQ", "hang").write(interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(child["pid"], 0)
    assert not Path(child["directory"]).exists()
    assert sha256(tmp_path / "AWQ" / "quantscope.json") == written
    assert sorted(os.listdir(tmp_path)) == ["AWQ", "AWQ.log"]


def test_a_directory_that_is_no_cell_is_not_replaced(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "F16").mkdir()
    (tmp_path / "F16" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="is not a cell"):
        write.gguf_f16(sources["llama"], tmp_path / "F16")
    assert (tmp_path / "F16" / "thesis.txt").read_text() == "irreplaceable"


def test_bad_input_is_refused_before_anything_starts(
    sources: dict[str, Path], cells: dict[str, Path], tmp_path: Path
) -> None:
    llama, out = sources["llama"], tmp_path / "out"
    refused: list[tuple[str, Any]] = [
        ("which 100 does not divide", lambda: write.awq(llama, out, CALIBRATION, group_size=100)),
        ("which 0 does not divide", lambda: write.gptq(llama, out, CALIBRATION, group_size=0)),
        ("got none", lambda: write.gptq(llama, out, [" "])),
        ("it is awq", lambda: write.gptq(cells["llama/AWQ"], out, CALIBRATION)),
        ("does not exist", lambda: write.awq(tmp_path / "nowhere", out, CALIBRATION)),
        ("no cell 'Q9'", lambda: write.write_cells(llama, out, CALIBRATION, ["Q9"])),
        ("no GGUF kind", lambda: write.gguf(llama / "config.json", out, "AWQ")),
        ("is not a file", lambda: write.gguf(tmp_path / "f16.gguf", out, "Q6_K")),
        ("converter", lambda: write.gguf_f16(llama, out, tmp_path / "convert.py")),
    ]
    for said, attempt in refused:
        with pytest.raises(InputError, match=said):
            attempt()
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_gguf_ends_in_one_paragraph(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Q6_K\.log"):
        write.gguf(sources["llama"] / "config.json", tmp_path / "Q6_K", "Q6_K")
    assert os.listdir(tmp_path) == ["Q6_K.log"]


@pytest.mark.parametrize(("module", "extra"), [("gptqmodel", "quantize"), ("llama_cpp", "gguf")])
def test_missing_extras_are_named(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    cell = "GPTQ" if module == "gptqmodel" else "Q6_K"
    with pytest.raises(MissingExtra, match=rf"quantscope\[{extra}\]"):
        write.write_cells(sources["llama"], tmp_path, CALIBRATION, [cell])


def test_llama_cpps_converter_is_run_by_path(sources: dict[str, Path], ladder: dict[str, Path], tmp_path: Path) -> None:
    """Stands in for convert_hf_to_gguf.py, which no package ships: the same command line."""
    converter = tmp_path / "convert_hf_to_gguf.py"
    f16 = ladder["AWQ"].parent / "F16" / "F16.gguf"
    converter.write_text(
        "import shutil, sys\n"
        "source, outtype, kind, outfile, target = sys.argv[1:]\n"
        "print('converting', source)\n"
        "assert (outtype, kind, outfile) == ('--outtype', 'f16', '--outfile')\n"
        f"shutil.copy({str(f16)!r}, target)\n"
    )
    assert sha256(write.gguf_f16(sources["phi"], tmp_path / "F16", converter)) == sha256(f16)
    assert "converting" in (tmp_path / "F16.log").read_text()
    converter.write_text("import sys; sys.exit('unknown architecture')\n")
    with pytest.raises(InputError, match=r"exit status 1.*F16\.log"):
        write.gguf_f16(sources["phi"], tmp_path / "F16", converter)
    assert (tmp_path / "F16" / "F16.gguf").is_file()


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "one\n\n two \n", ["one", " two "]),
        ("a.jsonl", '{"text": "one\\ntwo"}\n\n{"text": "x", "id": 3}\n', ["one\ntwo", "x"]),
        ("a.jsonl", '{"prompt": "one"}\n', None),
        ("a.jsonl", "plain\n", None),
        ("a.txt", "\n", None),
    ],
)
def test_calibration_files(tmp_path: Path, name: str, content: str, texts: list[str] | None) -> None:
    file = tmp_path / name
    file.write_text(content)
    if texts is None:
        with pytest.raises(InputError, match=r"calibration text|line 1, is not valid JSON"):
            calibration.read_calibration(file)
    else:
        assert calibration.read_calibration(file) == texts


def test_command_lists_the_cells(cells: dict[str, Path], ladder: dict[str, Path], sources: dict[str, Path]) -> None:
    out = str(ladder["AWQ"].parent)
    result = CliRunner().invoke(
        quantize_command.app, ["--baseline", str(sources["llama"]), "--out", out, "--cells", "Q4_K_M, Q8_0"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"{cell}\t{ladder[cell]}" for cell in ("Q4_K_M", "Q8_0")]


def test_the_measuring_process_never_imports_gptqmodel(
    sources: dict[str, Path], cells: dict[str, Path], tmp_path: Path
) -> None:
    """Looked at in a process of its own, since other tests import it to compare with."""
    program = f"""
import sys
from pathlib import Path
from interp import load
from interp.quantize import write_cells
write_cells(Path({str(sources["llama"])!r}), Path({str(tmp_path)!r}), {CALIBRATION!r}, cells=["GPTQ"])
load({str(cells["llama/AWQ"])!r})
print([name for name in sys.modules if name.startswith("gptqmodel")])
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == "[]"
