"""A study of a tiny random model: its file, its prompts and its two cells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from interp.quantize.gguf_f16 import write_f16
from tests.cells import HARMFUL, HARMLESS
from tests.packed_files import edit
from tests.writer_models import write_checkpoint

STUDY = """out = "run"

[prompts]
harmful = "harmful.txt"
harmless = "harmless.txt"

[behaviour]
max_new_tokens = 4

[probes]
run = ["entropy", "direction", "calibration", "neurons"]

[[models]]
name = "tiny"
baseline = "base"
dtype = "float32"
force = true

  [[models.cells]]
  name = "gguf"
  path = "cell.gguf"

  [[models.cells]]
  name = "dense"
  path = "cell"
  format = "dense"
"""
Invoke = Callable[..., int]
"""Runs a command with these arguments and returns its exit code."""
PARTS = 10
"""Two cells by five steps."""
PARTS_OF_EACH = 6
"""Two cells by three steps, of each of several models."""


def write_study(directory: Path) -> Path:
    """The study's file, with everything that it names beside it: an F16 GGUF, and a copy with rounded weights."""
    baseline = write_checkpoint("llama", directory / "base")
    write_f16(baseline, directory / "cell.gguf")
    shutil.copytree(baseline, directory / "cell")
    edit(directory / "cell", lambda tensors: [t.mul_(16).round_().div_(16) for n, t in tensors.items() if "_proj" in n])
    for prompts in (HARMFUL, HARMLESS):
        (directory / prompts.name).write_text("\n".join(prompts.instructions), encoding="utf-8")
    file = directory / "study.toml"
    file.write_text(STUDY, encoding="utf-8")
    return file


def write_models(directory: Path, count: int) -> Path:
    """The same with fewer probes and several models, "tiny1" and so on, which share their files."""
    file = write_study(directory)
    head, _, model = STUDY.replace(', "calibration", "neurons"', "").partition("[[models]]")
    models = [f"[[models]]{model}".replace('"tiny"', f'"tiny{number}"') for number in range(1, count + 1)]
    file.write_text(head + "\n".join(models), encoding="utf-8")
    return file
