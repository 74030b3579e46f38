"""Processor time and peak memory of each probe on the real model, from a child process each, at two numbers of prompts.

OMP_NUM_THREADS=1 python benchmarks/real_model.py CELL [PROBE …]    (CELL: a quantized copy, e.g. of `make real`)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from interp.real_model import real_checkpoint

PROBES = ("entropy", "direction", "calibration", "neurons", "margin", "attribution", "causal", "why")
LIMITS = (4, 12)
"""Prompts of each side: what the difference costs is what prompts cost, the rest is opening and checking."""


def cost(probe: str, cell: str, limit: int) -> tuple[float, float]:
    """Seconds of computation, and the most memory in GB that the process held."""
    with tempfile.TemporaryDirectory() as out:
        options = ["--baseline", str(real_checkpoint()), "--quantized", f"cell={cell}", "--limit", str(limit)]
        with open(Path(out) / "log", "w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", f"probes.{probe}", *options, "--out", out], stdout=log, stderr=log
            )
            _, status, used = os.wait4(child.pid, 0)
        if status:
            sys.exit((Path(out) / "log").read_text())
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def main() -> None:
    cell, *probes = sys.argv[1:]
    for probe in probes or PROBES:
        few, many = (cost(probe, cell, limit) for limit in LIMITS)
        each = (many[0] - few[0]) / (2 * (LIMITS[1] - LIMITS[0]))
        print(f"{probe}: {few[0]:.0f} s and {many[0]:.0f} s, {each:.1f} s a prompt, {few[1]:.1f} and {many[1]:.1f} GB")


if __name__ == "__main__":
    main()
