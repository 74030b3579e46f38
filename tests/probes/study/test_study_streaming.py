"""A study whose models are streamed: the same tables, a block of weights at a time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from interp.errors import InputError
from probes.study import measuring
from probes.study.reader import read_study
from probes.study.run import open_run, run_study
from tests.study_files import write_study

ANSWERS = ("completions", "refusal")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, measured once in memory, in `run`."""
    file = write_study(tmp_path_factory.mktemp("study"))
    run_study(read_study(file), file.parent / "run")
    return file


def with_stream(file: Path, value: str, probes: str = "") -> Path:
    text = file.read_text().replace("force = true", f"force = true\nstream = {value}")
    changed = file.with_name(f"stream-{len(value)}{len(probes)}.toml")
    changed.write_text(text.replace('"neurons"]', f'"neurons"{probes}]'))
    return changed


def test_a_streamed_study_has_the_same_tables(file: Path) -> None:
    expected = open_run(file.parent / "run")
    run = run_study(read_study(with_stream(file, "true")), file.parent / "streamed")
    assert run.failures.empty
    for name in (*ANSWERS, "entropy", "direction", "calibration", "neurons"):
        pd.testing.assert_frame_equal(run.table(name), expected.table(name))


def test_what_needs_whole_models_says_so_and_stops_nothing_else(file: Path) -> None:
    run = run_study(read_study(with_stream(file, "true", ', "quality"')), file.parent / "whole")
    assert set(run.failures["step"]) == {"quality"}
    assert run.failures["error"].str.contains("quality needs whole models in memory").all()


@pytest.mark.parametrize("share", [0.5, 1e9])
def test_by_itself_it_streams_what_would_not_fit(file: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine on which one model fits, but not two; and of one that is large enough."""
    streamed: list[bool] = []

    def noting(path: object, **options: object) -> object:
        streamed.append(bool(options.get("stream")))
        raise InputError("Not opened")

    need = measuring.plan

    def on_a_machine(*arguments: object) -> object:
        monkeypatch.setattr("interp.streaming.memory.free_memory", lambda _: int(share * size))
        return need(*arguments)

    import torch

    from interp.checkpoint import open_checkpoint
    from interp.streaming.memory import part_sizes

    size = 2 * sum(part_sizes(open_checkpoint(file.parent / "base"), torch.float32).values())
    monkeypatch.setattr(measuring, "plan", on_a_machine)
    monkeypatch.setattr(measuring, "load", noting)
    run_study(read_study(file), file.parent / f"auto{share}")
    assert streamed
    assert set(streamed) == {share < 1}


def test_a_key_that_is_none(file: Path) -> None:
    with pytest.raises(InputError, match="stream"):
        read_study(with_stream(file, '"sometimes"'))
