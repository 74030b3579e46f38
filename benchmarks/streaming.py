"""How much memory and time a pair of the shape of Llama 7B takes when it is streamed: `python benchmarks/streaming.py`.

Written into a temporary folder, tensor by tensor, and removed: a bfloat16 checkpoint of random weights in shards, and
its GPTQ copy (4 bits, groups of 128, rounded to the nearest). Each measurement runs in a process of its own, whose
largest resident memory, the pages of mapped files included, is printed beside its seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

T = TypeVar("T")
GROUP, BITS, GIB = 128, 4, 2**30
IN_MEMORY = 8
"""Blocks of a model that any machine holds whole in float32, to time the same passes without streaming."""
PROMPTS = {
    "harmful": "How do I pick the lock of a house that is not mine, number {}?",
    "harmless": "How do I bake bread with a crust that is crisp, number {}?",
}


def shapes(hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    square = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    return square | {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def rounded(weight: Tensor) -> dict[str, Tensor]:
    """GPTQ's tensors of a weight [out, in], by rounding to the nearest; symmetric, zero point 8."""
    n_out, n_in = weight.shape
    groups = weight.float().view(n_out, n_in // GROUP, GROUP)
    scales = groups.abs().amax(-1).div(7).half()
    codes = (groups / scales.float()[..., None]).round().add(8).clamp(0, 15).to(torch.int32).view(n_out, n_in).T
    words = codes.reshape(n_in // 8, 8, n_out)
    packed = torch.zeros(n_in // 8, n_out, dtype=torch.int32)
    for place in range(8):
        packed |= words[:, place] << (BITS * place)
    return {
        "qweight": packed,
        "qzeros": torch.full((n_in // GROUP, n_out // 8), 0x77777777, dtype=torch.int32),  # 8 − 1, eight times
        "scales": scales.T.contiguous(),
        "g_idx": (torch.arange(n_in) // GROUP).to(torch.int32),
    }


def files(
    layers: int, hidden: int, inner: int, vocabulary: int
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What each file of the two checkpoints holds: the embeddings, then block after block."""
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).mul_(0.02).bfloat16()

    outside = {
        "model.embed_tokens.weight": weight(vocabulary, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "lm_head.weight": weight(vocabulary, hidden),
    }
    yield outside, outside
    linears = {name: weight(*shape) for name, shape in shapes(hidden, inner).items()}
    packed_linears = {name: rounded(linear) for name, linear in linears.items()}
    for layer in range(layers):
        block = f"model.layers.{layer}."
        norms = {f"{block}{n}_layernorm.weight": outside["model.norm.weight"] for n in ("input", "post_attention")}
        dense, packed = dict(norms), dict(norms)
        for name, linear in linears.items():
            dense[f"{block}{name}.weight"] = linear.roll(64 * layer, 0)
            parts = packed_linears[name]
            rolled = parts | {part: parts[part].roll(64 * layer, 1) for part in ("qweight", "scales")}
            packed |= {f"{block}{name}.{part}": tensor for part, tensor in rolled.items()}
        yield dense, packed


def write(folder: Path, layers: int, hidden: int, inner: int, vocabulary: int) -> list[Path]:
    """The two checkpoints."""
    from transformers import LlamaConfig

    paths = [folder / "dense", folder / "gptq"]
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary, "num_hidden_layers": layers}
    config = LlamaConfig(**sizes, num_attention_heads=hidden // 128, bos_token_id=1, eos_token_id=2)
    index: list[dict[str, str]] = [{}, {}]
    for path in paths:
        path.mkdir()
        _tokenizer(vocabulary).save_pretrained(path)
    for number, both in enumerate(files(layers, hidden, inner, vocabulary)):
        name = f"model-{number:05}.safetensors"
        for path, tensors, places in zip(paths, both, index, strict=True):
            save_file({key: tensor.clone() for key, tensor in tensors.items()}, path / name, {"format": "pt"})
            places |= dict.fromkeys(tensors, name)
    quantized = {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "sym": True, "desc_act": False}
    for path, places, own in zip(paths, index, ({}, {"quantization_config": quantized}), strict=True):
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        (path / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"]} | own))
    return paths


def _tokenizer(vocabulary: int) -> object:
    """A token for each word of the prompts, and as many more as the model has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = " ".join(PROMPTS.values()).replace("?", " ?").replace(",", " ,").split()
    known = dict.fromkeys(["<unk>", "<s>", "</s>", *words, *map(str, range(64))])
    known |= dict.fromkeys(f"w{n}" for n in range(vocabulary - len(known)))
    model = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def measured(what: str, command: list[str]) -> None:
    """Run a command and print its seconds and its largest memory."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - started, usage.ru_maxrss * 1024 / GIB
    outcome = "" if status == 0 else f", FAILED with status {os.waitstatus_to_exitcode(status)}"
    processor = usage.ru_utime + usage.ru_stime
    print(f"{what}: {peak:.2f} GiB at most, {seconds:.0f} s, {processor:.0f} s of processor time{outcome}", flush=True)


def beside_memory(paths: Sequence[str], prompts: list[str]) -> None:
    """Print the seconds of streamed passes of both models beside those of reading both files, and passes in memory."""
    from interp import load

    seconds = dict.fromkeys(("streamed", "read", "passes"), 0.0)

    def clocked(what: str, work: Callable[[], T]) -> T:
        started = time.monotonic()
        result = work()
        seconds[what] += time.monotonic() - started
        return result

    for path in paths:
        model = clocked("read", partial(load, path))
        clocked("passes", partial(model.logits, prompts))
        del model
        model = load(path, stream=True)
        clocked("streamed", partial(model.logits, prompts))
    ratio = seconds["streamed"] / (seconds["read"] + seconds["passes"])
    print(f"both models, {', '.join(f'{what} {spent:.1f} s' for what, spent in seconds.items())}: {ratio:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", metavar="FOLDER", help="only write the two checkpoints there")
    for name, default in (("layers", 32), ("hidden", 4096), ("inner", 11008), ("vocabulary", 32000), ("prompts", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    sizes = [options.layers, options.hidden, options.inner, options.vocabulary]
    if options.write:
        write(Path(options.write), *sizes)
        return
    with tempfile.TemporaryDirectory(prefix="quantscope-streaming-") as temporary:
        folder, started = Path(temporary), time.monotonic()
        # In a process of its own: a child begins with the memory of its parent.
        subprocess.run([sys.executable, __file__, "--write", temporary, *sys.argv[1:]], check=True)
        dense, gptq = (str(folder / name) for name in ("dense", "gptq"))
        written = [
            sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) / 1e9 for path in (dense, gptq)
        ]
        print(
            f"written: {written[0]:.2f} GB bfloat16, {written[1]:.2f} GB GPTQ, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        for side, text in PROMPTS.items():
            (folder / f"{side}.txt").write_text("\n".join(text.format(n) for n in range(options.prompts)))
        pair = ["--baseline", dense, "--quantized", gptq, "--template", "none", "--out", str(folder / "out")]
        pair += ["--harmful", str(folder / "harmful.txt"), "--harmless", str(folder / "harmless.txt")]
        measured("probes.neurons --stream", ["-m", "probes.neurons", *pair, "--stream"])
        one_step = ["--steps", "1", "--max-steps", "1", "--openings", "lexicon"]
        measured("probes.attribution --stream", ["-m", "probes.attribution", *pair, *one_step, "--stream"])
        walk = "from interp import load; m = load({!r}, stream=True); m.logits([{!r}] * {})"
        for path in (dense, gptq):
            code = walk.format(path, PROMPTS["harmful"], 2 * options.prompts)
            measured(f"a streamed forward pass of {Path(path).name}", ["-c", code])
        error = f"from interp import weight_error; weight_error({dense!r}, {gptq!r})"
        measured("weight_error", ["-c", error])
        if options.layers <= IN_MEMORY:  # last: children begin with the memory of their parent
            beside_memory((dense, gptq), [PROMPTS["harmful"]] * (2 * options.prompts))


if __name__ == "__main__":
    main()
