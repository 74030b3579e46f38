"""The code of docs/python.md runs, from its first block to its last."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cells import q8_0

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_page_runs(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path/to").mkdir(parents=True)
    shutil.copytree(tiny("llama"), tmp_path / "path/to/model")
    q8_0(tiny("llama"), tmp_path / "path/to/model-Q8_0.gguf")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        exec(compile(code, PAGE.name, "exec"), names)
    assert (tmp_path / "out.html").is_file()
    assert (tmp_path / "results" / "model" / "entropy.parquet").is_file()
    assert list((tmp_path / "caches" / "harmful").glob("0*.safetensors"))
