"""Where safety units live: dimensions of the residual stream, MLP neurons, attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture
from probes.neurons.settings import Site


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
        row = architecture.of_block(self.layer)
        linear = {Site.MLP: row.mlp_out, Site.HEAD: row.attention_out}.get(self.site)
        return linear and f"{architecture.blocks}.{self.layer}.{linear}"

    def writer(self, architecture: Architecture) -> str | None:
        """The linear each of whose rows scales one unit (`mlp`), or one component of the heads that share it (`head`).

        None for `resid`, and where an activation function or a fused query-key-value matrix stands between.
        """
        reader = self.reader(architecture)
        writers = {f"{architecture.blocks}.{self.layer}.{c}": p for p, c in architecture.scaled_by_linear}
        return f"{architecture.blocks}.{self.layer}.{writers[reader]}" if reader in writers else None


def as_units(activation: Float[Tensor, prompt * shape]) -> Float[Tensor, "prompt unit component"]:
    """[prompt, d] → [prompt, d, 1]; [prompt, head, d_head] as it is."""
    return activation.unsqueeze(-1) if activation.ndim == 2 else activation


def unscaled(
    units: Float[Tensor, "prompt unit component"],
    place: Place,
    architecture: Architecture,
    scales: Mapping[str, Float[Tensor, " out"]],
) -> Float[Tensor, "prompt unit component"]:
    """A quantized cell's units in the baseline's scale.

    AWQ divides the rows of the linear that writes the units, and so the units, by s; where the tensors show that, the
    units are multiplied by s again. The residual stream is never rescaled.

    Args:
        units: of the quantized cell.
        place: whose they are.
        architecture: of the model.
        scales: linear → s per row, for the linears whose rows were divided; see `interp.pairs.scales.Scales.outputs`.
    """
    linear = place.writer(architecture)
    if linear is None or linear not in scales:
        return units
    n_units, n_components = units.shape[1:]
    factors = scales[linear].to(units)[-n_units * n_components :].view(-1, n_components)  # of gates and ups the ups
    return units * factors.repeat_interleave(n_units // len(factors), dim=0)
