"""Architectures without a row in the table: found out from the module tree, and believed only if the numbers agree.

A model whose modules have the names that most models share gets a row by inspection. What the names cannot tell (a
multiplier on what is added, a norm after attention) shows in numbers: `require_sums` runs a text through the loaded
model and refuses it unless attention's and the MLP's outputs add up to the residual stream. Nothing is assumed of where
scales can move: AWQ's rescaling is not undone for such a model, and a warning says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.architectures import Architecture
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.model import HookedModel

BLOCK = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
"""The modules of a block that are looked for; there may be no others with parameters."""
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
TEXT = "The river bends twice before it reaches the old mill; in 1905 four papers changed physics."
"""Any that has a few tokens."""
SUMMED = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
SHARE = 0.01
"""Share of what is added that may be missing from the sum."""
ROUNDINGS = 4
"""Steps of the residual stream's type that a sum may be off."""


def infer(config: Any) -> Architecture | None:
    """The row of a model whose modules have the common names; None where they have others.

    Args:
        config: transformers' config of the model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # no language model, or a config that its class refuses: as one without a row
        return None
    row = Architecture(config.model_type, config.model_type, scaled_by_norm=(), scaled_by_linear=(), inferred=True)
    modules = dict(model.named_modules())
    blocks = modules.get(row.blocks)
    if not isinstance(blocks, nn.ModuleList) or not {row.embed, row.final_norm} <= {*modules}:
        return None
    return row if all(map(_is_common, blocks)) else None


def _is_common(block: nn.Module) -> bool:
    """Whether a block has attention and a gated MLP under the common names, and nothing else that has parameters."""
    children = {name for name, child in block.named_children() if next(child.parameters(), None) is not None}
    modules = dict(block.named_modules())
    linears = all(isinstance(modules.get(name), nn.Linear) for name in (*LINEARS, *MLP))
    stacked = any(parameter.ndim > 2 for parameter in block.parameters())
    return linears and not stacked and children <= BLOCK <= {*dict(block.named_children())}


def warning(model_type: str) -> str:
    """What is said of a model with an inferred row."""
    return (
        f"the architecture {model_type!r} has no row in the table: where its parts are was inferred from its modules' "
        "names, and what attention and MLP add to the residual stream is checked when it is loaded; a rescaling (AWQ) "
        "is not undone"
    )


def require_sums(model: HookedModel) -> None:
    """Hold an inferred row against the numbers: attention and MLP must add up to the residual stream.

    Raises:
        InputError: they do not, or the numbers cannot tell.
    """
    _, acts = model.run_with_cache(TEXT, logits=False)
    rounding, telling = ROUNDINGS * torch.finfo(model.hf.dtype).eps, False
    for block in range(model.n_layers):
        pre, attn, mid, mlp, post = (acts[f"blocks.{block}.hook_{name}"].double() for name in SUMMED)
        for begin, added, end in ((pre, attn, mid), (mid, mlp, post)):
            _require_sum(model, block, begin, added, end, rounding)
            telling = telling or bool(rounding * end.norm() < added.norm() / 2)
    if not telling:
        raise _refused(model, "what is added to its residual stream is smaller than rounding")


def _require_sum(model: HookedModel, block: int, begin: Tensor, added: Tensor, end: Tensor, rounding: float) -> None:
    error = (begin + added - end).norm()
    if not bool(error <= SHARE * added.norm() + rounding * end.norm()):
        share = float(error / added.norm())
        raise _refused(model, f"in block {block} what is added differs from what attention or MLP gives by {share:.0%}")


def _refused(model: HookedModel, why: str) -> InputError:
    return InputError(
        f"The architecture {model.architecture.model_type!r} is not supported: it has no row in the table, and the one "
        f"that its modules' names suggest is wrong or cannot be checked ({why})",
        "a residual stream that is the sum of what attention and MLP give",
        "Add a row to interp/architectures.py, or open an issue with the model's config.json",
    )
