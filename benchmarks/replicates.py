"""How far apart are cells that one command might as well have written? The same model and writer, from other texts.

OMP_NUM_THREADS=1 python -m benchmarks.replicates OUT [CHECKPOINT …] [--cell GPTQ] [--times N] [--texts N] [--limit N]

Without a checkpoint it takes the shipped organisms that refuse; OUT, with the cells, is kept. Of the package's chats,
or an organism's texts, each replicate takes the next `--texts`. `--limit`: prompts of each side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.writers import compared
from interp.organisms.training import SHIPPED
from interp.quantize import calibration_of, write_cells


def written(baseline: Path, out: Path, cell: str, times: int, n_texts: int) -> dict[str, Path]:
    """One cell from each set of texts, those that are not there yet written now."""
    texts = calibration_of(baseline)
    cells = {}
    for number in range(times):
        own = texts[number * n_texts : (number + 1) * n_texts]
        cells |= {f"{cell}-{number + 1}": write_cells(baseline, out / str(number + 1), own, [cell])[cell]}
    return cells


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("checkpoints", type=Path, nargs="*")
    options.add_argument("--cell", default="GPTQ")
    for name, default in (("times", 8), ("texts", 16), ("limit", 64)):
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    for baseline in given.checkpoints or sorted(path for path in SHIPPED.iterdir() if "alignment0" not in path.name):
        cells = written(baseline, given.out / baseline.name, given.cell, given.times, given.texts)
        print(baseline.name)
        print(compared(baseline, cells, given.limit).fillna("").to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
