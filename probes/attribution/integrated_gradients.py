"""Path-integrated attribution: how much each weight's quantization error moved a number of the output.

Along W(α) = W + α(Ŵ − W) the number changes by Σ over weights of (mean over α of its gradient) · (Ŵ − W): integrated
gradients (Sundararajan et al. 2017, arXiv:1703.01365) over weights instead of inputs. The sum is complete, it is the
difference between the two models, up to the error of the midpoint rule, which is measured: the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from interp.batching import Batch
from interp.errors import NotFinite
from interp.memory import freed_at_once, give_back
from interp.model import HookedModel
from interp.pairs.scales import Scales
from interp.pairs.weight_path import Observer, WeightPath
from probes.attribution.memory import row_blocks
from probes.attribution.parts import Parts, WeightAxis
from probes.attribution.settings import MAX_STEPS, STEPS
from probes.attribution.shares import ABSOLUTE_GAP, RELATIVE_GAP, AttributedPrompts, Attribution, head_shares

Objective = Callable[[HookedModel, Batch], Float[Tensor, " batch"]]
"""A number per prompt, differentiable; a row of a forward pass must be the prompt of the same row of the batch. One
that puts tokens after each prompt says how many, as its `following`."""
ShareProgress = Callable[[float], None]
"""Told the share of a cell's work that is done."""


def attribute(
    baseline: HookedModel,
    cell: HookedModel,
    prompts: AttributedPrompts,
    objective: Objective,
    *,
    scales: Scales | None = None,
    steps: int = STEPS,
    max_steps: int = MAX_STEPS,
    group_size: int | None = None,
    batch_size: int | None = None,
    progress: ShareProgress = lambda _: None,
) -> Attribution:
    """Attribute the shift of an objective between two models to the parameters in which they differ.

    Needs memory for both models, for the activations of one batch and for a few matrices of the size of the largest
    linear.

    Args:
        baseline: where the path begins.
        cell: where it ends.
        prompts: what the objective is measured on.
        objective: a number per prompt, for example the refusal margin.
        scales: rescaling of the cell to be undone, so that it is not taken for error; see `interp.pairs.scales`. If the
            model without it computes something else than the cell, it is left as it is and this is warned of.
        steps: of the midpoint rule at first; doubled until the sum is complete.
        max_steps: at most.
        group_size: neighbours along a row of a weight that are attributed together; None for no groups.
        batch_size: prompts per pass.
        progress: told the share done (of the steps so far planned).

    Raises:
        NotFinite: the objective or a share is NaN or infinite.
    """
    work = prompts.batches(baseline, batch_size, following(objective))
    before, after = (evaluate(model, work, objective) for model in (baseline, cell))
    path, end, warnings = _path(baseline, cell, scales, work, objective, before, after)
    undone = bool(path.scales.inputs or path.scales.outputs or path.scales.norms)
    steps = min(steps, max_steps)
    while True:
        attribution = Attribution(
            Parts.of(baseline), prompts, before, after, end, steps, undone, baseline.tied, warnings=warnings
        )
        observer = ShareAccumulator(attribution, path, group_size)
        for done, alpha in enumerate((step + 0.5) / steps for step in range(steps if path.changes else 0)):
            give_back()
            for number, batch in enumerate(work):
                observe(path, alpha, batch, objective, observer)
                progress((done + (number + 1) / len(work)) / steps)
        if not attribution.total.isfinite().all():
            raise NotFinite("The attribution holds NaN or infinity", do="Load the models with dtype=torch.float32")
        if attribution.complete() or 2 * steps > max_steps:
            return attribution
        steps *= 2


def in_one_pass(objective: Objective, model: HookedModel, batch: Batch) -> bool:
    """Whether an objective says that it takes one forward pass over a batch, so that each linear flows once."""
    says = getattr(objective, "in_one_pass", None)
    return says is not None and bool(says(model, batch))


def following(objective: Objective) -> int:
    """Tokens that an objective puts after each prompt, where it says so."""
    return getattr(objective, "following", 0)


def evaluate(model: HookedModel, work: Sequence[Batch], objective: Objective) -> Float64[Tensor, " prompt"]:
    """The objective on every prompt, in their order.

    Raises:
        NotFinite: it is NaN or infinite.
    """
    values = torch.empty(sum(len(batch.indices) for batch in work), dtype=torch.float64)
    for batch in work:
        with torch.no_grad():
            values[batch.indices] = objective(model, batch).double().cpu()
    if not values.isfinite().all():
        raise NotFinite("What is attributed is NaN or infinite", do="Load the models with dtype=torch.float32")
    return values


def observe(path: WeightPath, alpha: float, batch: Batch, objective: Objective, observer: BatchObserver) -> None:
    """Differentiate the objective's sum over a batch at one point of the path."""
    observer.batch = batch
    with path.at(alpha, observer), freed_at_once(path.baseline), torch.enable_grad():
        objective(path.baseline, batch).sum().backward()


def _path(
    baseline: HookedModel,
    cell: HookedModel,
    scales: Scales | None,
    work: Sequence[Batch],
    objective: Objective,
    before: Tensor,
    after: Tensor,
) -> tuple[WeightPath, Float64[Tensor, " prompt"], list[str]]:
    """The path whose end is the cell, and the objective there."""

    def ended(path: WeightPath) -> Tensor:
        with path.at(1.0):
            return evaluate(baseline, work, objective)

    path = WeightPath(baseline, cell, scales)
    end = ended(path)
    discrepancy = (end - after).abs().max().item()
    if scales is None or discrepancy <= max(ABSOLUTE_GAP, RELATIVE_GAP * (after - before).abs().max().item()):
        return path, end, []
    path = WeightPath(baseline, cell)
    warning = (
        f"with its rescaling undone the cell computes something else (by up to {discrepancy:.3g} on a prompt): its "
        "tensors are attributed as they are, rescaling and rounding together, a norm beside the linears that read it"
    )
    return path, ended(path), [warning]


class BatchObserver(Observer):
    """An observer that knows which batch flows.

    Attributes:
        batch: the rows of everything observed.
    """

    batch: Batch


class ShareAccumulator(BatchObserver):
    """Adds what is observed, divided by the number of steps, to an attribution."""

    def __init__(self, found: Attribution, path: WeightPath, group_size: int | None) -> None:
        self._found = found
        self._group_size = group_size
        self._embeddings = {c.name for changes in path.changes.values() for c in changes if len(c.shape) == 2}
        self._heads: dict[tuple[str, WeightAxis], Tensor | None] = {
            (name, axis): head_shares(found.parts, name, axis)
            for name in path.linears
            if name in found.parts.shapes
            for axis in WeightAxis
        }

    def linear(self, module: str, inputs: Tensor, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """Shares of the rows and columns of a weight, and of the entries of a bias."""
        if weight is not None:
            wide = torch.promote_types(inputs.dtype, torch.float32)
            produced = (gradient * (inputs @ weight.T)).sum(1, dtype=wide)
            self._add_prompts(f"{module}.weight", produced)
            self._add_heads(module, WeightAxis.ROWS, produced)
            if self._heads.get((module, WeightAxis.COLUMNS)) is not None:
                self._add_heads(module, WeightAxis.COLUMNS, (inputs * (gradient @ weight)).sum(1, dtype=wide))
            for stratum, members in _split(self._found.prompts.stratum[self.batch.indices]):
                self._add_weights(module, stratum, weight, inputs[members], gradient[members])
        if bias is not None:
            products = gradient.sum(1) * bias
            self._add_prompts(f"{module}.bias", products)
            self._add_heads(module, WeightAxis.ROWS, products)
            self._add_vector(f"{module}.bias", products)

    def affine(self, parameter: str, inputs: Tensor, products: Tensor) -> None:
        """Shares of a norm's or an embedding's parameter."""
        entries = products.reshape(len(self.batch.indices), -1, products.shape[-1]).sum(1)
        self._add_prompts(parameter, entries)
        if parameter not in self._embeddings:
            self._add_vector(parameter, entries)

    def _add_prompts(self, parameter: str, entries: Float[Tensor, "row unit"]) -> None:
        attribution = self._found
        shares = attribution.parameters.setdefault(parameter, torch.zeros_like(attribution.before))
        shares.index_add_(0, self.batch.indices, entries.double().sum(1).cpu() / attribution.steps)

    def _add_heads(self, module: str, axis: WeightAxis, entries: Float[Tensor, "row unit"]) -> None:
        counted = self._heads.get((module, axis))
        if counted is None:
            return
        attribution, layer = self._found, self._found.parts.layer_of(module)
        shape = (len(attribution.before), attribution.parts.n_heads)
        heads = attribution.heads.setdefault(layer, torch.zeros(shape, dtype=torch.float64))
        heads.index_add_(0, self.batch.indices, entries.double().cpu() @ counted / attribution.steps)

    def _add_vector(self, parameter: str, entries: Float[Tensor, "row unit"]) -> None:
        attribution = self._found
        shape = (len(attribution.prompts.strata), entries.shape[1])
        sums = attribution.vectors.setdefault(parameter, torch.zeros(shape, dtype=torch.float64))
        sums.index_add_(0, attribution.prompts.stratum[self.batch.indices], entries.double().cpu() / attribution.steps)

    def _add_weights(
        self,
        module: str,
        stratum: int,
        weight: Float[Tensor, "out in"],
        inputs: Float[Tensor, "row pos in"],
        gradient: Float[Tensor, "row pos out"],
    ) -> None:
        attribution = self._found
        (n_out, n_in), n_strata, steps = weight.shape, len(attribution.prompts.strata), attribution.steps
        rows = attribution.rows.setdefault(module, torch.zeros(n_strata, n_out, dtype=torch.float64))
        columns = attribution.columns.setdefault(module, torch.zeros(n_strata, n_in, dtype=torch.float64))
        for block in row_blocks(weight):
            products = weight[block] * gradient_of_weight(inputs, gradient[..., block])
            rows[stratum, block] += products.sum(1, dtype=torch.float64).cpu() / steps
            columns[stratum] += products.sum(0, dtype=torch.float64).cpu() / steps
            self._add_groups(module, stratum, block, products, n_out)

    def _add_groups(
        self, module: str, stratum: int, block: slice, products: Float[Tensor, "row in"], n_out: int
    ) -> None:
        attribution = self._found
        if self._group_size is None or module not in attribution.parts.shapes:
            return
        n_in = products.shape[1]
        size = n_in if self._group_size < 1 else self._group_size
        padded = torch.nn.functional.pad(products, (0, -n_in % size)).unflatten(1, (-1, size)).sum(2).float().cpu()
        sides = attribution.prompts.sides
        groups = attribution.groups.setdefault(module, torch.zeros(len(sides), n_out, padded.shape[1]))
        groups[sides.index(attribution.prompts.strata[stratum][0]), block] += padded / attribution.steps


def gradient_of_weight(
    inputs: Float[Tensor, "row pos in"], gradient: Float[Tensor, "row pos out"]
) -> Float[Tensor, "out in"]:
    """What autograd would give a linear's weight."""
    return gradient.flatten(0, 1).T @ inputs.flatten(0, 1)


def _split(labels: Int[Tensor, " row"]) -> Iterator[tuple[int, Tensor]]:
    """Each label and the rows that have it."""
    for label in labels.unique().tolist():
        yield label, (labels == label).nonzero().flatten()
