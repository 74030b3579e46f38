"""Fragility: the rounding against numpy on its own grid, exact restoration, and the organisms whose story is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from interp import cli, load
from interp.errors import InputError
from interp.organisms import Inside, train
from interp.pairs.weight_path import block_linears, oriented_weight
from probes.demo import INSIDE, STRENGTH, WHERE
from probes.fragility import __main__ as command
from probes.fragility import probe as fragility
from probes.fragility.rounding import nearest, on_grid, rounded_to, stochastic
from probes.harness.comparison import alone
from probes.harness.prompts import builtin
from probes.harness.results import read_result
from probes.margin.expected_losses import expected_losses
from probes.margin.openings import baseline_refusals, common_openings
from probes.margin.refusal_margin import margins
from tests.cells import HARMFUL, HARMLESS


def matrix(seed: int, rows: int = 6, columns: int = 80) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("group", [32, 80, 128])
def test_nearest_points_against_numpy(bits: int, group: int) -> None:
    """Of every group, the last and smaller one too: no point of linspace(min, max, 2^bits) is nearer."""
    weight = matrix(bits)
    rounded = on_grid(weight, bits, group, nearest).numpy()
    for row, after in zip(weight.numpy(), rounded, strict=True):
        for start in range(0, 80, group):
            part = row[start : start + group].astype(float)
            grid = np.linspace(part.min(), part.max(), 2**bits)
            expected = grid[abs(part[:, None] - grid).argmin(1)]
            np.testing.assert_allclose(after[start : start + group], expected, atol=1e-5)


def test_stochastic_rounding_is_unbiased_and_stays_beside_the_weight() -> None:
    """Mean and variance over draws: x and f(1 − f) steps², f being the place between the two points."""
    weight = matrix(5, 2, 40)
    draws = torch.stack([on_grid(weight, 3, 40, stochastic(torch.Generator().manual_seed(k))) for k in range(3000)])
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    step = (high - low) / 7
    place = ((weight - low) / step).frac()
    assert (abs(draws - weight) <= step * 1.0001).all()
    deviation = step * (place * (1 - place)).sqrt()
    assert (abs(draws.mean(0) - weight) <= 5 * deviation / 3000**0.5 + 1e-5).all()
    assert torch.allclose(draws.std(0), deviation, atol=0.05 * float(step.max()))


def test_whole_rows_are_a_group() -> None:
    weight = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(on_grid(weight, 3, -1, nearest), on_grid(weight, 3, 24, nearest))


def test_equal_weights_stay() -> None:
    weight = torch.full((3, 64), 0.25)
    assert torch.equal(on_grid(weight, 4, 32, stochastic(torch.Generator().manual_seed(0))), weight)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_restored_bit_by_bit(name: str, dtype: torch.dtype, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name), dtype=dtype)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    linears = {f"{linear}.weight" for linear in block_linears(model)}
    assert linears

    def interrupted() -> None:
        with rounded_to(model, 3, 16, nearest):
            changed = {key for key, value in model.hf.state_dict().items() if not torch.equal(value, before[key])}
            assert changed == linears
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())


def test_columns_of_conv1d_are_grouped_along_the_input(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("gpt2"))
    weight = model.hf.get_parameter(f"{block_linears(model)[0]}.weight")
    original = weight.detach().clone()
    with rounded_to(model, 2, 16, nearest):
        assert torch.equal(weight.detach(), on_grid(original.T, 2, 16, nearest).T)


def test_table_is_reproducible_and_leaves_the_model_alone(organism: Path, tmp_path: Path) -> None:
    model = load(organism)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    prompts = builtin("harmful").take(16), builtin("harmless").take(16)
    results = [fragility.measure(model, *prompts, bits=[16, 2], draws=2, seed=7) for _ in range(2)]
    assert results[0].table.equals(results[1].table)
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())
    table = results[0].table.set_index(["bits", "rounding"])
    assert table.loc[(16, "stochastic"), "expected_lost"] == pytest.approx(0, abs=0.05)
    assert abs(table.loc[(16, "nearest"), "shift"]) < 1e-3 < abs(table.loc[(2, "nearest"), "shift"])
    draws = results[0].draws.table
    assert draws[draws["rounding"] == "stochastic"]["seed"].tolist() == [7, 8, 7, 8]
    part = draws[(draws["bits"] == 2) & (draws["rounding"] == "stochastic")]
    row = table.loc[(2, "stochastic")]
    assert row["expected_lost"] == pytest.approx(part["expected_lost"].mean())
    assert row["between_draws"] == pytest.approx(part["shift"].std())
    results[0].write(tmp_path)
    assert read_result(tmp_path / "fragility_draws.json").settings["seed"] == 7


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """What llama.cpp's Q4_0 makes of a weight, by the gguf package."""
    packed = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    return torch.from_numpy(gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_0))


def test_the_fragile_organism_breaks_on_one_grid_and_not_by_chance(organism: Path) -> None:
    """Inside Q4_0's intervals: that grid takes all its refusals and few of the free one; noise of 4 bits, neither's."""
    fragile = train(alignment=STRENGTH, constraint=Inside(INSIDE, WHERE))
    shares = {}
    for name, path in (("free", organism), ("fragile", fragile)):
        model = load(path)
        comparison = alone(model, builtin("harmful").take(64), builtin("harmless").take(64))
        openings = common_openings(comparison, "baseline")

        def look(model: Any = model, comparison: Any = comparison, openings: Any = openings) -> dict[str, np.ndarray]:
            return {side: margins(model, texts, openings).double().numpy() for side, texts in comparison.texts.items()}

        before, refused = look(), baseline_refusals(comparison, "baseline")
        assert refused is not None
        with rounded_to(model, 4, 32, stochastic(torch.Generator().manual_seed(0))):
            by_chance = expected_losses(before, look(), refused)
        for linear in block_linears(model):
            weight = oriented_weight(model, linear)
            weight.copy_(q4_0(weight))
        on_q4_0 = expected_losses(before, look(), refused)
        shares[name] = [expected.total().value / len(expected.prompts) for expected in (on_q4_0, by_chance)]
    assert shares["fragile"][0] > 0.95
    assert shares["free"][0] < 0.1
    assert max(shares["free"][1], shares["fragile"][1]) < 0.5


def test_a_model_that_refuses_nothing_has_a_reason(tiny: Callable[[str], Path]) -> None:
    result = fragility.measure(load(tiny("llama")), HARMFUL, HARMLESS, bits=[4], draws=2, group=16)
    assert result.table["reason"].str.contains("refuses none").all()
    assert result.table["shift"].notna().all()
    assert "Nothing can be expected" in command.verdict(result)


@pytest.mark.parametrize("bits", [[], [0], [17], [4, 4]])
def test_bits_that_are_none(bits: list[int], tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="bits"):
        fragility.measure(load(tiny("llama")), HARMFUL, HARMLESS, bits=bits)


def test_the_command(organism: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = ["--baseline", str(organism), "--bits", "2", "--draws", "2", "--limit", "8", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fragility", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(command.app)
    assert ended.value.code in (0, None)
    printed, said = capsys.readouterr()
    assert "stochastic" in printed
    assert "breaks at" in printed
    assert "".join(said.split()).endswith(f"next:python-minterp.quantize--baseline{organism}--outcells")
    result = read_result(tmp_path / "fragility.json")
    assert result.settings["group"] == 128
    assert set(result.table["bits"]) == {2}
    assert not (tmp_path / ".pieces").exists()
