"""The refusal margin of a cell, attributed: what the attribution probe and those that build on it share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.batching import Batch
from interp.checkpoint import Checkpoint
from interp.model import HookedModel
from interp.pairs.alignment import function_preserving
from interp.pairs.scales import Scales, recovered_scales
from interp.pairs.weight_path import WeightPath, is_linear
from interp.quantize.cells import text_hash
from interp.streaming.memory import forgotten_after
from probes.attribution.integrated_gradients import Objective, ShareProgress, attribute
from probes.attribution.settings import MAX_STEPS, STEPS
from probes.attribution.shares import ATTRIBUTION_CLASSES, AttributedPrompts, Attribution
from probes.attribution.sign_flips import DRAWS, Moments, SignFlips, sign_flips
from probes.harness.comparison import Comparison
from probes.harness.pieces import kept
from probes.harness.prompts import PromptSet
from probes.margin.openings import Openings
from probes.margin.refusal_margin import following_tokens, in_one_pass, refusal_margin

ALL = "all"
"""The category of all prompts of a side."""
GROUP_SIZE = 128
"""The group size of cells that do not say theirs."""
GGUF_BLOCK = 32
"""Weights that share a scale in Q8_0 and in the sub-blocks of Q4_K and Q5_K; superblocks have eight of these."""


def stratified(comparison: Comparison, sets: Mapping[str, PromptSet], categories: bool) -> AttributedPrompts:
    """The rendered prompts of both sides, by category where there are some and it is asked for."""
    labels = []
    for side, prompts in sets.items():
        prompt_categories = prompts.categories if categories and prompts.categories else (ALL,) * len(prompts)
        labels += [(side, category or "none") for category in prompt_categories]
    strata = tuple(dict.fromkeys(labels))
    texts = [text for side in sets for text in comparison.texts[side]]
    return AttributedPrompts(texts, strata, torch.tensor([strata.index(label) for label in labels]))


@dataclass(frozen=True)
class MarginObjective:
    """The refusal margin of every prompt of a batch.

    Attributes:
        openings: of the baseline.
    """

    openings: Openings

    def __call__(self, model: HookedModel, batch: Batch) -> Float[Tensor, " batch"]:
        """The margins, in the order of the batch's rows."""
        return refusal_margin(model, batch.inputs["input_ids"], batch.inputs["attention_mask"], self.openings)

    def in_one_pass(self, model: HookedModel, batch: Batch) -> bool:
        """Whether a batch takes one forward pass."""
        return in_one_pass(model, batch.inputs["input_ids"].shape[1], self.openings)

    @property
    def following(self) -> int:
        """Tokens after each prompt in the pass that is differentiated."""
        return following_tokens(self.openings)


def attribute_cell(
    baseline: HookedModel,
    cell: HookedModel,
    prompts: AttributedPrompts,
    objective: Objective,
    *,
    steps: int = STEPS,
    max_steps: int = MAX_STEPS,
    group_size: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int | None = None,
    progress: ShareProgress = lambda _: None,
) -> tuple[Attribution, SignFlips]:
    """Attribute one cell's shift, and the null of that; arguments as `measure` and `attribute`."""
    what: list[Any] = ["attributed cell", text_hash(prompts.texts), prompts.strata, prompts.stratum.tolist()]
    what += [steps, max_steps, group_size, draws, seed, batch_size]

    def compute() -> tuple[Attribution, SignFlips]:
        with forgotten_after(baseline, cell):
            return _attributed(
                baseline, cell, prompts, objective, steps, max_steps, group_size, draws, seed, batch_size, progress
            )

    return kept(what, compute, (*ATTRIBUTION_CLASSES, SignFlips, Moments))


def _attributed(
    baseline: HookedModel,
    cell: HookedModel,
    prompts: AttributedPrompts,
    objective: Objective,
    steps: int,
    max_steps: int,
    group_size: int | None,
    draws: int,
    seed: int,
    batch_size: int | None,
    progress: ShareProgress,
) -> tuple[Attribution, SignFlips]:
    scales = scales_of(baseline, cell)
    attributed = attribute(
        baseline,
        cell,
        prompts,
        objective,
        scales=scales,
        steps=steps,
        max_steps=max_steps,
        group_size=group_size or group_size_of(cell.checkpoint),
        batch_size=batch_size,
        progress=lambda share: progress(0.8 * share),
    )
    path = WeightPath(baseline, cell, scales if attributed.undone else None)
    null = sign_flips(
        path,
        prompts,
        objective,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        progress=lambda share: progress(0.8 + 0.2 * share),
    )
    return attributed, null


def scales_of(baseline: HookedModel, cell: HookedModel) -> Scales | None:
    """The rescaling seen between two checkpoints; None where there is none, or a model was made in memory.

    Where its factors do not cancel (a writer's mistake), what undoes it preserves the cell's function, see
    `interp.pairs.alignment`: the mistake is part of the error.
    """
    if baseline.checkpoint is None or cell.checkpoint is None:
        return None
    rescaling = recovered_scales(baseline.checkpoint, cell.checkpoint)
    scales = function_preserving(rescaling, cell.architecture, cell.config)
    return scales if scales.inputs or scales.outputs or scales.norms else None


def group_size_of(checkpoint: Checkpoint | None) -> int:
    """How many neighbours along a row share a scale; −1 for a whole row."""
    if checkpoint is None:
        return GROUP_SIZE
    return GGUF_BLOCK if checkpoint.format == "gguf" else int(checkpoint.quantization.get("group_size", GROUP_SIZE))


def kinds(model: HookedModel) -> dict[str, str]:
    """Parameter (also a tied one's second name) → what it is."""
    unembedding = model.hf.get_output_embeddings()
    parameter_kinds = {}
    for name, module in model.hf.named_modules():
        for leaf in module._parameters:
            if isinstance(module, nn.Embedding):
                kind = "embedding"
            elif module is unembedding:
                kind = "unembedding"
            elif is_linear(module):
                kind = "linear weights" if leaf == "weight" else "linear biases"
            else:
                kind = "norms"
            parameter_kinds[f"{name}.{leaf}"] = kind
    return parameter_kinds
