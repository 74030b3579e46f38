"""What differs between model architectures, as one table keyed by Hugging Face's `model_type`.

Everything else in the project asks this table; nothing looks at model names. To support another architecture, add a row
and the tiny random model of `tests/tiny_models.py`; the tests then check every hook point against the bare model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from interp.errors import InputError

UNEMBEDDING = "lm_head"
"""The module that gives the logits. Its weight may be the embedding's, and is then stored once."""
UNEMBEDDING_WEIGHT = f"{UNEMBEDDING}.weight"
UNEMBEDDINGS = (UNEMBEDDING, "embed_out")
"""The module as files call it: GPT-NeoX's has another name there."""
ATTENTION, RECURRENT = "full_attention", "linear_attention"
"""The kinds of blocks of a hybrid, as `layer_types` of its config has them."""
MOST_EXPERTS = 2048
"""The most experts of a block; more are a damaged config, and names are made of each before any tensor is looked at."""


@dataclass(frozen=True)
class Experts:
    """What replaces the MLP of a block in a mixture of experts; names are relative to the block.

    Attributes:
        count_key: the config's number of experts.
        inputs: the linears of an expert that write its neurons, as files call them: gate, up.
        output: its down projection.
        router: module that gives the logits of all experts, and the weights and numbers of those that are taken.
        module: all experts.
        stored_mlp: what files call `mlp`, where it is another name.
        transposed: the tensors of all experts of a block are [experts, in, out], and files hold no others (gpt-oss).
        scaled: a per-channel scale can move between the last of `inputs` and `output`.
        shared: the MLP beside them that every token goes through, where there is one (Qwen3-Next, Qwen 3.5).
    """

    count_key: str = "num_experts"
    inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    output: str = "down_proj"
    router: str = "mlp.gate"
    module: str = "mlp.experts"
    stored_mlp: str = "mlp"
    transposed: bool = False
    scaled: bool = True
    shared: str | None = None

    def linears(self, expert: int) -> tuple[tuple[str, ...], str]:
        """The linears that write an expert's neurons, and the one that reads them."""
        return self.linears_of(f"{self.module}.{expert}")

    def linears_of(self, mlp: str) -> tuple[tuple[str, ...], str]:
        """The linears of an expert, or of the MLP beside all of them, by its name."""
        return tuple(f"{mlp}.{name}" for name in self.inputs), f"{mlp}.{self.output}"


@dataclass(frozen=True)
class Recurrence:
    """What stands in place of attention in some blocks of a hybrid: a gated delta net; names are relative to the block.

    Its state is carried from token to token, so no mask over positions says what a token sees.

    Attributes:
        inputs: the linears that read the norm's output.
        output: output projection; its input is the outputs of each head of values.
        added: module whose output is added to the residual stream.
        heads_key: the config's number of heads of values.
    """

    inputs: tuple[str, ...]
    output: str = "linear_attn.out_proj"
    added: str = "linear_attn"
    heads_key: str = "linear_num_value_heads"


@dataclass(frozen=True)
class LayerInput:
    """What is added to the residual stream after the MLP in Gemma 4: an embedding of the token for each block, gated.

    Attributes:
        width_key: the config's width of that embedding; 0 or null where a model has none of this.
        embed: the embedding for all blocks, absolute.
        gate: module whose *input* is the residual stream after the MLP.
        output: the linear that writes it, before a norm.
        added: module whose output is added.
    """

    width_key: str = "hidden_size_per_layer_input"
    embed: str = "model.embed_tokens_per_layer"
    gate: str = "per_layer_input_gate"
    output: str = "per_layer_projection"
    added: str = "post_per_layer_input_norm"


@dataclass(frozen=True)
class Architecture:
    """Where the parts of a transformer live in Hugging Face's module tree.

    Names without a leading dot are relative to a block, except `blocks`, `embed`, `embed_out`, `final_norm`, which are
    absolute.

    Attributes:
        model_type: `config.model_type`.
        blocks: the ModuleList of blocks, e.g. `model.layers`.
        embed: token embedding.
        embed_out: module whose output is the residual stream before block 0 where that is not `embed`'s output, else
            None (GPT-2: the dropout after token plus position embeddings).
        final_norm: the norm before the unembedding.
        attention_out: attention output projection; its input is the per-head outputs.
        mlp_out: MLP down projection; its input is the neuron activations.
        attention_in: the linears that make queries, keys and values, in this order; one name where they are one matrix.
        attention_in_by_head: that one matrix holds query, key and value of a head side by side, head after head
            (GPT-NeoX), instead of all queries, all keys, all values (GPT-2, Phi-3).
        mlp_in: the linears whose rows write the neurons (gate and up; one where the MLP is not gated, or where one
            matrix holds all gates and after them all ups, as in Phi-3).
        attention_added: module whose output is added to the residual stream by attention.
        mlp_added: module whose output is added to the residual stream by the MLP.
        mid: module whose *input* is the residual stream after attention: the norm before the MLP, or the MLP itself
            where the norms come after (OLMo 2); None for always-parallel blocks.
        added_multiplier: the config's number by which what attention and MLP give is multiplied before it is added to
            the residual stream (Granite), else None.
        embed_multiplier: the config's number by which the embedding is multiplied where the embedding's own module does
            not do it (Granite), else None.
        scaled_by_norm: for each norm of a block, the linears that read its output (AWQ moves scales across these).
        scaled_by_linear: pairs (producer, consumer) of linears between which a per-channel scale can move without
            changing the function; of a producer with more rows than the consumer has columns, its last rows (Phi-3's
            ups).
        norm_offset: the norm multiplies by `weight + norm_offset` (Gemma: 1).
        experts: what stands in place of the MLP in a mixture of experts, else None. The names of the MLP's linears then
            are those of blocks without experts, if there are any.
        recurrence: what stands in place of attention in blocks of the kind `linear_attention`, else None. The names of
            attention's linears then are those of the other blocks; see `of_block`.
        heads_key: the config's number of heads.
        layer_input: what is added after the MLP, else None.
        scalar: the block's buffer by which all of its output, the residual stream included, is multiplied, else None.
        unsupported: settings that some models of this type have and that are refused.
        conv1d: linears are stored as GPT-2's Conv1D, [in, out].
        gguf: the architecture's name in GGUF files; "" where none of it is read.
        gguf_permuted: llama.cpp stores the rows of q and k permuted (interleaved rotary layout).
        gguf_norm_offset: what a GGUF norm weight has added to it compared with Hugging Face's.
        inferred: no row of the table; see `interp.inferred`.
        kinds: of each block of one model, `full_attention` or `linear_attention`; () where all are alike.
    """

    model_type: str
    gguf: str
    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    embed_out: str | None = None
    final_norm: str = "model.norm"
    attention_out: str = "self_attn.o_proj"
    mlp_out: str = "mlp.down_proj"
    attention_in: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    attention_in_by_head: bool = False
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    attention_added: str = "self_attn"
    mlp_added: str = "mlp"
    mid: str | None = "post_attention_layernorm"
    added_multiplier: str | None = None
    embed_multiplier: str | None = None
    scaled_by_norm: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    )
    scaled_by_linear: tuple[tuple[str, str], ...] = (
        ("self_attn.v_proj", "self_attn.o_proj"),
        ("mlp.up_proj", "mlp.down_proj"),
    )
    norm_offset: float = 0.0
    experts: Experts | None = None
    recurrence: Recurrence | None = None
    heads_key: str = "num_attention_heads"
    layer_input: LayerInput | None = None
    scalar: str | None = None
    unsupported: tuple[tuple[str, object], ...] = ()
    conv1d: bool = False
    gguf_permuted: bool = False
    gguf_norm_offset: float = 0.0
    inferred: bool = False
    kinds: tuple[str, ...] = ()

    def parallel(self, config: Any) -> bool:
        """Whether attention and MLP read the same residual stream, so that `hook_resid_mid` does not exist."""
        return self.mid is None or bool(getattr(config, "use_parallel_residual", False))

    def multiplier(self, key: str | None, config: Any) -> float:
        """The number that a config gives under `added_multiplier` or `embed_multiplier`; 1 where there is none."""
        return 1.0 if key is None else float(getattr(config, key))

    def is_sparse(self, config: Any, block: int) -> bool:
        """Whether a block has experts; in Qwen's mixtures some have one MLP instead."""
        step = getattr(config, "decoder_sparse_step", 1)
        dense = getattr(config, "mlp_only_layers", None) or ()
        return self.experts is not None and block not in dense and (block + 1) % step == 0

    def of_block(self, block: int) -> Architecture:
        """The row of one block of an expanded row: a recurrence's names in place of attention's, where it has one."""
        instead = self.recurrence
        if instead is None or self.kinds[block] != RECURRENT:
            return self
        return replace(
            self,
            attention_in=instead.inputs,
            attention_out=instead.output,
            attention_added=instead.added,
            heads_key=instead.heads_key,
        )

    def expanded(self, config: Any) -> Architecture:
        """The row of one model: with the kinds of its blocks, and the linears of each expert where scales can move.

        Raises:
            InputError: a setting that is not supported; a kind of block that the architecture does not have; a number
                of experts that no model has, or more of them for a token than there are.
        """
        for key, value in self.unsupported:
            if getattr(config, key) == value:
                raise InputError(
                    f"config.json describes a {self.model_type} model with {key} = {value!r}, which is not supported",
                    f"a {self.model_type} model without",
                    "Choose another size of the model",
                )
        row = self if self.recurrence is None else replace(self, kinds=self._checked_kinds(config))
        if row.layer_input is not None and not getattr(config, row.layer_input.width_key):
            row = replace(row, layer_input=None)
        return row if row.experts is None else row._with_experts(row.experts, config)

    def _checked_kinds(self, config: Any) -> tuple[str, ...]:
        kinds = tuple(config.layer_types)
        if unknown := sorted(set(kinds) - {RECURRENT, ATTENTION}):
            raise InputError(
                f"config.json gives a {self.model_type} model blocks of the kind {unknown[0]!r} (layer_types)",
                f"{ATTENTION} or {RECURRENT} for each block",
                "Restore the file as it was written",
            )
        return kinds

    def _with_experts(self, of_experts: Experts, config: Any) -> Architecture:
        count, taken = getattr(config, of_experts.count_key), config.num_experts_per_tok
        whole = isinstance(count, int) and isinstance(taken, int)  # keys of other names are not checked by transformers
        if not whole or not 1 <= taken <= count <= MOST_EXPERTS:
            raise InputError(
                f"config.json says {of_experts.count_key} = {count!r} and num_experts_per_tok = {taken!r}",
                f"1 to {MOST_EXPERTS} experts, and no more for a token than there are",
                "Restore the file as it was written",
            )
        experts = [of_experts.linears(expert) for expert in range(count)]
        gates: tuple[str, ...] = (of_experts.router,)
        if of_experts.shared is not None:
            experts.append(of_experts.linears_of(of_experts.shared))
            gates += (f"{of_experts.shared}_gate",)
        *norms, (last, readers) = self.scaled_by_norm
        every = (*readers, *gates, *(name for inputs, _ in experts for name in inputs))
        pairs = tuple((inputs[-1], output) for inputs, output in experts if of_experts.scaled)
        return replace(self, scaled_by_norm=(*norms, (last, every)), scaled_by_linear=(*self.scaled_by_linear, *pairs))

    def writes_residual(self, linear: str) -> bool:
        """Whether a linear, named within its block, is an output projection of what is added to the residual stream."""
        experts = self.experts
        if experts is not None and linear.startswith(f"{experts.module}."):
            return linear.endswith(f".{experts.output}")
        shared = experts is not None and experts.shared is not None and linear == f"{experts.shared}.{experts.output}"
        others = (part.output for part in (self.recurrence, self.layer_input) if part is not None)
        return shared or linear in (self.attention_out, self.mlp_out, *others)

    def require_sums(self, what: str) -> None:
        """Raise an InputError where a block multiplies the residual stream, so that it does not only add to it.

        Args:
            what: needs that.
        """
        if self.scalar is not None:
            raise InputError(
                f"{what} needs blocks that only add to the residual stream, and those of a {self.model_type} model "
                f"multiply it ({self.scalar})",
                "another architecture",
                "Ask for linears, heads or neurons, or exchange weights",
            )

    def require_modules(self) -> None:
        """Raise an InputError where not every linear is a module of its own, which some analyses need."""
        if self.experts is not None:
            raise InputError(
                f"A {self.model_type} model is a mixture of experts, and what was asked for needs every linear as a "
                "module of its own",
                "a model without experts",
                "The other probes, the hooks of its router and interp.weight_error for each expert work on it",
            )


_GEMMA_NORMS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_GEMMA: dict[str, Any] = {
    "attention_added": "post_attention_layernorm",
    "mlp_added": "post_feedforward_layernorm",
    "mid": "pre_feedforward_layernorm",
    "scaled_by_norm": _GEMMA_NORMS,
    "norm_offset": 1.0,
    "gguf_norm_offset": 1.0,
}

_GEMMA4: dict[str, Any] = {
    **{key: _GEMMA[key] for key in ("attention_added", "mlp_added", "mid", "scaled_by_norm")},
    "scaled_by_linear": (("mlp.up_proj", "mlp.down_proj"),),  # a norm stands between values and attention's output
    "layer_input": LayerInput(),
    "scalar": "layer_scalar",
    "unsupported": (("enable_moe_block", True), ("use_bidirectional_attention", "all")),
}

_OLMO2: dict[str, Any] = {
    "attention_added": "post_attention_layernorm",
    "mlp_added": "post_feedforward_layernorm",
    "mid": "mlp",
    "scaled_by_norm": (),
}


def _hybrid(*inputs: str) -> dict[str, Any]:
    """Qwen's blocks with attention, whose query projection holds an output gate, too, and those with a delta net."""
    recurrence = Recurrence(tuple(f"linear_attn.in_proj_{name}" for name in inputs))
    attention, mlp = Architecture.scaled_by_norm
    norms = (attention, (attention[0], recurrence.inputs), mlp)
    return {"recurrence": recurrence, "scaled_by_norm": norms, "norm_offset": 1.0}


_GPT_OSS = Experts("num_local_experts", ("gate_up_proj",), router="mlp.router", transposed=True, scaled=False)
_SHARED = Experts(shared="mlp.shared_expert")
_MIXTRAL = Experts("num_local_experts", ("w1", "w3"), "w2", stored_mlp="block_sparse_moe")

ARCHITECTURES: dict[str, Architecture] = {
    a.model_type: a
    for a in (
        Architecture("llama", "llama", gguf_permuted=True),
        Architecture("mistral", "llama", gguf_permuted=True),
        Architecture("ministral", "llama", gguf_permuted=True),
        Architecture("ministral3", "mistral3", gguf_permuted=True),
        Architecture("qwen2", "qwen2"),
        Architecture("qwen3", "qwen3"),
        Architecture("mixtral", "llama", gguf_permuted=True, experts=_MIXTRAL),
        Architecture("qwen3_moe", "qwen3moe", experts=Experts()),
        Architecture("olmoe", "olmoe", experts=Experts()),
        Architecture("qwen3_next", "", experts=_SHARED, **_hybrid("qkvz", "ba")),
        Architecture("qwen3_5_text", "", **_hybrid("qkv", "z", "b", "a")),
        Architecture("qwen3_5_moe_text", "", experts=_SHARED, **_hybrid("qkv", "z", "b", "a")),
        Architecture("gpt_oss", "gpt-oss", experts=_GPT_OSS),
        Architecture("smollm3", "smollm3", gguf_permuted=True),
        Architecture(
            "granite",
            "granite",
            added_multiplier="residual_multiplier",
            embed_multiplier="embedding_multiplier",
            gguf_permuted=True,
        ),
        Architecture("olmo2", "olmo2", **_OLMO2),
        Architecture("olmo3", "olmo2", **_OLMO2),
        Architecture(
            "phi3",
            "phi3",
            attention_in=("self_attn.qkv_proj",),
            mlp_in=("mlp.gate_up_proj",),
            scaled_by_norm=(
                ("input_layernorm", ("self_attn.qkv_proj",)),
                ("post_attention_layernorm", ("mlp.gate_up_proj",)),
            ),
            scaled_by_linear=(("mlp.gate_up_proj", "mlp.down_proj"),),
        ),
        Architecture("gemma", "gemma", norm_offset=1.0, gguf_norm_offset=1.0),
        Architecture("gemma2", "gemma2", **_GEMMA),
        Architecture("gemma3_text", "gemma3", **_GEMMA),
        Architecture("gemma4_text", "", **_GEMMA4),
        Architecture(
            "phi",
            "phi2",
            final_norm="model.final_layernorm",
            attention_out="self_attn.dense",
            mlp_out="mlp.fc2",
            mlp_in=("mlp.fc1",),
            mid=None,
            scaled_by_norm=(
                ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1")),
            ),
            scaled_by_linear=(("self_attn.v_proj", "self_attn.dense"),),
        ),
        Architecture(
            "gpt2",
            "gpt2",
            blocks="transformer.h",
            embed="transformer.wte",
            embed_out="transformer.drop",
            final_norm="transformer.ln_f",
            attention_out="attn.c_proj",
            mlp_out="mlp.c_proj",
            attention_in=("attn.c_attn",),
            mlp_in=("mlp.c_fc",),
            attention_added="attn",
            mid="ln_2",
            scaled_by_norm=(("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",))),
            scaled_by_linear=(),
            conv1d=True,
        ),
        Architecture(
            "gpt_neox",
            "gptneox",
            blocks="gpt_neox.layers",
            embed="gpt_neox.embed_in",
            final_norm="gpt_neox.final_layer_norm",
            attention_out="attention.dense",
            mlp_out="mlp.dense_4h_to_h",
            attention_in=("attention.query_key_value",),
            attention_in_by_head=True,
            mlp_in=("mlp.dense_h_to_4h",),
            attention_added="attention",
            scaled_by_norm=(
                ("input_layernorm", ("attention.query_key_value",)),
                ("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
            ),
            scaled_by_linear=(),
        ),
    )
}


def architecture(model_type: str) -> Architecture:
    """The table row for a `model_type`.

    Raises:
        InputError: no row; the message lists those there are.
    """
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"The architecture {model_type!r} is not supported",
            f"one of {', '.join(sorted(ARCHITECTURES))}",
            "Add a row to interp/architectures.py, or open an issue with the model's config.json",
        )
    return ARCHITECTURES[model_type]
