"""Recover the per-channel factors that AWQ moves between tensors without changing what the model computes.

AWQ (Lin et al. 2024, arXiv:2306.00978, section 3.2) multiplies the columns of linears by s and divides what feeds them
by s: the preceding norm, or the rows of the preceding linear. Undone, the quantized weights can be compared with the
baseline's.

The factors are looked for in the tensors, never assumed from a format's name:

- Across a norm, s = norm_baseline / norm_quantized is known exactly. It belongs to a linear only if dividing the
  linear's columns by s brings them closer to the baseline.
- Between two linears, s must show twice: the consumer's columns grew by s and the producer's rows shrank by it. The two
  are fitted from different matrices, so that rounding, and GPTQ's compensation of it, give them independent errors. So
  each side is judged by the other one's fit: undoing the producer's rows by what the consumer's columns say, and the
  reverse. Where that leaves less than half of both squared errors, it is a rescaling; rounding alone is not undone by
  another matrix, and clipping, which shrinks rows and columns, is made worse. Where it lowers them by a tenth, log s of
  the two sides must correlate over the channels, too, by values or by ranks, with p < 1e-6. And where the two factors
  do not cancel (a writer's mistake), they must correlate by at least 0.8. Errors are geometric means over the channels
  and ranks are asked as well as values, so that no outlier decides. Otherwise the spread of s is below the error of the
  fits, and undoing it would change nothing that can be measured: s is exactly 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy import stats
from torch import Tensor

from interp.checkpoint import Checkpoint
from interp.memory import give_back
from interp.rounding import is_copy, row_slices

HALVED = 0.5
"""Squared errors that undoing lowers to less than this share need no correlation."""
LOWERED = 0.9
"""Share below which squared errors are lower by more than what fits to rounding give."""
AGREEMENT = 0.8
"""Correlation of log s between a producer's rows and a consumer's columns that tells by itself."""
SIGNIFICANCE = 1e-6
"""Largest p value of a correlation; that of n channels without rescaling has a standard deviation of 1/√n about 0."""
CLIPPING = 0.02
"""How far clipping and the like move the logarithm of a fit, beyond the fit's own error; the same on both sides."""
CANCELLATION = 5.0
"""The two sides' factors are one if they differ by no more than this many standard errors of their fits (RMS)."""
CONSTANT = 1e-3
"""Factors whose logarithms spread less are one factor."""
FLOAT32_ROUNDING = 1e-6
"""Factors are no more exact than this, even between tensors that were never rounded to few bits."""
MINIMUM_CHANNELS = 8
"""Below this no correlation can be significant."""


@dataclass(frozen=True)
class Scales:
    """What a quantized cell's tensors were rescaled by; a linear that is not named was not rescaled.

    Attributes:
        inputs: linear → factor its columns were multiplied by. Its input activation must be *multiplied* by it to
            compare with the baseline's.
        outputs: linear → factor its rows were divided by.
        norms: norm → factor its weight and bias were divided by.
        warnings: rescalings that are seen and that no exact symmetry undoes.
    """

    inputs: dict[str, Float[Tensor, " in"]] = field(default_factory=dict)
    outputs: dict[str, Float[Tensor, " out"]] = field(default_factory=dict)
    norms: dict[str, Float[Tensor, " channels"]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@lru_cache(maxsize=8)
def recovered_scales(baseline: Checkpoint, quantized: Checkpoint) -> Scales:
    """The rescalings seen between two checkpoints of one model. Reads both once, one linear at a time.

    The pair check, the unit errors and both tables of weight errors ask for the same: kept for the last pairs of opened
    checkpoints. A checkpoint opened again is another one.

    Args:
        baseline: the unquantized checkpoint.
        quantized: its cell.

    Example:
        >>> recovered_scales(open_checkpoint("path/to/model"), open_checkpoint("path/to/model-AWQ")).warnings
        []
    """
    scales, names = Scales(), baseline.shapes()
    for block in _blocks(baseline):
        for norm, readers in baseline.architecture.scaled_by_norm:
            consumers = [f"{block}.{reader}" for reader in readers if f"{block}.{reader}.weight" in names]
            _across_norm(baseline, quantized, f"{block}.{norm}", consumers, scales)
        for producer, consumer in baseline.architecture.scaled_by_linear:
            if f"{block}.{producer}.weight" in names:  # a block may have experts or one MLP
                _across_linears(baseline, quantized, f"{block}.{producer}", f"{block}.{consumer}", scales)
        give_back()
        for producer, consumer in _across_activation(baseline, block):
            _warn_of_activation(baseline, quantized, producer, consumer, scales)
    return replace(scales, warnings=_counted(scales.warnings, len(_blocks(baseline))))


def effective_weight(
    quantized: Checkpoint, name: str, scales: Scales, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "out in"]:
    """The quantized weight with its rescaling undone, to be compared with the baseline's weight of the same name.

    Args:
        quantized: the cell.
        name: of a linear.
        scales: of the pair, from `recovered_scales`.
        dtype: of the result.

    Example:
        >>> scales = recovered_scales(baseline, quantized)
        >>> effective_weight(quantized, name, scales) - baseline.weight(name)  # the error, [out, in]
    """
    return unscaled_weight(quantized.weight(name), name, scales).to(dtype)


def unscaled_weight(weight: Float[Tensor, "out in"], name: str, scales: Scales) -> Float[Tensor, "out in"]:
    """The weight of the linear `name` with its rescaling undone."""
    if name in scales.inputs:
        weight = weight / scales.inputs[name].to(weight.device)
    if name in scales.outputs:
        weight = weight * scales.outputs[name].to(weight.device)[:, None]
    return weight


def unscaled_vector(tensor: Tensor, name: str, scales: Scales, norm_offset: float) -> Tensor:
    """Any other tensor (a norm's, a bias) with its rescaling undone; `norm_offset` as in `Architecture`."""
    module, _, kind = name.rpartition(".")
    if module in scales.outputs:
        return tensor * scales.outputs[module].to(tensor.device)
    if module in scales.norms:
        offset = norm_offset if kind == "weight" else 0.0
        return (tensor.float() + offset) * scales.norms[module].to(tensor.device) - offset
    return tensor


def stored_offset(baseline: Checkpoint, quantized: Checkpoint, name: str) -> float:
    """What one of the two files stores added to the numbers of the tensor `name`, taken off again when it is read."""
    offset = baseline.architecture.gguf_norm_offset
    return offset if name.endswith("norm.weight") and "gguf" in (baseline.format, quantized.format) else 0.0


def _blocks(checkpoint: Checkpoint) -> list[str]:
    """Names of the blocks in order, e.g. `model.layers.0`."""
    depth = checkpoint.architecture.blocks.count(".") + 2
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in checkpoint.linears()))


def _across_norm(baseline: Checkpoint, quantized: Checkpoint, norm: str, consumers: list[str], scales: Scales) -> None:
    offset = baseline.architecture.norm_offset
    before, after = (checkpoint.tensor(f"{norm}.weight") for checkpoint in (baseline, quantized))
    if is_copy(before, after, stored_offset(baseline, quantized, f"{norm}.weight")):
        return
    factor = (before.double() + offset) / (after.double() + offset)
    if not bool((torch.isfinite(factor) & (factor > 0)).all()):
        return
    rescaled = _follow(baseline, quantized, consumers, factor)
    if not rescaled:
        return
    scales.norms[norm] = factor.float()
    for name in consumers:
        if name in rescaled:
            scales.inputs[name] = factor.float()
        else:
            scales.warnings.append(
                f"{_part(norm)} was rescaled, but {_part(name)}, which reads it, was not: the writer changed it"
            )


def _follow(baseline: Checkpoint, quantized: Checkpoint, names: list[str], factor: Float64[Tensor, " in"]) -> list[str]:
    """Those linears that dividing their columns by `factor` brings closer to the baseline.

    The rows of a linear that is also a producer may be rescaled too, by more than the columns: of it only the shape of
    the rows counts. Where the factor is the same for all columns that says nothing, and it goes with the others.
    """
    producers = {name for name, _ in baseline.architecture.scaled_by_linear}
    fitted = [name for name in names if _part(name) in producers]
    plain = [name for name in names if name not in fitted]
    followers = [name for name in plain if _closer(baseline.weight(name), quantized.weight(name), factor)]
    if float(factor.log().std(correction=0)) < CONSTANT:
        return [name for name in names if name in followers or (followers and name in fitted)]
    followers += [name for name in fitted if _closer_in_shape(baseline.weight(name), quantized.weight(name), factor)]
    return [name for name in names if name in followers]


def _closer(
    baseline: Float[Tensor, "out in"], quantized: Float[Tensor, "out in"], factor: Float64[Tensor, " in"]
) -> bool:
    undone, as_it_is = (_Rows.between(baseline, quantized, divisor) for divisor in (factor, None))
    return _error_ratio(undone.errors(), as_it_is.errors()) < 1


def _closer_in_shape(
    baseline: Float[Tensor, "out in"], quantized: Float[Tensor, "out in"], factor: Float64[Tensor, " in"]
) -> bool:
    """Whether `_closer` holds of the rows up to a factor."""
    undone, as_it_is = (_Rows.between(baseline, quantized, divisor) for divisor in (factor, None))
    known = undone.known & as_it_is.known
    return _error_ratio(undone.variances[known], as_it_is.variances[known]) < 1


@dataclass(frozen=True)
class _Rows:
    """What the rows of a matrix and of its copy are to each other: all that fits and errors need.

    Attributes:
        before: squared norm of each row of the original.
        after: of the copy.
        product: of both.
        n_columns: numbers in a row.
    """

    before: Float64[Tensor, " rows"]
    after: Float64[Tensor, " rows"]
    product: Float64[Tensor, " rows"]
    n_columns: int

    @classmethod
    def between(
        cls,
        before: Float[Tensor, "rows columns"],
        after: Float[Tensor, "rows columns"],
        divisor: Float64[Tensor, " columns"] | None = None,
    ) -> _Rows:
        """Of a matrix and its copy, the copy's columns divided by `divisor`."""
        sums = torch.empty(3, len(before), dtype=torch.float64)
        for rows, ours, theirs in _parts(before, after):
            theirs = theirs if divisor is None else theirs.div_(divisor)
            for row, product in enumerate((ours * theirs, ours.square_(), theirs.square_())):
                sums[row, rows] = product.sum(1)
        return cls(sums[1], sums[2], sums[0], before.shape[1])

    @classmethod
    def between_columns(
        cls, before: Float[Tensor, "rows columns"], after: Float[Tensor, "rows columns"], repeats: int, head_width: int
    ) -> _Rows:
        """Of the columns, as if they were rows; those that read the same channel of a shared value head are one."""
        sums = torch.zeros(3, before.shape[1], dtype=torch.float64)
        for _, ours, theirs in _parts(before, after):
            for row, product in enumerate((ours * theirs, ours.square_(), theirs.square_())):
                sums[row] += product.sum(0)
        shared = sums.view(3, -1, repeats, head_width).sum(2).flatten(1)
        return cls(shared[1], shared[2], shared[0], repeats * len(before))

    @property
    def known(self) -> Bool[Tensor, " rows"]:
        """Rows that a positive factor can be fitted to: not zeros, not rounded to zeros."""
        return (self.before > 0) & (self.product > 0)

    @property
    def logarithms(self) -> Float64[Tensor, " rows"]:
        """The logarithms of the least-squares factors; 0 where none is known."""
        return torch.where(self.known, self.product / self.before, 1.0).log()

    @property
    def variances(self) -> Float64[Tensor, " rows"]:
        """The variances of the errors of `logarithms`; infinite where none is known."""
        residual = self.before * self.after / self.product.square() - 1
        residual = residual.clamp_min(FLOAT32_ROUNDING**2) / self.n_columns
        return torch.where(self.known, residual, torch.inf)

    def errors(self, multiplier: Float64[Tensor, " rows"] | float = 1.0) -> Float64[Tensor, " rows"]:
        """Squared error of the copy's rows times `multiplier`, relative to the original's."""
        squares = multiplier**2 * self.after - 2 * multiplier * self.product + self.before
        relative = torch.where(self.before > 0, squares / self.before, 0.0)
        return relative.clamp_min(FLOAT32_ROUNDING**2)

    def __getitem__(self, rows: Bool[Tensor, " rows"]) -> _Rows:
        return _Rows(self.before[rows], self.after[rows], self.product[rows], self.n_columns)


def _parts(
    before: Float[Tensor, "rows columns"], after: Float[Tensor, "rows columns"]
) -> Iterator[tuple[slice, Float64[Tensor, "part columns"], Float64[Tensor, "part columns"]]]:
    """A few rows of both at a time in float64, in memory of their own: whole matrices would take gigabytes."""
    for rows in row_slices(*before.shape):
        yield rows, before[rows].to(torch.float64, copy=True), after[rows].to(torch.float64, copy=True)


def _error_ratio(undone: Float64[Tensor, " rows"], as_it_is: Float64[Tensor, " rows"]) -> float:
    """Geometric mean of each row's ratio, in which no outlier decides."""
    return float((undone.log() - as_it_is.log()).mean().exp())


@dataclass(frozen=True)
class PairFit:
    """What one linear's rows and the next one's columns say of the factor between them.

    Attributes:
        rows: factor the producer's rows were divided by, [channels].
        columns: factor the consumer's columns were multiplied by, [channels].
        shared: their mean, in which clipping, which shrinks both matrices, cancels; the better fit counts for more.
        cancel: whether they are one factor as far as the fits can tell, so that the function is preserved.
        repeats: how many consumer columns read one channel (query heads that share a value head).
        head_width: channels of a head.
        above: rows of the producer before those that the consumer reads (gates before the ups of a fused matrix).
    """

    rows: Float64[Tensor, " channels"]
    columns: Float64[Tensor, " channels"]
    shared: Float64[Tensor, " channels"]
    cancel: bool
    repeats: int
    head_width: int
    above: int


def _across_linears(baseline: Checkpoint, quantized: Checkpoint, producer: str, consumer: str, scales: Scales) -> None:
    fit = _fit(baseline, quantized, producer, consumer, scales)
    if fit is None:
        return
    rows, columns = (fit.shared, fit.shared) if fit.cancel else (fit.rows, fit.columns)
    scales.outputs[producer] = torch.cat([rows.new_ones(fit.above), rows]).float()
    scales.inputs[consumer] = _repeat_heads(columns, fit.repeats, fit.head_width).float()
    if not fit.cancel:
        scales.warnings.append(
            f"{_part(producer)} and {_part(consumer)} were rescaled by factors that do not cancel: each was undone by "
            "its own, and what their difference does to the function is the writer's damage, not rounding's"
        )


def _fit(baseline: Checkpoint, quantized: Checkpoint, producer: str, consumer: str, scales: Scales) -> PairFit | None:
    """The factors of both sides, None where no rescaling shows in both."""
    all_rows, n_columns = baseline.weight_shape(producer)[0], baseline.weight_shape(consumer)[1]
    n_rows = min(all_rows, n_columns)
    above, repeats = all_rows - n_rows, n_columns // n_rows
    head_width = n_rows // int(getattr(baseline.config, "num_key_value_heads", 1)) if repeats > 1 else n_rows
    if n_columns % n_rows or n_rows % head_width:
        return None
    rows = _Rows.between(baseline.weight(producer)[above:], effective_weight(quantized, producer, scales)[above:])
    columns = _Rows.between_columns(baseline.weight(consumer), quantized.weight(consumer), repeats, head_width)
    known = rows.known & columns.known
    if int(known.sum()) < MINIMUM_CHANNELS or not _agree(rows[known], columns[known]):
        return None
    produced, consumed = -rows.logarithms, columns.logarithms
    first, second = (1 / (fit.variances + CLIPPING**2) for fit in (rows, columns))
    mean = (first * produced + second * consumed) / (first + second).clamp_min(torch.finfo(torch.float64).tiny)
    deviation = (rows.variances + columns.variances)[known].sqrt().clamp_min(FLOAT32_ROUNDING)
    return PairFit(
        rows=torch.where(rows.known, produced, consumed).exp(),
        columns=torch.where(columns.known, consumed, produced).exp(),
        shared=mean.exp(),
        cancel=bool(((produced - consumed)[known] / deviation).square().mean().sqrt() <= CANCELLATION),
        repeats=repeats,
        head_width=head_width,
        above=above,
    )


def _agree(rows: _Rows, columns: _Rows) -> bool:
    """Whether both sides tell of the same rescaling, by more than chance; see the module's docstring."""
    by_columns = _error_ratio(rows.errors(columns.logarithms.exp()), rows.errors())
    by_rows = _error_ratio(columns.errors(rows.logarithms.exp()), columns.errors())
    left = max(by_columns, by_rows)
    correlation = _correlation((-rows.logarithms).numpy(), columns.logarithms.numpy())
    return left < HALVED or correlation >= AGREEMENT or (left < LOWERED and correlation > 0)


def _correlation(producer: np.ndarray, consumer: np.ndarray) -> float:
    """By values or by ranks, the larger one; 0 where neither is significant."""
    if np.ptp(producer) == 0 or np.ptp(consumer) == 0:
        return 0.0
    tests = (test(producer, consumer, alternative="greater") for test in (stats.pearsonr, stats.spearmanr))
    return max((float(test.statistic) for test in tests if test.pvalue < SIGNIFICANCE), default=0.0)


def _repeat_heads(factor: Float[Tensor, " channels"], repeats: int, head_width: int) -> Float[Tensor, " columns"]:
    return factor.reshape(-1, 1, head_width).expand(-1, repeats, -1).reshape(-1)


def _across_activation(checkpoint: Checkpoint, block: str) -> Iterator[tuple[str, str]]:
    """The pair of an ungated MLP: its activation sits between the two linears, so no factor moves across."""
    architecture = checkpoint.architecture
    mlp = architecture.mlp_out.rpartition(".")[0]
    if any(consumer == architecture.mlp_out for _, consumer in architecture.scaled_by_linear):
        return
    consumer = f"{block}.{architecture.mlp_out}"
    for name in checkpoint.linears():
        if name.startswith(f"{block}.{mlp}.") and name != consumer:
            yield name, consumer


def _warn_of_activation(
    baseline: Checkpoint, quantized: Checkpoint, producer: str, consumer: str, scales: Scales
) -> None:
    fit = _fit(baseline, quantized, producer, consumer, scales)
    if fit is not None:
        scales.warnings.append(
            f"{_part(producer)} and {_part(consumer)} were rescaled against each other across the activation function, "
            "which changes what the model computes: this damage is the writer's, not rounding's, and cannot be undone"
        )


def _part(module: str) -> str:
    """The module's name within its block."""
    return re.sub(r"^.*?\.\d+\.", "", module)


def _counted(messages: list[str], n_blocks: int) -> list[str]:
    """Each message once, with the number of blocks it is about."""
    return [f"{message} (in {count} of {n_blocks} blocks)" for message, count in Counter(messages).items()]
