"""`--stream`: the same tables, from a pair of which one block is in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from interp import load
from probes import calibration, direction, entropy, geometry, margin, neurons
from probes.harness.comparison import Cells
from probes.harness.results import Result
from tests.cells import HARMFUL, HARMLESS, q8_0
from tests.packed_files import write_gptq

PROBES = (entropy, direction, calibration, neurons, margin, geometry)


def measured(probe: ModuleType, baseline: Path, cells: dict[str, Path], stream: bool) -> Result:
    model = load(baseline, stream=stream)
    return probe.measure(model, Cells(cells, model), HARMFUL, HARMLESS, force=True)


def assert_same_tables(ours: Result, theirs: Result) -> None:
    for one, other in zip((ours, *ours.beside), (theirs, *theirs.beside), strict=True):
        pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
        assert one.settings == other.settings
        assert one.warnings == other.warnings


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__.rpartition(".")[2])
def test_a_streamed_pair_gives_the_same_tables(probe: ModuleType, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cells = {"gguf": q8_0(tiny("llama"), tmp_path / "cell.gguf"), "gptq": write_gptq(tmp_path / "gptq")}
    baseline = tiny("llama")
    assert_same_tables(*(measured(probe, baseline, cells, stream) for stream in (True, False)))


def test_cells_of_a_streamed_baseline_are_streamed(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"), dtype=torch.bfloat16, stream=True)
    cell = Cells({"copy": tiny("llama")}, baseline)["copy"]
    assert cell.streamed is not None
    assert cell.hf.dtype == torch.bfloat16
