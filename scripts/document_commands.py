"""The shell lines of the documentation: find them, lay out the files they name, run them, write their output below.

    python scripts/document_commands.py docs/commands.md [LINE]

Runs every line of every ```sh block and replaces the ```text block that follows by what was printed; with LINE only the
blocks that hold this text. Blocks marked ```sh norun (they need a download, a server or hours) stay as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

WIDTH = "118"
"""Columns of the terminal in the documentation."""
CELLS = ("AWQ", "GPTQ", "Q4_K_M", "Q2_K")
_SHELL = re.compile(r"^```sh(?P<info>[^\n]*)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<text>.*?)^```\n)?", re.M | re.S)

_PROGRESS = re.compile(r": \d+ of \d+(, \d+ s so far.*| after \d+ s)$")
"""What is printed each half a minute: a matter of the machine, and left out."""


class Block(NamedTuple):
    """A block of shell lines.

    Attributes:
        lines: commands, comments and continuations taken out.
        runs: whether they are meant to be run here.
        text: what is printed below it, or None where no output is shown.
    """

    lines: list[str]
    runs: bool
    text: str | None


def blocks(page: str) -> list[Block]:
    """The shell blocks of a Markdown page."""
    return [_block(match) for match in _SHELL.finditer(page)]


def _block(match: re.Match[str]) -> Block:
    joined = match["code"].replace("\\\n", " ")
    lines = [re.sub(r"\s+#\s.*", "", line).strip() for line in joined.splitlines() if not line.startswith("#")]
    return Block([line for line in lines if line], "norun" not in match["info"], match["text"])


def lay_out(directory: Path, n_answers: int = 128) -> None:
    """What the shell lines name: the organism and four of its cells as `path/to/model…`, and small files of data."""
    from interp import load
    from interp.files import cache_directory
    from interp.organisms import training
    from interp.quantize.write import write_cells
    from probes.harness.comparison import Cells
    from probes.harness.prompts import builtin
    from probes.refusal.ask import ask

    organism = training.train("llama")
    texts = training.calibration_texts(128)
    cells = write_cells(organism, cache_directory() / "cells" / organism.name, texts, CELLS)
    (directory / "path/to").mkdir(parents=True)
    shutil.copytree(organism, directory / "path/to/model")
    for name, path in cells.items():
        target = directory / f"path/to/model-{name}{'.gguf' if path.is_file() else ''}"
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
    baseline = load(organism)
    answers = ask(baseline, Cells({"Q2_K": cells["Q2_K"]}, baseline), builtin("harmful").take(n_answers), "refusal")
    for name, rows in answers.groupby("cell"):
        rows[["prompt", "response", "n_tokens"]].to_json(directory / f"{name}.jsonl", orient="records", lines=True)
    labelled = answers.assign(refused=answers["label"].isin(["refusal", "partial_refusal"]).astype(int))
    labelled[["response", "refused"]].to_json(directory / "labelled.jsonl", orient="records", lines=True)
    rates = [("FP16", 0.92, 0.71), ("Q4_K_M", 0.90, 0.70), ("AWQ", 0.78, 0.70), ("Q2_K", 0.55, 0.58)]
    rows = "".join(f"my-model,{name},{rate},200,{quality}\n" for name, rate, quality in rates)
    (directory / "cells.csv").write_text(f"model,quantization,refusal_rate,refusal_rate_n,bertscore\n{rows}")
    (directory / "requests.jsonl").write_text(json.dumps({"prompt": builtin("harmful").instructions[0]}) + "\n")


def run(line: str, directory: Path) -> str:
    """What a shell line prints, errors included."""
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"COLUMNS": WIDTH, "PATH": binaries, "TERM": "dumb", "NO_COLOR": "1"}
    finished = subprocess.run(
        ["bash", "-c", line],
        cwd=directory,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    rows = [row.rstrip() for row in finished.stdout.strip("\n").splitlines()]
    printed = "\n".join(row for row in rows if not _PROGRESS.search(row))
    print(f"exit {finished.returncode}: {line}\n{printed}\n", file=sys.stderr)
    return printed + (f"\n(exit code {finished.returncode})" if finished.returncode else "")


def document(page: Path, only: str = "") -> None:
    """Run the page's blocks in one folder, in their order, and write what they print below them."""

    def rerun(match: re.Match[str]) -> str:
        block = _block(match)
        if not block.runs or only not in match["code"]:
            return match[0]
        printed = "\n".join(run(line, directory) for line in block.lines)
        if block.text is None:
            return match[0]
        return f"```sh{match['info']}\n{match['code']}```\n\n```text\n{printed}\n```\n"

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        lay_out(directory)
        page.write_text(_SHELL.sub(rerun, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    document(Path(sys.argv[1]), *sys.argv[2:3])
