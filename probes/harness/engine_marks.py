"""Which cells were answered by another engine than their baseline: a mark that every table of them carries.

Such a comparison is refused (`probes.refusal.parity`, `probes.labels.outcomes`) unless somebody insists; then its
change of refusals is the engines' as much as the quantization's, and whoever reads a table of it has to see that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

COLUMN = "across_engines"
"""The column that says which engines, "" where it is one; missing where nothing says which."""
ENGINE = "engine"


def across_engines(outcomes: pd.DataFrame, baseline: str) -> dict[str, str]:
    """Cell → its engines and the baseline's, where they differ, or "".

    Args:
        outcomes: a row per answer with `cell` and `engine`; without engines, or without the baseline, nothing is said.
        baseline: its name.
    """
    if ENGINE not in outcomes:
        return {}
    engines = {
        str(cell): sorted(map(str, rows[ENGINE].dropna().unique()))
        for cell, rows in outcomes.groupby("cell", sort=False)
    }
    return {cell: mark(names, engines[baseline]) for cell, names in engines.items()} if baseline in engines else {}


def mark(cell: list[str], baseline: list[str]) -> str:
    """The mark of a cell from the engines that answered it and its baseline."""
    return "" if cell == baseline or not cell or not baseline else f"{', '.join(cell)}; baseline {', '.join(baseline)}"


def marked(table: pd.DataFrame, marks: Mapping[str, str]) -> pd.DataFrame:
    """A table with a column `cell`, with the marks of `across_engines`."""
    return table.assign(**{COLUMN: table["cell"].map(marks).astype(object)})


def sentences(table: pd.DataFrame, names: pd.Series) -> Iterator[str]:
    """What to say below a table of cells: one sentence for every cell that is marked.

    Args:
        table: with or without the column.
        names: of its rows' cells.
    """
    if COLUMN not in table:
        return
    told = table[COLUMN].fillna("")
    yield from (
        sentence(name, engines) for name, engines in dict(zip(names[told != ""], told[told != ""], strict=True)).items()
    )


def sentence(name: str, engines: str) -> str:
    """What a mark means."""
    return f"{name}: answered by different engines ({engines}), so its change is theirs as much as the quantization's"
