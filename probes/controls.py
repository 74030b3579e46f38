"""What a drift is held against: the baseline asked again, and the same weights on another engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from probes.flips import flips
from probes.names import REPEAT
from probes.run_folder import RunFolder
from probes.subjects import LocalSubject, Subject

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

LOGIT_PROMPTS = 32
"""How many prompts the logits of two engines are compared on."""


def again(baseline: Subject) -> Subject:
    """The baseline with another batch size, as fast as before; a server is asked as before."""
    if not isinstance(baseline, LocalSubject):
        return baseline
    return replace(baseline, batch_size=max(1, baseline.batch_size // 3))


def self_flips(answers: pd.DataFrame, repeat: Subject, run: RunFolder, engine: str) -> dict[str, Any]:
    """Ask the baseline again, in another order, and count what changed; see `probes.flips.flips`."""
    conditions: dict[str, Any] = {"order": "shuffled"}
    if isinstance(repeat, LocalSubject):
        conditions |= {"batch_size": repeat.batch_size}
    name = "-".join([REPEAT, *(f"{value}" for key, value in conditions.items() if key != "order")])
    second = run.answers(name, repeat, engine, shuffle=1)
    return flips(answers, second) | {"conditions": conditions}


def engine_drift(
    answers: Mapping[str, pd.DataFrame], baseline: Subject, control: Subject, prompts: Sequence[list[int]] | None
) -> dict[str, Any]:
    """What the engine alone does: flips between baseline and control, and the largest difference of first-token logits.

    Args:
        answers: of `baseline` and `control`, by those names.
        baseline: the unquantized model.
        control: the same on the other engine.
        prompts: token ids of the requests; None where only a server knows them.
    """
    changed = flips(answers["baseline"], answers["control"])
    if prompts is None or not (isinstance(baseline, LocalSubject) and isinstance(control, LocalSubject)):
        return changed | {"largest_logit_difference": None, "reason": "a server does not give its logits"}
    chosen = prompts[:LOGIT_PROMPTS]
    first, second = _logits(baseline, chosen), _logits(control, chosen)
    return changed | {"largest_logit_difference": (first - second).abs().max().item(), "reason": ""}


def _logits(subject: LocalSubject, prompts: Sequence[list[int]]) -> Float[Tensor, "prompt vocab"]:
    return subject.settings.open().last_logits(prompts)


def notes(settings: Mapping[str, Any]) -> list[str]:
    """What to print below the table: how far the baseline agrees with itself, and what the engine alone does."""
    found_notes = []
    if found := settings.get("determinism"):
        found_notes.append(
            f"the baseline again (another order, another batch size): {found['n_flips']} of {found['n']} flip, "
            f"{found['n_responses_changed']} texts change"
        )
    if found := settings.get("engine_control"):
        difference = found["largest_logit_difference"]
        logits = found["reason"] if difference is None else f"first-token logits differ by up to {difference:.3g}"
        found_notes.append(
            f"the same weights on the other engine: {found['n_flips']} of {found['n']} flip, "
            f"{found['n_responses_changed']} texts change; {logits}"
        )
    return found_notes
