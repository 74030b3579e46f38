"""What a GPU does, beside GPTQModel and TransformerBridge: `python benchmarks/gpu.py` (needs CUDA).

A model of the shape of Llama 3.2 1B (random weights, bfloat16) and its GPTQ copy (4 bits, groups of 128) are written
into a temporary folder and removed. Each row is timed by the clock, the device waited for, and has the largest memory
of the device. `--device cpu` runs the same rows on a tiny shape: it shows that they run, and no figure of it means
anything. A peer that is not installed, or that cannot run a row, says so in it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

SHAPES = {"cuda": (16, 2048, 8192, 32000), "cpu": (2, 128, 256, 300)}
"""Device → layers, width, width of the MLP, vocabulary."""
PEERS = ("GPTQModel", "TransformerBridge", "transformers")
Row = tuple[str, Callable[[], object]]


def opening(dense: Path, gptq: Path, device: str) -> Iterator[Row]:
    from interp import load, open_checkpoint

    def transformers() -> object:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(dense, dtype=torch.bfloat16).to(device)

    def dequantized(where: str | None) -> object:
        cell = open_checkpoint(gptq)
        return [cell.weight(name, torch.bfloat16, where).to(device).sum() for name in cell.linears()]

    def gptqmodel() -> object:
        from gptqmodel import GPTQModel

        return GPTQModel.load(str(gptq), device=device)

    yield "open bfloat16: quantscope", lambda: load(dense, dtype=torch.bfloat16, device=device)
    yield "open bfloat16: transformers", transformers
    yield "open GPTQ as bfloat16: quantscope", lambda: load(gptq, dtype=torch.bfloat16, device=device)
    yield "open GPTQ in its kernels: GPTQModel", gptqmodel
    yield "all linears of GPTQ, dequantized on the CPU", lambda: dequantized(None)
    yield "all linears of GPTQ, dequantized on the device", lambda: dequantized(device)


def passing(dense: Path, gptq: Path, device: str, ids: torch.Tensor) -> Iterator[Row]:
    from interp import load

    model = load(dense, dtype=torch.bfloat16, device=device)
    names = [f"blocks.{index}.hook_resid_post" for index in range(model.n_layers)]

    def captured() -> object:
        with model.capture(names) as activations:
            model.hf(ids, use_cache=False)
        return activations

    yield "forward pass: bare", lambda: model.hf(ids, use_cache=False)
    yield "forward pass, residual streams: quantscope", captured
    bridge = cache(model.to_transformer_lens)  # made by the run that warms up
    yield "forward pass, residual streams: TransformerBridge", lambda: bridge().run_with_cache(ids, names_filter=names)
    kernels = cache(lambda: _gptqmodel(gptq, device))
    yield "forward pass in its kernels: GPTQModel", lambda: kernels()(input_ids=ids, use_cache=False)


def _gptqmodel(gptq: Path, device: str) -> Any:
    from gptqmodel import GPTQModel

    return GPTQModel.load(str(gptq), device=device).model


def streaming(dense: Path, gptq: Path, device: str, texts: list[str]) -> Iterator[Row]:
    from interp import HookedModel, open_checkpoint
    from interp.loading import empty_model, surroundings
    from interp.streaming.slot import Slot
    from interp.streaming.streamed import Streamed

    def streamed(path: Path, ahead: bool) -> object:
        checkpoint = open_checkpoint(path)
        around, row = surroundings(checkpoint, None), checkpoint.architecture
        hf = empty_model(around.config, torch.bfloat16)
        weights = Streamed(Slot(hf, row, checkpoint, torch.bfloat16, torch.device(device), ahead=ahead))
        return HookedModel(hf, around.tokenizer, row, checkpoint, weights).logits(texts)

    for path in (dense, gptq):
        for ahead, how in ((False, "each block when it is needed"), (True, "the next block read ahead")):
            yield f"streamed pass of {path.name}, {how}", lambda path=path, ahead=ahead: streamed(path, ahead)


def timed(run: Callable[[], object], device: str, repeats: int) -> tuple[str, str]:
    """Median seconds of a row and its largest memory on the device."""
    seconds: list[float] = []
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        started = time.perf_counter()
        try:
            run()
        except Exception as error:  # a peer's row must not stop the others
            return f"{type(error).__name__}: {error}".splitlines()[0][:70], ""
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if device == "cuda" else ""
    return f"{statistics.median(seconds):.4f}", peak


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu for a tiny shape.")] = "cuda",
    batch: Annotated[int, typer.Option(min=1, help="Texts of a forward pass.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Of each row; the first of a pass warms up.")] = 5,
    peers: Annotated[bool, typer.Option(help="Measure GPTQModel, TransformerBridge and transformers, too.")] = True,
) -> None:
    """Print the table."""
    if device not in SHAPES:
        raise typer.BadParameter(f"expected one of {', '.join(SHAPES)}")
    if device == "cuda" and not torch.cuda.is_available():
        print("This benchmark needs a GPU with CUDA; --device cpu runs a tiny shape of it.", file=sys.stderr)
        raise typer.Exit(2)
    table = Table("what", "seconds", "GiB on the device", title=f"{device}, {batch} × {tokens} tokens")
    with tempfile.TemporaryDirectory(prefix="quantscope-gpu-") as folder, torch.no_grad():
        sizes = zip(("layers", "hidden", "inner", "vocabulary"), SHAPES[device], strict=True)
        options = [word for name, size in sizes for word in (f"--{name}", str(size))]
        writer = str(Path(__file__).with_name("streaming.py"))
        subprocess.run([sys.executable, writer, "--write", folder, *options], check=True)
        dense, gptq = Path(folder) / "dense", Path(folder) / "gptq"
        ids = torch.randint(3, SHAPES[device][3], (batch, tokens), device=device)
        texts = [" ".join(f"w{number}" for number in row) for row in ids.tolist()]
        for name, run in opening(dense, gptq, device):
            if peers or not name.endswith(PEERS):
                table.add_row(name, *timed(run, device, 1))
        for name, run in passing(dense, gptq, device, ids):
            if peers or not name.endswith(PEERS):
                timed(run, device, 1)
                table.add_row(name, *timed(run, device, repeats))
        for name, run in streaming(dense, gptq, device, texts):
            table.add_row(name, *timed(run, device, 1))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
