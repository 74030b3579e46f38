"""Every hook point against three other readings of the same model: the bare model, TransformerLens and nnsight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import HookedModel, load
from interp.errors import InputError
from tests.tiny_models import CONFIGS, HYBRIDS, MIXTURES, TEXTS

TOLERANCE = 1e-5
"""Of the activation's largest magnitude, float32."""

PARALLEL = ("phi", "gpt_neox")
ROUTER = {"router_logits": "hook_out", "expert_weights": "hook_expert_weights", "expert_indices": "hook_expert_indices"}
"""What a router gives, in this order, and TransformerLens' names of it."""
WITHOUT_BRIDGE = ("ministral",)
"""What TransformerLens does not know; its modules are Mistral's."""
WITH_BRIDGE = [name for name in CONFIGS if name not in WITHOUT_BRIDGE]
THREE_TERMS = ("gemma4_text",)
"""What adds a third term after the MLP and multiplies the sum; `test_gemma4.py` has what differs."""
SEQUENTIAL = [name for name in CONFIGS if name not in (*PARALLEL, *THREE_TERMS)]
WORST: dict[tuple[str, str], tuple[float, str]] = {}
"""Model and other reading → largest disagreement and where; printed at the end (pytest -s), and in docs/formats.md."""


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny(name))


@pytest.fixture(scope="module", autouse=True)
def report_worst_disagreement() -> Iterator[None]:
    yield
    for (name, other), (error, where) in sorted(WORST.items()):
        print(f"\n{name}: worst disagreement with {other}: {error:.1e} of the largest magnitude, at {where}", end="")


def tokens(model: HookedModel) -> Tensor:
    return torch.tensor([model.token_ids(TEXTS)[2]])


def captured(model: HookedModel) -> dict[str, Tensor]:
    with torch.no_grad(), model.capture(model.hook_names) as acts:
        model.hf(tokens(model))
    return acts


def output(model: HookedModel) -> Tensor:
    with torch.no_grad():
        return model.hf(tokens(model)).logits


def assert_agrees(other: str, where: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, where
    error = ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()
    name, _, place = where.partition(" ")
    WORST[name, other] = max(WORST.get((name, other), (0.0, "")), (error, place))
    assert error <= TOLERANCE, f"{where}: {error}"


def has_experts(name: str, block: int) -> bool:
    """One block of Qwen's mixtures has an MLP."""
    return name in MIXTURES and (name, block) not in (("qwen3_moe", 1), ("qwen3_next", 1))


def is_recurrent(name: str, block: int) -> bool:
    """All blocks of a hybrid but one have a gated delta net in place of attention."""
    return name in HYBRIDS and block != 1


def routed(points: list[str], name: str, block: int) -> list[str]:
    """The points of a block, those of a router in place of the neurons."""
    router = [f"mlp.hook_{kind}" for kind in ROUTER]
    return [
        p
        for point in points
        for p in (router if has_experts(name, block) and "post" in point[4:] and point.startswith("mlp") else [point])
    ]


def test_names_are_those_of_the_contract(model: HookedModel, name: str) -> None:
    per_block = [
        "hook_resid_pre",
        "attn.hook_z",
        "hook_attn_out",
        "hook_resid_mid",
        "mlp.hook_post",
        "hook_mlp_out",
        "hook_resid_post",
    ]
    if name in PARALLEL:
        per_block.remove("hook_resid_mid")
    if name in THREE_TERMS:
        per_block.insert(-1, "hook_layer_input_out")
    blocks = [f"blocks.{i}.{point}" for i in range(3) for point in routed(per_block, name, i)]
    assert model.hook_names == ["hook_embed", *blocks, "ln_final.hook_normalized"]


def test_agrees_with_the_bare_model(model: HookedModel, name: str, tiny: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32)
    inputs: list[Tensor] = []
    final_norm = bare.get_submodule(model.architecture.final_norm)
    handle = final_norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        result = bare(tokens(model), output_hidden_states=True)
    handle.remove()
    acts = captured(model)
    # hidden_states: embeddings, then each block's output; the last one is after the final norm
    expected = {"hook_embed": result.hidden_states[0], "ln_final.hook_normalized": result.hidden_states[-1]}
    residual = [*result.hidden_states[:-1], inputs[0]]
    for block in range(3):
        expected |= {f"blocks.{block}.hook_resid_pre": residual[block]}
        expected |= {f"blocks.{block}.hook_resid_post": residual[block + 1]}
    for point, theirs in expected.items():
        assert_agrees("the bare model", f"{name} {point}", acts[point], theirs)
    assert_agrees("the bare model", f"{name} logits", output(model), result.logits)


def test_parts_add_up_to_the_residual_stream(model: HookedModel, name: str) -> None:
    acts = captured(model)
    for block in range(3):
        pre, post, attn, mlp = (
            acts[f"blocks.{block}.{point}"]
            for point in ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
        )
        total = pre + attn + mlp
        if name in THREE_TERMS:
            total = (total + acts[f"blocks.{block}.hook_layer_input_out"]) * 0.8
        torch.testing.assert_close(total, post, rtol=1e-5, atol=1e-6)
        if name not in PARALLEL:
            torch.testing.assert_close(pre + attn, acts[f"blocks.{block}.hook_resid_mid"], rtol=1e-5, atol=1e-6)


def router_of(name: str) -> str:
    """The router's name within the MLP."""
    return "router" if name == "gpt_oss" else "gate"


def name_in_bridge(point: str, name: str) -> str | None:
    """TransformerLens' name; None for the outputs of a recurrence's heads, which it does not show."""
    if name in THREE_TERMS:
        renamed = {"hook_normalized": "hook_out", "hook_layer_input_out": "post_per_layer_input_norm.hook_out"}
        return point.replace(kind := point.rpartition(".")[2], renamed.get(kind, kind))
    block, _, kind = point.rpartition(".mlp.hook_")
    if kind in ROUTER:
        return f"{block}.mlp.{router_of(name)}.{ROUTER[kind]}"
    if point.startswith("blocks.") and is_recurrent(name, int(point.split(".")[1])):
        return None if point.endswith("hook_z") else point.replace("hook_attn_out", "linear_attn.hook_out")
    return point


def with_gain(model: HookedModel, name: str, normalized: Tensor) -> Tensor:
    norm: Any = model.hf.get_submodule(model.architecture.final_norm)
    gained = normalized * (norm.weight + 1 if name.startswith("gemma") or name in HYBRIDS else norm.weight)
    return gained + norm.bias if hasattr(norm, "bias") else gained


@pytest.mark.parametrize("name", WITH_BRIDGE, indirect=True)
def test_agrees_with_transformer_lens(model: HookedModel, name: str) -> None:
    bridge = model.to_transformer_lens()
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(tokens(model))
    acts = captured(model)
    for point, ours in acts.items():
        if (in_bridge := name_in_bridge(point, name)) is None:
            continue
        theirs = cache[in_bridge]
        if point.endswith("expert_weights"):  # the bridge has one for each expert, zeros for those that are not taken
            theirs = theirs.gather(-1, acts[point.replace("weights", "indices")].flatten(0, 1))
        theirs = theirs.reshape(ours.shape)
        if point == "hook_embed" and name == "gpt2":
            theirs = theirs + cache["hook_pos_embed"]
        if point == "ln_final.hook_normalized" and name not in THREE_TERMS:
            theirs = with_gain(model, name, theirs)
        assert_agrees("TransformerBridge", f"{name} {point}", ours, theirs)
    assert_agrees("TransformerBridge", f"{name} logits", output(model), logits)


LLAMA_LIKE = (
    "model.layers",
    "model.embed_tokens",
    "model.norm",
    "self_attn.o_proj",
    "mlp.down_proj",
    "self_attn",
    "mlp",
)
POST_NORMED = (*LLAMA_LIKE[:5], "post_attention_layernorm", "post_feedforward_layernorm")
LLAMAS = (
    *("llama", "qwen2", "qwen3", "mistral", "ministral", "ministral3", "smollm3", "granite", "phi3", "gemma"),
    *MIXTURES,
    "qwen3_5_text",
)
OLMOS = ("olmo2", "olmo3")
GEMMAS = ("gemma2", "gemma3_text")
NEOX = ("gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "attention.dense", "mlp.dense_4h_to_h")
NNSIGHT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LLAMAS, LLAMA_LIKE),
    **dict.fromkeys((*GEMMAS, *OLMOS, *THREE_TERMS), POST_NORMED),
    "phi": (
        "model.layers",
        "model.embed_tokens",
        "model.final_layernorm",
        "self_attn.dense",
        "mlp.fc2",
        "self_attn",
        "mlp",
    ),
    "gpt2": ("transformer.h", "transformer.drop", "transformer.ln_f", "attn.c_proj", "mlp.c_proj", "attn", "mlp"),
    **dict.fromkeys(("gpt_neox", "gpt_neox_sequential"), (*NEOX, "attention", "mlp")),
}
"""What someone would write in an nnsight trace: blocks, embedding, final norm, and the four modules of a block."""
DELTA_NET = ("linear_attn.out_proj", "linear_attn")
"""What stands in a hybrid's recurrent blocks for the fourth and the sixth of these names."""
SECOND_NORM = {
    **dict.fromkeys((*LLAMAS, "gpt_neox_sequential"), "post_attention_layernorm"),
    **dict.fromkeys((*GEMMAS, *THREE_TERMS), "pre_feedforward_layernorm"),
    **dict.fromkeys(OLMOS, "mlp"),
    "gpt2": "ln_2",
}
"""What reads the stream between attention and MLP, where there is such a place."""
GRANITE = {"hook_embed": 12.0, "hook_attn_out": 0.22, "hook_mlp_out": 0.22}
"""By what Granite multiplies what these modules give."""


def nnsight_activations(model: HookedModel, name: str) -> dict[str, Any]:
    blocks, embed, final_norm, _, mlp_out, _, mlp = NNSIGHT[name]
    view = model.to_nnsight()
    saved: dict[str, Any] = {}
    with torch.no_grad(), view.trace(tokens(model)):
        saved["hook_embed"] = view.get(embed).output.save()
        for i in range(3):
            block = f"blocks.{i}"
            attention_out, attention = DELTA_NET if is_recurrent(name, i) else (NNSIGHT[name][3], NNSIGHT[name][5])
            saved[f"{block}.hook_resid_pre"] = view.get(f"{blocks}.{i}").input.save()
            saved[f"{block}.attn.hook_z"] = view.get(f"{blocks}.{i}.{attention_out}").input.save()
            saved[f"{block}.hook_attn_out"] = view.get(f"{blocks}.{i}.{attention}").output.save()
            if name in SECOND_NORM:
                saved[f"{block}.hook_resid_mid"] = view.get(f"{blocks}.{i}.{SECOND_NORM[name]}").input.save()
            if has_experts(name, i):
                for kind, value in zip(ROUTER, view.get(f"{blocks}.{i}.mlp.{router_of(name)}").output, strict=True):
                    saved[f"{block}.mlp.hook_{kind}"] = value.save()
            else:
                saved[f"{block}.mlp.hook_post"] = view.get(f"{blocks}.{i}.{mlp_out}").input.save()
            saved[f"{block}.hook_mlp_out"] = view.get(f"{blocks}.{i}.{mlp}").output.save()
            if name in THREE_TERMS:
                third = view.get(f"{blocks}.{i}.post_per_layer_input_norm").output
                saved[f"{block}.hook_layer_input_out"] = third.save()
            saved[f"{block}.hook_resid_post"] = view.get(f"{blocks}.{i}").output.save()
        saved["ln_final.hook_normalized"] = view.get(final_norm).output.save()
    values = {point: value[0] if isinstance(value, tuple) else value for point, value in saved.items()}
    multipliers = GRANITE if name == "granite" else {}
    return {point: value * multipliers.get(point.rpartition(".")[2], 1.0) for point, value in values.items()}


def test_agrees_with_nnsight(model: HookedModel, name: str) -> None:
    ours = captured(model)
    theirs = nnsight_activations(model, name)
    assert set(ours) == set(theirs)
    for point, value in theirs.items():
        assert_agrees("nnsight", f"{name} {point}", ours[point], value.reshape(ours[point].shape))


def test_an_identity_intervention_changes_no_bit(model: HookedModel) -> None:
    before = output(model)
    names = [name for name in model.hook_names if not name.endswith("router_logits")]
    with model.intervene(dict.fromkeys(names, lambda activation: activation)):
        assert torch.equal(output(model), before)


def rotated_at_the_last_token(activation: Tensor) -> Tensor:
    return torch.cat([activation[:, :-1], activation[:, -1:].roll(1, dims=-1)], dim=1)


@pytest.mark.parametrize("name", WITHOUT_BRIDGE, indirect=True)
def test_a_bridge_that_there_is_not(model: HookedModel, name: str) -> None:
    with pytest.raises(InputError, match=f"TransformerLens has no bridge for {name} models"):
        model.to_transformer_lens()


@pytest.mark.parametrize("name", WITH_BRIDGE, indirect=True)
@pytest.mark.parametrize("change", [torch.zeros_like, rotated_at_the_last_token])
def test_interventions_agree_with_transformer_lens(
    model: HookedModel, name: str, change: Callable[..., Tensor]
) -> None:
    """At `hook_resid_mid` the bridge changes only the norm's input, so that one has a test of its own below."""
    bridge = model.to_transformer_lens()
    differs = (
        "hook_resid_mid",
        "hook_normalized",
        "router_logits",
        "expert_weights",
        "expert_indices",
        *(["hook_embed"] if name == "gpt2" else []),
    )
    for point in [p for p in model.hook_names if not p.endswith(differs)]:
        if (in_bridge := name_in_bridge(point, name)) is None:
            continue
        with torch.no_grad(), model.intervene({point: change}):
            ours = model.hf(tokens(model)).logits
        with torch.no_grad():
            theirs = bridge.run_with_hooks(
                tokens(model), fwd_hooks=[(in_bridge, lambda activation, hook: change(activation))]
            )
        assert not torch.allclose(ours, output(model), rtol=1e-3), f"{point} changed nothing"
        assert_agrees("TransformerBridge's interventions", f"{name} {point}", ours, theirs)


NORM_AND_MLP: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(
        (*LLAMAS, "gpt_neox_sequential"),
        lambda block, mid: block.mlp(block.post_attention_layernorm(mid)),
    ),
    "granite": lambda block, mid: 0.22 * block.mlp(block.post_attention_layernorm(mid)),
    "gpt_oss": lambda block, mid: block.mlp(block.post_attention_layernorm(mid))[0],
    **dict.fromkeys(OLMOS, lambda block, mid: block.post_feedforward_layernorm(block.mlp(mid))),
    **dict.fromkeys(
        GEMMAS,
        lambda block, mid: block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid))),
    ),
    "gpt2": lambda block, mid: block.mlp(block.ln_2(mid)),
}
"""The second half of each architecture's block, written out."""


@pytest.mark.parametrize("sequential", SEQUENTIAL)
def test_intervening_on_resid_mid_changes_the_residual_stream(sequential: str, tiny: Callable[[str], Path]) -> None:
    name, model = sequential, load(tiny(sequential))
    block = model.hf.get_submodule(NNSIGHT[name][0])[1]
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mid = captured(model)["blocks.1.hook_resid_mid"] * 0.5 + shift
        expected = mid + NORM_AND_MLP[name](block, mid)
    with model.intervene({"blocks.1.hook_resid_mid": lambda resid: resid * 0.5 + shift}):
        acts = captured(model)
        ours = output(model)
    assert torch.equal(acts["blocks.1.hook_resid_mid"], mid)
    torch.testing.assert_close(acts["blocks.1.hook_resid_post"], expected, rtol=1e-5, atol=1e-6)
    with model.intervene({"blocks.1.hook_resid_post": lambda _: expected}):
        torch.testing.assert_close(ours, output(model), rtol=1e-5, atol=1e-6)


def test_what_is_added_anywhere_in_the_residual_stream_flows_on(model: HookedModel, name: str) -> None:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(2))

    def shifted(point: str) -> Tensor:
        with model.intervene({point: lambda activation: activation + shift}):
            return output(model)

    same = [["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]]
    if name not in THREE_TERMS:
        same += [["blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"], ["hook_embed", "blocks.0.hook_resid_pre"]]
    same += [] if name in PARALLEL else [["blocks.1.hook_resid_mid", "blocks.1.hook_attn_out"]]
    for first, *others in same:
        for other in others:
            torch.testing.assert_close(shifted(first), shifted(other), rtol=1e-5, atol=1e-6)


def test_interventions_on_the_final_norm_reach_the_unembedding(model: HookedModel) -> None:
    chosen = torch.randn(32, generator=torch.Generator().manual_seed(3))
    with model.intervene({"ln_final.hook_normalized": lambda activation: chosen.expand_as(activation)}):
        first, second = output(model)[0, :2]
    torch.testing.assert_close(first, second)
    unembedded = chosen @ model.hf.get_output_embeddings().weight.T
    unembedded = unembedded / getattr(model.config, "logits_scaling", 1.0)
    if (cap := getattr(model.config, "final_logit_softcapping", None)) is not None:
        unembedded = torch.tanh(unembedded / cap) * cap
    if (bias := model.hf.get_output_embeddings().bias) is not None:
        unembedded = unembedded + bias
    torch.testing.assert_close(first, unembedded, rtol=1e-5, atol=1e-5)


def hooks_in(module: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_hooks_are_gone_after_an_exception(model: HookedModel) -> None:
    before, logits = hooks_in(model.hf), output(model)

    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("inside")

    with (
        pytest.raises(RuntimeError, match="inside"),
        model.capture(model.hook_names),
        model.intervene({"blocks.1.hook_resid_post": fail}),
    ):
        output(model)
    assert hooks_in(model.hf) == before
    assert torch.equal(output(model), logits)


def test_captures_see_interventions_whichever_was_entered_first(model: HookedModel) -> None:
    point = "blocks.1.hook_mlp_out"
    for capture_first in (True, False):
        with ExitStack() as stack:
            acts = stack.enter_context(model.capture([point])) if capture_first else {}
            stack.enter_context(model.intervene({point: torch.ones_like}))
            stack.enter_context(model.intervene({point: lambda activation: activation * 3}))
            acts = acts if capture_first else stack.enter_context(model.capture([point]))
            output(model)
        assert torch.equal(acts[point], torch.full_like(acts[point], 3))


@pytest.mark.parametrize("sequential", SEQUENTIAL)
def test_interventions_at_one_block_compose(sequential: str, tiny: Callable[[str], Path]) -> None:
    """Mid, then MLP, then the block's output, each on top of the one before, however the contexts nest."""
    model = load(tiny(sequential))
    block = "blocks.1."
    with (
        model.intervene({block + "hook_resid_post": lambda resid: resid * 2}),
        model.intervene({block + "hook_mlp_out": torch.ones_like}),
        model.intervene({block + "hook_resid_mid": lambda resid: torch.full_like(resid, 5.0)}),
        model.intervene({block + "hook_resid_mid": lambda resid: resid + 1}),
    ):
        acts = captured(model)
    assert torch.equal(acts[block + "hook_resid_post"], torch.full_like(acts[block + "hook_resid_post"], 14.0))
    assert torch.equal(acts["blocks.2.hook_resid_pre"], acts[block + "hook_resid_post"])


def test_an_intervention_does_not_touch_what_was_captured_before_it(model: HookedModel) -> None:
    original = captured(model)["blocks.0.hook_resid_post"]
    with model.intervene({"blocks.1.hook_resid_pre": torch.zeros_like}):
        assert torch.equal(captured(model)["blocks.0.hook_resid_post"], original)


def test_gradients_flow_through_an_intervention(model: HookedModel, name: str) -> None:
    shift = torch.zeros(32, requires_grad=True)
    with model.intervene({"blocks.1.hook_resid_pre": lambda resid: resid + shift}):
        model.hf(tokens(model)).logits[0, -1, 7].backward()
    size = 1e-3 if name in HYBRIDS else 1e-2  # a tiny delta net's norm makes much of little, so steep curves
    step = size * torch.nn.functional.normalize(shift.grad, dim=0)  # a finite difference along the gradient
    values = []
    for sign in (1, -1):
        with model.intervene({"blocks.1.hook_resid_pre": lambda resid, sign=sign: resid + sign * step}):
            values.append(output(model)[0, -1, 7])
    torch.testing.assert_close((values[0] - values[1]) / (2 * size), shift.grad.norm(), rtol=2e-2, atol=1e-3)
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_unknown_names_are_refused_with_the_known_ones(model: HookedModel, name: str) -> None:
    with pytest.raises(
        InputError, match=r"no hook 'blocks\.3\.hook_resid_post'.*blocks\.\{i\}\.hook_resid_post.*0 to 2"
    ):
        model.activations(TEXTS, ["blocks.3.hook_resid_post"])
    if name in PARALLEL:
        with pytest.raises(InputError, match="Parallel blocks"), model.capture(["blocks.0.hook_resid_mid"]):
            pass


def test_an_intervention_must_keep_the_shape(model: HookedModel) -> None:
    wrong: list[Callable[[Tensor], Any]] = [lambda activation: activation[:, -1], lambda activation: None]
    for function in wrong:
        with (
            pytest.raises(InputError, match=r"blocks\.0\.attn\.hook_z returned"),
            model.intervene({"blocks.0.attn.hook_z": function}),
        ):
            output(model)
