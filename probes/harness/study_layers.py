"""Which layers the study looks at: a share of the depth, rounded half up, in integers so that floats decide nothing."""

from __future__ import annotations

DIRECTION_PERCENT = 65
NEURON_PERCENTS = (20, 35, 50, 65, 80)


def layer_at(n_layers: int, percent: int) -> int:
    """The 0-based block at `percent` of the depth: min(floor(n · percent / 100 + 1/2), n − 1)."""
    return min((n_layers * percent + 50) // 100, n_layers - 1)


def layers_at(n_layers: int, percents: tuple[int, ...] = NEURON_PERCENTS) -> list[int]:
    """The blocks at several depths, ascending, each once (shallow models repeat some)."""
    return sorted({layer_at(n_layers, percent) for percent in percents})
