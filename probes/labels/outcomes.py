"""Outcomes per prompt, and the pairs of a cell's outcomes with its baseline's on the same prompts.

An outcome table has one row per (cell, task, sample id), as `python -m probes.refusal` writes it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from interp.errors import InputError, did_you_mean
from probes.harness.table_files import read_frame
from probes.labels.label import REFUSED, Label
from probes.labels.per_prompt import SAMPLE, per_prompt, repeats_said
from probes.labels.refused import OUTCOME, decide

REQUIRED = ["cell", "task", "sample_id", "response"]
ANSWERS = "refusal"
"""Stem of the files that `probes.refusal` writes."""
HOW = "Ask the cells first: python -m probes.refusal --baseline PATH --quantized PATH --out DIR"
SAME = {
    "engine": "engines, so the difference would be the engines' as much as the quantization's",
    "prompt_sha256": "prompts (the text or tokens that the models saw are not the same)",
    OUTCOME: "outcomes (another judge or lexicon decided what is a refusal)",
}
"""Column that must be equal within a pair → what differs where it is not."""


def outcomes_file(path: Path) -> Path:
    """The table of outcomes in a folder that `probes.refusal` wrote; what is no folder stays as it is.

    Raises:
        InputError: a folder without one.
    """
    if not path.is_dir():
        return path
    file = path / f"{ANSWERS}.parquet"
    if not file.is_file():
        raise InputError(f"{path} holds no {file.name}", "a folder that probes.refusal wrote (--out)", HOW)
    return file


def read_outcomes(path: Path, label: str | None = None) -> pd.DataFrame:
    """Read an outcome table from parquet, CSV or JSON lines and check it.

    Args:
        path: the file, or the folder that `probes.refusal` wrote.
        label: the column of labels; by default `judge` where a judge was asked, else `label`. Where there is none,
            responses are labelled by the broader lexicon.

    Returns:
        The table, with `label` from that column and `outcome`, who decided it (see `probes.labels.refused.decide`);
        rows with an error, and those without a label, are unscored.

    Raises:
        InputError: the file cannot be read; a column is missing; a row occurs twice; a label is unknown.

    Example:
        >>> drift.measure(read_outcomes(Path("runs/model/refusal.parquet")), "baseline").table
    """
    path = outcomes_file(path)
    table = read_frame(path, (".parquet", ".csv", ".jsonl"))
    # What a file says of its own labels is decided again, from what is in it.
    return check_outcomes(table.drop(columns=OUTCOME, errors="ignore"), label, str(path))


def check_outcomes(table: pd.DataFrame, label: str | None = None, name: str = "The table") -> pd.DataFrame:
    """What `read_outcomes` makes of a file, made of a table in memory."""
    missing = [column for column in REQUIRED if column not in table]
    if label not in (None, "label") and label not in table:
        missing.append(str(label))
    if missing:
        raise InputError(f"{name} has no column {', '.join(missing)}", f"the columns {', '.join(REQUIRED)}")
    nameless = table[["cell", "task", "sample_id"]].isna().any()
    if nameless.any():
        raise InputError(
            f"{name} has rows without a {nameless.idxmax()}",
            "a cell, a task and a sample_id in every row: rows without one would be left out of every count",
            "Fill them in, or take the rows out",
        )
    twice = table[table.duplicated(["cell", *_key(table)])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(
            f"{name} has {len(twice)} outcomes twice, such as cell {row['cell']}, task {row['task']}, sample "
            f"{row['sample_id']}",
            "one row for each cell, task and sample",
        )
    return decide(table, label, name)


def _key(table: pd.DataFrame) -> list[str]:
    """What names a prompt within a cell; a task may ask it in several epochs."""
    return [name for name in ("task", "sample_id", "epoch") if name in table]


def pair(
    table: pd.DataFrame, baseline: str, cell: str, force: bool = False, *, missing: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Join a cell's outcomes with the baseline's, prompt by prompt.

    Args:
        table: checked outcomes.
        baseline: the baseline's name.
        cell: the cell's name.
        force: warn where the two cannot be compared, instead of refusing.
        missing: keep the baseline's prompts that the cell has no outcome of, as unscored ones.

    Returns:
        One row per prompt that both were given (several answers to one prompt count once, see
        `probes.labels.per_prompt`):
        task, sample_id, category, and from either side, with the suffixes `_baseline` and `_cell`: label, refused,
        answered, scored, response, n_tokens (if there); `missing` where the cell has no outcome. And warnings.

    Raises:
        InputError: one of the two is not in the table, they have no prompt in common, or they ran on different engines
            or prompts and `force` is not given.
    """
    sides = {name: table[table["cell"] == name] for name in (baseline, cell)}
    for name, side in sides.items():
        if side.empty:
            cells = list(map(str, table["cell"].unique()))
            expected = f"one of the cells of the table: {', '.join(cells)}"
            raise InputError(f"There are no outcomes of {name}", expected, did_you_mean(name, cells))
    left, right = (per_prompt(_with_outcomes(sides[name]), like=sides[baseline]) for name in (baseline, cell))
    asked = left.merge(
        right, how="left", on=SAMPLE, suffixes=("_baseline", "_cell"), validate="one_to_one", indicator=True
    )
    asked = asked.assign(missing=asked.pop("_merge") == "left_only")
    pairs = asked[~asked["missing"]]
    if pairs.empty:
        raise InputError(f"{cell} and {baseline} have no prompt in common", "the same tasks and samples in both")
    warnings = [f"{name}: {note}" for name, side in ((baseline, left), (cell, right)) if (note := repeats_said(side))]
    warnings += _differences(pairs, len(left) + len(right) - 2 * len(pairs), baseline, cell, force)
    rows = _with_missing(asked) if missing else pairs.reset_index(drop=True)
    category = rows["category_baseline"].fillna("").astype(str) if "category_baseline" in rows else ""
    return rows.assign(category=category), warnings


def _with_missing(asked: pd.DataFrame) -> pd.DataFrame:
    """What the cell has no outcome of is unscored."""
    absent = {"label_cell": str(Label.UNSCORED), "refused_cell": False, "answered_cell": False, "scored_cell": False}
    filled = {column: asked[column].where(~asked["missing"], value) for column, value in absent.items()}
    flags = {column: values.astype(bool) for column, values in filled.items() if column != "label_cell"}
    return asked.assign(**filled | flags)


def _with_outcomes(side: pd.DataFrame) -> pd.DataFrame:
    return side.assign(
        refused=side["label"].isin(REFUSED),
        answered=side["label"] == Label.COMPLIANCE,
        scored=side["label"] != Label.UNSCORED,
    )


def _differences(pairs: pd.DataFrame, alone: int, baseline: str, cell: str, force: bool) -> list[str]:
    warnings = []
    if alone:
        warnings.append(f"{cell}: {alone} outcomes have no counterpart and are left out")
    for column, what in SAME.items():
        if f"{column}_baseline" not in pairs:
            warnings.append(f"{cell}: the table has no column {column}, so nothing says that it is the same for both")
            continue
        differ = pairs[pairs[f"{column}_baseline"].astype(str) != pairs[f"{column}_cell"].astype(str)]
        if differ.empty:
            continue
        first = differ.iloc[0]
        difference = (
            f"{cell} and {baseline} have different {what}: {len(differ)} of {len(pairs)} pairs differ, such as "
            f"{first['task']} {first['sample_id']} "
            f"({first[f'{column}_baseline']!s:.20} and {first[f'{column}_cell']!s:.20})"
        )
        if not force:
            raise InputError(
                difference, "pairs that differ in the weights only", "Run both alike, or insist with --force"
            )
        warnings.append(f"compared although {difference}")
    return warnings
