"""Defaults and bounds of the options of `interp.quantize`; light, so that `--help` answers at once."""

from __future__ import annotations

KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K", "Q4_0")
"""llama.cpp's mixtures; as in its own ladder, Q4_K_M and the like keep some tensors at more bits."""

CELLS = ("AWQ", "GPTQ", *KINDS)
"""All that can be written."""
LADDER = tuple(cell for cell in CELLS if cell != "Q4_0")
"""The eight cells that are written by default."""
GROUP_SIZES = (128, 64, 32)
"""Input channels per scale: without one given, the first that divides every linear's inputs."""
BITS = 4
"""Of AWQ and GPTQ, where nothing else is asked for."""
WRITABLE_BITS = {"AWQ": (4,), "GPTQ": (2, 3, 4, 8)}
"""What GPTQModel writes and this project reads."""
OF_BITS = {
    f"{cell}-{bits}bit": (cell, bits) for cell, writable in WRITABLE_BITS.items() for bits in writable if bits != BITS
}
"""Cells whose name says how many bits they have, such as GPTQ-3bit → the writer's cell, and its bits."""
NAMES = (*CELLS, *OF_BITS)
"""What may be asked for."""
WRITERS = {"autoawq": "AWQ", "autogptq": "GPTQ"}
"""The writers of 2024, which need an environment of their own (`make legacy`), and the cell that each writes."""
