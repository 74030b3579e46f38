"""The instrument: open a checkpoint of any format, read its dense weights, hook its activations.

Nothing here knows of prompts or refusals; those live in `probes`.

Example:
    >>> from interp import load, open_checkpoint, weight_error
    >>> open_checkpoint("path/to/model-AWQ").weight("model.layers.0.mlp.down_proj")  # dense [out, in]
    >>> load("path/to/model-AWQ").activations(["How are you?"], ["blocks.3.hook_resid_post"], chat=True)
    >>> weight_error("path/to/model", "path/to/model-AWQ")  # a row per neuron
"""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint, open_checkpoint
    from interp.model import HookedModel, load
    from interp.pairs.scales import effective_weight, recovered_scales
    from interp.pairs.weight_error import check_pair, weight_error

# What other packages say of each other on import, which a user of ours can do nothing about: torchao calls what torch
# deprecates, and tqdm wants ipywidgets in every notebook.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "Enum subclass" not in str(record.msg))
warnings.filterwarnings("ignore", message="IProgress not found")

__all__ = [
    "Checkpoint",
    "HookedModel",
    "check_pair",
    "effective_weight",
    "load",
    "open_checkpoint",
    "recovered_scales",
    "weight_error",
]

_EXPORTS = {
    "Checkpoint": "interp.checkpoint",
    "check_pair": "interp.pairs.weight_error",
    "effective_weight": "interp.pairs.weight_error",
    "open_checkpoint": "interp.checkpoint",
    "recovered_scales": "interp.pairs.weight_error",
    "weight_error": "interp.pairs.weight_error",
    "HookedModel": "interp.model",
    "load": "interp.model",
}
"""Public name → the module that defines it, imported on first use: `import interp` does not import torch."""


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
