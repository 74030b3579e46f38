"""A writer process that goes wrong as its job says, after leaving half a cell behind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from interp.child import JobReport, serve


def write(job: dict[str, Any], report: JobReport) -> dict[str, Any]:
    print("half of it is written", flush=True)
    Path(job["out"], "model.safetensors").write_text("half")
    report(1, 2)
    if job["ending"] == "raise":
        raise ValueError("no calibration reached this layer")
    if job["ending"] == "die":
        os.abort()
    if job["ending"] == "hang":
        time.sleep(600)
    return {"pid": os.getpid(), "directory": os.getcwd()}


if __name__ == "__main__":
    serve(write)
