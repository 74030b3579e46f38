"""`--stream`: the same tables, from a pair of which one block is in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch

from interp import Checkpoint, load
from interp.errors import InputError
from interp.loading import read_dense
from probes import (
    calibration,
    causal,
    coverage,
    direction,
    entropy,
    fragility,
    geometry,
    margin,
    neurons,
    reversion,
    why,
)
from probes.harness.comparison import Cells
from probes.harness.results import Result
from tests.cells import HARMFUL, HARMLESS, q8_0
from tests.packed_files import write_gptq

PROBES = (entropy, direction, calibration, neurons, geometry, margin)
NAMES = [probe.__name__.rpartition(".")[2] for probe in PROBES]


def measured(probe: ModuleType, baseline: Path, cells: dict[str, Path], stream: bool) -> Result:
    model = load(baseline, stream=stream)
    return probe.measure(model, Cells(cells, model), HARMFUL, HARMLESS, force=True)


def assert_same_tables(ours: Result, theirs: Result) -> None:
    """Bit for bit."""
    for one, other in zip((ours, *ours.beside), (theirs, *theirs.beside), strict=True):
        pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
        assert one.settings == other.settings
        assert one.warnings == other.warnings


def assert_same_margins(ours: Result, theirs: Result) -> None:
    """But for rounding: in memory all openings are read side by side after a prompt, streamed each in a pass."""
    (one, other) = ({result.probe: result.table for result in measured.beside} for measured in (ours, theirs))
    for name, digits in (("margin_prompts", 1e-4), ("margin_separation", 1e-3)):  # d' is divided by spreads
        pd.testing.assert_frame_equal(one[name], other[name], rtol=digits, atol=digits / 10)
    assert ours.settings == theirs.settings


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Path, str]]:
    """How often streamed models read each tensor from now on."""
    counts: Counter[tuple[Path, str]] = Counter()

    def counted(checkpoint: Checkpoint, name: str, *arguments: object) -> torch.Tensor:
        counts[checkpoint.path, name] += 1
        return read_dense(checkpoint, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("interp.streaming.slot.read_dense", counted)
    monkeypatch.setattr("probes.harness.thought_check.OPENING", ())  # else what it says at random may be looked at
    return counts


@pytest.mark.parametrize("probe", PROBES, ids=NAMES)
def test_a_streamed_pair_gives_the_same_tables(probe: ModuleType, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cells = {"gguf": q8_0(tiny("llama"), tmp_path / "cell.gguf"), "gptq": write_gptq(tmp_path / "gptq")}
    baseline = tiny("llama")
    same = assert_same_margins if probe is margin else assert_same_tables
    same(*(measured(probe, baseline, cells, stream) for stream in (True, False)))


@pytest.mark.parametrize("probe", PROBES[:-1], ids=NAMES[:-1])
def test_each_model_is_read_once(
    probe: ModuleType, tiny: Callable[[str], Path], tmp_path: Path, reads: Counter[tuple[Path, str]]
) -> None:
    measured(probe, tiny("llama"), {"gptq": write_gptq(tmp_path / "gptq")}, stream=True)
    assert {path for path, _ in reads} == {tiny("llama"), tmp_path / "gptq"}
    assert set(reads.values()) == {1}


def test_margins_of_the_lexicon_take_a_read_beside_the_one_that_checks_the_baseline(
    tiny: Callable[[str], Path], reads: Counter[tuple[Path, str]]
) -> None:
    model = load(tiny("llama"), stream=True)
    margin.measure(model, Cells({"copy": tiny("llama")}, model), HARMFUL, HARMLESS, openings="lexicon")
    assert reads[tiny("llama"), "model.layers.0.mlp.up_proj.weight"] == 2 + 1


def test_cells_of_a_streamed_baseline_are_streamed(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"), dtype=torch.bfloat16, stream=True)
    cell = Cells({"copy": tiny("llama")}, baseline)["copy"]
    assert cell.streamed is not None
    assert cell.hf.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("probe", "options"),
    [
        (fragility, {}),
        (reversion, {"before": load}),
        (coverage, {"calibration": ["A text."]}),
        (causal, {}),
        (why, {}),
    ],
    ids=lambda each: each.__name__.rpartition(".")[2] if isinstance(each, ModuleType) else "",
)
def test_what_needs_all_weights_says_so(
    probe: ModuleType, options: dict[str, Any], tiny: Callable[[str], Path]
) -> None:
    baseline = load(tiny("llama"), stream=True)
    cells = [] if probe is fragility else [Cells({"copy": tiny("llama")}, baseline)]
    options = {name: value(tiny("llama")) if value is load else value for name, value in options.items()}
    with pytest.raises(InputError, match="needs the whole model in memory"):
        probe.measure(baseline, *cells, HARMFUL, HARMLESS, **options)
