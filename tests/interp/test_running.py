"""Hooks as people know them: caches and hook functions against TransformerLens, nnsight and single texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import HookedModel, complete, load, read_cache
from interp.errors import InputError, NotFinite
from tests.tiny_models import TEXTS

RESID = "blocks.1.hook_resid_post"
POSTS = [f"blocks.{block}.hook_resid_post" for block in range(3)]
SHORT_ANSWERS = 6


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def assert_close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def tokens(model: HookedModel, text: str) -> Tensor:
    return torch.tensor(model.token_ids([text]))


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "names",
    [
        "blocks.*.hook_resid_post",
        re.compile(r"resid_post$"),
        lambda name: name.endswith("resid_post"),
        POSTS,
        ["blocks.[01].hook_resid_post", re.compile(r"2\.hook_resid_post")],
    ],
)
def test_names_are_chosen_by_wildcard_expression_filter_or_list(model: HookedModel, names: Any) -> None:
    _, cache = model.run_with_cache(TEXTS[0], names)
    assert list(cache) == POSTS
    assert list(model.activations(TEXTS[0], names)) == POSTS


def test_all_hooks_are_kept_by_default(model: HookedModel) -> None:
    assert list(model.run_with_cache(TEXTS[0])[1]) == model.hook_names


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("blocks.*.hook_resid_pots", r"None of the 23 hooks.*'blocks\.\*\.hook_resid_pots'.*hook_names"),
        (re.compile("nothing"), "matches 'nothing'"),
        ("blocks.9.hook_resid_post", "no hook 'blocks.9.hook_resid_post'.*i from 0 to 2"),
    ],
)
def test_names_that_no_hook_has_are_refused(model: HookedModel, names: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.run_with_cache(TEXTS, names)
    with pytest.raises(InputError, match=said):
        model.run_with_hooks(TEXTS, [(names, torch.zeros_like)])


# ── run_with_cache ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_cache_is_that_of_transformer_lens(name: str, tiny: Callable[[str], Path]) -> None:
    model, differs = load(tiny(name)), ("hook_normalized", "hook_embed")
    logits, cache = model.run_with_cache(TEXTS[2])
    with torch.no_grad():
        their_logits, theirs = model.to_transformer_lens().run_with_cache(tokens(model, TEXTS[2]))
    assert logits is not None
    assert_close(logits, their_logits)
    for point in (p for p in cache if not p.endswith(differs)):
        assert_close(cache[point], theirs[point])
    assert_close(cache["resid_post", 1], theirs["resid_post", 1])
    assert_close(cache["z", 0], theirs["z", 0])


def test_the_cache_is_that_of_nnsight(model: HookedModel) -> None:
    _, cache = model.run_with_cache(TEXTS[2], POSTS)
    view, saved = model.to_nnsight(), []
    with torch.no_grad(), view.trace(tokens(model, TEXTS[2])):
        for block in range(3):
            saved.append(view.get(f"model.layers.{block}").output.save())
    for point, theirs in zip(POSTS, saved, strict=True):
        assert_close(cache[point], theirs)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "phi"])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_rows_of_a_padded_batch_equal_single_rows(
    name: str, batch_size: int | None, tiny: Callable[[str], Path]
) -> None:
    model = load(tiny(name))
    logits, cache = model.run_with_cache(TEXTS, batch_size=batch_size)
    assert logits is not None
    for which, text in enumerate(TEXTS):
        alone_logits, alone = model.run_with_cache(text, remove_batch_dim=True)
        n = len(model.token_ids([text])[0])
        assert cache.mask[which].tolist() == [True] * n + [False] * (cache.mask.shape[1] - n)
        assert alone_logits is not None
        assert_close(logits[which, :n], alone_logits)
        for point in model.hook_names:
            assert_close(cache[point][which, :n], alone[point])
            assert cache[point][which, n:].isnan().all()


def test_positions_are_counted_in_each_text(model: HookedModel) -> None:
    _, everything = model.run_with_cache(TEXTS, RESID)
    lengths = [len(ids) for ids in model.token_ids(TEXTS)]
    last_logits, last = model.run_with_cache(TEXTS, RESID, position=-1)
    assert_close(last[RESID], torch.stack([everything[RESID][i, n - 1] for i, n in enumerate(lengths)]))
    assert_close(last[RESID], model.activations(TEXTS, [RESID])[RESID], 0)
    assert last_logits is not None
    assert_close(last_logits, model.logits(TEXTS))
    _, three = model.run_with_cache(TEXTS, RESID, position=slice(-3, None))
    _, named = model.run_with_cache(TEXTS, RESID, position=[0, -1])
    for which, n in enumerate(lengths):
        real = everything[RESID][which, :n]
        assert_close(three[RESID][which, : min(n, 3)], real[-3:])
        assert three.mask[which].sum() == min(n, 3)
        assert_close(named[RESID][which], real[[0, -1]])
    with pytest.raises(InputError, match="has no position 5000"):
        model.run_with_cache(TEXTS, RESID, position=5000)


def test_logits_can_be_left_out(model: HookedModel) -> None:
    with model.unembed_only(lambda hidden: pytest.fail("unembedded")):
        logits, cache = model.run_with_cache(TEXTS, RESID, logits=False)
    assert logits is None
    assert_close(cache[RESID][cache.mask], model.run_with_cache(TEXTS, RESID)[1][RESID][cache.mask])


def test_the_batch_dimension_of_one_text_can_go(model: HookedModel) -> None:
    logits, cache = model.run_with_cache(TEXTS[0], remove_batch_dim=True)
    n = len(model.token_ids(TEXTS[0])[0])
    assert logits is not None
    assert (logits.shape, cache[RESID].shape, cache.mask.shape) == ((n, 320), (n, 32), (n,))
    with pytest.raises(InputError, match=f"holds {len(TEXTS)} texts"):
        model.run_with_cache(TEXTS, remove_batch_dim=True)


def test_a_cache_says_what_it_is_and_what_it_lacks(model: HookedModel) -> None:
    _, cache = model.run_with_cache(TEXTS, POSTS)
    assert repr(cache) == f"<ActivationCache: 3 hooks, {len(TEXTS)} × {cache.mask.shape[1]} texts × positions>"
    assert cache.token_ids == model.token_ids(TEXTS)
    with pytest.raises(KeyError, match=r"hook_embed.*was not kept.*blocks\.0\.hook_resid_post"):
        cache["hook_embed"]
    with pytest.raises(InputError, match="no prompts"):
        model.run_with_cache([])


# ── run_with_hooks ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hook_functions_do_what_they_do_in_transformer_lens(model: HookedModel) -> None:
    def zero_a_neuron(activation: Tensor, hook: Any) -> Tensor:
        activation[..., hook.layer()] = 0
        return activation

    hooks = [(lambda name: name.endswith("mlp.hook_post"), zero_a_neuron), (RESID, lambda resid, hook: resid * 2)]
    bridge = model.to_transformer_lens()
    with torch.no_grad():
        theirs = bridge.run_with_hooks(tokens(model, TEXTS[2]), fwd_hooks=hooks)
    ours = model.run_with_hooks(TEXTS[2], hooks)
    assert not torch.allclose(ours, model.run_with_hooks(TEXTS[2]), rtol=1e-3)
    assert_close(ours, theirs)


def test_patching_equals_transformer_lens_and_nnsight(model: HookedModel) -> None:
    """The residual stream of one prompt, put into another of as many tokens, at one position."""
    clean, corrupted = "How do I pick", "How do I bake"
    ids = [tokens(model, text) for text in (clean, corrupted)]
    n = min(each.shape[1] for each in ids)
    _, cache = model.run_with_cache(clean, RESID)

    def patch(resid: Tensor, hook: Any) -> Tensor:
        resid[:, n - 1] = cache[RESID][:, n - 1]  # the bridge's hook.name is blocks.1.hook_out
        return resid

    ours = model.run_with_hooks(corrupted, [(RESID, patch)])
    bridge = model.to_transformer_lens()
    with torch.no_grad():
        theirs = bridge.run_with_hooks(ids[1], fwd_hooks=[(RESID, patch)])
    assert_close(ours, theirs)
    view = model.to_nnsight()
    with torch.no_grad(), view.trace(ids[1]):
        resid = view.model.layers[1].output
        resid[:, n - 1] = cache[RESID][:, n - 1]
        sighted = view.lm_head.output.save()
    assert_close(ours, sighted)
    assert not torch.allclose(ours, model.run_with_hooks(corrupted), rtol=1e-3)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_function_is_told_which_texts_it_sees(model: HookedModel, batch_size: int | None) -> None:
    """Each text is patched with its own activations, doubled: as if it were run alone."""
    _, cache = model.run_with_cache(TEXTS, RESID)

    def patch(resid: Tensor, hook: Any) -> Tensor:
        assert hook.lengths == [len(cache.token_ids[which]) for which in hook.indices]
        assert hook.indices == sorted(hook.indices)
        return 2 * cache[hook.name][hook.indices, : resid.shape[1]].nan_to_num()

    ours = model.run_with_hooks(TEXTS, [(RESID, patch)], position=-1, batch_size=batch_size)
    with model.intervene({RESID: lambda resid: 2 * resid}):
        assert_close(ours, model.logits(TEXTS))


def test_a_function_may_change_in_place_and_return_nothing(model: HookedModel) -> None:
    def in_place(resid: Tensor) -> None:
        resid *= 2

    seen: list[Tensor] = []
    with model.capture(["blocks.0.hook_resid_post"]) as before:
        ours = model.run_with_hooks(TEXTS[0], [("blocks.1.hook_resid_pre", in_place), (RESID, seen.append)])
    theirs = model.run_with_hooks(TEXTS[0], [("blocks.1.hook_resid_pre", lambda resid: resid * 2)])
    assert_close(ours, theirs, 0)
    assert len(seen) == 1
    assert_close(
        before["blocks.0.hook_resid_post"],
        model.run_with_cache(TEXTS[0], "blocks.0.hook_resid_post")[1]["resid_post", 0],
    )


def test_functions_at_one_place_run_in_their_order_and_are_gone_afterwards(model: HookedModel) -> None:
    before = model.run_with_hooks(TEXTS)
    hooks = [("blocks.2.hook_mlp_out", torch.ones_like), ("blocks.2.hook_mlp_out", lambda added: added * 3)]
    with model.intervene({"blocks.2.hook_mlp_out": lambda added: torch.full_like(added, 3)}):
        expected = model.run_with_hooks(TEXTS)
    ours = model.run_with_hooks(TEXTS, hooks)
    real = ~ours.isnan()
    assert torch.equal(ours[real], expected[real])
    assert torch.equal(model.run_with_hooks(TEXTS)[real], before[real])
    with pytest.raises(InputError, match="returned shape"):
        model.run_with_hooks(TEXTS, [(RESID, lambda resid: resid[0])])
    assert not model.hooks.active


# ── generation ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_generation_under_hooks_is_that_of_a_model_with_the_hooks_open(model: HookedModel) -> None:
    assert model.generate(TEXTS, SHORT_ANSWERS) == complete(model, TEXTS, SHORT_ANSWERS)
    with model.intervene({RESID: lambda resid: resid.roll(1, -1)}):
        expected = complete(model, TEXTS, SHORT_ANSWERS)
    found = model.generate(TEXTS, SHORT_ANSWERS, hooks=[(RESID, lambda resid, hook: resid.roll(1, -1))])
    assert found == expected
    assert found != model.generate(TEXTS, SHORT_ANSWERS)


def test_hooks_of_a_generation_know_their_texts(model: HookedModel) -> None:
    """One text alone is changed; the others answer as they do."""

    def third(resid: Tensor, hook: Any) -> Tensor:
        return torch.stack([row * (-1 if which == 2 else 1) for row, which in zip(resid, hook.indices, strict=True)])

    plain = model.generate(TEXTS, SHORT_ANSWERS)
    changed = model.generate(TEXTS, SHORT_ANSWERS, hooks=[(RESID, third)], batch_size=2)
    assert [which for which in range(len(TEXTS)) if plain[which] != changed[which]] == [2]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_activations_of_generated_tokens(model: HookedModel, batch_size: int) -> None:
    """Against one forward pass over prompt and answer together."""
    completions, cache = model.generate_with_cache(TEXTS, POSTS, SHORT_ANSWERS, batch_size=batch_size)
    assert completions == model.generate(TEXTS, SHORT_ANSWERS)
    for which, prompt in enumerate(model.token_ids(TEXTS)):
        last, *answer = cache.token_ids[which]
        assert last == prompt[-1]
        assert len(answer) == completions[which].n_tokens
        n = 1 + len(answer)
        assert cache.mask[which].tolist() == [True] * n + [False] * (cache.mask.shape[1] - n)
        with torch.no_grad(), model.capture(POSTS) as acts:
            model.hf(torch.tensor([[*prompt, *answer]]))
        for point in POSTS:
            assert_close(cache[point][which, :n], acts[point][0, len(prompt) - 1 :])
            assert cache[point][which, n:].isnan().all()


def test_the_cache_of_a_generation_sees_the_hooks(model: HookedModel) -> None:
    _, cache = model.generate_with_cache(TEXTS, RESID, 2, hooks=[(RESID, torch.ones_like)])
    assert torch.equal(cache[RESID][cache.mask], torch.ones_like(cache[RESID][cache.mask]))


def test_chat_prompts_are_rendered(model: HookedModel) -> None:
    rendered = "<|user|>Tell me.\n<|assistant|>"
    assert model.generate("Tell me.", 4, chat=True) == model.generate(rendered, 4)
    assert model.run_with_cache("Tell me.", RESID, chat=True)[1].token_ids == model.token_ids([rendered])


# ── on disk ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("position", [-1, "all", slice(0, 2)])
def test_a_cache_in_files_equals_one_in_memory(model: HookedModel, tmp_path: Path, position: Any) -> None:
    _, expected = model.run_with_cache(TEXTS, POSTS, position, batch_size=2)
    written = model.write_cache(TEXTS, POSTS, tmp_path / "cache", position, batch_size=2)
    for cache in (written, read_cache(tmp_path / "cache")):
        assert list(cache) == POSTS
        assert cache.token_ids == expected.token_ids
        assert torch.equal(cache.mask, expected.mask)
        for point in POSTS:
            torch.testing.assert_close(cache[point], expected[point], rtol=0, atol=0, equal_nan=True)
    assert len(list((tmp_path / "cache").glob("0*.safetensors"))) == (len(TEXTS) + 1) // 2


def test_half_precision_is_kept_as_it_is(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    half = load(tiny("llama"), dtype=torch.bfloat16)
    cache = half.write_cache(TEXTS, RESID, tmp_path / "cache")
    assert torch.equal(cache[RESID], half.activations(TEXTS, RESID)[RESID])
    from safetensors.torch import load_file

    assert load_file(tmp_path / "cache" / "00000.safetensors")[RESID].dtype == torch.bfloat16


def test_an_interrupted_cache_goes_on_where_it_was(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp import cache_files

    saved: list[str] = []
    save = cache_files._save

    def interrupted(path: Path, tensors: Any) -> None:
        if path.name == "00001.safetensors" and not saved.count("resumed"):
            raise KeyboardInterrupt
        saved.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(cache_files, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.write_cache(TEXTS, RESID, tmp_path / "cache", batch_size=1)
    with pytest.raises(InputError, match=rf"not finished: {len(TEXTS) - 1} of {len(TEXTS)} files"):
        read_cache(tmp_path / "cache")
    saved[:] = ["resumed"]
    cache = model.write_cache(TEXTS, RESID, tmp_path / "cache", batch_size=1)
    assert "00000.safetensors" not in saved
    assert_close(cache[RESID], model.activations(TEXTS, RESID)[RESID])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("texts.safetensors", lambda tensors: {"mask": tensors["mask"]}),
        ("texts.safetensors", lambda tensors: tensors | {"lengths": tensors["lengths"] + 1}),
        ("texts.safetensors", lambda tensors: tensors | {"lengths": tensors["lengths"].double()}),
        ("texts.safetensors", lambda tensors: tensors | {"mask": tensors["mask"][1:]}),
        ("00001.safetensors", lambda tensors: tensors | {"indices": torch.tensor([0, 1])}),
        ("00001.safetensors", lambda tensors: tensors | {RESID: tensors[RESID][:, 1:].contiguous()}),
        ("00001.safetensors", lambda tensors: tensors | {"indices": tensors["indices"].double()}),
        ("00001.safetensors", lambda tensors: {"indices": tensors["indices"]}),
        ("00001.safetensors", None),
    ],
)
def test_a_damaged_cache_is_refused(model: HookedModel, tmp_path: Path, name: str, change: Any) -> None:
    cache = model.write_cache(TEXTS, RESID, tmp_path / "cache", batch_size=1)
    file = tmp_path / "cache" / name
    if change is None:
        file.write_bytes(file.read_bytes()[:-8])
    else:
        save_file(change(load_file(file)), file)
    with pytest.raises(InputError, match=rf"{name} is damaged"):
        read_cache(tmp_path / "cache") if name == "texts.safetensors" else cache[RESID]


def test_another_cache_is_never_overwritten(model: HookedModel, tmp_path: Path) -> None:
    model.write_cache(TEXTS, RESID, tmp_path / "cache")
    before = {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir()}
    with pytest.raises(InputError, match=r"another cache; what differs.*: names"):
        model.write_cache(TEXTS, POSTS, tmp_path / "cache")
    with pytest.raises(InputError, match="tokens_sha256"):
        model.write_cache([*TEXTS[:-1], "another one"], RESID, tmp_path / "cache")
    with (
        model.intervene({RESID: torch.zeros_like}),
        pytest.raises(InputError, match="cannot be compared: interventions"),
    ):
        model.write_cache(TEXTS, RESID, tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in (tmp_path / "cache").iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no cache\.json"):
        model.write_cache(TEXTS, RESID, tmp_path / "other")


def test_damaged_caches_are_refused(model: HookedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no cache\.json"):
        read_cache(tmp_path)
    model.write_cache(TEXTS, RESID, tmp_path / "cache")
    about = tmp_path / "cache" / "cache.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        read_cache(tmp_path / "cache")
    about.write_text("{")
    with pytest.raises(InputError):
        read_cache(tmp_path / "cache")


def test_what_is_not_finite_is_not_kept(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    half = load(tiny("llama"), dtype=torch.float16)
    with half.intervene({"blocks.1.hook_mlp_out": lambda added: added.sign() * 60_000 * 2}):
        with pytest.raises(NotFinite, match=r"blocks\.1\.hook_resid_post"):
            half.run_with_cache(TEXTS, POSTS)
        with pytest.raises(NotFinite, match=r"blocks\.1\.hook_resid_post"):
            half.write_cache(TEXTS, POSTS, tmp_path / "cache")
