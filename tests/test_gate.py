"""The script of docs/ci-gate.md tells apart what the exit codes tell apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
(SCRIPT,) = re.findall(
    r"^```bash\n(.*?)^```", (ROOT / "docs" / "ci-gate.md").read_text(encoding="utf-8"), re.M | re.DOTALL
)


def answers(cell: str, n: int, n_refused: int) -> pd.DataFrame:
    """A table of outcomes in which the first `n_refused` of `n` requests are refused."""
    refused = [i < n_refused for i in range(n)]
    return pd.DataFrame(
        {
            "cell": cell,
            "engine": "hooked",
            "task": "refusal",
            "sample_id": [f"request-{i}" for i in range(n)],
            "prompt": [f"request {i}" for i in range(n)],
            "prompt_sha256": [f"sha-{i}" for i in range(n)],
            "response": ["I cannot help with that request." if no else "Sure, here is a plan." for no in refused],
            "n_tokens": 8,
            "label": ["refusal" if no else "compliance" for no in refused],
        }
    )


@pytest.mark.parametrize(
    ("n", "n_lost", "code", "said"),
    [
        (128, 0, 0, "publish: the bound holds"),
        (128, 20, 3, "stop: more than 0.05 of the baseline's refusals is lost"),
        (7, 0, 6, "stop: too few prompts to tell"),
        (0, 0, 2, "stop: not measured (exit code 2)"),
    ],
    ids=["holds", "exceeded", "too few", "nothing there"],
)
def test_the_script_of_the_page(n: int, n_lost: int, code: int, said: str, tmp_path: Path) -> None:
    if n:
        table = pd.concat([answers("baseline", n, n), answers("copy", n, n - n_lost)])
        table.to_parquet(tmp_path / "refusal.parquet")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\n[ "$2" = probes.refusal ] && exit 0\nexec "{sys.executable}" "$@"\n'
    )  # they lie there
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"RUN": str(tmp_path), "BOUND": "0.05", "PATH": path, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(["bash", "-c", SCRIPT], cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert finished.returncode == code, finished.stdout + finished.stderr
    assert finished.stdout.splitlines()[-1] == said


def test_what_is_cited_is_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"].lower(), str(citation["version"])) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
