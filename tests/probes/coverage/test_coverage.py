"""Coverage: errors that are put where harmful prompts are, or where calibration texts are, or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from interp import HookedModel, load
from interp.errors import InputError
from interp.pairs.weight_path import block_linears, oriented_weight
from interp.quantize.gguf_f16 import write_f16
from probes import coverage
from probes.coverage import __main__ as command
from probes.coverage.energies import LinearError
from probes.coverage.ratios import relative_errors
from probes.harness.results import read_result
from tests.cells import HARMFUL, HARMLESS, q8_0
from tests.writer_models import write_checkpoint

CALIBRATION = [f"What is the price of {thing}?" for thing in ("jam", "an egg", "a door", "the sea")]


@pytest.fixture(scope="module")
def baseline(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def measured(baseline: HookedModel, cell: HookedModel) -> pd.DataFrame:
    result = coverage.measure(baseline, {"cell": cell}, HARMFUL, HARMLESS, calibration=CALIBRATION)
    return result.table.set_index("linear")


def inputs_of(baseline: HookedModel, texts: list[str], linear: str) -> torch.Tensor:
    """What a linear reads at all tokens of texts, [tokens, in]."""
    seen: list[torch.Tensor] = []
    module = baseline.hf.get_submodule(linear)
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    for text in texts:
        baseline.logits(text)
    handle.remove()
    return torch.cat(seen)


def test_a_cell_equal_to_its_baseline_has_no_ratio(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    table = measured(baseline, load(tiny("llama")))
    assert table[["ratio", "beyond"]].isna().all(axis=None)
    assert (table["reason"] == "its weight is the baseline's").all()


def test_models_in_float16_are_measured_as_well(tiny: Callable[[str], Path]) -> None:
    """Squares of their errors are below float16's least number, and sums of their outputs above its largest."""
    tables = []
    for dtype in (torch.float16, torch.float32):
        models = [load(tiny("llama"), dtype=torch.float16) for _ in range(2)]
        for model in models:
            model.hf.model.layers[0].input_layernorm.weight.data *= 300
        models[1].hf.model.layers[0].self_attn.q_proj.weight.data += 2.0**-13
        for model in models:
            model.hf.to(dtype)
        tables.append(measured(*models))
    errors = ["error_calibration", "error_harmful", "beyond"]
    linear = "model.layers.0.self_attn.q_proj"
    np.testing.assert_allclose(*(table.loc[linear, errors].astype(float) for table in tables), rtol=0.02)


def test_errors_with_random_signs_are_the_null(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    cell = load(tiny("llama"))
    generator = torch.Generator().manual_seed(0)
    for name in block_linears(cell):
        weight = oriented_weight(cell, name)
        weight += 0.02 * torch.randint(0, 2, weight.shape, generator=generator) - 0.01
    table = measured(baseline, cell)
    assert table.loc["all", "beyond"] == pytest.approx(1, abs=0.04)
    assert table.loc["all", "ratio"] == pytest.approx(table.loc["all", "random"], rel=0.04)


def test_an_error_unseen_in_calibration_is_found(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    """As GPTQ leaves one: of the part of the inputs that calibration texts lack, harmful prompts see a share."""
    linear = "model.layers.1.self_attn.q_proj"
    inputs = inputs_of(baseline, CALIBRATION, linear).double()
    unseen = torch.eye(inputs.shape[1]).double() - torch.linalg.pinv(inputs, rtol=0.2) @ inputs
    cell = load(tiny("llama"))
    weight = oriented_weight(cell, linear)
    noise = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    weight += (noise @ unseen).float()
    row = measured(baseline, cell).loc[linear]
    assert row["beyond_low"] > 1.3
    assert row["ratio"] > row["random"]
    assert measured(baseline, cell).loc["model.layers.0.mlp.up_proj", "reason"]


def test_energies_are_squared_lengths_and_random_signs_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight, error = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 8), (5, 8), (5, 8)))
    output, own, random, plain = LinearError(weight, error, 2 * error).energies(inputs)
    expected = torch.stack([(weight @ text.T).square().sum() for text in inputs])
    torch.testing.assert_close(output.float(), expected)
    torch.testing.assert_close(plain, 4 * own)
    signs = [torch.randint(0, 2, error.shape, generator=generator) * 2 - 1 for _ in range(4000)]
    drawn = torch.stack([LinearError(weight, error * sign, error).energies(inputs)[1] for sign in signs])
    torch.testing.assert_close(drawn.mean(0), random, rtol=0.03, atol=0)


def test_relative_errors_are_roots_of_sums() -> None:
    energies = torch.tensor([[[4.0, 12.0], [1.0, 0.0], [1.0, 3.0], [0.0, 4.0]]]).double()
    errors = relative_errors(energies, seed=0)
    np.testing.assert_allclose(errors[0, 0], [1, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(errors[1:, 0, 2], 0.5)


@pytest.mark.parametrize(("bits", "group"), [(2, 4), (4, -1), (8, 4)])
def test_plain_rounding_stays_within_half_a_step(bits: int, group: int) -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    groups = weight.unflatten(1, (-1, 8 if group < 0 else group))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    error = (coverage.rounded(weight, bits, group) - weight).reshape(groups.shape).abs()
    assert (error <= step[..., None] / 2 + 1e-6).all()
    assert len(coverage.rounded(weight, bits, group)[0, : groups.shape[2]].unique()) <= 2**bits


def test_texts_are_cut_where_writers_cut_them(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    cell = load(tiny("llama"))
    for name in block_linears(cell):
        oriented_weight(cell, name).mul_(1.01)
    tables = []
    for words in (baseline.config.max_position_embeddings, 2 * baseline.config.max_position_embeddings):
        long = [" ".join(["sea"] * words), *CALIBRATION]
        tables.append(coverage.measure(baseline, {"cell": cell}, HARMFUL, HARMLESS, calibration=long).table)
    pd.testing.assert_frame_equal(*tables)


def test_no_calibration_texts(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="no calibration texts"):
        coverage.measure(baseline, {"cell": load(tiny("llama"))}, HARMFUL, HARMLESS, calibration=[])


def test_from_the_shell(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cell = q8_0(tiny("llama"), tmp_path / "q8.gguf")
    (tmp_path / "texts.txt").write_text("\n".join(CALIBRATION))
    options = ["--baseline", tiny("llama"), "--quantized", cell, "--calibration", tmp_path / "texts.txt", "--limit", 5]
    done = CliRunner().invoke(command.app, [*map(str, options), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / "coverage.json")
    assert result.settings["calibration"]["n"] == len(CALIBRATION)
    assert 0 < result.table.set_index("linear").loc["all", "error_harmful"] < 0.05
    assert "Beyond random above 1" in done.output


def test_chats_of_the_package_in_the_template_of_a_baseline_that_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.quantize.calibration.N_TEXTS", 2)
    baseline = tmp_path / "base.gguf"
    write_f16(write_checkpoint("llama", tmp_path / "dense"), baseline)
    cell = q8_0(tmp_path / "dense", tmp_path / "cell.gguf")
    options = ["--baseline", baseline, "--quantized", cell, "--limit", 2, "--force", "--out", tmp_path]
    done = CliRunner().invoke(command.app, [*map(str, options)])
    assert done.exit_code == 0, done.output
    assert read_result(tmp_path / "coverage.json").settings["calibration"]["n"] == 2
