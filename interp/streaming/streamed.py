"""How a model computes whose weights are read part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from interp.hooks import Hooks
from interp.passes import LOGITS, Pass
from interp.streaming.slot import Slot
from interp.streaming.states import LIMIT
from interp.streaming.walk import Walk

Key = tuple[bytes, bytes, bytes]
"""What determines every number of a pass, beside the model: tokens, mask, and the places that are kept."""


class Streamed:
    """The weights of a model on the meta device, read when they are needed.

    Passes that are given together go through the model together, for one read of the checkpoint. Any other forward
    pass of the model works, too, and reads all of it.

    Args:
        slot: holds the weights of one part of the model.
        limit: bytes of residual streams that wait in memory; what is beyond waits in files.
    """

    def __init__(self, slot: Slot, limit: int = LIMIT) -> None:
        self.slot, self._limit = slot, limit
        self._expected: list[Pass] = []
        self._known: dict[Key, dict[str, Tensor]] = {}
        self._uses: Counter[Key] = Counter()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.slot.device

    def expect(self, passes: Iterable[Pass]) -> None:
        """Announce the passes that will be asked for next: the next walk computes all, and each is kept until then.

        What was announced before and not asked for is forgotten.

        Args:
            passes: to come, in any order; one that is announced twice is asked for twice.
        """
        self._expected = list(passes)
        self._known.clear()
        self._uses.clear()

    def run(self, hooks: Hooks, passes: Iterable[Pass]) -> Iterator[dict[str, Tensor]]:
        """What `interp.passes.in_memory` gives, all passes block by block; activations are on the CPU.

        Args:
            hooks: of the model.
            passes: in order.
        """
        passes = list(passes)
        awaited = self._expected or any(_key(one) in self._known for one in passes)
        if awaited and not hooks.active:  # what is expected is the model as it is
            self._compute(hooks, passes)
            yield from map(self._handed, passes)
        else:
            yield from self._walk(hooks, passes)

    def _compute(self, hooks: Hooks, passes: Sequence[Pass]) -> None:
        """Walk with what is expected and with what is asked and not known yet."""
        unexpected = [one for one in passes if not self._awaited(one)]
        self._uses.update(map(_key, [*self._expected, *unexpected]))
        todo = _merged([*self._expected, *[one for one in unexpected if not self._has(one)]])
        self._expected = []
        for one, kept in zip(todo, self._walk(hooks, todo), strict=True):
            self._known.setdefault(_key(one), {}).update({name: value.cpu() for name, value in kept.items()})

    def _awaited(self, one: Pass) -> bool:
        """Whether a pass was announced, with everything that is kept of it."""
        return self._has(one) or any(_key(other) == _key(one) and _covers(other, one) for other in self._expected)

    def _has(self, one: Pass) -> bool:
        return set(one.kept) <= self._known.get(_key(one), {}).keys()

    def _handed(self, one: Pass) -> dict[str, Tensor]:
        """What is kept of a pass; forgotten with its last use."""
        key = _key(one)
        self._uses[key] -= 1
        known = self._known[key] if self._uses[key] > 0 else self._known.pop(key)
        return {name: known[name].to(self.device) if name == LOGITS else known[name] for name in one.kept}

    def _walk(self, hooks: Hooks, passes: Sequence[Pass]) -> Iterator[dict[str, Tensor]]:
        if not passes:
            return
        try:
            yield from Walk(self.slot.hf, self.slot.architecture, hooks, self._limit).run(passes)
        finally:
            self.slot.forget()


def _key(one: Pass) -> Key:
    tokens, mask = (one.inputs[name].cpu() for name in ("input_ids", "attention_mask"))
    return tuple(repr(tuple(t.shape)).encode() + t.numpy().tobytes() for t in (tokens, mask, one.index.cpu()))  # type: ignore[return-value]


def _covers(one: Pass, other: Pass) -> bool:
    return set(other.kept) <= set(one.kept)


def _merged(passes: Sequence[Pass]) -> list[Pass]:
    """Each different pass once, with everything that is asked of it."""
    merged: dict[Key, Pass] = {}
    for one in passes:
        other = merged.get(_key(one), one)
        names = dict.fromkeys([*other.names, *one.names])
        merged[_key(one)] = Pass(one.inputs, one.index, list(names), one.logits or other.logits, one.begin)
    return list(merged.values())
