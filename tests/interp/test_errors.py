"""Errors name the nearest right thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from interp import check_pair, load, open_checkpoint
from interp.documents import read_text
from interp.errors import InputError, did_you_mean, what_lies_beside
from interp.quantize.write import check_cells
from tests.cells import q8_0


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("SmolLM2-135M", "SmolLM2-135M-AWQ", "notes"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("SmolLM2-135M-AQW", "Did you mean {}/SmolLM2-135M-AWQ?"),
        ("smollm2-135M", "Did you mean {}/SmolLM2-135M?"),
        ("SmolLM2-135/model.gguf", "Did you mean {}/SmolLM2-135M?"),
        ("zzz", "{} holds SmolLM2-135M, SmolLM2-135M-AWQ, notes"),
        ("notes/zzz", ""),
        ("notes", ""),
    ],
)
def test_a_missing_path_says_what_lies_beside_it(models: Path, missing: str, said: str) -> None:
    assert what_lies_beside(models / missing) == said.format(models)


def test_of_many_names_the_first_are_shown(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.csv").touch()
    assert what_lies_beside(tmp_path / "zzzzz").endswith("holds 0.csv, 1.csv, 2.csv, 3.csv, 4.csv, 5.csv …")


def test_checkpoints_and_files_say_it(models: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist.*Did you mean .*SmolLM2-135M-AWQ\?$"):
        open_checkpoint(str(models / "SmolLM2-135M-AWK"))
    (models / "cells.csv").touch()
    with pytest.raises(InputError, match=r"cannot be read.*Did you mean .*cells\.csv\?$"):
        read_text(models / "cell.csv")


@pytest.mark.parametrize(("wrong", "meant"), [("Q4_KM", "Did you mean 'Q4_K_M'?"), ("int8", "")])
def test_a_mistyped_cell_gets_the_nearest(wrong: str, meant: str) -> None:
    assert did_you_mean(wrong, ["AWQ", "GPTQ", "Q8_0", "Q4_K_M"]) == meant
    with pytest.raises(InputError) as raised:
        check_cells([wrong])
    assert str(raised.value).endswith(meant or ".")


def test_a_mistyped_hook_gets_the_nearest(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"Did you mean 'blocks\.1\.hook_resid_post'\?$"):
        load(tiny("llama")).activations(["a text"], ["blocks.1.hook_residpost"])


def test_baseline_and_cell_swapped_are_told(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cell = q8_0(tiny("llama"), tmp_path / "llama-q8.gguf")
    with pytest.raises(InputError, match=r"they are swapped.*Exchange --baseline and --quantized"):
        check_pair(cell, tiny("llama"))
    check_pair(tiny("llama"), cell)
