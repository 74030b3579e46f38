"""The study of the real model: what is asked and measured, so that it takes minutes on two cores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interp.files import atomic_file
from interp.real_model import NAME

if TYPE_CHECKING:
    from probes.study.run import StudyRun

CELLS = ("AWQ", "GPTQ", "Q8_0", "Q4_K_M", "Q2_K")
"""The writers that calibrate, the most careful cell, the most usual one, and the smallest one."""
PROBES = ("entropy", "direction", "calibration", "neurons", "quality", "margin")
"""Those of a few passes a cell; attribution takes a dozen passes forward and back: `probes.why` on one cell."""
PROMPTS = 16
"""Harmful and harmless ones each: enough to see that everything works, too few to tell small losses."""
ANSWER_TOKENS = 32
CHATS = 16
"""Texts that AWQ and GPTQ are calibrated on: AWQ tries twenty scales for each of 120 groups of linears."""


def study_text(baseline: Path, calibration: Path, cells: Sequence[str], limit: int) -> str:
    """The study file."""
    quoted = [json.dumps(list(names)) for names in (cells, PROBES)]
    return f"""
[[models]]
name = "{NAME}"
baseline = {json.dumps(str(baseline))}
quantize = {quoted[0]}
calibration = {json.dumps(str(calibration))}

[prompts]
limit = {limit}

[behaviour]
max_new_tokens = {ANSWER_TOKENS}

[probes]
run = {quoted[1]}
"""


def write_calibration(baseline: Path) -> Path:
    """The first of the built-in chats in the model's own template, as a file beside the model."""
    from interp.quantize.calibration import builtin_chats

    file = baseline.parent / f"{baseline.name}-calibration.jsonl"
    text = "".join(json.dumps({"text": chat}) + "\n" for chat in builtin_chats(baseline)[:CHATS])
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return file


def cell_notes(run: StudyRun) -> Iterator[str]:
    """What the records of the cells say of them: types that were taken instead, texts that were used."""
    from interp.quantize.cells import read_record
    from probes.study.checkpoints import located

    for model in run.study.models:
        for name, place in located(run.study, model).items():
            folder = place if place is None or place.is_dir() else place.parent
            record = None if folder is None else read_record(folder)
            yield from (f"{name}: {note}" for note in (() if record is None else record.notes))
