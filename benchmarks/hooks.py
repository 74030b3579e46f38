"""What hooks cost: one forward pass, bare and with every block's output captured, here and in the two peers.

python benchmarks/hooks.py --layers 8 --width 512 --batch 8 --tokens 128
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from interp import HookedModel, load


def random_llama(directory: Path, layers: int, width: int) -> HookedModel:
    """A random Llama with a word-level tokenizer, saved and loaded like any checkpoint."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    words = {f"w{i}": i for i in range(8192)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(directory)
    return load(directory, dtype=torch.float32)


def runs(model: HookedModel, ids: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Name of each way → one forward pass of it."""
    names = [f"blocks.{i}.hook_resid_post" for i in range(model.n_layers)]
    bridge = model.to_transformer_lens()
    eager = model.to_transformer_lens().original_model.config._attn_implementation
    view = model.to_nnsight()

    def captured() -> object:
        with model.capture(names) as acts:
            model.hf(ids, use_cache=False)
        return acts

    def traced() -> object:
        saved: list[object] = []
        with view.trace(ids, use_cache=False):
            for layer in view.model.layers:
                saved.append(layer.output.save())
        return saved

    def same_attention() -> object:
        model.hf.set_attn_implementation(eager)
        try:
            return model.hf(ids, use_cache=False)
        finally:
            model.hf.set_attn_implementation("sdpa")

    return {
        "bare transformers model": lambda: model.hf(ids, use_cache=False),
        "  with output_hidden_states": lambda: model.hf(ids, use_cache=False, output_hidden_states=True),
        "quantscope, every hook_resid_post": captured,
        "nnsight, every layer's output": traced,
        f"bare transformers model, {eager} attention": same_attention,
        "TransformerBridge, cache of every hook_resid_post": lambda: bridge.run_with_cache(ids, names_filter=names),
        "TransformerBridge, full cache": lambda: bridge.run_with_cache(ids),
    }


def milliseconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times of every way, interleaved so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in track(range(repeats + 1), description="measuring"):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                times[way].append(1000 * (time.perf_counter() - start))
    return times


def main(
    layers: Annotated[int, typer.Option(help="Blocks of the random model.")] = 8,
    width: Annotated[int, typer.Option(help="Its d_model, a multiple of 64.")] = 512,
    batch: Annotated[int, typer.Option(help="Texts of one forward pass.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of each.")] = 128,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 10,
) -> None:
    """Time one forward pass with and without capture, side by side."""
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        model = random_llama(Path(directory), layers, width)
        times = milliseconds(runs(model, torch.randint(0, 8192, (batch, tokens))), repeats)
    bare = statistics.median(times["bare transformers model"])
    table = Table(
        "forward pass", "median ms", "fastest ms", "× bare", title=f"{layers} × {width}, {batch} × {tokens} tokens"
    )
    for way, values in times.items():
        median = statistics.median(values)
        table.add_row(way, f"{median:.1f}", f"{min(values):.1f}", f"{median / bare:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
