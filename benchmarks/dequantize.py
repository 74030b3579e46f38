"""Time our dequantizers beside the peers' own on one 4096 x 4096 layer: `python benchmarks/dequantize.py`.

Needs the extra `quantize` (GPTQModel). Every peer's result is compared bit for bit before it is timed; ours, the peer's
and a plain float16 copy of the layer take turns. Times are of the processor, so that other work on the machine counts
less; with OMP_NUM_THREADS=1 they are those of one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interp.formats.awq import gemm
from interp.formats.compressed import dequantize_packed
from interp.formats.gptq import dequantize_gptq

SIZE, GROUP, REPEATS = 4096, 128, 7


def words(rows: int, columns: int) -> Tensor:
    """Random packed words."""
    return torch.randint(-(2**31), 2**31 - 1, (rows, columns)).to(torch.int32)


def milliseconds(*runs: Callable[[], Tensor]) -> list[float]:
    """Processor time of each: the best of a few turns, as the machine may be shared."""
    best = [float("inf")] * len(runs)
    for _ in range(REPEATS):
        for index, run in enumerate(runs):
            start = time.process_time()
            run()
            best[index] = min(best[index], 1000 * (time.process_time() - start))
    return best


def awq() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """AWQ GEMM against GPTQModel's `dequantize_gemm`."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    qweight, qzeros = words(SIZE, SIZE // 8), words(SIZE // GROUP, SIZE // 8)
    scales = torch.rand(SIZE // GROUP, SIZE).half()
    return lambda: gemm(qweight, qzeros, scales), lambda: dequantize_gemm(qweight, qzeros, scales, 4, GROUP).T


def gptq(bits: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """GPTQ version 2 against GPTQModel's `TorchLinear.dequantize_weight`."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    layer = TorchLinear(
        bits=bits,
        group_size=GROUP,
        sym=False,
        desc_act=False,
        in_features=SIZE,
        out_features=SIZE,
        bias=False,
        pack_dtype=torch.int32,
        register_buffers=True,
        format="gptq_v2" if bits in (2, 3, 4, 8) else "gptq_p",
    )
    layer.qweight, layer.qzeros = words(*layer.qweight.shape), words(*layer.qzeros.shape)
    layer.scales = torch.rand(layer.scales.shape).half()
    layer.g_idx = (torch.arange(SIZE) // GROUP).int()
    layer.post_init()
    ours = (layer.qweight, layer.qzeros, layer.scales, layer.g_idx)
    return lambda: dequantize_gptq(*ours, bits=bits, version=2), lambda: layer.dequantize_weight().T


def compressed() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """pack-quantized against compressed-tensors' own decompressor, which ours calls."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    packed, scale = words(SIZE, SIZE // 8), torch.rand(SIZE, SIZE // GROUP).half()
    weights = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    state = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor([SIZE, SIZE])}
    return (
        lambda: dequantize_packed(packed, scale, None, None, (SIZE, SIZE), 4),
        lambda: PackedQuantizationCompressor.decompress(state, scheme)["weight"],
    )


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    table = Table(title=f"Dequantize {SIZE} x {SIZE}, group {GROUP}, {torch.get_num_threads()} threads")
    for column in ("format", "ours (ms)", "peer (ms)", "float16 copy (ms)", "peer"):
        table.add_column(column, justify="left" if column in ("format", "peer") else "right")
    cases = {
        "AWQ GEMM 4-bit": ("GPTQModel", awq),
        **{f"GPTQ {bits}-bit": ("GPTQModel", lambda bits=bits: gptq(bits)) for bits in range(2, 9)},
        "compressed-tensors 4-bit": ("compressed-tensors", compressed),
    }
    plain = torch.rand(SIZE, SIZE).half()
    for name, (peer, build) in cases.items():
        ours, theirs = build()
        assert torch.equal(ours(), theirs().half()), name
        table.add_row(name, *(f"{ms:.0f}" for ms in milliseconds(ours, theirs, plain.clone)), peer)
    Console().print(table)


if __name__ == "__main__":
    main()
