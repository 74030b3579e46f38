"""Hook names → modules, and the two things done there: capture what flows through, or replace it.

Names follow TransformerLens (`blocks.0.hook_resid_post`), blocks are 0-based, and every hook is a plain torch forward
hook that lives only inside a `with` block. Where TransformerLens means something else by a name:

- `ln_final.hook_normalized` is the final norm's output *with* its gain; the bridge's is before the gain.
- `hook_embed` in GPT-2 includes the position embeddings; TransformerLens has them apart in `hook_pos_embed`. In Gemma
  both include the scale √d_model, in Granite the embedding multiplier.
- Blocks with experts have no `mlp.hook_post`. `mlp.hook_router_logits` is TransformerLens' `mlp.gate.hook_out`;
  `mlp.hook_expert_indices` are the numbers of the experts that a token takes, and `mlp.hook_expert_weights` what each
  one's output is multiplied by (TransformerLens has that for every expert, 0 for those that are not taken).
- `hook_attn_out` and `hook_mlp_out` are what is *added* to the residual stream: in Gemma 2 and 3 and OLMo 2 and 3 after
  the post-norms, in Granite after the residual multiplier.
- In Qwen's hybrids `attn.hook_z` and `hook_attn_out` of a block with a recurrence are the recurrence's: its heads of
  values, after norm and gate, and what it adds. In their other blocks `attn.hook_z` is after the output gate.
- In Gemma 4 a block adds a third term, `hook_layer_input_out`, and multiplies everything by a number of its own, so
  resid_post = (resid_mid + mlp_out + layer_input_out) · layer_scalar. A change of `hook_embed` changes that third term
  too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interp.architectures import Architecture
from interp.errors import InputError, did_you_mean

Intervention = Callable[[Tensor], Tensor]
Rule = str | re.Pattern[str] | Callable[[str], bool]
Names = Rule | Sequence[Rule] | None
"""Hook names: one, with wildcards or not (`blocks.*.hook_resid_post`), a regular expression that is searched for, a
filter, several of these, or None for all."""
WILDCARDS = "*?["
LAYER_INPUT_OUT = "hook_layer_input_out"
"""What Gemma 4's embedding of the token for a block adds to the residual stream."""


@dataclass(frozen=True)
class HookPoint:
    """Where one named activation can be read and replaced.

    Attributes:
        name: e.g. `blocks.3.attn.hook_z`.
        module: the module's path in the Hugging Face model.
        at_input: the activation is the module's first input, else its (first) output.
        heads: the last dimension is split into this many heads; None where there are none.
        block: the block this is the `hook_resid_mid` of, else None.
        multiplier: by which the model multiplies what the module gives before it becomes the activation.
        element: which of the module's outputs it is, where there are several.
        by_token: the module whose input tells texts and positions apart, where this one's outputs are [tokens, …]; else
            None.
        changeable: whether anything computed later depends on it.
    """

    name: str
    module: str
    at_input: bool = False
    heads: int | None = None
    block: int | None = None
    multiplier: float = 1.0
    element: int = 0
    by_token: str | None = None
    changeable: bool = True

    def read(self, value: Shaped[Tensor, "batch pos width"]) -> Shaped[Tensor, "batch pos ..."]:
        """The activation as users see it, [batch, pos, d] or [batch, pos, head, d_head]; a view where nothing is
        multiplied."""
        if self.multiplier != 1:
            value = value * self.multiplier
        return value if self.heads is None else value.unflatten(-1, (self.heads, -1))

    def write(
        self, activation: Shaped[Tensor, "batch pos ..."], value: Shaped[Tensor, "batch pos width"]
    ) -> Shaped[Tensor, "batch pos width"]:
        """The module's own layout again: the inverse of `read`.

        Args:
            activation: the new one.
            value: what the module gave: kept, bit by bit, wherever the activation is what was read from it.
        """
        if self.multiplier != 1:
            return torch.where(activation == self.read(value), value, activation / self.multiplier)
        return activation if self.heads is None else activation.flatten(-2)


def hook_points(row: Architecture, config: Any) -> dict[str, HookPoint]:
    """Every hook point of a model, in the order in which the forward pass reaches them."""
    multiplier = row.multiplier(row.embed_multiplier, config)
    points = [HookPoint("hook_embed", row.embed_out or row.embed, multiplier=multiplier)]
    for block in range(config.num_hidden_layers):
        points += _block_points(row.of_block(block), config, block)
    points.append(HookPoint("ln_final.hook_normalized", row.final_norm))
    return {point.name: point for point in points}


def _block_points(row: Architecture, config: Any, block: int) -> list[HookPoint]:
    name, module = f"blocks.{block}", f"{row.blocks}.{block}"
    multiplier = row.multiplier(row.added_multiplier, config)
    mid = []
    if not row.parallel(config):
        mid = [HookPoint(f"{name}.hook_resid_mid", f"{module}.{row.mid}", at_input=True, block=block)]
    return [
        HookPoint(f"{name}.hook_resid_pre", module, at_input=True),
        HookPoint(
            f"{name}.attn.hook_z", f"{module}.{row.attention_out}", at_input=True, heads=getattr(config, row.heads_key)
        ),
        HookPoint(f"{name}.hook_attn_out", f"{module}.{row.attention_added}", multiplier=multiplier),
        *mid,
        *_mlp_points(row, config, block),
        HookPoint(f"{name}.hook_mlp_out", f"{module}.{row.mlp_added}", multiplier=multiplier),
        *([HookPoint(f"{name}.{LAYER_INPUT_OUT}", f"{module}.{row.layer_input.added}")] if row.layer_input else []),
        HookPoint(f"{name}.hook_resid_post", module),
    ]


def _mlp_points(row: Architecture, config: Any, block: int) -> list[HookPoint]:
    """The neurons, or the choice of experts."""
    name, module = f"blocks.{block}.mlp", f"{row.blocks}.{block}"
    if row.experts is None or not row.is_sparse(config, block):
        return [HookPoint(f"{name}.hook_post", f"{module}.{row.mlp_out}", at_input=True)]
    router, mlp = f"{module}.{row.experts.router}", f"{module}.{row.mlp_added}"
    return [
        HookPoint(f"{name}.hook_router_logits", router, element=0, by_token=mlp, changeable=False),
        HookPoint(f"{name}.hook_expert_weights", router, element=1, by_token=mlp),
        HookPoint(f"{name}.hook_expert_indices", router, element=2, by_token=mlp),
    ]


class _Order(IntEnum):
    """What runs first where several callbacks sit on one module, whichever `with` was entered first."""

    REPAIR = 0
    INTERVENE = 1
    OBSERVE = 2


@dataclass(frozen=True, eq=False)
class _Callback:
    order: _Order
    module: str
    at_input: bool
    run: Callable[[Tensor], Tensor | None]
    element: int = 0

    def register(self, model: nn.Module) -> RemovableHandle:
        module = model.get_submodule(self.module)
        return (
            module.register_forward_pre_hook(self._before)
            if self.at_input
            else module.register_forward_hook(self._after)
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = self.run(args[0])
        return None if new is None else (new, *args[1:])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return self.run(output)
        new = self.run(output[self.element])
        return None if new is None else (*output[: self.element], new, *output[self.element + 1 :])


class Hooks:
    """The hook points of one Hugging Face model.

    Hooks are global state of the model while their `with` block is open: every forward pass inside it runs them,
    whoever calls it. Blocks nest. At one point interventions run in the order they were entered, and captures after all
    interventions.
    """

    def __init__(self, model: nn.Module, row: Architecture, config: Any) -> None:
        self.points = hook_points(row, config)
        self._model = model
        self._row = row
        self._active: list[_Callback] = []
        self._handles: list[RemovableHandle] = []

    @property
    def active(self) -> bool:
        """Whether a `capture` or `intervene` is open."""
        return bool(self._active)

    def point(self, name: str) -> HookPoint:
        """The hook point of a name.

        Raises:
            InputError: the model has no such point; the message lists those it has.
        """
        if name not in self.points:
            last = max(int(known.split(".")[1]) for known in self.points if known.startswith("blocks."))
            kinds = dict.fromkeys(
                k.replace("blocks.0.", "blocks.{i}.") for k in self.points if not k.startswith("blocks.") or ".0." in k
            )
            raise InputError(
                f"This {self._row.model_type} model has no hook {name!r}",
                f"one of {', '.join(kinds)} with i from 0 to {last}",
                self._advice(name),
            )
        return self.points[name]

    def _advice(self, name: str) -> str:
        if name.endswith("hook_resid_mid"):
            return "Parallel blocks (Phi, GPT-NeoX) have no hook_resid_mid"
        if name.endswith("mlp.hook_post") and self._row.experts is not None:
            return "Blocks with experts have no mlp.hook_post, as each token has neurons of other experts"
        return did_you_mean(name, self.points)

    def select(self, names: Names) -> list[str]:
        """The hooks that are meant, in the order of the forward pass; of a list, in the order of the list.

        Raises:
            InputError: a name that the model does not have, or a rule that none of its hooks meets.
        """
        if names is None:
            return list(self.points)
        rules: Sequence[Rule] = [names] if isinstance(names, (str, re.Pattern)) or callable(names) else names
        return list(dict.fromkeys(name for rule in rules for name in self._matching(rule)))

    def _matching(self, rule: Rule) -> list[str]:
        if isinstance(rule, str) and not set(rule) & set(WILDCARDS):
            return [self.point(rule).name]
        names = [name for name in self.points if _meets(rule, name)]
        if not names:
            raise InputError(
                f"None of the {len(self.points)} hooks of this {self._row.model_type} model matches {_shown(rule)}",
                "a rule for names such as blocks.0.hook_resid_post",
                "HookedModel.hook_names lists them",
            )
        return names

    @contextmanager
    def capture(
        self, names: Iterable[str], keep: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Record activations of the forward passes inside the `with` block; the latest one where there are several.

        The tensors are the model's own, not copies: do not change them in place. The dictionary stays filled on exit.

        Args:
            names: hook names.
            keep: what to keep of each activation, e.g. one position; everything by default.

        Raises:
            InputError: an unknown name.
        """
        acts: dict[str, Tensor] = {}
        points = [self.point(name) for name in dict.fromkeys(names)]
        with self._installed([callback for point in points for callback in self._observer(point, acts, keep)]):
            yield acts

    @contextmanager
    def intervene(self, interventions: Mapping[str, Intervention]) -> Iterator[None]:
        """Replace activations in the forward passes inside the `with` block.

        Each function gets the activation, [batch, pos, …] in the model's dtype, and returns a new tensor of the same
        shape; everything computed afterwards sees the new one, as if the model had computed it.

        Raises:
            InputError: an unknown name, or a point that nothing is computed from; during the forward pass, a result of
                another shape.
        """
        callbacks: list[_Callback] = []
        for name, function in interventions.items():
            point = self._changeable(name)
            callbacks += (
                self._intervener(point, function) if point.block is None else self._mid_intervener(point, function)
            )
        with self._installed(callbacks):
            yield

    def _changeable(self, name: str) -> HookPoint:
        point = self.point(name)
        if not point.changeable:
            raise InputError(
                f"Nothing is computed from {name} once the experts are chosen, so changing it would change nothing",
                "a point that later ones depend on",
                f"Change {name.replace('router_logits', 'expert_weights')} and …hook_expert_indices",
            )
        return point

    @contextmanager
    def _installed(self, callbacks: list[_Callback]) -> Iterator[None]:
        self._active += callbacks
        try:
            self._register()
            yield
        finally:
            self._active = [callback for callback in self._active if callback not in callbacks]
            self._register()

    def _register(self) -> None:
        """Bring torch's hooks, which run in the order of registration, in line with the active callbacks."""
        for handle in self._handles:
            handle.remove()
        self._handles = [c.register(self._model) for c in sorted(self._active, key=lambda c: c.order)]

    def _observer(
        self, point: HookPoint, acts: dict[str, Tensor], keep: Callable[[Tensor], Tensor] | None
    ) -> list[_Callback]:
        def observe(value: Tensor) -> None:
            activation = point.read(value)
            acts[point.name] = activation if keep is None else keep(activation)

        return _at(point, _Order.OBSERVE, observe)

    def _intervener(self, point: HookPoint, function: Intervention) -> list[_Callback]:
        return _at(point, _Order.INTERVENE, lambda value: replaced(point, function, value))

    def _mid_intervener(self, point: HookPoint, function: Intervention) -> list[_Callback]:
        """`hook_resid_mid`: the norm's or MLP's input is only a branch of the residual stream, carried around it.

        So the new value goes in there, and the block's output becomes what the block would have computed from it:
        the new value plus what the MLP added; in Gemma 4 a third term that is computed from their sum, and all of it
        multiplied.
        """
        parts: dict[str, Tensor] = {}
        block, mlp = f"{self._row.blocks}.{point.block}", self.point(f"blocks.{point.block}.hook_mlp_out")
        third = self._row.layer_input

        def replace(value: Tensor) -> Tensor:
            parts["mid"] = replaced(point, function, value)
            return parts["mid"]

        def remember(value: Tensor) -> None:
            parts["mlp"] = mlp.read(value)

        def add_third(value: Tensor) -> None:
            parts["mlp"] = parts["mid"] + parts["mlp"]
            parts["mid"] = value

        def output(_: Tensor) -> Tensor:
            total = parts.pop("mid") + parts.pop("mlp")
            return total if self._row.scalar is None else total * self._model.get_buffer(f"{block}.{self._row.scalar}")

        callbacks = [
            _Callback(_Order.INTERVENE, point.module, True, replace),
            _Callback(_Order.OBSERVE, mlp.module, False, remember),
            _Callback(_Order.REPAIR, block, False, output),
        ]
        if third is None:
            return callbacks
        return [
            *callbacks,
            _Callback(_Order.REPAIR, f"{block}.{third.gate}", True, lambda _: parts["mid"] + parts["mlp"]),
            _Callback(_Order.OBSERVE, f"{block}.{third.added}", False, add_third),
        ]


def _at(point: HookPoint, order: _Order, run: Callable[[Tensor], Tensor | None]) -> list[_Callback]:
    """The callbacks by which `run` gets a point's value, [batch, pos, …]."""
    if point.by_token is None:
        return [_Callback(order, point.module, point.at_input, run, point.element)]
    shape: list[int] = []

    def remember(value: Tensor) -> None:
        shape[:] = value.shape[:2]

    def by_text(value: Tensor) -> Tensor | None:
        new = run(value.unflatten(0, tuple(shape)))
        return None if new is None else new.flatten(0, 1)

    return [
        _Callback(_Order.REPAIR, point.by_token, True, remember),
        _Callback(order, point.module, False, by_text, point.element),
    ]


def _meets(rule: Rule, name: str) -> bool:
    if isinstance(rule, str):
        return fnmatchcase(name, rule)
    return bool(rule.search(name) if isinstance(rule, re.Pattern) else rule(name))


def _shown(rule: Rule) -> str:
    return repr(rule.pattern) if isinstance(rule, re.Pattern) else repr(rule)


def replaced(point: HookPoint, function: Intervention, value: Tensor) -> Tensor:
    """What flows on after `function` was applied to the activation at a point.

    Raises:
        InputError: the function's result is no tensor or has another shape.
    """
    activation = point.read(value)
    new = function(activation)
    if not isinstance(new, Tensor) or new.shape != activation.shape:
        description = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
        raise InputError(
            f"The intervention on {point.name} returned {description}", f"a tensor of shape {tuple(activation.shape)}"
        )
    return point.write(new, value).to(value)
