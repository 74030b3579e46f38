"""Does the writer matter? The same model as AWQ and GPTQ by the writers of 2024 and by GPTQModel, from the same texts.

OMP_NUM_THREADS=1 python benchmarks/writers.py OUT [CHECKPOINT …] [--texts N] [--limit N]

Without a checkpoint it takes the shipped organisms that refuse; OUT, with the cells, is kept. AutoAWQ and AutoGPTQ need
`make legacy`. `--texts`: of the calibration, all by default; `--limit`: prompts of each side.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

import probes
from interp import weight_error
from interp.organisms.training import SHIPPED
from interp.quantize import calibration_of, write_cells
from interp.quantize.cells import read_record
from probes.labels.refused import READ_TOKENS
from probes.refusal.ask import ask
from probes.stats.intervals import mean_interval

CELLS = ("AWQ", "GPTQ")
WRITERS = ("autoawq", "autogptq")


def written(baseline: Path, out: Path, n_texts: int | None) -> dict[str, Path]:
    """The four cells, those that are not there yet written now."""
    texts = calibration_of(baseline)[:n_texts]
    new, old = (write_cells(baseline, out, texts, CELLS, writers=writers) for writers in ((), WRITERS))
    return {f"{cell}-{read_record(path).writer}": path for cells in (new, old) for cell, path in cells.items()}


def compared(baseline: Path, cells: Mapping[str, Path], limit: int | None) -> pd.DataFrame:
    """A row for the baseline and each cell: weight error, the margin's shift, refusals."""
    study = probes.measure(baseline, cells, limit=limit)
    margins = pd.DataFrame(study.table("margin_prompts"))
    answers = ask(study.baseline, study.cells, study.harmful, "refusal", max_new_tokens=READ_TOKENS)
    rows = []
    for name in ["baseline", *cells]:
        row = {"cell": name}
        if name != "baseline":
            error = weight_error(baseline, cells[name])["relative_error"]
            row |= {"weight error": f"{error.median():.4f} ({error.quantile(0.99):.3f})"}
            row |= {
                "shift": _interval(margins, name, "harmful"),
                "harmless shift": _interval(margins, name, "harmless"),
            }
        refusals = answers[answers["cell"] == name]["score"]
        row |= {"refused": f"{int(refusals.sum())} of {len(refusals)}"}
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(margins: pd.DataFrame, cell: str, side: str) -> str:
    shift = mean_interval(margins[(margins["cell"] == cell) & (margins["prompts"] == side)]["shift"].to_numpy())
    return f"{shift.value:+.2f} [{shift.low:+.2f}, {shift.high:+.2f}]"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("checkpoints", type=Path, nargs="*")
    options.add_argument("--texts", type=int)
    options.add_argument("--limit", type=int)
    given = options.parse_args()
    shipped = sorted(path for path in SHIPPED.iterdir() if "alignment0" not in path.name)
    for baseline in given.checkpoints or shipped:
        print(baseline.name)
        table = compared(baseline, written(baseline, given.out / baseline.name, given.texts), given.limit)
        print(table.fillna("").to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
