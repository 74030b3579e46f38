"""Many forward passes at once, block by block, with the model's own modules.

A pass enters: the base model's own forward runs with stand-ins for its blocks, which compute nothing and note what
they are called with (masks, rotary embeddings, whatever the architecture hands on). Then each block runs with these
arguments on the residual stream of every pass. At last a pass leaves: the final norm, and the causal model's own
forward, for which the base model is a stand-in that returns the result. So every number is computed by the module that
computes it in an ordinary forward pass, on the same shapes, and the hooks of these modules see what they always see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interp.architectures import Architecture
from interp.hooks import Hooks
from interp.passes import LOGITS, Pass, unembed_only
from interp.progress import track
from interp.streaming.states import States

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside the residual stream."""


@dataclass
class Journey:
    """A pass under way.

    Attributes:
        number: of the pass.
        request: the pass.
        names: stage (0 before the blocks, 1 + its index for a block, then the end) → hooks whose activations are kept.
        last: the last stage that has something to keep.
        calls: what each block is called with.
        kept: what is kept so far.
        output: the class of what the base model returns.
    """

    number: int
    request: Pass
    names: Mapping[int, list[str]]
    last: int
    calls: list[Call] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)
    output: type = object


class Walk:
    """One walk of several passes through a model.

    Args:
        hf: the transformers model.
        architecture: its row.
        hooks: of this model; what is open acts on every pass.
        limit: bytes of residual streams in memory, see `States`.
    """

    def __init__(self, hf: Any, architecture: Architecture, hooks: Hooks, limit: int) -> None:
        self._hf, self._architecture, self._hooks = hf, architecture, hooks
        self._blocks = list(hf.get_submodule(architecture.blocks))
        self._end = len(self._blocks) + 1
        self._states = States(limit)

    def run(self, passes: Sequence[Pass]) -> Iterator[dict[str, Tensor]]:
        """Yield what is kept of each pass, in order: activations on the CPU, logits where they are computed."""
        try:
            journeys = [self._journey(number, request) for number, request in enumerate(passes)]
            for journey in journeys:
                self._enter(journey)
            deepest = min(max(journey.last for journey in journeys), len(self._blocks))
            for stage in track(range(1, deepest + 1), "blocks"):
                for journey in journeys:
                    if stage <= journey.last:
                        self._go_on(journey, stage)
            for journey in journeys:
                if journey.last == self._end:
                    self._leave(journey)
                yield journey.kept
        finally:
            self._states.clear()

    def _journey(self, number: int, request: Pass) -> Journey:
        names: dict[int, list[str]] = {}
        for name in request.names:
            names.setdefault(self._stage(name), []).append(name)
        return Journey(number, request, names, self._end if request.logits else max(names, default=0))

    def _stage(self, name: str) -> int:
        module, blocks = self._hooks.point(name).module, f"{self._architecture.blocks}."
        if module.startswith(blocks):
            return 1 + int(module.removeprefix(blocks).partition(".")[0])
        return self._end if module == self._architecture.final_norm else 0

    @contextmanager
    def _keeping(self, journey: Journey, stage: int) -> Iterator[None]:
        """Inside, what the pass computes at this stage is kept, as far as it was asked for."""
        journey.request.begin()
        names, take = journey.names.get(stage, []), journey.request.take
        with torch.no_grad(), self._hooks.capture(names, lambda activation: take(activation).cpu()) as activations:
            yield
        journey.kept |= activations

    def _enter(self, journey: Journey) -> None:
        """Embed the tokens, and learn what the blocks are called with."""

        def note(state: Tensor, *arguments: Any, **named: Any) -> Tensor:
            if not journey.calls:
                self._states.put(journey.number, state)
            journey.calls.append((arguments, named))
            return state

        names = [f"{self._architecture.blocks}.{index}" for index in range(len(self._blocks))]
        with (
            self._keeping(journey, 0),
            _replaced(self._hf, dict.fromkeys(names, note)),
            _replaced(self._hf, {self._architecture.final_norm: lambda state: state}),
        ):
            journey.output = type(self._hf.base_model(**journey.request.inputs, use_cache=False))

    def _go_on(self, journey: Journey, stage: int) -> None:
        """Through one block."""
        arguments, named = journey.calls[stage - 1]
        with self._keeping(journey, stage):
            state = self._blocks[stage - 1](self._states.take(journey.number), *arguments, **named)
        if stage < journey.last:
            self._states.put(journey.number, state)

    def _leave(self, journey: Journey) -> None:
        """Final norm and unembedding."""
        request = journey.request
        with self._keeping(journey, self._end):
            state = self._hf.get_submodule(self._architecture.final_norm)(self._states.take(journey.number))
        if not request.logits:
            return
        output = journey.output(last_hidden_state=state)
        with (
            torch.no_grad(),
            unembed_only(self._hf, request.take),
            _replaced(self._hf, {self._hf.base_model_prefix: lambda *_, **__: output}),
        ):
            journey.kept[LOGITS] = self._hf(**request.inputs, use_cache=False).logits


class _StandIn(nn.Module):
    """A module that runs another function and has the attributes of the one it stands in for."""

    def __init__(self, original: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__.update(original=original, forward=function)  # no submodule: its hooks and weights stay its own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


@contextmanager
def _replaced(hf: nn.Module, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, these modules run these functions, and neither their own forward nor their hooks."""
    originals = {name: hf.get_submodule(name) for name in functions}
    try:
        for name, function in functions.items():
            _put_module(hf, name, _StandIn(originals[name], function))
        yield
    finally:
        for name, original in originals.items():
            _put_module(hf, name, original)


def _put_module(hf: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    hf.get_submodule(parent)._modules[leaf] = module
