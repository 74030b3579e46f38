"""Time how long a GGUF takes to open and to load beside the peers: `python benchmarks/opening.py path/to/model.gguf`.

Every row is a process of its own, so that nobody profits from what another one read; imports are not counted. Processor
time stands beside the clock: another program's work does not count in it. The peers: the `gguf` package's own reader,
transformers' loading of a GGUF, and llama.cpp (extra `gguf`), which maps the file and dequantizes while it computes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

CASES = {
    "open: quantscope": (
        "from interp import open_checkpoint; import interp.formats.gguf, transformers.models.llama.modeling_llama",
        "open_checkpoint(FILE)",
    ),
    "open: gguf's reader": ("import gguf", "gguf.GGUFReader(FILE)"),
    "open: llama.cpp, vocabulary only": (
        "import llama_cpp",
        "llama_cpp.Llama(FILE, vocab_only=True, verbose=False)",
    ),
    "load to float32: quantscope": (
        "import transformers.models.llama.modeling_llama; from interp import load",
        "load(FILE)",
    ),
    "load to float32: transformers": (
        "import os, torch, gguf; from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "import transformers.models.llama.modeling_llama; D, F = os.path.split(FILE)",
        "AutoTokenizer.from_pretrained(D, gguf_file=F); "
        "AutoModelForCausalLM.from_pretrained(D, gguf_file=F, dtype=torch.float32, "
        "quantization_config=__import__('transformers').GgufConfig(dequantize=True))",
    ),
    "load as it is: llama.cpp": ("import llama_cpp", "llama_cpp.Llama(FILE, verbose=False)"),
}
"""Row → what is imported before the clock starts, and what is timed."""
SCRIPT = """
import json, sys, time
FILE = sys.argv[1]
{imports}
wall, cpu = time.perf_counter(), time.process_time()
{timed}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def seconds(file: Path, imports: str, timed: str) -> tuple[float, float] | str:
    """By the clock and of the processor; or the last line of what went wrong."""
    script = SCRIPT.format(imports=imports, timed=timed)
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1][:60]
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def main() -> None:
    """Print the table."""
    file = Path(sys.argv[1]).resolve()
    table = Table(title=f"{file.name}, {file.stat().st_size / 1e6:.0f} MB")
    for column in ("what", "seconds", "processor seconds"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, case in CASES.items():
        measured = seconds(file, *case)
        table.add_row(name, *((measured, "") if isinstance(measured, str) else (f"{s:.2f}" for s in measured)))
    Console().print(table)


if __name__ == "__main__":
    main()
