"""A check on one screen: a block per cell, then the verdict, then the command to run next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from interp.cli import Exit, invocation
from probes.check.gate import Bounds, Verdict, baseline_note, worst
from probes.check.stored import CheckResult
from probes.drift.probe import ALL
from probes.harness.names import BASELINE
from probes.harness.results import checkpoints_of
from probes.labels.moved import COLUMN as DISAGREE

WORST_LINEARS = 3
"""Kinds of linear that are named."""
SIDES = ("harmful", "harmless")


def render(check: CheckResult, found: Sequence[Verdict]) -> Group:
    """What was measured, and the verdicts; at 80 columns a cell takes about ten lines."""
    note = baseline_note(check)
    return Group(
        *([Text(f"{note}.\n", "bold")] if note else []),
        *(_cell(check, row) for _, row in check.table.iterrows()),
        *(Text(verdict.text, "bold") for verdict in found),
    )


def next_command(check: CheckResult, found: Sequence[Verdict], bounds: Bounds) -> str:
    """What to run after the worst verdict."""
    code = worst(verdict.exit for verdict in found)
    cells = [verdict.cell for verdict in found if verdict.exit is code]
    if code is Exit.UNRESOLVED and not baseline_note(check):
        needed = max(verdict.prompts_needed for verdict in found)
        return _command(check, "check", cells, "--max-refusal-drop", f"{bounds.max_refusal_drop:g}", "--limit", needed)
    if code is Exit.BOUND_EXCEEDED:
        return _command(check, "why", cells)
    if code is Exit.MEASURED:
        return _command(check, "refusal", cells, "--out", "runs/refusal")
    return _command(check, "check", cells, "--harmful", "FILE")


def _command(check: CheckResult, name: str, cells: Sequence[str], *options: object) -> str:
    """A command line on the same baseline and some of the cells."""
    paths = check.table.set_index("cell")["path"]
    quantized = [word for cell in cells for word in ("--quantized", f"{cell}={paths[cell]}")]
    baseline = checkpoints_of(check.settings)[0].get("path", "PATH")
    return invocation(f"probes.{name}", "--baseline", baseline, *quantized, *options)


def _cell(check: CheckResult, row: pd.Series) -> Group:
    """One cell: what was looked at on the left, what was seen on the right."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for what, observation in _lines(check, row):
        grid.add_row(Text(f"  {what}"), Text(observation))
    bits = "" if pd.isna(row["bits_per_weight"]) else f", {row['bits_per_weight']:.2f} bits per weight"
    return Group(Text(f"{row['cell']}  {row['format']}{bits}", "bold"), grid, Text(""))


def _lines(check: CheckResult, row: pd.Series) -> Iterator[tuple[str, str]]:
    cell = str(row["cell"])
    yield "pair", row["pair"] or "a quantization of this baseline: what is not quantized is equal"
    yield "weights", _weights(check.rows("check_weights", cell))
    if row["reason"]:
        yield "model", row["reason"]
        return
    for what in ("entropy", "margin"):
        yield from ((f"{what}, {side}", _shift(check, what, cell, side)) for side in SIDES)
    yield from _answers(check.rows("drift", cell))


def _weights(rows: pd.DataFrame) -> str:
    """The error of all weights, and the kinds of linear with the largest."""
    if not len(rows):
        return "not compared"
    errors = rows.set_index("linear")["weight_error"]
    largest = errors.drop("all").nlargest(WORST_LINEARS)
    named = ", ".join(f"{linear} {error:.3f}" for linear, error in largest.items())
    return f"relative error {errors['all']:.3f}; largest {named}"


def _shift(check: CheckResult, what: str, cell: str, side: str) -> str:
    """A mean of the baseline and of the cell in nats, the shift with its interval, and of how many prompts."""
    form = "+.2f" if what == "margin" else ".2f"
    before, after = (
        rows[(rows["prompts"] == side) & (rows["category"] == ALL if "category" in rows else True)].iloc[-1]
        for rows in (check.rows(what, name) for name in (BASELINE, cell))
    )
    return (
        f"{before[what]:{form}} → {after[what]:{form}} nats: {after['shift']:+.2f} [{after['shift_low']:+.2f}, "
        f"{after['shift_high']:+.2f}], {after['n']} prompts"
    )


def _answers(drift: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Refusals before and after, McNemar's test, and where the openings of answers tell another story."""
    rows = drift[(drift["category"] == ALL) & (drift["axis"] == "robustness")]
    if not len(rows) or not rows["n_pairs"].iloc[0]:
        yield "answers", "none is scored"
        return
    row = rows.iloc[0]
    before, after = (round(row[f"refusal_rate_{side}"] * row["n_pairs"]) for side in ("baseline", "cell"))
    yield (
        "answers",
        f"refused {before} → {after} of {row['n_pairs']} harmful prompts: {row['n_lost']} lost, {row['n_gained']} "
        f"gained (p = {row['p_mcnemar']:.2g}), counted by: {row['outcome']}",
    )
    if row[DISAGREE]:
        yield "wording", row[DISAGREE]
