"""The recipes of docs/extending.md, carried out with the page's own code."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from interp import load, open_checkpoint
from interp.formats.huggingface import PACKED_FORMATS
from probes.harness.results import read_result
from probes.judges.template import PLACEHOLDERS, parse_verdict
from probes.labels.label import Label
from probes.study import step as study_step
from tests.cells import HARMFUL, HARMLESS, q8_0

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FORMAT, PROBE, COMMAND = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


def run(code: str, module: ModuleType) -> ModuleType:
    exec(compile(code, "docs/extending.md", "exec", flags=0, dont_inherit=True), vars(module))
    return module


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's probe as `probes.lengths`, with its command."""
    module = ModuleType("probes.lengths")
    monkeypatch.setitem(sys.modules, "probes.lengths", module)
    return run(COMMAND, run(PROBE, module))


def test_a_format(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = run(FORMAT, ModuleType("int8_rows")).INT8_ROWS
    monkeypatch.setitem(PACKED_FORMATS, new.name, (new,))
    source = open_checkpoint(tiny("llama"))
    tensors = load_file(source.path / "model.safetensors")
    expected = {}
    for name in source.linears():
        weight = tensors.pop(f"{name}.weight").float()
        scales = (weight.abs().amax(1) / 127).half()
        codes = (weight / scales[:, None]).round().clamp(-128, 127).to(torch.int8)
        tensors |= {f"{name}.codes": codes, f"{name}.row_scales": scales}
        expected[name] = codes.half() * scales[:, None]
    shutil.copytree(source.path, tmp_path / "cell")
    save_file(tensors, tmp_path / "cell" / "model.safetensors", {"format": "pt"})
    config = tmp_path / "cell" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": new.name}}))
    cell = open_checkpoint(tmp_path / "cell")
    assert (cell.format, cell.quantization["bits"]) == ("int8-rows", 8)
    for name, weight in expected.items():
        assert torch.equal(cell.weight(name, torch.float16), weight)
    assert 8 < cell.bits_per_weight() < 9
    assert torch.isfinite(load(tmp_path / "cell").logits(["How are you?"])).all()


def test_a_probe(probe: Any, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    baseline = load(tiny("llama"))
    result = probe.measure(baseline, {"same": load(tiny("llama"))}, HARMFUL, HARMLESS)
    assert result.table["ratio"].tolist() == [1.0, 1.0]
    files = [tmp_path / "harmful.txt", tmp_path / "harmless.txt"]
    for file, prompts in zip(files, (HARMFUL, HARMLESS), strict=True):
        file.write_text("\n".join(prompts.instructions))
    cell = q8_0(tiny("llama"), tmp_path / "q8.gguf")
    options = ["--baseline", str(tiny("llama")), "--quantized", str(cell), "--out", str(tmp_path / "out")]
    ended = CliRunner().invoke(probe.app, [*options, "--harmful", str(files[0]), "--harmless", str(files[1])])
    assert ended.exit_code == 0, ended.output
    written = read_result(tmp_path / "out" / "lengths.json")
    assert written.table["length"].iloc[0] == result.table["length"].iloc[0]
    assert written.settings["hook"] == f"blocks.{baseline.n_layers - 1}.hook_resid_post"


def test_a_step(probe: Any) -> None:
    step = study_step.probe("lengths")
    assert step.name == "lengths"
    assert dict(step.options) == {}  # template, force and batch_size are the study's to give


def test_a_judge() -> None:
    """What the page says of a question of one's own is what the parser takes."""
    judge = PAGE[PAGE.index("## A judge") :]
    assert {name for name in PLACEHOLDERS if f"`${name}`" in judge} == PLACEHOLDERS
    named = [label for label in Label if f"`{label}`" in judge]
    assert set(named) == set(Label) - {Label.UNSCORED}
    for label in named:
        assert parse_verdict(f"VERDICT: {label}") is label
