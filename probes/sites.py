"""Where safety units live: dimensions of the residual stream, MLP neurons, attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture


class Site(StrEnum):
    """A kind of unit."""

    RESID = "resid"
    MLP = "mlp"
    HEAD = "head"


class Place(NamedTuple):
    """A site in a layer (0-based)."""

    site: Site
    layer: int

    @property
    def hook(self) -> str:
        """The hook at which the units are read."""
        hooks = {Site.RESID: "hook_resid_post", Site.MLP: "mlp.hook_post", Site.HEAD: "attn.hook_z"}
        return f"blocks.{self.layer}.{hooks[self.site]}"

    def reader(self, architecture: Architecture) -> str | None:
        """The linear whose input the units are: the MLP's or attention's output projection; None for `resid`."""
        outputs = {Site.MLP: architecture.mlp_out, Site.HEAD: architecture.attention_out}
        if self.site not in outputs:
            return None
        return f"{architecture.blocks}.{self.layer}.{outputs[self.site]}"


def as_units(activation: Float[Tensor, prompt * shape]) -> Float[Tensor, "prompt unit component"]:
    """[prompt, d] → [prompt, d, 1]; [prompt, head, d_head] as it is."""
    return activation.unsqueeze(-1) if activation.ndim == 2 else activation


def unscaled(
    units: Float[Tensor, "prompt unit component"],
    place: Place,
    architecture: Architecture,
    scales: Mapping[str, Float[Tensor, " in"]],
) -> Float[Tensor, "prompt unit component"]:
    """A quantized cell's units in the baseline's scale.

    AWQ multiplies the columns of the linear that reads the units by s and leaves the units themselves divided by s;
    where the tensors show that, the units are multiplied by s again. The residual stream is never rescaled.

    Args:
        units: of the quantized cell.
        place: whose they are.
        architecture: of the model.
        scales: linear → s per input, for the linears whose columns were rescaled.
    """
    linear = place.reader(architecture)
    return units * scales[linear].to(units).view(units.shape[1:]) if linear in scales else units
