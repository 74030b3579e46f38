"""Where the requests of the behavioural tasks come from."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from interp.errors import InputError, MissingExtra
from probes.harness.prompts import builtin
from probes.refusal.probe import build_tasks
from probes.refusal.request_sets import prompt_id, read_set


def test_the_borderline_set() -> None:
    prompts = read_set("borderline")
    assert len(prompts) == 32
    assert not set(prompts.instructions) & {*builtin("harmful").instructions, *builtin("harmless").instructions}


def test_a_dataset_by_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = [
        {"goal": "Do it", "category": "x"},
        {"goal": " Do it ", "category": "x"},
        {"goal": "No", "category": "y"},
    ]
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_set(f"datasets:{tmp_path / 'set'}")
    assert (prompts.instructions, prompts.categories) == (("Do it", "No"), ("x", "y"))
    with pytest.raises(InputError, match="cannot be loaded"):
        read_set(f"datasets:{tmp_path / 'absent'}")


def test_a_package_that_is_not_installed_is_in_the_extra_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"quantscope\[datasets\]"):
        read_set("datasets:name")
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert any(package.startswith("datasets") for package in project["optional-dependencies"]["datasets"])


def test_ids_do_not_depend_on_the_set() -> None:
    first, second = (build_tasks(["refusal"], limit=n)["refusal"].dataset for n in (2, 4))
    assert [s.id for s in first] == [s.id for s in second][:2] == [prompt_id(str(s.input)) for s in first]
