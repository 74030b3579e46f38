"""A table and its document belong together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from interp.errors import InputError
from probes.harness.options import Options, finish
from probes.harness.results import Result, read_result


def result(values: list[float]) -> Result:
    return Result("x", pd.DataFrame({"cell": "a", "value": values}), {"seed": 1}, ["careful"], 2.5)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = result([0.5, float("nan")])
    _, document = written.write(tmp_path)
    found = read_result(document)
    pd.testing.assert_frame_equal(found.table, written.table)
    assert (found.probe, found.settings, found.warnings, found.seconds) == ("x", {"seed": 1}, ["careful"], 2.5)


def test_a_table_of_another_measurement_is_noticed(tmp_path: Path) -> None:
    """As a kill between the two files leaves them: the new table beside the old document."""
    _, document = result([0.5, 1.0]).write(tmp_path / "old")
    table, _ = result([0.5, 2.0]).write(tmp_path / "new")
    table.replace(tmp_path / "old" / "x.parquet")
    with pytest.raises(
        InputError, match=r"x\.parquet is not the table that .*x\.json was written with.*Measure it again"
    ):
        read_result(document)


def test_what_is_written_beside_a_result_comes_after_it(tmp_path: Path) -> None:
    """A kill, or a fault in the tables beside it, leaves the command's own result."""
    options = Options(baseline="a", quantized=["b"], out=tmp_path, as_json=True)

    def beside() -> Iterator[Result]:
        assert read_result(tmp_path / "x.json").table["value"].tolist() == [0.5]
        yield Result("y", pd.DataFrame({"cell": ["a"]}), {})
        raise RuntimeError("a fault")

    main = Result("x", pd.DataFrame({"cell": ["a"], "value": [0.5], "reason": [""]}), {})
    with pytest.raises(RuntimeError):
        finish(main, "", options, beside())
    assert read_result(tmp_path / "y.json").probe == "y"


def test_a_document_without_the_hash_is_read(tmp_path: Path) -> None:
    _, document = result([0.5]).write(tmp_path)
    text = document.read_text()
    document.write_text(
        "\n".join(line for line in text.splitlines() if "table_sha256" not in line).replace(
            '"n_rows": 1,', '"n_rows": 1'
        )
    )
    assert len(read_result(document).table) == 1
