"""`load`: a checkpoint of any format → a Hugging Face model with named hooks.

Example:
    >>> from interp import load
    >>> model = load("checkpoints/llama-awq")
    >>> model.activations(["How are you?"], ["blocks.3.hook_resid_post"], chat=True)
    {'blocks.3.hook_resid_post': tensor([[...]])}
    >>> with model.intervene({"blocks.3.hook_mlp_out": torch.zeros_like}):
    ...     ablated = model.logits(["How are you?"], chat=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.architectures import Architecture, architecture
from interp.batching import TEXTS_AT_ONCE, Batch, batches
from interp.chat import as_texts, encode, render
from interp.errors import InputError, NotFinite
from interp.hooks import Hooks, Intervention
from interp.loading import device_of, empty_model, fill, surroundings

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint


Consumer = Callable[[dict[str, Tensor], Int[Tensor, " batch"]], object]
"""Called with {name: [batch, …]} and which texts these rows are."""


class HookedModel:
    """A Hugging Face model whose activations have TransformerLens names.

    Attributes:
        hf: the transformers model, in eval mode, dense weights in one dtype, parameters that need no gradient.
        tokenizer: its tokenizer.
        checkpoint: where the weights came from.
        architecture: its row in the table of architectures.

    Example:
        >>> model = load("path/to/model-AWQ")
        >>> model.activations(["How are you?"], ["blocks.3.hook_resid_post"], chat=True)
    """

    def __init__(
        self, hf: Any, tokenizer: Any, architecture: Architecture, checkpoint: Checkpoint | None = None
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.checkpoint = checkpoint
        self.hooks = Hooks(hf, architecture, hf.config)

    def __repr__(self) -> str:
        stored = self.checkpoint
        where = "made in memory" if stored is None else f"{stored.path.name} ({stored.stored_as()})"
        computing = f"{str(self.hf.dtype).removeprefix('torch.')} on {self.hf.device}"
        return (
            f"<HookedModel {where}: {self.architecture.model_type}, {self.n_layers} blocks, {computing}, "
            f"{len(self.hook_names)} hooks>"
        )

    @property
    def config(self) -> Any:
        """The transformers config, without a quantization config."""
        return self.hf.config

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.hf.config.num_hidden_layers

    @property
    def hook_names(self) -> list[str]:
        """Every hook name, in the order of the forward pass."""
        return list(self.hooks.points)

    def capture(self, names: Iterable[str]) -> AbstractContextManager[dict[str, Tensor]]:
        """Record activations, [batch, pos, …] in the model's dtype; see `Hooks.capture`.

        Args:
            names: hook names, see `hook_names`.

        Example:
            >>> with model.capture(["blocks.0.hook_resid_post"]) as acts:
            ...     model.hf(**inputs)
            >>> acts["blocks.0.hook_resid_post"]

        Raises:
            InputError: an unknown name.
        """
        return self.hooks.capture(names)

    def intervene(self, interventions: Mapping[str, Intervention]) -> AbstractContextManager[None]:
        """Replace activations; see `Hooks.intervene`.

        Args:
            interventions: hook name → function from the activation to a new one of the same shape.

        Example:
            >>> with model.intervene({"blocks.3.hook_resid_post": lambda resid: resid - 2 * direction}):
            ...     model.logits(prompts)

        Raises:
            InputError: an unknown name; in the forward pass, a result of another shape.
        """
        return self.hooks.intervene(interventions)

    def activations(
        self,
        texts: str | Sequence[str],
        names: Sequence[str],
        position: int = -1,
        chat: bool = False,
        batch_size: int | None = None,
    ) -> dict[str, Float[Tensor, "n_texts ..."]]:
        """Activations at one token of every text, {name: [n_texts, …]}, float32 on the CPU, in the order of the texts.

        Args:
            texts: prompts, or a single one; never truncated.
            names: hook names.
            position: which token of each text, from the end if negative; −1 is its last one, whatever the padding.
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.

        Raises:
            InputError: no texts; an unknown name; a text that is empty, too short or longer than the context; no chat
                template; activations that are not finite.
        """
        parts: list[dict[str, Tensor]] = []
        rows: list[Tensor] = []

        def keep(activations: dict[str, Tensor], indices: Tensor) -> None:
            parts.append({name: _finite(name, value) for name, value in activations.items()})
            rows.append(indices)

        self.stream(texts, names, keep, position, chat, batch_size)
        back = torch.cat(rows).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in names}

    def logits(
        self, texts: str | Sequence[str], position: int = -1, chat: bool = False
    ) -> Float[Tensor, "n_texts vocab"]:
        """Logits at one token of every text, float32 on the CPU, in the order of the texts; else as `activations`.

        Args:
            texts: prompts, or a single one; never truncated.
            position: which token of each text, from the end if negative.
            chat: render each text through the chat template, with the generation prompt.
        """
        parts, rows = [], []
        for batch in self._batches(texts, position, chat, None):
            with torch.no_grad(), self.unembed_only(partial(_at_position, batch)):
                parts.append(self.hf(**batch.inputs, use_cache=False).logits[:, 0].float().cpu())
            rows.append(batch.indices)
        return _finite("logits", torch.cat(parts)[torch.cat(rows).argsort()])

    def stream(
        self,
        texts: str | Sequence[str],
        names: Sequence[str],
        consume: Consumer,
        position: int = -1,
        chat: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Hand the activations at one token to `consume`, batch by batch (longest texts first), and keep none.

        Args:
            texts: prompts, or a single one.
            names: hook names.
            consume: called with {name: [batch, …]} (float32 on the CPU) and the indices of these texts.
            position: which token of each text.
            chat: render through the chat template.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.

        Raises:
            InputError: as `activations`.
        """
        for name in names:
            self.hooks.point(name)
        for batch in self._batches(texts, position, chat, batch_size):
            with torch.no_grad(), self.hooks.capture(names, batch.at_position) as acts:
                self.hf.base_model(**batch.inputs, use_cache=False)
            consume({name: acts[name].float().cpu() for name in names}, batch.indices)

    def token_ids(self, texts: str | Sequence[str], chat: bool = False) -> list[list[int]]:
        """Tokens of every text, with exactly one BOS where the model has one.

        Args:
            texts: prompts, or a single one; never truncated.
            chat: render each text through the chat template, with the generation prompt.

        Raises:
            InputError: a text without tokens, longer than the context, or with a token that the model does not have; no
                chat template although `chat`.
        """
        texts = as_texts(texts)
        encoded = encode(self.tokenizer, render(self.tokenizer, texts, "chat" if chat else "none").texts)
        context = getattr(self.config, "max_position_embeddings", None)
        self.require_known(encoded)
        for which, ids in enumerate(encoded):
            if not ids:
                raise InputError(f"Prompt {which} is empty: it has no tokens", do="Leave it out")
            if context is not None and len(ids) > context:
                raise InputError(
                    f"Prompt {which} ({texts[which][:40]!r}…) has {len(ids)} tokens",
                    f"at most {context}, the model's context",
                    "Shorten it or leave it out; prompts are never truncated",
                )
        return encoded

    def require_known(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Check that the model has an embedding for every token.

        Args:
            token_ids: of prompts.

        Raises:
            InputError: it lacks one.
        """
        known = self.hf.get_input_embeddings().num_embeddings
        largest = max((max(ids, default=0) for ids in token_ids), default=0)
        if largest >= known:
            raise InputError(
                f"A prompt holds the token {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r})",
                f"tokens below {known}, the rows of the model's embedding",
                "The tokenizer belongs to another model: give the one that this one was trained with",
            )

    def unembed_only(self, select: Callable[[Tensor], Tensor]) -> AbstractContextManager[Any]:
        """Unembed some positions instead of all: the logits of a whole batch can be larger than the model.

        Args:
            select: [batch, pos, d_model] → [batch, chosen, d_model]; the logits are then [batch, chosen, vocab].
        """
        unembedding = self.hf.get_output_embeddings()
        return unembedding.register_forward_pre_hook(lambda _, args: (select(args[0]),))

    def to_transformer_lens(self) -> Any:
        """This model as TransformerLens' `TransformerBridge`, on the same weights; see `interp.views`."""
        from interp.views import to_transformer_lens

        return to_transformer_lens(self)

    def to_nnsight(self) -> Any:
        """This model as an nnsight `TransformersModel`, on the same weights; see `interp.views`."""
        from interp.views import to_nnsight

        return to_nnsight(self)

    def _batches(
        self, texts: str | Sequence[str], position: int, chat: bool, batch_size: int | None
    ) -> Iterator[Batch]:
        if not len(texts):
            raise InputError("There are no prompts", "at least one")
        return batches(self.token_ids(texts, chat), position, batch_size, self.hf.device)


def load(
    path: str | Path,
    like: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> HookedModel:
    """Open a checkpoint of any format as a hooked model with dense weights.

    Args:
        path: a checkpoint directory, a .gguf file, or a hub id; nothing is downloaded for a path that exists.
        like: the baseline that a GGUF takes its config and tokenizer from.
        dtype: of every parameter. Default: the checkpoint's own on an accelerator; float32 on the CPU, which holds
            every float16 and bfloat16 weight exactly and where half-precision sums are slower and rounded more
            coarsely. Give both cells of a pair the same one.
        device: default the CPU.
        device_map: spread over devices by accelerate ("auto", or {module: device}) instead of `device`.

    Raises:
        InputError: not a checkpoint that can be read; a tensor missing, unexpected or of the wrong shape.

    Example:
        >>> baseline = load("path/to/model")
        >>> cell = load("path/to/model-Q4_K_M.gguf", like="path/to/model", dtype=baseline.hf.dtype)
    """
    from interp.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    beside = surroundings(checkpoint, like)
    target = _device(device)
    if dtype is None:
        dtype = torch.float32 if target.type == "cpu" and device_map is None else checkpoint.compute_dtype
    hf: Any = empty_model(beside.config, dtype)
    if device_map is None:
        fill(hf, checkpoint, dtype, lambda _: target)
        hf.to(target)
    else:
        _fill_and_dispatch(hf, checkpoint, dtype, device_map)
    if beside.generation_config is not None:
        hf.generation_config = beside.generation_config
    return HookedModel(hf, beside.tokenizer, architecture(hf.config.model_type), checkpoint)


def _at_position(batch: Batch, hidden: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch 1 d_model"]:
    return batch.at_position(hidden).unsqueeze(1)


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, found out before any weight is read.

    Raises:
        InputError: there is no such device.
    """
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise InputError(
            f"The device {str(device)!r} cannot be used ({str(error).splitlines()[0]})",
            "cpu, or an accelerator that this machine and this PyTorch have",
            "Leave the device out to use the CPU",
        ) from error


def _fill_and_dispatch(
    hf: Any, checkpoint: Checkpoint, dtype: torch.dtype, device_map: str | Mapping[str, Any]
) -> None:
    from accelerate import dispatch_model, infer_auto_device_map

    if isinstance(device_map, str):
        placed = dict(infer_auto_device_map(hf, no_split_module_classes=list(hf._no_split_modules), dtype=dtype))
    else:
        placed = dict(device_map)
    if "disk" in placed.values():
        raise InputError("The model does not fit into memory, spread over all devices", do="Use a larger machine")
    fill(hf, checkpoint, dtype, device_of(placed))
    dispatch_model(hf, placed)


def _finite(name: str, value: Tensor) -> Tensor:
    if not torch.isfinite(value).all():
        raise NotFinite(
            f"{name} holds values that are not finite (NaN or infinity)",
            do="Load the model with dtype=torch.float32 or bfloat16",
        )
    return value


def prompt_batches(model: HookedModel, texts: str | Sequence[str], batch_size: int | None = None) -> list[Batch]:
    """Batches of similar length that ask for the last token: at most 64 prompts each, so that logits stay small.

    Args:
        model: its tokenizer, pad token and device.
        texts: rendered prompts, or a single one.
        batch_size: prompts per batch; by default as many as fit the budget of tokens, `interp.batching.BATCH_TOKENS`.

    Raises:
        InputError: no texts; one that is empty or longer than the context.
    """
    texts = as_texts(texts)
    if not texts:
        raise InputError("There are no prompts", "at least one")
    return list(batches(model.token_ids(texts), -1, batch_size, model.hf.device, at_most=TEXTS_AT_ONCE))
