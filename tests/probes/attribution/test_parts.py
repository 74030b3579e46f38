"""Parts as slices of weights, against what zeroing them does to the hooked activations."""

from __future__ import annotations

import pytest
import torch

from interp.architectures import architecture
from interp.errors import InputError
from interp.model import HookedModel
from probes.attribution.parts import Part, Parts, WeightAxis, linear_weight
from probes.attribution.settings import PartKind
from tests import tiny_models


def _model(name: str) -> HookedModel:
    hf = tiny_models.bare_model(name).requires_grad_(False)
    return HookedModel(hf, tiny_models.tokenizer(), architecture(hf.config.model_type).expanded(hf.config))


@pytest.fixture(params=tiny_models.DISTINCT)
def model(request: pytest.FixtureRequest) -> HookedModel:
    return _model(request.param)


def _zero(model: HookedModel, parts: Parts, part: Part, axis: WeightAxis) -> None:
    for piece in parts.slices(part):
        module = model.hf.get_submodule(piece.linear)
        if piece.axis is axis:
            piece.of(linear_weight(module, model.architecture)).zero_()
            if piece.has_bias and module.bias is not None:
                module.bias[piece.start : piece.stop] = 0


def test_the_rows_of_a_neuron_write_it_alone(model: HookedModel) -> None:
    parts, name = Parts.of(model), "blocks.1.mlp.hook_post"
    before = model.activations(tiny_models.TEXTS, [name])[name]
    _zero(model, parts, Part(PartKind.NEURON, 1, 7), WeightAxis.ROWS)
    after = model.activations(tiny_models.TEXTS, [name])[name]
    assert (after[:, 7] == 0).all()
    assert (before[:, 7] != 0).any()
    others = torch.arange(before.shape[1]) != 7
    torch.testing.assert_close(after[:, others], before[:, others])


def test_the_rows_of_a_head_write_its_group_alone(model: HookedModel) -> None:
    """Zeroed value rows silence all heads of the key-value group, and no other.

    In OLMo 2 and 3, where one norm goes over the queries of all heads, its query and key rows reach the others.
    """
    for norm in [m for n, m in model.hf.named_modules() if n.endswith((".q_norm", ".k_norm"))]:
        if model.architecture.gguf == "olmo2":
            norm.forward = lambda states: states
    parts, name = Parts.of(model), "blocks.1.attn.hook_z"
    before = model.activations(tiny_models.TEXTS, [name])[name]
    _zero(model, parts, Part(PartKind.HEAD, 1, 3), WeightAxis.ROWS)
    after = model.activations(tiny_models.TEXTS, [name])[name]
    group = 4 // getattr(model.config.per_layer_config[1], "num_key_value_heads", 4)
    silent = [head // group == 3 // group for head in range(4)]
    assert (after[:, silent] == 0).all()
    torch.testing.assert_close(after[:, [not s for s in silent]], before[:, [not s for s in silent]])


@pytest.mark.parametrize("kind", [PartKind.NEURON, PartKind.HEAD])
def test_the_columns_read_the_part_alone(model: HookedModel, kind: PartKind) -> None:
    """Without its columns a part changes nothing, whatever its activation."""
    parts, layer = Parts.of(model), 1 if model.architecture.recurrence and kind is PartKind.HEAD else 2
    _zero(model, parts, Part(kind, layer, 2), WeightAxis.COLUMNS)
    before = model.logits(tiny_models.TEXTS)
    hook = f"blocks.{layer}.{'mlp.hook_post' if kind is PartKind.NEURON else 'attn.hook_z'}"

    def changed(activation: torch.Tensor) -> torch.Tensor:
        new = activation.clone()
        new[:, :, 2] += 3
        return new

    with model.intervene({hook: changed}):
        torch.testing.assert_close(model.logits(tiny_models.TEXTS), before)


@pytest.mark.parametrize("kind", [PartKind.NEURON, PartKind.HEAD, PartKind.MODULE, PartKind.LAYER])
def test_shares_add_up_to_the_weights(model: HookedModel, kind: PartKind) -> None:
    """Every weight is counted once by the parts of a kind that cover its linear."""
    parts = Parts.of(model)
    counted = {
        name: torch.zeros_like(linear_weight(model.hf.get_submodule(name), model.architecture)) for name in parts.shapes
    }
    for part in parts.every(kind):
        for piece in parts.slices(part):
            piece.of(counted[piece.linear]).add_(piece.share)
    row = model.architecture
    covered = {PartKind.NEURON: (*row.mlp_in, row.mlp_out), PartKind.HEAD: (*row.attention_in, row.attention_out)}
    for name, count in counted.items():
        within = name.removeprefix(f"{row.blocks}.{parts.layer_of(name)}.")
        expected = 1.0 if kind not in covered or within in covered[kind] else 0.0
        torch.testing.assert_close(count, torch.full_like(count, expected))


def test_linears_and_others_are_all_parameters(model: HookedModel) -> None:
    parts = Parts.of(model)
    linears = {f"{name}.{leaf}" for name in parts.shapes for leaf in ("weight", "bias")}
    names = {name for name, _ in model.hf.named_parameters()}
    assert set(parts.others) == names - linears
    assert sum(parts.size(p) for p in parts.every(PartKind.LAYER)) == sum(
        out * into for out, into in parts.shapes.values()
    )
    assert parts.n_layers == model.n_layers


def test_labels_and_unknown_parts() -> None:
    parts = Parts.of(_model("llama"))
    assert Part(PartKind.NEURON, 1, 7).label == "L1 neuron 7"
    assert Part(PartKind.MODULE, 0, module="model.layers.0.mlp.up_proj").label == "L0 mlp.up_proj"
    assert Part(PartKind.LAYER, 2).label == "L2"
    for unknown in (
        Part(PartKind.NEURON, 0, 48),
        Part(PartKind.HEAD, 0, 4),
        Part(PartKind.MODULE, 0, module="nothing"),
    ):
        with pytest.raises(InputError):
            parts.slices(unknown)
