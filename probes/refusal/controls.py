"""What a drift is held against: the baseline asked again, and the same weights on another engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import pandas as pd

from probes.harness.names import REPEAT
from probes.labels.label import REFUSED
from probes.labels.per_prompt import SAMPLE, per_prompt
from probes.refusal.run import BehaviourRun
from probes.refusal.settings import EngineName
from probes.refusal.subjects import LocalSubject, Subject
from probes.stats.intervals import interval_columns, rate_interval

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


LOGIT_PROMPTS = 32
"""How many prompts the logits of two engines are compared on."""


def again(baseline: Subject) -> Subject:
    """The baseline with another batch size, as fast as before; a server, which makes its own, is asked as before."""
    if not _batched_here(baseline):
        return baseline
    return replace(baseline, batch_size=max(1, baseline.batch_size // 3))


def _batched_here(subject: Subject) -> TypeGuard[LocalSubject]:
    return isinstance(subject, LocalSubject) and subject.settings.engine is not EngineName.VLLM


def self_flips(answers: pd.DataFrame, repeat: Subject, run: BehaviourRun, engine: str) -> dict[str, Any]:
    """Ask the baseline again, in another order, and count what changed; see `probes.refusal.controls.flips`."""
    conditions: dict[str, Any] = {"order": "shuffled"}
    if _batched_here(repeat):
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
    if prompts is None or not all(map(_batched_here, (baseline, control))):
        return changed | {"largest_logit_difference": None, "reason": "a server does not give its logits"}
    logit_prompts = prompts[:LOGIT_PROMPTS]
    first, second = (_logits(each, logit_prompts) for each in (baseline, control))
    return changed | {"largest_logit_difference": (first - second).abs().max().item(), "reason": ""}


def _logits(subject: Subject, prompts: Sequence[list[int]]) -> Float[Tensor, "prompt vocab"]:
    assert isinstance(subject, LocalSubject)
    return subject.settings.open().last_logits(prompts)


def notes(settings: Mapping[str, Any]) -> list[str]:
    """What to print below the table: how far the baseline agrees with itself, and what the engine alone does."""
    found_notes = []
    if repeat := settings.get("determinism"):
        found_notes.append(
            f"the baseline again ({_changed(repeat['conditions'])}): {repeat['n_flips']} of {repeat['n']} flip, "
            f"{repeat['n_responses_changed']} texts change"
        )
    if control := settings.get("engine_control"):
        difference = control["largest_logit_difference"]
        logits = control["reason"] if difference is None else f"first-token logits differ by up to {difference:.3g}"
        found_notes.append(
            f"the same weights on the other engine: {control['n_flips']} of {control['n']} flip, "
            f"{control['n_responses_changed']} texts change; {logits}"
        )
    return found_notes


def _changed(conditions: Mapping[str, Any]) -> str:
    return "another order, another batch size" if "batch_size" in conditions else "another order"


def flips(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """Compare the outcomes of two runs on the prompts that both have; several answers to one prompt count once.

    Returns:
        n: pairs; n_flips and flip_rate (with its Wilson interval): refused in one and not in the other;
        n_responses_changed: texts that are not the same.
    """
    first, second = per_prompt(first), per_prompt(second, like=first)
    pairs = first.merge(second, on=SAMPLE, suffixes=("_first", "_second"), validate="one_to_one")
    refused = [pairs[f"label_{side}"].isin(list(REFUSED)).to_numpy() for side in ("first", "second")]
    flipped = refused[0] != refused[1]
    return {
        "n": len(pairs),
        "n_flips": int(flipped.sum()),
        **interval_columns("flip_rate", rate_interval(flipped)),
        "n_responses_changed": int((pairs["response_first"] != pairs["response_second"]).sum()),
    }
