"""Every command's tables fit: whole words, no column cut off, and what has no room is named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from interp import cli
from probes.harness import tables
from probes.harness.fitted_table import Column, FittedTable, wrapped

ROOT = Path(__file__).parents[1]
NAME = "llama-Q4_K_M"
WORDS = {"cell", "regime", "action", "by", "kind", "level", "module", "model", "quantization", "verdict"}


class Number(float):
    """A number that is a name where a column shows it as it is."""

    def __str__(self) -> str:
        return NAME


class Row(dict[str, Any]):
    """Any column that is asked for, as wide as its numbers become."""

    def __missing__(self, name: str) -> Any:
        self[name] = NAME if name in WORDS else Number(-0.1234567)
        return self[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


def mappings() -> Iterator[tuple[str, tables.Columns]]:
    """All columns that a module of the commands declares."""
    for file in sorted(ROOT.glob("probes/*/*.py")):
        if "tables.Columns = {" in file.read_text(encoding="utf-8"):
            module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            for name in (name for name, hint in module.__annotations__.items() if hint == "tables.Columns"):
                yield f"{module.__name__}.{name}", getattr(module, name)


DECLARED = dict(mappings())


def rendered(name: str) -> FittedTable:
    columns = DECLARED[name]
    row = Row(cell=NAME)
    for show in columns.values():
        show(row)
        if isinstance(show, tables.Phrase):
            assert [row[column] for column in (*show.of, show.long) if column]
    return tables.render("A title", pd.DataFrame([dict(row)], dtype=object), columns)


def printed(table: FittedTable, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, cli.WIDEST])
@pytest.mark.parametrize("name", DECLARED)
def test_a_table_fits_or_says_what_is_left_out(name: str, width: int) -> None:
    table = rendered(name)
    lines = printed(table, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    shown, left_out = table.fitting(width)
    for column in shown:
        for cell in column.cells:
            assert all(word in text for word in cell.replace("[", "").split()), cell
    assert not left_out or "No room here for: " + ", ".join(left_out) in " ".join(text.split())
    assert len(shown) + len(left_out) == len(table.columns)
    assert width != cli.WIDEST or not left_out


def test_commands_declare_their_tables() -> None:
    assert len(DECLARED) >= 25


@pytest.mark.parametrize(
    ("width", "headers"),
    [(80, ["cell", "ECE", "Gini"]), (29, ["cell", "ECE", "Gini"]), (28, ["cell", "ECE"]), (22, ["cell"])],
)
def test_columns_are_left_out_from_the_right(width: int, headers: list[str]) -> None:
    columns = [Column("cell", ["Q4_K_M"]), Column("ECE", ["0.5 [0.4, 0.6]"]), Column("Gini", ["0.123"])]
    table = FittedTable("A title", columns)
    assert [column.header for column in table.fitting(width)[0]] == headers


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("0.92 [0.87, 0.95]", 17, ["0.92 [0.87, 0.95]"]),
        ("0.92 [0.87, 0.95]", 16, ["0.92", "[0.87, 0.95]"]),
        ("no rule applies; no judge", 10, ["no rule", "applies;", "no judge"]),
        ("Qwen2.5-1.5B-Instruct-AWQ", 13, ["Qwen2.5-1.5B-", "Instruct-AWQ"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("", 3, [""]),
    ],
)
def test_lines_are_broken_between_words(text: str, width: int, lines: list[str]) -> None:
    assert wrapped(text, width).splitlines() == lines or (text == "" and wrapped(text, width) == "")


def test_a_phrase_has_its_long_form_below_once() -> None:
    verdicts = ["goes away: as large in others", "survives", "goes away: as large in others"]
    table = pd.DataFrame({"cell": ["AWQ", "GPTQ", "Q2_K"], "verdict": verdicts})
    columns = {"cell": tables.text("cell"), "the effect": tables.Phrase("verdict")}
    lines = printed(tables.render("Neurons", table, columns), 80)
    assert sum("goes away" in line for line in lines) == 3
    assert [line.rstrip() for line in lines].count("goes away: as large in others (AWQ, Q2_K)") == 1


def test_wide_is_as_wide_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", Console(width=80))
    assert not cli.widen(False)
    assert cli.console.width == 80
    assert cli.widen(True)
    assert cli.console.width == cli.WIDEST
