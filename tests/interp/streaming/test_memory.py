"""What a pair takes, from headers alone, beside what its loaded weights take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import load, open_checkpoint
from interp.streaming import plan
from interp.streaming.memory import free_memory
from tests.tiny_models import CONFIGS

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pair_is_twice_the_loaded_weights(name: str, dtype: torch.dtype, tiny: Callable[[str], Path]) -> None:
    worked_out = plan(open_checkpoint(tiny(name)), dtype, CPU)
    model = load(tiny(name), dtype=dtype).hf
    stored = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    assert worked_out.pair == 2 * sum(stored.values())
    blocks = [
        sum(tensor.nbytes for tensor in block.state_dict().values())
        for block in model.get_submodule(_blocks(tiny(name)))
    ]
    embeddings = [m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    assert worked_out.part == max(embeddings[0] if name == "gpt2" else sum(embeddings), *blocks)


def _blocks(path: Path) -> str:
    return open_checkpoint(path).architecture.blocks


def test_it_is_streamed_where_it_does_not_fit(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    pair = plan(checkpoint, torch.float32, CPU).pair
    for free, streamed in ((None, False), (2 * pair, False), (pair, True), (0, True)):
        monkeypatch.setattr("interp.streaming.memory.free_memory", lambda device, free=free: free)
        assert plan(checkpoint, torch.float32, CPU).stream == streamed
        assert plan(checkpoint, torch.float32, CPU, stream=True).stream
        assert not plan(checkpoint, torch.float32, CPU, stream=False).stream


def test_it_is_said_in_one_line(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.streaming.memory.free_memory", lambda device: 50_000)
    worked_out = plan(open_checkpoint(tiny("llama")), torch.float32, CPU)
    assert str(worked_out).startswith(f"the pair takes {worked_out.pair / 1000:.0f} kB in float32, 50.0 kB are free: ")
    assert str(worked_out).endswith("kB of weights at a time")


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="only Linux has groups of processes")
def test_a_limit_of_the_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr("interp.streaming.memory.GROUPS", tmp_path)
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total  # type: ignore[operator]
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 1500000\nactive_file 500000\n")
    assert free_memory(CPU) == 4_000_000
