"""What Inspect finds through the entry point: the provider `quantscope/PATH` and the tasks. torch is imported late."""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi

from probes.refusal.question_tasks import bias, truthfulness
from probes.refusal.tasks import jailbreak, over_refusal, refusal

__all__ = ["bias", "jailbreak", "over_refusal", "quantscope", "refusal", "truthfulness"]


@modelapi(name="quantscope")
def quantscope() -> type[ModelAPI]:
    """A local checkpoint of any format; see `probes.refusal.inspect_provider`."""
    from probes.refusal.inspect_provider import CheckpointAPI

    return CheckpointAPI
