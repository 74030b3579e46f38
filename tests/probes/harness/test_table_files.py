"""Tables from outside: names stay text, sizes are checked first, and what cannot be a table is an InputError."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError
from probes.harness import parquet_files
from probes.harness.parquet_files import read_parquet
from probes.harness.results import Result, read_result
from probes.harness.table_files import read_csv, read_table
from probes.labels.outcomes import check_outcomes, pair, read_outcomes

CELLS = pd.DataFrame({"model": ["007", "1e3"], "quantization": ["None", "NA"], "refusal_rate": [0.5, 1], "n": [3, 40]})


def write(table: pd.DataFrame, file: Path) -> Path:
    if file.suffix == ".csv":
        table.to_csv(file, index=False)
    elif file.suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_json(file, orient="records", lines=file.suffix == ".jsonl")
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", ".jsonl", ".CSV"])
def test_every_kind_gives_the_same_and_names_stay_text(tmp_path: Path, suffix: str) -> None:
    file = write(CELLS, tmp_path / f"cells{suffix.lower()}").rename(tmp_path / f"t{suffix}")
    found = read_table(file)
    assert found["model"].tolist() == ["007", "1e3"]
    assert found["quantization"].tolist() == ["None", "NA"]
    assert found["refusal_rate"].tolist() == [0.5, 1.0]
    assert found["n"].tolist() == [3, 40]


def test_names_that_are_numbers_elsewhere_are_the_same_names(tmp_path: Path) -> None:
    numbers = pd.DataFrame({"sample_id": [7.0, 12.0], "cell": [1, 2]})
    for suffix in (".parquet", ".json", ".csv"):
        found = read_table(write(numbers.astype({"sample_id": int}), tmp_path / f"ids{suffix}"))
        assert (found["sample_id"].tolist(), found["cell"].tolist()) == (["7", "12"], ["1", "2"])
    gaps = write(pd.DataFrame({"sample_id": [7, None]}), tmp_path / "gaps.parquet")
    assert read_table(gaps)["sample_id"].iloc[0] == "7"


def test_outcomes_keep_their_ids_and_hashes(tmp_path: Path) -> None:
    """A hash such as 1234e7 is no number, nor is the sample 007 the sample 7."""
    rows = [
        {"cell": cell, "task": "t", "sample_id": sample, "response": "I cannot.", "prompt_sha256": f"1234e{sample}"}
        for cell in ("base", "q4")
        for sample in ("007", "7")
    ]
    table = read_outcomes(write(pd.DataFrame(rows), tmp_path / "o.csv"))
    pairs, _ = pair(table, "base", "q4")
    assert pairs["sample_id"].tolist() == ["007", "7"]
    assert pairs["prompt_sha256_cell"].tolist() == ["1234e007", "1234e7"]


@given(st.lists(st.floats(allow_nan=False) | st.integers(-(10**15) + 1, 10**15 - 1), min_size=1))
def test_numbers_are_those_of_python(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    file = tmp_path_factory.mktemp("t") / "t.csv"
    file.write_text("n\n" + "\n".join(map(str, numbers)))
    assert read_csv(file)["n"].tolist() == numbers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "", "3"], [1.0, np.nan, 3.0]),
        (["True", "false"], [True, False]),
        (["True", ""], [True, None]),
        (["1_000", "2"], ["1_000", "2"]),
        (["1", "x"], ["1", "x"]),
        (["", "nan"], [np.nan, np.nan]),
        ([".5", "+1e-3"], [0.5, 0.001]),
        (["9" * 30, "1"], [1e30, 1.0]),
        (["٣"], ["٣"]),
    ],
)
def test_what_a_column_of_a_csv_is(tmp_path: Path, values: list[str], expected: list[object]) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,b\n" + "".join(f"{value},x\n" for value in values), encoding="utf-8")
    pd.testing.assert_series_equal(
        read_csv(file)["a"],
        pd.Series(expected, name="a", dtype=object if None in expected else None),
        check_dtype=False,
    )


def test_a_sign_within_a_line_is_no_comment(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("# from somewhere\nmodel,note\na#1,b # c\n")
    assert read_csv(file).to_dict("records") == [{"model": "a#1", "note": "b # c"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "a,b\n", "no rows"),
        ("t.csv", "a,b\n1,2,3\n", "line 2, has 3 fields. Expected 2"),  # pandas took the first for row names
        ("t.csv", "# c\na,b\n1,2\n3\n", "line 4, has 1 field"),
        ("t.csv", "a,a\n1,2\n", "two columns 'a'"),
        ("t.csv", 'a\n"1\n', "after line 2, is not valid CSV"),
        ("t.csv", "a\n" + "x" * 200_000, "field larger than field limit"),
        ("t.json", "[1]", "record 1, holds int data"),
        ("t.json", '{"a": 1}', "a JSON dict. Expected a list of objects"),
        ("t.json", '[{"a": [1]}]', "list data under 'a'"),
        ("t.json", '[{"a": 1}, {"a": "x"}]', r"column a holds numbers \(1\) and text \(x\)"),
        ("t.json", '[{"a": 1}, {"a": true}]', "column a holds numbers"),
        ("t.json", f'[{{"a": {10**30}}}]', "64 bits"),
        ("t.json", '[{"a": "\\ud800"}]', "half of a surrogate pair"),
        ("t.jsonl", '{"a": 1}\n{"a":', "line 2, is not valid JSON"),
        ("t.jsonl", "[" * 100_000, "nested"),
        ("t.parquet", "PAR1", "cannot be read as a parquet table"),
        ("t.xlsx", "", "a file ending in .csv"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_pipes_and_devices_are_refused_unread(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet", ".json", ".jsonl"):
        os.mkfifo(tmp_path / f"t{suffix}")
        with pytest.raises(InputError, match="pipe"):
            read_table(tmp_path / f"t{suffix}")


def test_a_parquet_file_is_measured_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text of a megabyte, five thousand times: the file has a megabyte, its table five gigabytes."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"response": texts}), tmp_path / "bomb.parquet", store_schema=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**21
    with pytest.raises(InputError, match="holds 5,000 rows of 1 columns, 5,242,880,000 bytes"):
        read_parquet(tmp_path / "bomb.parquet")
    monkeypatch.setattr(parquet_files, "MAX_VALUES", 7)
    with pytest.raises(InputError, match="2 rows of 4 columns"):
        read_parquet(write(CELLS, tmp_path / "cells.parquet"))


def test_a_parquet_file_that_lies_about_itself_is_refused(tmp_path: Path) -> None:
    lying = pa.table({"a": [1]}).replace_schema_metadata({"pandas": json.dumps({"columns": [{"name": "a"}]})})
    pq.write_table(lying, tmp_path / "t.parquet")
    with pytest.raises(InputError, match="cannot be read as a parquet table"):
        read_parquet(tmp_path / "t.parquet")
    invalid = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"a": invalid}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="UTF8"):
        read_parquet(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"table": None},
        {"table": ["x.parquet"]},
        {"table": "../x.parquet"},
        {"table": "a\0b"},
        {"probe": 3},
        {"settings": []},
        {"warnings": [1]},
        {"seconds": "1"},
        {"schema_version": None},
        {"schema_version": 2},
        {"table_sha256": 0},
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    _, document = Result("x", CELLS, {"seed": 1}).write(tmp_path)
    document.write_text(json.dumps(json.loads(document.read_text()) | change))
    with pytest.raises(InputError, match=r"x\.json"):
        read_result(document)


def test_what_json_prints_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(Result("x", CELLS, {}).to_json())
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.json"), CELLS, check_dtype=False)


def test_outcomes_of_mixed_ids_are_checked() -> None:
    rows = {"cell": ["a", "a"], "task": "t", "sample_id": [1, "1"], "response": "x"}
    assert len(check_outcomes(pd.DataFrame(rows))) == 2
