"""The residual stream after every block, at the last token of each prompt: what direction and geometry read."""

from __future__ import annotations

from interp.model import HookedModel
from probes.harness.comparison import Reads


def streams(model: HookedModel) -> list[str]:
    """The hooks, block by block.

    Args:
        model: the model that reads the prompts.
    """
    return [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]


def stream_reads(batch_size: int | None) -> Reads:
    """What will be read of every model of a comparison; see `probes.harness.comparison.compare`.

    Args:
        batch_size: prompts per forward pass.
    """
    return lambda model, texts: [
        one for side in texts.values() for one in model.last_tokens(side, streams(model), batch_size=batch_size)
    ]
