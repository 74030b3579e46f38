"""Compare two checkpoints weight by weight: the error of every neuron, and whether they are a pair at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.architectures import UNEMBEDDING_WEIGHT
from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.memory import give_back
from interp.pairs.configs import config_differences, metadata_differences
from interp.pairs.scales import Scales, effective_weight, recovered_scales, stored_offset, unscaled_vector
from interp.rounding import equal_up_to_rounding, is_copy, resembles, row_slices

__all__ = ["Scales", "check_pair", "effective_weight", "recovered_scales", "weight_error", "weight_error_columns"]

RESCALED_ROUNDINGS = 4
"""A rescaled tensor was rounded after the division, and so were the norm and the factor it is compared through."""
SHOWN = 3
"""How many differences an error names."""


def weight_error(baseline: Checkpoint | str | Path, quantized: Checkpoint | str | Path) -> pd.DataFrame:
    """Quantization error of every output neuron (row of W) of the linears inside the blocks, AWQ's rescaling undone.

    Args:
        baseline: checkpoint, or its path.
        quantized: checkpoint, or its path.

    Returns:
        A row per neuron: `module`, `neuron` (row), `rms_weight` (root mean square over the inputs of the baseline's
        row), `rms_error` (of its difference to the quantized row) and `relative_error` (their ratio; NaN for a row of
        zeros).

    Raises:
        InputError: the two have different linears or shapes.

    Example:
        >>> table = weight_error("path/to/model", "path/to/model-AWQ")
        >>> table.nlargest(10, "relative_error")
    """
    return weight_errors(baseline, quantized)[0]


def weight_error_columns(baseline: Checkpoint | str | Path, quantized: Checkpoint | str | Path) -> pd.DataFrame:
    """The errors of `weight_error` for every input (column of W): what reads a channel rather than what writes it.

    Returns:
        A row per input: `module`, `input` (column), `rms_weight` (root mean square over the neurons of the baseline's
        column), `rms_error` and `relative_error`.

    Raises:
        InputError: the two have different linears or shapes.
    """
    return weight_errors(baseline, quantized)[1]


def weight_errors(
    baseline: Checkpoint | str | Path, quantized: Checkpoint | str | Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of `weight_error` and of `weight_error_columns`, from one read of both files.

    Args:
        baseline: checkpoint, or its path.
        quantized: checkpoint, or its path.

    Raises:
        InputError: the two have different linears or shapes.
    """
    baseline, quantized = _opened(baseline), _opened(quantized)
    _require_same_model(baseline, quantized)
    scales = recovered_scales(baseline, quantized)
    tables = []
    for name in baseline.linears():
        tables.append(_errors(baseline, quantized, name, scales))
        give_back()
    rows, columns = (pd.concat(side, ignore_index=True) for side in zip(*tables, strict=True))
    return rows, columns


def check_pair(baseline: Checkpoint | str | Path, quantized: Checkpoint | str | Path, force: bool = False) -> list[str]:
    """Check that `quantized` is a quantization of `baseline`: everything that was not quantized is equal.

    Compared are architecture, shapes, the vocabulary, every setting that changes what the model computes (of a GGUF,
    its own metadata), and every tensor stored unquantized in `quantized`, the unembedding included: AWQ's rescaling
    undone, each must be the baseline's or a rounding of it (`interp.rounding` says what can be told apart). Of the
    quantized weights, that they resemble the baseline's.

    Args:
        baseline: checkpoint, or its path.
        quantized: checkpoint, or its path.
        force: return the differences as warnings instead of raising. Different shapes still raise.

    Returns:
        Warnings: rescalings that cannot be undone, what could not be compared, and, if forced, the differences.

    Raises:
        InputError: not a quantization of this baseline.

    Example:
        >>> check_pair("path/to/model", "path/to/model-AWQ")
        []
    """
    baseline, quantized = _opened(baseline), _opened(quantized)
    if not force:
        _require_not_swapped(baseline, quantized)
    _require_same_model(baseline, quantized)
    scales = recovered_scales(baseline, quantized)
    differences = [
        *_vocabulary_differences(baseline, quantized),
        *_function_differences(baseline, quantized),
        *_tensor_differences(baseline, quantized, scales),
    ]
    warnings = list(scales.warnings)
    if baseline.vocabulary() is None or quantized.vocabulary() is None:
        warnings.append("the tokenizers were not compared: a checkpoint has no tokenizer.json")
    if differences and not force:
        raise _not_a_quantization(baseline, quantized, differences)
    return [*warnings, *(f"not a quantization of this baseline: {difference}" for difference in differences)]


def _opened(checkpoint: Checkpoint | str | Path) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)


def _errors(
    baseline: Checkpoint, quantized: Checkpoint, name: str, scales: Scales
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Errors of one linear: root mean squares over its inputs, one a neuron, and over its neurons, one an input."""
    before, after = baseline.weight(name), effective_weight(quantized, name, scales)
    n_out, n_in = before.shape
    # Made before the pieces: a small result made after each would lie in the hole that a piece leaves, and the next
    # piece would take new memory.
    by_neuron, by_input = torch.empty(2, n_out, dtype=torch.float64), torch.zeros(2, n_in, dtype=torch.float64)
    for rows in row_slices(n_out, n_in):
        weight = before[rows].double()
        for place, squares in enumerate(((after[rows].double() - weight).square_(), weight.square_())):
            by_neuron[1 - place, rows] = squares.mean(1)
            by_input[1 - place] += squares.sum(0)
    return _table(name, "neuron", *by_neuron), _table(name, "input", *by_input.div_(n_out))


def _table(name: str, unit: str, weight: Tensor, error: Tensor) -> pd.DataFrame:
    """Rows of mean squares of one linear as their roots."""
    rms_weight, rms_error = weight.sqrt().numpy(), error.sqrt().numpy()
    relative = np.divide(rms_error, rms_weight, out=np.full_like(rms_error, np.nan), where=rms_weight > 0)
    columns = {"rms_weight": rms_weight, "rms_error": rms_error, "relative_error": relative}
    return pd.DataFrame({"module": name, unit: np.arange(len(relative)), **columns})


def _require_not_swapped(baseline: Checkpoint, quantized: Checkpoint) -> None:
    stored = [checkpoint.has_quantized_linears() for checkpoint in (baseline, quantized)]
    if stored == [True, False]:
        raise InputError(
            f"The baseline, {baseline.path}, is quantized ({baseline.format}), and its cell, {quantized.path}, is not: "
            "they are swapped",
            "the unquantized model as the baseline",
            "Exchange --baseline and --quantized",
        )


def _require_same_model(baseline: Checkpoint, quantized: Checkpoint) -> None:
    """Raise unless both have the same architecture (by GGUF name: Mistral is Llama there) and the same linears."""
    if baseline.architecture.gguf != quantized.architecture.gguf or (
        quantized.config is not None
        and baseline.config is not None
        and baseline.architecture.model_type != quantized.architecture.model_type
    ):
        fact = f"{quantized.path} is a {quantized.architecture.model_type} model"
        raise InputError(
            f"Not a quantization of this baseline: {fact}, {baseline.path} a {baseline.architecture.model_type} model",
            "one architecture",
            "Give the model that was quantized as the baseline",
        )
    ours, theirs = baseline.shapes(), quantized.shapes()
    for name in dict.fromkeys([*ours, *theirs]):
        tied = name == UNEMBEDDING_WEIGHT and (name not in ours or name not in theirs)
        if ours.get(name) != theirs.get(name) and not tied:
            raise InputError(
                f"Not a quantization of this baseline: {name!r} has shape {ours.get(name)} in {baseline.path} and "
                f"{theirs.get(name)} in {quantized.path}",
                "the same tensors in both",
                "Give the model that was quantized as the baseline",
            )


def _vocabulary_differences(baseline: Checkpoint, quantized: Checkpoint) -> list[str]:
    """Tokens of the baseline that have other ids in the cell.

    Left out are ids without an embedding, which no model can read (Gemma 3's image token in its text models, the pad
    token of many a fine-tune of Llama 2): llama.cpp's converter does not write them.
    """
    ours, theirs = baseline.vocabulary(), quantized.vocabulary()
    if ours is None or theirs is None:
        return []
    n_embedded = baseline.shapes()[f"{baseline.architecture.embed}.weight"][0]
    spelled = _as_in_gguf if quantized.format == "gguf" else str
    differing = [
        token
        for token, index in ours.items()
        if index < n_embedded and index not in (theirs.get(token), theirs.get(spelled(token)))
    ]
    return [f"{len(differing)} tokens have other ids, among them {differing[:SHOWN]}"] if differing else []


def _as_in_gguf(token: str) -> str:
    """Added tokens as llama.cpp's converter writes them: with plain spaces (Gemma has runs of marked ones)."""
    return token.replace("▁", " ")


def _function_differences(baseline: Checkpoint, quantized: Checkpoint) -> list[str]:
    """Settings that say that another function is computed; a GGUF as baseline has none that could be compared."""
    if baseline.config is None:
        return []
    if quantized.config is None:
        return metadata_differences(baseline.config, quantized.metadata())
    return config_differences(baseline.config, quantized.config)


def _tensor_differences(baseline: Checkpoint, quantized: Checkpoint, scales: Scales) -> list[str]:
    pairs = _counterparts(baseline, quantized)
    differing = [pair for pair in pairs if not _equal(baseline, quantized, *pair, scales)]
    if not differing:
        return []
    names = [theirs for _, theirs in differing]
    phrases = [f"{len(differing)} of {len(pairs)} tensors differ beyond rounding, among them {_listed(names)}"]
    phrases += [
        f"{theirs} is no copy of {ours}, with which the baseline computes its output"
        for ours, theirs in differing
        if ours != theirs
    ]
    if shifted := [name for name in names if _is_shifted(baseline, quantized, name)]:
        phrases.append(
            f"{len(shifted)} of them differ by a constant 1 ({_listed(shifted)}), as Gemma's norms do in GGUF files, "
            "which store w + 1: a writer added or took off that 1 once too often"
        )
    return phrases


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN])


def _counterparts(baseline: Checkpoint, quantized: Checkpoint) -> list[tuple[str, str]]:
    """What is compared with what: the same names, and an unembedding with the embedding that the other one uses."""
    ours, theirs = baseline.shapes(), quantized.shapes()
    pairs = [(name, name) for name in theirs if name in ours]
    if (UNEMBEDDING_WEIGHT in ours) != (UNEMBEDDING_WEIGHT in theirs):
        embedding = f"{baseline.architecture.embed}.weight"
        pairs.append((UNEMBEDDING_WEIGHT, embedding) if UNEMBEDDING_WEIGHT in ours else (embedding, UNEMBEDDING_WEIGHT))
    return pairs


def _equal(baseline: Checkpoint, quantized: Checkpoint, ours: str, theirs: str, scales: Scales) -> bool:
    """Whether a tensor is the baseline's; for a quantized one, whether it resembles it at all."""
    module, _, kind = theirs.rpartition(".")
    if kind == "weight" and quantized.is_quantized(module):
        return resembles(*_compared(baseline, quantized, ours, theirs, scales))
    if module in scales.inputs or module in scales.outputs or module in scales.norms:
        stored = {baseline.tensor(ours).dtype, quantized.tensor(theirs).dtype}
        offset = baseline.architecture.norm_offset if module in scales.norms and kind == "weight" else 0.0
        compared = _compared(baseline, quantized, ours, theirs, scales)
        return equal_up_to_rounding(*compared, stored, RESCALED_ROUNDINGS, offset)
    return is_copy(baseline.tensor(ours), quantized.tensor(theirs), stored_offset(baseline, quantized, theirs))


def _compared(
    baseline: Checkpoint, quantized: Checkpoint, ours: str, theirs: str, scales: Scales
) -> tuple[Tensor, Tensor]:
    """Both tensors, AWQ's rescaling undone."""
    module, _, kind = theirs.rpartition(".")
    if kind == "weight" and module in baseline.linears():
        return baseline.weight(module), effective_weight(quantized, module, scales)
    offset = baseline.architecture.norm_offset
    return baseline.tensor(ours), unscaled_vector(quantized.tensor(theirs), theirs, scales, offset)


def _is_shifted(baseline: Checkpoint, quantized: Checkpoint, name: str) -> bool:
    """Whether a vector is the baseline's plus or minus 1, rounded no more coarsely than in bfloat16."""
    if len(quantized.shapes()[name]) != 1 or name not in baseline.shapes():
        return False
    ours, theirs = baseline.tensor(name).float(), quantized.tensor(name).float()
    pairs = ((ours + 1, theirs), (ours, theirs + 1))
    return any(equal_up_to_rounding(*pair, {torch.bfloat16}) for pair in pairs)


def _not_a_quantization(baseline: Checkpoint, quantized: Checkpoint, differences: list[str]) -> InputError:
    return InputError(
        f"{quantized.path} is not a quantization of this baseline, {baseline.path}: {'; '.join(differences)}",
        "everything that was not quantized to be equal, or what is measured is another model's training",
        "Give the model that was quantized as the baseline, or use --force to go on and have this recorded",
    )
