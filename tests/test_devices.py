"""Main paths on any device: each is the CPU's result, or equal to it up to the sums of other kernels.

On a GPU they run with `pytest -m gpu`, and are skipped, and counted, where there is none. The same paths run on the
CPU, and what only places tensors on a second device that is none (`tests.fake_device`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pandas as pd
import pytest
import torch

from interp import HookedModel, load
from interp.checkpoint import Checkpoint, open_checkpoint
from interp.formats import ggml_blocks
from interp.formats.placing import reading_to
from interp.loading import empty_model
from interp.streaming.slot import Slot
from interp.streaming.streamed import Streamed
from probes import direction, entropy, margin, neurons
from probes.harness.comparison import Cells
from probes.harness.results import Result
from tests.cells import HARMFUL, HARMLESS, q8_0
from tests.fake_device import second_device
from tests.interp.formats.test_ggml_blocks import random_blocks
from tests.packed_files import (
    plain_settings,
    plain_tensors,
    write_awq,
    write_bitsandbytes,
    write_float8,
    write_fp4,
    write_gptq,
    write_hqq,
    write_mlx,
    write_packed,
)

ROOT = Path(__file__).parents[1]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
TEXTS = ["The cat sat on the mat.", "Why?", "A longer text, so that the batch has padding on one side."]


def int8(directory: Path) -> Path:
    return write_packed(
        directory,
        lambda n_in, n_out: plain_tensors(n_in, n_out, "int", (n_out, 1), symmetric=False),
        plain_settings("int", "channel", symmetric=False),
    )


WRITERS: dict[str, Callable[[Path], Path]] = {
    "gptq": write_gptq,
    "gptq 3 bits": lambda directory: write_gptq(directory, bits=3),
    "awq": write_awq,
    "fp8": write_float8,
    "compressed-tensors int8": int8,
    "bitsandbytes nf4": write_bitsandbytes,
    "bitsandbytes nested": lambda directory: write_bitsandbytes(directory, "nested"),
    "bitsandbytes int8": lambda directory: write_bitsandbytes(directory, "int8"),
    "nvfp4": lambda directory: write_fp4(directory, "nvfp4"),
    "mxfp4": lambda directory: write_fp4(directory, "mxfp4"),
    "modelopt": lambda directory: write_fp4(directory, "modelopt"),
    "mlx": write_mlx,
    "hqq": write_hqq,
    "hqq, other axis": lambda directory: write_hqq(directory, 0),
    "gptq 5 bits": lambda directory: write_gptq(directory, bits=5, version=2, planar=True),
}


def same_weights(checkpoint: Checkpoint, device: str | torch.device) -> None:
    """Every linear, bit for bit; nothing is computed beyond what IEEE 754 fixes."""
    for name in checkpoint.linears():
        there = checkpoint.weight(name, device=device)
        assert there.device.type == torch.device(device).type
        assert torch.equal(there.cpu(), checkpoint.weight(name)), name


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours.float().cpu(), theirs.float(), rtol=tolerance, atol=tolerance, equal_nan=True)


class TestDequantization:
    @pytest.mark.parametrize("writer", WRITERS)
    def test_on_a_second_device(self, writer: str, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(WRITERS[writer](tmp_path / "cell"))
        with second_device() as device:
            same_weights(checkpoint, device)

    @pytest.mark.parametrize("kind", [*ggml_blocks.FILLS, gguf.GGMLQuantizationType.IQ4_NL], ids=lambda kind: kind.name)
    def test_blocks_on_a_second_device(self, kind: gguf.GGMLQuantizationType) -> None:
        blocks = random_blocks(kind, 3).ravel()
        with second_device() as device, reading_to(device):
            there = ggml_blocks.dequantize(blocks, kind)
            assert there.device == device
            found = there.cpu()
        assert np.array_equal(found.numpy(), gguf.dequantize(blocks, kind).ravel())

    @pytest.mark.gpu
    @pytest.mark.parametrize("writer", WRITERS)
    def test_on_the_card(self, writer: str, tmp_path: Path) -> None:
        same_weights(open_checkpoint(WRITERS[writer](tmp_path / "cell")), "cuda")

    @pytest.mark.gpu
    @pytest.mark.parametrize("kind", ggml_blocks.FILLS, ids=lambda kind: kind.name)
    def test_blocks_on_the_card(self, kind: gguf.GGMLQuantizationType) -> None:
        blocks = random_blocks(kind, 300).ravel()
        with reading_to("cuda"):
            there = ggml_blocks.dequantize(blocks, kind)
        assert np.array_equal(there.cpu().numpy(), gguf.dequantize(blocks, kind).ravel())


@pytest.fixture(scope="module")
def on_cpu(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"), dtype=torch.float32)


@pytest.mark.parametrize("device", ["cpu", GPU])
class TestModels:
    def test_logits_and_activations(self, device: str, tiny: Callable[[str], Path], on_cpu: HookedModel) -> None:
        model = load(tiny("llama"), dtype=torch.float32, device=device)
        assert {parameter.device.type for parameter in model.hf.parameters()} == {device}
        close(model.logits(TEXTS), on_cpu.logits(TEXTS))
        ours, theirs = (each.run_with_cache(TEXTS, batch_size=2)[1] for each in (model, on_cpu))
        for name in on_cpu.hook_names:
            close(ours[name], theirs[name])

    def test_hooks(self, device: str, tiny: Callable[[str], Path], on_cpu: HookedModel) -> None:
        model = load(tiny("llama"), dtype=torch.float32, device=device)
        name = on_cpu.hook_names[-1]
        halved = [(name, lambda activation, hook: activation / 2)]
        close(model.run_with_hooks(TEXTS, halved), on_cpu.run_with_hooks(TEXTS, halved))
        assert model.generate(TEXTS, 4) == on_cpu.generate(TEXTS, 4)

    def test_streaming_reads_ahead(self, device: str, tiny: Callable[[str], Path], on_cpu: HookedModel) -> None:
        checkpoint = open_checkpoint(tiny("llama"))
        hf = empty_model(checkpoint.config, torch.float32)
        slot = Slot(hf, on_cpu.architecture, checkpoint, torch.float32, torch.device(device), ahead=True)
        model = HookedModel(hf, on_cpu.tokenizer, on_cpu.architecture, checkpoint, Streamed(slot))
        close(model.logits(TEXTS), on_cpu.logits(TEXTS))
        assert model.device.type == device

    def test_a_device_map(self, device: str, tiny: Callable[[str], Path], on_cpu: HookedModel) -> None:
        """Half of the blocks here, half of them there."""
        places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": device, "lm_head": device}
        blocks = {f"model.layers.{index}": ["cpu", device][index % 2] for index in range(on_cpu.n_layers)}
        model = load(tiny("llama"), dtype=torch.float32, device_map=places | blocks)
        close(model.logits(TEXTS), on_cpu.logits(TEXTS))

    def test_bfloat16(self, device: str, tiny: Callable[[str], Path], on_cpu: HookedModel) -> None:
        model = load(tiny("llama"), dtype=torch.bfloat16, device=device)
        assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
        close(model.logits(TEXTS), load(tiny("llama"), dtype=torch.bfloat16).logits(TEXTS), tolerance=0.05)


@pytest.fixture(scope="module")
def cells(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cells")
    return {"gguf": q8_0(tiny("llama"), folder / "cell.gguf"), "gptq": write_gptq(folder / "gptq")}


@pytest.mark.parametrize("stream", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("probe", [entropy, direction, neurons, margin], ids=lambda probe: probe.__name__)
def test_probes(
    probe: ModuleType, device: str, stream: bool, tiny: Callable[[str], Path], cells: dict[str, Path]
) -> None:
    def measured(device: str, stream: bool) -> Result:
        baseline = load(tiny("llama"), dtype=torch.float32, device=device, stream=stream)
        return probe.measure(baseline, Cells(cells, baseline, device), HARMFUL, HARMLESS, force=True)

    ours, theirs = measured(device, stream).table, measured("cpu", False).table
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=1e-4)


def test_weights_are_placed_where_the_map_says(tiny: Callable[[str], Path]) -> None:
    """On the meta device, which only places."""
    places = {"model": "meta", "model.layers.0": "cpu", "lm_head": "meta"}
    from interp.loading import device_of, fill

    checkpoint = open_checkpoint(tiny("llama"))
    hf = empty_model(checkpoint.config, torch.float32)
    wanted = device_of(places)
    placed: dict[str, str] = {}

    def noting(name: str) -> torch.device:
        placed[name] = wanted(name).type
        return torch.device("cpu")

    fill(hf, checkpoint, torch.float32, noting)
    assert {kind for name, kind in placed.items() if name.startswith("model.layers.0.")} == {"cpu"}
    assert {kind for name, kind in placed.items() if not name.startswith("model.layers.0.")} == {"meta"}


def test_a_model_on_a_second_device(tiny: Callable[[str], Path], on_cpu: HookedModel) -> None:
    """Tokens, masks and positions go where the weights are, and what is kept comes back."""
    with second_device() as device:
        model = load(tiny("llama"), dtype=torch.float32, device=str(device))
        assert model.device.type == device.type
        logits, cache = model.run_with_cache(TEXTS, batch_size=2)
        found = {name: cache[name].cpu() for name in on_cpu.hook_names} | {"logits": logits.cpu()}
    expected_logits, expected = on_cpu.run_with_cache(TEXTS, batch_size=2)
    close(found["logits"], expected_logits)
    for name in on_cpu.hook_names:
        close(found[name], expected[name])


def test_the_benchmark_of_gpus_runs_on_a_tiny_shape() -> None:
    """Every row of ours is measured."""
    options = ["--device", "cpu", "--repeats", "1", "--batch", "2", "--tokens", "6", "--no-peers"]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stderr
    rows = [line.split("│")[1:3] for line in ran.stdout.splitlines() if line.count("│") == 4]
    assert len(rows) == 10
    for name, seconds in rows:
        assert float(seconds) > 0, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_gpus_says_that_there_is_none() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 2
    assert "needs a GPU with CUDA" in ran.stderr
