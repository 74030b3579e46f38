"""A Hugging Face model with named hooks, as `interp.load` makes it of a checkpoint of any format.

Example:
    >>> from interp import load
    >>> model = load("checkpoints/llama-awq")
    >>> model.activations(["How are you?"], ["blocks.3.hook_resid_post"], chat=True)
    {'blocks.3.hook_resid_post': tensor([[...]])}
    >>> with model.intervene({"blocks.3.hook_mlp_out": torch.zeros_like}):
    ...     ablated = model.logits(["How are you?"], chat=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from interp.architectures import Architecture
from interp.cache import ActivationCache
from interp.generation import BATCH_SIZE, MAX_NEW_TOKENS, Completion, generate_with_cache, generate_with_hooks
from interp.hooks import Hooks, Intervention, Names
from interp.passes import Pass
from interp.positions import Position
from interp.reading import ReadsTexts
from interp.running import Hook, run_with_cache, run_with_hooks

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint
    from interp.streaming.streamed import Streamed


Consumer = Callable[[dict[str, Tensor], Int[Tensor, " batch"]], object]
"""Called with {name: [batch, …]} and which texts these rows are."""


class HookedModel(ReadsTexts):
    """A Hugging Face model whose activations have TransformerLens names.

    Attributes:
        hf: the transformers model, in eval mode, dense weights in one dtype, parameters that need no gradient.
        tokenizer: its tokenizer.
        checkpoint: where the weights came from.
        architecture: its row in the table of architectures.
        streamed: reads the weights part by part where they are not in memory (`load(…, stream=True)`), else None.

    Example:
        >>> model = load("path/to/model-AWQ")
        >>> model.activations(["How are you?"], ["blocks.3.hook_resid_post"], chat=True)
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        architecture: Architecture,
        checkpoint: Checkpoint | None = None,
        streamed: Streamed | None = None,
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.checkpoint = checkpoint
        self.streamed = streamed
        self.hooks = Hooks(hf, architecture, hf.config)

    def __repr__(self) -> str:
        stored = self.checkpoint
        where = "made in memory" if stored is None else f"{stored.path.name} ({stored.stored_as()})"
        computing = f"{str(self.hf.dtype).removeprefix('torch.')} on {self.device}"
        computing += "" if self.streamed is None else ", streamed"
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

    @property
    def tied(self) -> dict[str, str]:
        """A parameter's further names → its first; an unembedding that is the embedding has two."""
        if self.streamed is not None:
            return self.streamed.slot.tied
        first: dict[int, str] = {}
        named = self.hf.named_parameters(remove_duplicate=False)
        return {name: first_name for name, p in named if (first_name := first.setdefault(id(p), name)) != name}

    def parameter(self, name: str) -> Tensor:
        """A parameter's own memory, without gradients; of a streamed model read now, and gone with the next part.

        Args:
            name: as in `hf.named_parameters()`.
        """
        return self.hf.get_parameter(name).detach() if self.streamed is None else self.streamed.slot.parameter(name)

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
        names: Names,
        position: int = -1,
        chat: bool = False,
        batch_size: int | None = None,
    ) -> dict[str, Float[Tensor, "n_texts ..."]]:
        """Activations at one token of every text, {name: [n_texts, …]}, float32 on the CPU, in the order of the texts.

        Args:
            texts: prompts, or a single one; never truncated.
            names: hook names, see `interp.hooks.Names`.
            position: which token of each text, from the end if negative; −1 is its last one, whatever the padding.
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.

        Raises:
            InputError: no texts; an unknown name; a text that is empty, too short or longer than the context; no chat
                template; activations that are not finite.
        """
        return dict(run_with_cache(self, texts, names, position, chat, batch_size, logits=False)[1])

    def logits(
        self, texts: str | Sequence[str], position: int = -1, chat: bool = False
    ) -> Float[Tensor, "n_texts vocab"]:
        """Logits at one token of every text, float32 on the CPU, in the order of the texts; else as `activations`.

        Args:
            texts: prompts, or a single one; never truncated.
            position: which token of each text, from the end if negative.
            chat: render each text through the chat template, with the generation prompt.
        """
        return run_with_hooks(self, texts, (), position, chat, None)

    def stream(
        self,
        texts: str | Sequence[str],
        names: Names,
        consume: Consumer,
        position: int = -1,
        chat: bool = False,
        batch_size: int | None = None,
    ) -> None:
        """Hand the activations at one token to `consume`, batch by batch (longest texts first), and keep none.

        Args:
            texts: prompts, or a single one.
            names: hook names, see `interp.hooks.Names`.
            consume: called with {name: [batch, …]} (float32 on the CPU) and the indices of these texts.
            position: which token of each text.
            chat: render through the chat template.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.

        Raises:
            InputError: as `activations`.
        """
        names = self.hooks.select(names)
        read = list(self.batches(texts, position, chat, batch_size))
        computed = self.run(Pass(batch.inputs, batch.positions[:, None], names) for batch in read)
        for batch, activations in zip(read, computed, strict=True):
            consume({name: activations[name][:, 0].float().cpu() for name in names}, batch.indices)

    def run_with_cache(
        self,
        texts: str | Sequence[str],
        names: Names = None,
        position: Position = "all",
        chat: bool = False,
        batch_size: int | None = None,
        remove_batch_dim: bool = False,
        logits: bool = True,
    ) -> tuple[Tensor | None, ActivationCache]:
        """Logits and activations of texts, as TransformerLens' method of this name.

        What differs from TransformerLens: texts are batched by length and padded to the right, and pads are NaN in the
        cache instead of what the model computes of them; everything is float32 on the CPU; a text gets exactly one BOS
        where the model has one; names are those of `hook_names`, which lack attention scores and patterns; there is no
        `names_filter`, `pos_slice`, `return_type` and `stop_at_layer`, but `names`, `position` and `logits`.

        Args:
            texts: prompts, or a single one; never truncated.
            names: which hooks: a name, with wildcards or not ("blocks.*.hook_resid_post"), a regular expression
                (`re.compile`), a filter, a list of these, or None for all.
            position: which tokens of each text: one (-1 is its last, whatever the padding), a slice, a list, or "all".
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.
            remove_batch_dim: leave the first dimension out; for a single text.
            logits: whether they are computed; else None stands in their place. Of a large vocabulary and all positions
                they are larger than anything else.

        Returns:
            Logits at these positions, [n_texts, positions, vocab] ([n_texts, vocab] at one position), and the cache;
            see `interp.cache.ActivationCache`.

        Raises:
            InputError: as `activations`; a rule that no hook meets; several texts and `remove_batch_dim`.

        Example:
            >>> logits, cache = model.run_with_cache("How are you?", "blocks.*.hook_resid_post", position=-1)
            >>> cache["resid_post", 3]
        """
        values, cache = run_with_cache(self, texts, names, position, chat, batch_size, logits)
        if not remove_batch_dim:
            return values, cache
        return None if values is None else values[0], cache.remove_batch_dim()

    def run_with_hooks(
        self,
        texts: str | Sequence[str],
        fwd_hooks: Sequence[Hook] = (),
        position: Position = "all",
        chat: bool = False,
        batch_size: int | None = None,
    ) -> Tensor:
        """Logits of texts while functions change activations, as TransformerLens' method of this name.

        What differs from TransformerLens: texts are batched by length, the longest first, so a function may see some of
        them only; its argument `hook` says which (`hook.indices`, `hook.lengths`; rows are padded to the right) and has
        the name that was asked for. It gets a copy, which it may change in place. At `hook_resid_mid` a new value flows
        on in the residual stream. There are no backward hooks.

        Args:
            texts: prompts, or a single one; never truncated.
            fwd_hooks: pairs of names (as in `run_with_cache`) and a function of the activation, [batch, pos, …] in the
                model's dtype, that returns a new one of the same shape, or None where it changed it in place or only
                looked. If it has a parameter `hook` it gets an `interp.running.HookCall`.
            position: which tokens' logits.
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.

        Returns:
            Logits, float32 on the CPU, as those of `run_with_cache`.

        Raises:
            InputError: as `run_with_cache`; a function's result has another shape.

        Example:
            >>> _, clean = model.run_with_cache(prompt, "blocks.3.hook_resid_post")
            >>> patch = lambda resid, hook: clean[hook.name][hook.indices]
            >>> model.run_with_hooks(other_prompt, [("blocks.3.hook_resid_post", patch)])
        """
        return run_with_hooks(self, texts, fwd_hooks, position, chat, batch_size)

    def write_cache(
        self,
        texts: str | Sequence[str],
        names: Names,
        directory: str | Path,
        position: Position = -1,
        chat: bool = False,
        batch_size: int | None = None,
    ) -> ActivationCache:
        """The cache of `run_with_cache` in files, for sets that are larger than memory.

        One safetensors file a forward pass, in the model's dtype, written atomically. Called again with the same
        arguments after an interruption it goes on where it was, and reads where it was finished.

        Args:
            texts: prompts, or a single one; never truncated.
            names: which hooks, as in `run_with_cache`.
            directory: where the files go; made if it is not there.
            position: which tokens of each text.
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts per forward pass, and so per file; by default as many as fit a budget of tokens.

        Returns:
            A cache that reads an activation when its name is asked for; `interp.read_cache` opens it again.

        Raises:
            InputError: as `run_with_cache`; the directory holds something else, cannot be written, or is full.

        Example:
            >>> cache = model.write_cache(prompts, "blocks.*.hook_resid_post", "caches/harmful", chat=True)
            >>> cache["resid_post", 3].shape
        """
        from interp.cache_files import write_cache

        return write_cache(self, texts, names, Path(directory), position, chat, batch_size)

    def generate(
        self,
        texts: str | Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        hooks: Sequence[Hook] = (),
        chat: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> list[Completion]:
        """The most probable continuation of every text, token by token, while functions change activations.

        Args:
            texts: prompts, or a single one; never truncated.
            max_new_tokens: where an answer is cut.
            hooks: as `fwd_hooks` of `run_with_hooks`. The first pass computes the prompts, padded to the *left*, so
                that −1 is the last token of each; the next ones a token each, [batch, 1, …], of the texts still being
                answered (`hook.indices`).
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts generated together.

        Raises:
            InputError: as `run_with_hooks`.

        Example:
            >>> away = lambda resid: resid - (resid @ direction)[..., None] * direction
            >>> model.generate(prompts, hooks=[("blocks.*.hook_resid_post", away)], chat=True)
        """
        return generate_with_hooks(self, texts, max_new_tokens, hooks, chat, batch_size)

    def generate_with_cache(
        self,
        texts: str | Sequence[str],
        names: Names = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        hooks: Sequence[Hook] = (),
        chat: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> tuple[list[Completion], ActivationCache]:
        """`generate`, and the activations of what was generated, as they were while it was generated.

        Args:
            texts: prompts, or a single one; never truncated.
            names: which hooks, as in `run_with_cache`.
            max_new_tokens: where an answer is cut.
            hooks: as in `generate`.
            chat: render each text through the chat template, with the generation prompt.
            batch_size: texts generated together.

        Returns:
            The completions, and a cache of [n_texts, 1 + tokens, …]: position 0 is the last token of the prompt, k the
            k-th generated token (without the one that ends the answer), and the rest of a shorter answer is NaN.
            `token_ids` are these tokens.

        Raises:
            InputError: as `run_with_hooks`.

        Example:
            >>> completions, cache = model.generate_with_cache(prompts, "blocks.*.hook_resid_post", 16, chat=True)
            >>> cache["resid_post", 3][:, 1]  # at the first generated token
        """
        return generate_with_cache(self, texts, names, max_new_tokens, hooks, chat, batch_size)

    def to_transformer_lens(self) -> Any:
        """This model as TransformerLens' `TransformerBridge`, on the same weights; see `interp.views`."""
        from interp.views import to_transformer_lens

        return to_transformer_lens(self)

    def to_nnsight(self) -> Any:
        """This model as an nnsight `TransformersModel`, on the same weights; see `interp.views`."""
        from interp.views import to_nnsight

        return to_nnsight(self)
