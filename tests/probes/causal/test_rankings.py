"""Rankings of parts and matched random sets, against sums over weights and means over prompts by hand."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest
import torch

from interp.errors import InputError
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.causal.rankings import contrast_scores, matched_draws, ranked, tabulated_scores, weight_error_scores
from probes.causal.restoration import grid
from tests.exchanges import HARMFUL, HARMLESS, baseline, noisy


def test_the_largest_score_first_and_of_equal_ones_the_first_part() -> None:
    a, b, c = (Part(PartKind.NEURON, layer, index) for layer, index in ((0, 1), (0, 2), (1, 0)))
    assert ranked({c: 1.0, b: 1.0, a: 3.0}) == [a, b, c]


@pytest.mark.parametrize("n", [1, 2, 6, 8, 24, 1536])
def test_grid_doubles_up_to_all(n: int) -> None:
    found = grid(n)
    assert found[-1] == n
    assert found[:-1] == [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if k < n]


def test_weight_error_is_the_frobenius_norm() -> None:
    ours = baseline()
    theirs, parts = noisy(ours), Parts.of(ours)
    one, other = ours.hf.model.layers[1].mlp, theirs.hf.model.layers[1].mlp
    pieces = [
        other.gate_proj.weight[7] - one.gate_proj.weight[7],
        other.up_proj.weight[7] - one.up_proj.weight[7],
        other.down_proj.weight[:, 7] - one.down_proj.weight[:, 7],
    ]
    scores = weight_error_scores(ours, theirs, parts, PartKind.NEURON)
    assert scores[Part(PartKind.NEURON, 1, 7)] == pytest.approx(torch.cat(pieces).norm().item(), rel=1e-6)
    layers, modules = (weight_error_scores(ours, theirs, parts, kind) for kind in (PartKind.LAYER, PartKind.MODULE))
    for layer in range(3):
        inside = [score**2 for part, score in modules.items() if part.layer == layer]
        assert layers[Part(PartKind.LAYER, layer)] == pytest.approx(sum(inside) ** 0.5)


def test_contrast_is_the_distance_of_the_means() -> None:
    ours = baseline()
    scores = contrast_scores(ours, PartKind.HEAD, HARMFUL, HARMLESS)
    name = "blocks.2.attn.hook_z"
    means = [ours.activations(texts, [name])[name].mean(0) for texts in (HARMFUL, HARMLESS)]
    for head in range(4):
        expected = (means[0] - means[1])[head].norm().item()
        assert scores[Part(PartKind.HEAD, 2, head)] == pytest.approx(expected, rel=1e-4)
    assert len(contrast_scores(ours, PartKind.NEURON, HARMFUL, HARMLESS)) == 3 * 48


def test_random_sets_match_layers_and_sizes_and_can_be_repeated() -> None:
    parts = Parts.of(baseline())
    chosen = [Part(PartKind.NEURON, 0, i) for i in range(5)] + [Part(PartKind.NEURON, 2, i) for i in range(3)]
    draws = matched_draws(chosen, parts, 20, seed=3)
    assert len(draws) == 20
    assert draws == matched_draws(chosen[::-1], parts, 20, seed=3)
    assert draws != matched_draws(chosen, parts, 20, seed=4)
    for drawn in draws:
        assert len(set(drawn)) == len(chosen)
        assert Counter(part.layer for part in drawn) == {0: 5, 2: 3}
    assert len({tuple(drawn) for drawn in draws}) > 15
    modules = parts.every(PartKind.MODULE)[:9]
    for drawn in matched_draws(modules, parts, 20, seed=0):
        assert Counter(map(parts.size, drawn)) == Counter(map(parts.size, modules))
        assert len(set(drawn)) == 9


def test_scores_from_the_table_of_the_attribution_probe() -> None:
    """Where the margin fell, what pushed it down comes first; what is not listed is 0."""
    parts = Parts.of(baseline())
    rows = [("total", None, None, None, -0.5, -0.5), ("neuron", 1, None, 3, -0.3, None)]
    rows += [("neuron", 2, None, 5, 0.2, None), ("module", 0, "model.layers.0.mlp.up_proj", None, -0.1, None)]
    table = pd.DataFrame(rows, columns=["level", "layer", "module", "unit", "attribution", "shift"])
    table = table.assign(cell="Q2_K", prompts="harmful", category="all")
    order = ranked(tabulated_scores(table, "Q2_K", parts, PartKind.NEURON))
    assert len(order) == 3 * 48
    assert order[0] == Part(PartKind.NEURON, 1, 3)
    assert order[-1] == Part(PartKind.NEURON, 2, 5)
    modules = ranked(tabulated_scores(table, "Q2_K", parts, PartKind.MODULE))
    assert modules[0].module == "model.layers.0.mlp.up_proj"
    with pytest.raises(InputError, match="no heads of the cell 'Q2_K'"):
        tabulated_scores(table, "Q2_K", parts, PartKind.HEAD)
    with pytest.raises(InputError, match="one of its cells, Q2_K"):
        tabulated_scores(table, "GPTQ", parts, PartKind.NEURON)
    with pytest.raises(InputError, match="2 totals of the cell 'Q2_K'"):
        tabulated_scores(pd.concat([table, table[:1]]), "Q2_K", parts, PartKind.NEURON)
    with pytest.raises(InputError, match="no column 'cell'"):
        tabulated_scores(table.drop(columns="cell"), "GPTQ", parts, PartKind.NEURON)
