"""Attribution of pairs that are streamed: the numbers of the same pairs in memory, with one block of each held."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp import HookedModel, load
from interp.checkpoint import Checkpoint
from interp.pairs.weight_path import Observer, WeightPath
from probes import attribution
from probes.attribution.integrated_gradients import attribute
from probes.attribution.sign_flips import sign_flips
from probes.harness.prompts import builtin
from tests.attributed import MARGIN, PROMPTS, noisy

Tiny = Callable[[str], Path]


@pytest.fixture
def pair(tiny: Tiny, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A tiny checkpoint, and a copy with noise in all of its parameters."""

    def write(name: str) -> tuple[Path, Path]:
        cell = tmp_path / name
        shutil.copytree(tiny(name), cell)
        for weights in cell.glob("*.safetensors*"):
            weights.unlink()
        noisy(tiny(name)).hf.save_pretrained(cell)
        return tiny(name), cell

    return write


def models(paths: tuple[Path, Path], stream: bool) -> tuple[HookedModel, HookedModel]:
    baseline, cell = (load(path, stream=stream) for path in paths)
    return baseline, cell


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "phi3", "gpt2", "gpt_neox"])
def test_the_shares_are_those_of_the_pair_in_memory(pair: Callable[[str], tuple[Path, Path]], name: str) -> None:
    paths = pair(name)
    streamed, whole = (
        attribute(*models(paths, stream), PROMPTS, MARGIN, steps=2, max_steps=2, group_size=5)
        for stream in (True, False)
    )
    assert streamed.tied == whole.tied
    assert streamed.parts.others == whole.parts.others
    for sums in ("parameters", "heads", "rows", "columns", "vectors", "groups"):
        ours, theirs = getattr(streamed, sums), getattr(whole, sums)
        assert ours.keys() == theirs.keys()
        for key, expected in theirs.items():
            torch.testing.assert_close(ours[key], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(streamed.shift, whole.shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_so_is_the_null(pair: Callable[[str], tuple[Path, Path]], batch_size: int | None) -> None:
    """One batch needs no gradient longer than a moment, several add theirs up."""
    paths = pair("llama")
    streamed, whole = (
        sign_flips(WeightPath(*models(paths, stream)), PROMPTS, MARGIN, draws=3, batch_size=batch_size)
        for stream in (True, False)
    )
    for moments in ("first_order", "variance"):
        for sums in ("rows", "columns", "vectors", "others"):
            ours, theirs = (getattr(getattr(null, moments), sums) for null in (streamed, whole))
            for key, expected in theirs.items():
                torch.testing.assert_close(ours[key], expected, rtol=1e-5, atol=1e-9)
    assert streamed.drawn_variance_ratio() == pytest.approx(whole.drawn_variance_ratio(), rel=1e-5)


def test_a_block_of_each_is_held_and_read_once_each_way(
    pair: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline, cell = models(pair("llama"), stream=True)
    path = WeightPath(baseline, cell)
    (batch,) = PROMPTS.batches(baseline, None)
    reads: Counter[str] = Counter()
    read = Checkpoint.tensor

    def counted(self: Checkpoint, name: str) -> torch.Tensor:
        reads[name] += 1
        held = [n for n, p in baseline.hf.named_parameters() if not p.is_meta and n.startswith("model.layers.")]
        assert len({n.split(".")[2] for n in held}) <= 1
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    with path.at(0.5, _Ignoring()):
        MARGIN(baseline, batch).sum().backward()
    blocks = {name: n for name, n in reads.items() if name.startswith("model.layers.")}
    assert len(blocks) == 9 * baseline.n_layers
    assert set(blocks.values()) == {4}, "of two models, forward and back"


class _Ignoring(Observer):
    def linear(self, *_: object) -> None: ...

    def affine(self, *_: object) -> None: ...


def test_the_probe_measures_a_streamed_pair(pair: Callable[[str], tuple[Path, Path]]) -> None:
    sides = builtin("harmful").take(2), builtin("harmless").take(2)
    paths = pair("llama")
    streamed, whole = (
        attribution.measure(baseline, {"noisy": cell}, *sides, steps=1, max_steps=1, draws=2, force=True).table
        for baseline, cell in (models(paths, stream) for stream in (True, False))
    )
    pd.testing.assert_frame_equal(streamed, whole, rtol=1e-4, atol=1e-6)
