"""Linears kept at higher precision: the three lists by each program's own matching, and the cells that are written."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from compressed_tensors.utils import match_name

from interp.architectures import ARCHITECTURES, architecture
from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.quantize import mixed_precision
from interp.quantize.cells import read_record
from interp.quantize.write import write_cells
from tests.tiny_models import NO_GGUF
from tests.writer_models import CALIBRATION, write_checkpoint

N_BLOCKS = 12
NAMES = {
    row.model_type: [
        f"{row.blocks}.{block}.{linear}"
        for block in range(N_BLOCKS)
        for linear in sorted(
            {name for _, linears in row.scaled_by_norm for name in linears} | {row.attention_out, row.mlp_out}
        )
    ]
    for row in ARCHITECTURES.values()
    if row.experts is None
}
CELLS = ("AWQ", "GPTQ", "Q2_K", "Q8_0")
KEEP = ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]


def chosen(names: list[str]) -> list[str]:
    """Some of them, blocks 1 and 11 among them: one name must not match as the beginning of another."""
    return [name for index, name in enumerate(names) if ".1." in name or index % 7 == 0]


@pytest.mark.parametrize("model_type", NAMES)
def test_gptqmodel_skips_exactly_these_modules(model_type: str) -> None:
    config = pytest.importorskip("gptqmodel.quantization.config")
    names, keep = NAMES[model_type], chosen(NAMES[model_type])
    dynamic = mixed_precision.gptqmodel_dynamic(keep)
    others = [f"{name}_too" for name in names] + [f"outer.{name}" for name in names]
    skipped = [name for name in names + others if config.dynamic_get(dynamic, name) is False]
    assert skipped == keep


@pytest.mark.parametrize("model_type", NAMES)
def test_llm_compressor_ignores_exactly_these_modules(model_type: str) -> None:
    names, keep = NAMES[model_type], chosen(NAMES[model_type])
    ignore = mixed_precision.llm_compressor_ignore(keep)
    assert [name for name in [*names, "lm_head"] if any(match_name(name, pattern) for pattern in ignore)] == [
        *keep,
        "lm_head",
    ]


@pytest.mark.parametrize("model_type", sorted(set(NAMES) - {*NO_GGUF}))
def test_llama_cpp_types_exactly_these_tensors(model_type: str) -> None:
    """llama-quantize splits at "=", makes the pattern lower case, and searches it anywhere in a tensor's name."""
    row, names, keep = architecture(model_type), NAMES[model_type], chosen(NAMES[model_type])
    options = mixed_precision.llama_cpp_tensor_types(keep, row, N_BLOCKS)
    assert options[::2] == ["--tensor-type"] * len(keep)
    patterns = [re.compile(option.split("=")[0].lower()) for option in options[1::2]]
    assert {option.split("=")[1] for option in options[1::2]} == {"f16"}
    stored = dict(zip(mixed_precision.gguf_tensors(names, row, N_BLOCKS), names, strict=True))
    matched = [name for tensor, name in stored.items() if any(pattern.search(tensor) for pattern in patterns)]
    assert matched == keep


@pytest.mark.parametrize("model_type", NO_GGUF)
def test_an_architecture_without_gguf(model_type: str) -> None:
    with pytest.raises(InputError, match=f"GGUF files of {model_type} models are not supported"):
        mixed_precision.gguf_tensors(["model.layers.0.mlp.down_proj"], architecture(model_type), 2)


def test_names_that_gguf_does_not_have() -> None:
    with pytest.raises(InputError, match=r"no name for the linear 'model\.layers\.0\.mlp\.nose'"):
        mixed_precision.gguf_tensors(["model.layers.0.mlp.nose"], architecture("llama"), 2)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_fused_groups_are_whole(model_type: str) -> None:
    row = architecture(model_type)
    block = f"{row.blocks}.1."
    groups = [{block + linear for linear in group} for group in (row.attention_in, row.mlp_in)]
    for group in groups:
        for name in group:
            whole = mixed_precision.whole_groups([f"{row.blocks}.11.{row.mlp_out}", name], row)
            assert whole[:2] == [f"{row.blocks}.11.{row.mlp_out}", name], "the order is that of the list"
            assert set(whole[1:]) == group
            assert len(whole) == 1 + len(group)
            assert mixed_precision.whole_groups(whole, row) == whole


def test_a_mixed_cell_is_named_after_its_list() -> None:
    assert mixed_precision.mixed_name("Q2_K", []) == "Q2_K"
    name = mixed_precision.mixed_name("Q2_K", KEEP)
    assert name == mixed_precision.mixed_name("Q2_K", KEEP[::-1])
    assert name.startswith("Q2_K-keep2-")
    assert name != mixed_precision.mixed_name("Q2_K", [KEEP[0], "model.layers.0.self_attn.k_proj"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture(scope="module")
def pairs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Checkpoint, Checkpoint]]:
    """Each cell written plainly and with `KEEP`."""
    for extra in ("gptqmodel", "llama_cpp"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed")
    out = tmp_path_factory.mktemp("cells")
    plain, mixed = (write_cells(source, out, CALIBRATION, CELLS, keep=keep) for keep in ((), KEEP))
    return {cell: (open_checkpoint(plain[cell]), open_checkpoint(mixed[cell])) for cell in CELLS}


@pytest.mark.parametrize("cell", CELLS)
def test_kept_linears_are_the_baselines(
    source: Path, pairs: dict[str, tuple[Checkpoint, Checkpoint]], cell: str
) -> None:
    baseline, (plain, mixed) = open_checkpoint(source), pairs[cell]
    unquantized = [name for name in mixed.linears() if not mixed.is_quantized(name)]
    assert sorted(unquantized) == sorted(KEEP)
    for name in KEEP:
        kept, original = mixed.weight(name), baseline.weight(name)
        if cell == "AWQ" and name.endswith("up_proj"):
            # AWQ may move a scale from its rows into the down projection, which the cell's other half undoes.
            ratio = kept.norm(dim=1) / original.norm(dim=1)
            kept = kept / ratio[:, None]
            torch.testing.assert_close(kept, original, rtol=2e-3, atol=1e-5)
            continue
        assert torch.equal(kept, original), name
        assert not torch.equal(plain.weight(name), original), name


@pytest.mark.parametrize("cell", ["Q2_K", "Q8_0"])
def test_the_others_are_the_plain_cells(pairs: dict[str, tuple[Checkpoint, Checkpoint]], cell: str) -> None:
    """Where nothing is calibrated; AWQ and GPTQ fit each linear to what the ones before it do."""
    plain, mixed = pairs[cell]
    for name in plain.linears():
        assert torch.equal(plain.weight(name), mixed.weight(name)) is (name not in KEEP), name


@pytest.mark.parametrize("cell", CELLS)
def test_bits_are_what_was_predicted(pairs: dict[str, tuple[Checkpoint, Checkpoint]], cell: str) -> None:
    plain, mixed = pairs[cell]
    assert plain.bits_per_weight() < mixed.bits_per_weight()
    predicted = mixed_precision.mean_bits(plain, KEEP)
    assert mixed.bits_per_weight() == pytest.approx(predicted, rel=1e-6)
    shares = {name: torch.Size(plain.weight_shape(name)).numel() for name in plain.linears()}
    kept = sum(shares[name] for name in KEEP) / sum(shares.values())
    assert mean_kept(mixed) == 16.0
    rest = plain.bits_per_weight() - sum(plain.linear_bits(n) * shares[n] for n in KEEP) / sum(shares.values())
    assert mixed.bits_per_weight() == pytest.approx(rest + 16 * kept, rel=1e-6)


def mean_kept(checkpoint: Checkpoint) -> float:
    return sum(checkpoint.linear_bits(name) for name in KEEP) / len(KEEP)


@pytest.mark.parametrize("cell", CELLS)
def test_the_record_says_what_was_kept(pairs: dict[str, tuple[Checkpoint, Checkpoint]], cell: str) -> None:
    plain, mixed = (read_record(checkpoint.path) for checkpoint in pairs[cell])
    assert plain is not None
    assert mixed is not None
    assert "keep" not in plain.settings
    assert sorted(mixed.settings["keep"]) == sorted(KEEP)
    assert mixed.cell == mixed_precision.mixed_name(cell, KEEP)
    assert mixed.notes == plain.notes == []


def test_lists_that_make_no_sense(source: Path, tmp_path: Path) -> None:
    every = open_checkpoint(source).linears()
    for keep, said in ((["lm_head"], "no linear 'lm_head'"), (every, "nothing would be quantized")):
        with pytest.raises(InputError, match=said):
            write_cells(source, tmp_path, CALIBRATION, ["Q8_0"], keep=keep)
