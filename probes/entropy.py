"""Entropy of the first answer token, and its shift from the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from interp.model import HookedModel
from probes import cli, tables
from probes.first_token import first_token
from probes.intervals import mean_interval
from probes.options import Options, finish, with_options
from probes.pair import Models, compare
from probes.prompts import PromptSet
from probes.results import Result

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "prompts": tables.text("prompts"),
    "n": tables.number("n", "d"),
    "entropy (nats)": tables.interval("entropy", ".3f"),
    "shift (nats)": tables.interval("shift", "+.3f"),
}


def entropy(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy −Σ p·ln p of softmax(logits), in nats: [*batch, vocab] → [*batch], computed in float64."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1)


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    template: str | Path = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """Entropy of the first-token distribution (arXiv:2606.10154, probe 1), in nats, per cell and prompt set.

    Table: one row per (cell, prompts), the baseline's first, with columns
        cell, prompts: "baseline" or the cell's name; "harmful" or "harmless";
        n: number of prompts;
        entropy, entropy_low, entropy_high: mean over prompts, and its 95 % t interval;
        shift, shift_low, shift_high: mean over prompts of cell − baseline, and its paired 95 % t interval;
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: "auto", "none" (raw text) or a Jinja file, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: a prompt set is empty or has a prompt longer than the context; a cell does not belong to the
            baseline.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> entropy.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    entropies = comparison.observe(
        lambda m: {side: first_token(m, texts, entropy, batch_size) for side, texts in comparison.texts.items()},
        "entropy",
    )
    reference = entropies["baseline"]
    rows = [
        _row(cell, side, values, reference[side]) for cell, sides in entropies.items() for side, values in sides.items()
    ]
    return comparison.result("entropy", rows)


def _row(cell: str, side: str, values: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> dict[str, Any]:
    level, shift = mean_interval(values), mean_interval(values - reference)
    return {
        "cell": cell,
        "prompts": side,
        "n": len(values),
        **tables.interval_columns("entropy", level),
        **tables.interval_columns("shift", shift),
        "reason": "",
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(options: Options) -> None:
    """Entropy (nats) of the first answer token, and its shift from the baseline."""
    result = measure(*options.inputs(), **options.settings())
    finish(result, tables.render("First-token entropy", result.table, COLUMNS), options)


if __name__ == "__main__":
    cli.run(app)
