"""`probes.why`: a cell with one damaged linear is explained by it; lists, pages and cells written again."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from interp import load, open_checkpoint
from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.model import HookedModel
from interp.quantize.cells import read_record, text_hash
from interp.quantize.mixed_precision import mean_bits
from interp.quantize.write import write_cells
from probes import why
from probes.attribution.parts import Parts
from probes.causal.experiments import Sample
from probes.harness.prompts import PromptSet
from probes.margin import openings
from probes.margin.refusal_margin import margins
from probes.why.explanation import Explanation, explain
from probes.why.keep_list import choose
from probes.why.page import page
from probes.why.restored import Restoration
from probes.why.rewriting import KEPT, PLAIN, _with_p, measure_variants, rewrite
from tests.attributed import OPENINGS
from tests.exchanges import HARMFUL, HARMLESS
from tests.writer_models import CALIBRATION, write_checkpoint

GUILTY = "model.layers.1.mlp.up_proj"
SAMPLE = Sample(
    {"harmful": HARMFUL, "harmless": HARMLESS}, {"harmful": HARMFUL[:2], "harmless": HARMLESS[:2]}, HARMFUL, True
)


def damaged(tiny: Callable[[str], Path], seed: int) -> HookedModel:
    """A copy of the baseline with noise in one linear."""
    cell = load(tiny("llama"))
    weight = cell.hf.get_parameter(f"{GUILTY}.weight").data
    weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    return cell


@pytest.fixture(scope="module")
def pair(tiny: Callable[[str], Path]) -> tuple[HookedModel, HookedModel]:
    """A baseline and a copy of it with noise in one linear, which moved the margin of every prompt one way."""
    return load(tiny("llama")), damaged(tiny, 2)


@pytest.fixture(scope="module")
def explained(pair: tuple[HookedModel, HookedModel]) -> Explanation:
    return explain("cell", *pair, SAMPLE, OPENINGS, draws=3)


def test_the_damaged_linear_alone_is_blamed(explained: Explanation) -> None:
    assert list(explained.blame.modules["module"]) == [GUILTY]
    assert explained.blame.total["attribution"] == pytest.approx(explained.blame.total["shift"], abs=0.01)
    assert explained.blame.complete


def test_putting_it_back_gives_everything_back(pair: tuple[HookedModel, HookedModel], explained: Explanation) -> None:
    assert explained.margin.after.value != pytest.approx(explained.margin.before.value, abs=1e-4)
    by_blame = explained.restoration.by("attribution")
    first = by_blame[by_blame["k"] == 1].iloc[0]
    assert first["margin"] == pytest.approx(explained.margin.before.value, abs=1e-5)
    assert first["gain"] == pytest.approx(-explained.margin.shift.value, abs=1e-5)
    assert explained.keep.choice.linears == [GUILTY]


def test_nothing_is_recommended_where_the_shift_is_within_chance(tiny: Callable[[str], Path]) -> None:
    """This noise moved the margin of some prompts up and of others down; asked for, a list is given all the same."""
    models = load(tiny("llama")), damaged(tiny, 3)
    found = explain("cell", *models, SAMPLE, OPENINGS, draws=1)
    assert found.margin.within_chance
    assert (list(found.keep.kept), found.keep.choice.supported, dict(found.keep.forms)) == ([], False, {})
    text = page(found)
    assert "Nothing: the shift is within chance" in text
    assert "dynamic=" not in text
    assert list(explain("cell", *models, SAMPLE, OPENINGS, draws=1, keep=1).keep.kept) == [GUILTY]


def test_the_cell_is_as_it_was(pair: tuple[HookedModel, HookedModel], tiny: Callable[[str], Path]) -> None:
    baseline, cell = pair
    before = {name: p.clone() for name, p in cell.hf.named_parameters()}
    explain("cell", baseline, cell, SAMPLE, OPENINGS, draws=1)
    assert all(torch.equal(p, before[name]) for name, p in cell.hf.named_parameters())


def test_page_says_what_was_found(explained: Explanation) -> None:
    text = page(explained)
    assert "L1 mlp.up_proj" in text
    assert f"- {GUILTY}" in text
    assert "^blk\\.1\\.ffn_up\\.weight$=f16" in text
    assert f'ignore=["lm_head", "{GUILTY}"]' in text
    assert f"{explained.margin.shift.value:+.2f}" in text
    assert "Written again" not in text


def test_fused_groups_are_kept_whole_and_counted(pair: tuple[HookedModel, HookedModel], explained: Explanation) -> None:
    gate = GUILTY.replace("up_proj", "gate_proj")
    assert (list(explained.keep.kept), list(explained.keep.whole)) == ([GUILTY], [GUILTY, gate])
    assert explained.keep.whole_bits == mean_bits(explained_checkpoint(pair), [GUILTY, gate])
    assert "--fused adds the 1 missing here (2 linears, " in page(explained)
    whole = explain("cell", *pair, SAMPLE, OPENINGS, draws=1, fused=True)
    assert (list(whole.keep.kept), whole.keep.choice.linears) == ([GUILTY, gate], [GUILTY])
    assert whole.keep.kept_bits == explained.keep.whole_bits
    assert whole.keep.forms["llm_compressor_ignore"] == ["lm_head", GUILTY, gate]
    assert f"- {gate} (completes a group)" in page(whole)
    assert "kept whole: here they are." in page(whole)


def explained_checkpoint(pair: tuple[HookedModel, HookedModel]) -> Checkpoint:
    checkpoint = pair[1].checkpoint
    assert checkpoint is not None
    return checkpoint


def test_page_does_not_claim_what_the_random_lists_do_not_show(explained: Explanation) -> None:
    def said(p: float, supported: bool, held_out: bool = True) -> str:
        told = explained.restoration.curve.assign(p=p)
        chosen = replace(explained.keep.choice, supported=supported)
        keep = replace(explained.keep, choice=chosen)
        return page(replace(explained, restoration=Restoration(told), keep=keep, held_out=held_out))

    assert "not shown to do more than random" in said(0.2, supported=False)
    assert "no loss that it gives back" in said(0.04, supported=False)
    assert "its length was chosen on these" in said(0.04, supported=True)
    supported = replace(explained.keep.choice, supported=True)
    restoration = Restoration(explained.restoration.curve.assign(p=0.04))
    keep = replace(explained.keep, choice=supported, given=True)
    asked_for = replace(explained, restoration=restoration, keep=keep)
    assert "its length was chosen" not in page(asked_for)
    assert "which flatters it" in said(0.04, supported=True, held_out=False)


def test_page_says_what_so_few_random_lists_cannot_show(explained: Explanation) -> None:
    def said(n: int) -> str:
        names = ["baseline", PLAIN, KEPT, *(f"random {i + 1}" for i in range(n))]
        intervals = ("margin", "gain", "share", "refusal_rate", "over_refusal_rate")
        numbers = {f"{name}{end}": 0.5 for name in intervals for end in ("", "_low", "_high")}
        counts = {"refusals_gained": 0, "refusals_lost": 0, "n_prompts": 5}
        return page(
            explained, [{"variant": name, "bits_per_weight": 4.0, "p": 0.25, **numbers, **counts} for name in names]
        )

    assert "3 random lists cannot give a p below 0.25: --sets 19 can reach 0.05" in said(3)
    assert "cannot give a p" in said(18)
    assert "answers 0 that it refuses. Counted by: broader lexicon." in said(18)
    assert "cannot give a p" not in said(19)


def curve(shares: list[float], p: list[float]) -> pd.DataFrame:
    ks = [1, 2, 4, 8]
    rows = {"ranking": "attribution", "kind": "module", "k": ks, "share": shares, "p": p, "draws": 20}
    other = {**rows, "ranking": "weight_error", "share": 1.0, "p": 0.01}
    return pd.concat([pd.DataFrame(rows), pd.DataFrame(other)], ignore_index=True)


NAMES = [f"linear{i}" for i in range(10)]
NAN = float("nan")


@pytest.mark.parametrize(
    ("shares", "p", "keep", "length", "supported", "said"),
    [
        ([0.2, 0.6, 0.7, 0.9], [0.01, 0.04, 0.01, 0.01], None, 2, True, "shortest list that gives back 50%"),
        ([0.2, 0.6, 0.7, 0.9], [0.01, 0.30, 0.04, 0.01], None, 4, True, "more than random"),
        (
            [0.2, 0.6, 0.7, 0.9],
            [0.01, 0.30, 0.30, 0.30],
            None,
            2,
            False,
            r"not shown to be more than random \(p = 0.30\)",
        ),
        ([0.1, 0.2, 0.3, 0.4], [0.01] * 4, None, 4, False, "no list gives back 50%"),
        ([NAN] * 4, [0.01] * 4, None, 4, False, "within chance"),
        ([0.2, 0.6, 0.7, 0.9], [0.01] * 4, 8, 8, True, "50% of the shift"),
        ([0.2, 0.6, 0.7, 0.9], [0.01] * 4, 3, 3, False, "length was given"),
    ],
)
def test_how_many_to_keep(
    shares: list[float], p: list[float], keep: int | None, length: int, supported: bool, said: str
) -> None:
    chosen = choose(curve(shares, p), NAMES, keep)
    assert chosen.linears == NAMES[:length]
    assert chosen.supported is supported
    assert pd.Series([chosen.why]).str.contains(said).all()


def test_more_has_to_come_back_where_more_is_asked_for() -> None:
    chosen = choose(curve([0.2, 0.6, 0.7, 0.9], [0.01] * 4), NAMES, share=0.9)
    assert chosen.linears == NAMES[:8]
    assert "90% of the shift" in chosen.why


def test_p_counts_random_lists_that_come_as_far() -> None:
    margins = {"baseline": torch.tensor([2.0]), PLAIN: torch.tensor([1.0])}
    gains = {"baseline": 1.0, PLAIN: 0.0, KEPT: 0.5, "random 1": 0.6, "random 2": 0.1, "random 3": -0.4}
    rows: list[dict[str, Any]] = [{"variant": name, "gain": gain} for name, gain in gains.items()]
    found = {row["variant"]: row["p"] for row in _with_p(rows, margins)}
    assert found[KEPT] == 2 / 4
    assert math.isnan(found["random 1"])
    # Where the cell refuses too much, coming back is downwards.
    margins[PLAIN] = torch.tensor([3.0])
    assert {row["variant"]: row["p"] for row in _with_p(rows, margins)}[KEPT] == 3 / 4


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    folder = tmp_path_factory.mktemp("written")
    source = write_checkpoint("llama", folder / "source")
    return source, write_cells(source, folder / "cells", CALIBRATION, ["Q2_K"])["Q2_K"]


def test_cells_are_written_again_with_lists_of_the_same_sizes(written: tuple[Path, Path], tmp_path: Path) -> None:
    source, cell = map(open_checkpoint, written)
    baseline = load(source.path)
    keep = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.k_proj"]
    variants = rewrite(source, cell, keep, Parts.of(baseline), tmp_path, sets=2, seed=1)
    assert [name for name, _, _ in variants] == [PLAIN, KEPT, "random 1", "random 2"]
    for name, kept, path in variants[1:]:
        opened = open_checkpoint(path)
        assert sorted(opened.weight_shape(linear) for linear in kept) == [(128, 256), (256, 256)], name
        assert [linear for linear in opened.linears() if not opened.is_quantized(linear)] == sorted(
            kept, key=opened.linears().index
        )
    rows = {row["variant"]: row for row in measure_variants(variants, baseline, SAMPLE, OPENINGS)}
    # Not equal: llama.cpp's mixture gives value and down projections more bits, so keeping them costs less.
    assert rows[KEPT]["bits_per_weight"] == pytest.approx(rows["random 1"]["bits_per_weight"], rel=0.05)
    assert rows[PLAIN]["bits_per_weight"] < 0.8 * rows[KEPT]["bits_per_weight"]
    assert rows[PLAIN]["gain"] == 0.0
    assert rows["baseline"]["gain"] == pytest.approx(rows["baseline"]["margin"] - rows[PLAIN]["margin"])
    # Nothing is calibrated, so keeping a linear in the file is putting its weights back.
    kept_by_hand = load(cell.path, like=source.path)
    for linear in keep:
        kept_by_hand.hf.get_parameter(f"{linear}.weight").data.copy_(baseline.hf.get_parameter(f"{linear}.weight"))
    expected = margins(kept_by_hand, HARMFUL, OPENINGS).mean().item()
    assert rows[KEPT]["margin"] == pytest.approx(expected, abs=1e-4)


def test_a_cell_of_another_writer_is_not_written_again(written: tuple[Path, Path], tmp_path: Path) -> None:
    source, cell = map(open_checkpoint, written)
    copy = tmp_path / "downloaded.gguf"
    copy.write_bytes(cell.path.read_bytes())
    with pytest.raises(InputError, match=r"not a plain cell that interp\.quantize wrote"):
        rewrite(source, open_checkpoint(copy), [GUILTY], Parts.of(load(source.path)), tmp_path)


def test_a_cell_is_written_again_with_its_own_calibration_texts(written: tuple[Path, Path], tmp_path: Path) -> None:
    """Other texts would change what is not kept, too."""
    source, cell = map(open_checkpoint, written)
    copy = tmp_path / "calibrated"
    shutil.copytree(cell.path.parent, copy)
    record = read_record(copy)
    assert record is not None
    replace(record, settings={**record.settings, "calibration_sha256": text_hash(CALIBRATION)}).write(copy)
    calibrated = open_checkpoint(copy / cell.path.name)
    parts = Parts.of(load(source.path))
    with pytest.raises(InputError, match="other calibration texts"):
        rewrite(source, calibrated, [GUILTY], parts, tmp_path / "out", CALIBRATION[:2], sets=1)
    assert len(rewrite(source, calibrated, [GUILTY], parts, tmp_path / "out", CALIBRATION, sets=0)) == 2


def test_result_has_a_row_a_page_and_the_three_lists(
    pair: tuple[HookedModel, HookedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "find_openings", lambda *_: OPENINGS)
    sets = (PromptSet(name, tuple(texts)) for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)))
    baseline, cell = pair
    result = why.measure(baseline, {"noisy": cell}, *sets, keep=1, draws=1, prompts=3, force=True)
    (row,) = result.table.to_dict("records")
    assert (row["cell"], row["n_prompts"], row["n_keep"]) == ("noisy", 3, 1)
    assert result.named("why_keep")["linear"].tolist() == [GUILTY]
    assert set(result.named("why_modules")["level"]) == {"total", "module"}
    assert result.settings["forms"]["noisy"]["llm_compressor_ignore"] == ["lm_head", GUILTY]
    assert result.settings["held_out"] is False
    assert "WHY noisy" in result.pages["noisy"]
    result.write(tmp_path)
    written = {file.stem for file in tmp_path.glob("*.parquet")}
    assert written == {"why", "why_modules", "why_restore", "why_explanations", "why_keep"}
