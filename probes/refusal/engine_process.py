"""The hooked model in a process of its own, which computes while this one writes Inspect's logs.

For a small model both are Python: as threads of one process they take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.checkpoint import open_checkpoint
from interp.child import Child, JobReport, serve
from interp.errors import InputError
from interp.generation import Answer
from probes.refusal.engines import EngineSettings, HookedEngine
from probes.refusal.stopped import Stopped


class EngineProcess:
    """An `Engine` that computes in a child, which loads the weights for the first prompts.

    Args:
        settings: of the hooked model.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = asdict(_found(settings))
        self._child = Child(__name__).__enter__()
        self._asking = Lock()
        self._stopped = False

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        """As one left-padded batch.

        Raises:
            InputError: the weights cannot be loaded, or the process was ended from outside.
        """
        answers = self._asked("answers", prompts=list(map(list, prompts)), max_new_tokens=max_new_tokens)
        return [Answer(tokens, finished) for tokens, finished in answers]

    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
        """One prompt at a time, without padding."""
        return torch.tensor(self._asked("logits", prompts=list(map(list, prompts))))

    def stop(self) -> None:
        """At once: the process is killed."""
        self._stopped = True
        self._child.kill()
        with self._asking:
            self._child.close()

    def _asked(self, what: str, **job: Any) -> Any:
        with self._asking:
            try:
                if not self._stopped:
                    return self._child.run({"what": what, "settings": self._settings, **job})[what]
            except InputError:
                if not self._stopped:
                    raise
            raise Stopped


def _found(settings: EngineSettings) -> EngineSettings:
    """With paths that hold in any directory."""
    path = str(open_checkpoint(settings.path).path.absolute())
    like = settings.like and str(open_checkpoint(settings.like).path.absolute())
    return replace(settings, path=path, like=like)


def _answer(job: dict[str, Any], _: JobReport) -> dict[str, Any]:
    """The child's side."""
    engine, prompts = _engine(EngineSettings(**job["settings"])), job["prompts"]
    if job["what"] == "logits":
        return {"logits": engine.last_logits(prompts).tolist()}
    return {"answers": engine.generate(prompts, job["max_new_tokens"])}


_engine = cache(HookedEngine)

if __name__ == "__main__":
    serve(_answer)
