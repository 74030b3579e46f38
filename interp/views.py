"""The same weights in the other two microscopes: TransformerLens' TransformerBridge and nnsight.

Both wrap a Hugging Face model and change what they wrap: the bridge swaps submodules, forces eager attention and, if
asked, folds norms into weights. So they get a copy of the modules on the same memory, and the loaded model stays as it
was.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interp.errors import InputError, MissingExtra
from interp.streaming.memory import require_in_memory

if TYPE_CHECKING:
    from interp.model import HookedModel


def to_transformer_lens(model: HookedModel) -> Any:
    """The model as a `transformer_lens.model_bridge.TransformerBridge`; nothing is downloaded.

    Example:
        >>> bridge = model.to_transformer_lens()
        >>> logits, cache = bridge.run_with_cache("How are you?")

    Raises:
        MissingExtra: transformer-lens is not installed.
        InputError: a `capture` or `intervene` of the model is open; TransformerLens does not know the architecture.
    """
    try:
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise MissingExtra("transformer-lens", "lens", "A TransformerLens view") from error
    hf = shared_copy(model)
    tokenizer = copy.deepcopy(model.tokenizer)
    # Else the bridge would open the tokenizer again from these, which are not all its settings and not all plain data.
    # Whether it adds a BOS is found out by the bridge itself.
    named = {"name_or_path": tokenizer.name_or_path}  # missing where it was made in memory
    tokenizer.init_kwargs = {**named, **tokenizer.init_kwargs, "add_bos_token": True}
    hf.config.architectures = [type(hf).__name__]
    if type(hf).__name__ not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"TransformerLens has no bridge for {hf.config.model_type} models ({type(hf).__name__})",
            "an architecture that the installed TransformerLens knows",
            "Use HookedModel.run_with_cache, whose hooks have the same names, or to_nnsight",
        )
    return TransformerBridge.boot_transformers(
        hf.name_or_path or hf.config.model_type,
        hf_model=hf,
        tokenizer=tokenizer,
        dtype=hf.dtype,
        device=hf.device,
    )


def to_nnsight(model: HookedModel) -> Any:
    """The model as an `nnsight.TransformersModel`; nothing is downloaded.

    Example:
        >>> view = model.to_nnsight()
        >>> with view.trace("How are you?"):
        ...     resid = view.model.layers[3].output.save()

    Raises:
        MissingExtra: nnsight is not installed.
        InputError: a `capture` or `intervene` of the model is open.
    """
    try:
        from nnsight import TransformersModel
    except ImportError as error:
        raise MissingExtra("nnsight", "lens", "An nnsight view") from error
    return TransformersModel(shared_copy(model), tokenizer=copy.deepcopy(model.tokenizer), task="text-generation")


def shared_copy(model: HookedModel) -> Any:
    """A copy of the Hugging Face model on the same storage.

    Raises:
        InputError: a `capture` or `intervene` is open, whose hooks the copy would keep for ever; the model is streamed.
    """
    if model.hooks.active:
        raise InputError("A view was asked for inside capture or intervene", do="Leave the with block first")
    require_in_memory(model, "A view")
    # New tensor objects on the old storage: `.to()`, `.half()` and `requires_grad_()` of a view stay in the view.
    shared: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in model.hf.buffers()}
    for parameter in model.hf.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model.hf, shared)
