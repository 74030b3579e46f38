"""Exchanging weights and activations of two models, against copies made by hand and the other model itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from interp.model import HookedModel
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.causal.exchange import Aim, _changes, sites_of, swapped_weights
from probes.causal.settings import By
from probes.margin.refusal_margin import changed, margins
from tests.exchanges import HARMFUL, OPENINGS, baseline, interventions, noisy
from tests.tiny_models import DISTINCT


def state(model: HookedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


def assert_same(model: HookedModel, before: dict[str, torch.Tensor]) -> None:
    after = model.hf.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", DISTINCT)
def test_everything_restored_is_the_baseline_and_everything_damaged_the_cell(name: str) -> None:
    """Logits, not only margins; each alone leaves the other model."""
    ours = baseline(name)
    theirs = noisy(ours)
    models = interventions(ours, theirs)
    for target, source in ((theirs, ours), (ours, theirs)):
        before, expected = state(target), source.logits(HARMFUL)
        assert not torch.equal(target.logits(HARMFUL), expected)
        with swapped_weights(target, source, models.parts, models.everything()):
            assert torch.equal(target.logits(HARMFUL), expected)
        assert_same(target, before)
    for aim in Aim:
        start, goal = models.unchanged(aim)
        assert torch.equal(models.margins(aim, By.WEIGHTS, models.everything()), goal)
        assert torch.equal(models.margins(aim, By.WEIGHTS, ()), start)


def test_margins_are_those_of_the_margin_probe() -> None:
    ours = baseline()
    models = interventions(ours, noisy(ours))
    torch.testing.assert_close(models.unchanged(Aim.DAMAGE)[0], margins(ours, HARMFUL, OPENINGS))


@pytest.mark.parametrize("name", ["llama", "phi", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("kind", [PartKind.NEURON, PartKind.HEAD, PartKind.MODULE, PartKind.LAYER])
def test_originals_return_after_an_exception(name: str, kind: PartKind) -> None:
    """Overlapping parts too: heads that share keys and values."""
    ours = baseline(name)
    theirs = noisy(ours)
    parts, before = Parts.of(ours), state(theirs)
    chosen = [*parts.every(kind), *parts.every(kind)[:2], *parts.every(PartKind.OTHER)]

    def exchanged() -> None:
        with swapped_weights(theirs, ours, parts, chosen):
            assert not torch.equal(next(iter(theirs.hf.parameters())), next(iter(before.values())))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        exchanged()
    assert_same(theirs, before)


def test_a_neuron_restored_by_hand() -> None:
    ours = baseline()
    theirs = noisy(ours)
    by_hand = copy.deepcopy(theirs.hf)
    mlp, reference = by_hand.model.layers[1].mlp, ours.hf.model.layers[1].mlp
    mlp.gate_proj.weight[7] = reference.gate_proj.weight[7]
    mlp.up_proj.weight[7] = reference.up_proj.weight[7]
    mlp.down_proj.weight[:, 7] = reference.down_proj.weight[:, 7]
    expected = HookedModel(by_hand, ours.tokenizer, ours.architecture).logits(HARMFUL)
    with swapped_weights(theirs, ours, Parts.of(ours), [Part(PartKind.NEURON, 1, 7)]):
        assert torch.equal(theirs.logits(HARMFUL), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "gpt2"])
@pytest.mark.parametrize("kind", [PartKind.NEURON, PartKind.HEAD, PartKind.MODULE, PartKind.LAYER])
def test_activations_of_a_layer_that_has_no_error_behind_it(name: str, kind: PartKind) -> None:
    """With noise in the last block alone, all of its parts' activations give the baseline, where they cover it."""
    ours = baseline(name)
    theirs = noisy(ours, everything=False)
    last = ours.n_layers - 1
    parts = Parts.of(ours)
    for linear in parts.shapes:
        module, original = theirs.hf.get_submodule(linear), ours.hf.get_submodule(linear)
        covered = linear.endswith((ours.architecture.attention_out, ours.architecture.mlp_out))
        if parts.layer_of(linear) < last or (covered and kind in (PartKind.NEURON, PartKind.HEAD)):
            module.load_state_dict(original.state_dict())
    models = interventions(ours, theirs)
    kinds = {PartKind.NEURON: ("attn",), PartKind.HEAD: ("mlp",)}.get(kind, ())
    for linear in parts.shapes:  # neurons do not carry attention's error, nor heads the MLP's
        part = linear.removeprefix(f"{ours.architecture.blocks}.{last}.")
        attention = part in ours.architecture.attention_in
        if (kinds == ("attn",) and attention) or (kinds == ("mlp",) and part in ours.architecture.mlp_in):
            theirs.hf.get_submodule(linear).load_state_dict(ours.hf.get_submodule(linear).state_dict())
    start, goal = models.unchanged(Aim.RESTORE)
    assert not torch.allclose(start, goal)
    chosen = [part for part in parts.every(kind) if part.layer == last]
    torch.testing.assert_close(models.margins(Aim.RESTORE, By.ACTIVATIONS, chosen), goal, rtol=1e-4, atol=1e-5)
    some = models.margins(Aim.RESTORE, By.ACTIVATIONS, chosen[: len(chosen) // 2 or 1])
    assert kind is PartKind.LAYER or not torch.allclose(some, goal)


def test_one_neurons_activation_alone_is_replaced() -> None:
    ours = baseline()
    theirs = noisy(ours)
    models = interventions(ours, theirs, batch_size=None)
    hook, seen = "blocks.1.mlp.hook_post", {}
    for model, name in ((ours, "ours"), (theirs, "theirs")):
        seen[name] = models.runs.record(model, [hook])[0][hook]
    with theirs.capture([hook]) as acts:
        models.margins(Aim.RESTORE, By.ACTIVATIONS, [Part(PartKind.NEURON, 1, 3)])
    own, other, new = seen["theirs"][-1], seen["ours"][-1], acts[hook]
    assert torch.equal(new[..., 3], other[..., 3])
    kept = torch.arange(new.shape[-1]) != 3
    assert torch.equal(new[..., kept], own[..., kept])


def test_sites_and_outputs_of_linears() -> None:
    ours = baseline()
    assert sites_of(Part(PartKind.HEAD, 2, 1)) == ["blocks.2.attn.hook_z"]
    name = "model.layers.0.mlp.up_proj"
    expected = ours.logits(HARMFUL)
    with changed(ours, {name: torch.zeros_like}), ours.capture(["blocks.0.mlp.hook_post"]) as acts:
        ours.hf(torch.tensor(ours.token_ids(HARMFUL[:1])))
    assert not acts["blocks.0.mlp.hook_post"].any()
    assert torch.equal(ours.logits(HARMFUL), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_parameters_exchanged_whole_are_lent_and_the_lender_keeps_its_own(name: str) -> None:
    """Nothing is copied, also where single lines of a linear are exchanged a second time."""
    ours = baseline(name)
    theirs = noisy(ours)
    parts, before, lender = Parts.of(ours), state(theirs), state(ours)
    chosen = [*parts.every(PartKind.LAYER), *parts.every(PartKind.OTHER), Part(PartKind.NEURON, 1, 7)]
    with swapped_weights(theirs, ours, parts, chosen):
        for name_, parameter in theirs.hf.named_parameters():
            assert parameter.data_ptr() == ours.hf.get_parameter(name_).data_ptr(), name_
    assert_same(theirs, before)
    assert_same(ours, lender)


@pytest.mark.parametrize("kind", [PartKind.NEURON, PartKind.HEAD, PartKind.MODULE, PartKind.LAYER])
def test_activations_are_those_that_were_recorded(kind: PartKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one pass at a time, in small batches too, what a recording of all passes puts in."""
    ours = baseline()
    models = interventions(ours, noisy(ours), batch_size=None)
    selection = models.parts.every(kind)[::2]
    sites = list(dict.fromkeys(site for part in selection for site in sites_of(part)))
    recording = models.runs.record(ours, sites)

    def replaying(number: int) -> AbstractContextManager[None]:
        passes = [dict(zip(sites, one, strict=True)) for one in zip(*recording[number].values(), strict=True)]
        return in_turn(models.cell, passes, selection)

    expected = models.runs.margins(models.cell, replaying)
    assert torch.equal(models.margins(Aim.RESTORE, By.ACTIVATIONS, selection), expected)
    monkeypatch.setattr("probes.causal.exchange.spare_memory", lambda _: 1)
    small = interventions(ours, models.cell, batch_size=None)
    assert len(small._runs_beside(ours, len(sites)).batches) > len(models.runs.batches)
    torch.testing.assert_close(small.margins(Aim.RESTORE, By.ACTIVATIONS, selection), expected, rtol=1e-5, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in ours.hf.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in models.cell.hf.modules())


@contextmanager
def in_turn(model: HookedModel, passes: list[dict[str, torch.Tensor]], selection: Sequence[Part]) -> Iterator[None]:
    """Before each pass of the model its recorded activations are laid out."""
    activations: dict[str, torch.Tensor] = {}
    left = iter(passes)

    def lay_out(*_: object) -> None:
        activations.update(next(left))

    handle = model.hf.register_forward_pre_hook(lay_out)
    with changed(model, _changes(activations, selection)):
        yield
    handle.remove()
    assert next(left, None) is None
