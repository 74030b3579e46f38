"""Time how long a GGUF takes to open and to load beside the peers: `python benchmarks/opening.py [path/to/model.gguf]`.

Without a file, one of the shape of Qwen2.5-0.5B-Instruct is written as Q4_K_M into a temporary folder: random weights,
and a byte-level BPE of as many tokens and merges, made by joining tokens at random.

Every row is a process of its own, so that nobody profits from what another one read; imports are not counted. Processor
time stands beside the clock: another program's work does not count in it. The peers: the `gguf` package's own reader,
transformers' loading of a GGUF, and llama.cpp (extra `gguf`), which maps the file and dequantizes while it computes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

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


def written(folder: Path) -> Path:
    """A Q4_K_M file of the shape of Qwen2.5-0.5B-Instruct."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from interp.quantize import write_cells

    dense = folder / "qwen-0.5b-shape"
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype="float16").save_pretrained(dense)
    byte_pairs(151_643).save_pretrained(dense)
    return write_cells(dense, folder / "cells", [], ["Q4_K_M"])["Q4_K_M"]


def byte_pairs(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of so many tokens, without the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters, draw = sorted(pre_tokenizers.ByteLevel.alphabet()), random.Random(0)
    tokens, merges = dict.fromkeys(letters), []
    known = letters.copy()
    while len(tokens) < size:
        pair = draw.choice(known), draw.choice(known)
        joined = "".join(pair)
        if len(joined) < 12 and joined not in tokens:
            tokens[joined] = None
            known.append(joined)
            merges.append(pair)
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def main() -> None:
    """Print the table."""
    if sys.argv[1:]:
        show(Path(sys.argv[1]).resolve())
        return
    with tempfile.TemporaryDirectory(prefix="quantscope-opening-") as folder:
        show(written(Path(folder)))


def show(file: Path) -> None:
    """Print the table of one file."""
    table = Table(title=f"{file.name}, {file.stat().st_size / 1e6:.0f} MB")
    for column in ("what", "seconds", "processor seconds"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, case in CASES.items():
        measured = seconds(file, *case)
        table.add_row(name, *((measured, "") if isinstance(measured, str) else (f"{s:.2f}" for s in measured)))
    Console().print(table)


if __name__ == "__main__":
    main()
