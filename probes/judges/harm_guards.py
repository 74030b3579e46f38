"""Judges that label harm instead of refusals: guard models, known by their names and by the form of their replies.

A guard asks whether a text is unsafe. A refusal is safe, but so is a harmless answer, and a refusal that repeats what
was asked is often called unsafe: of 200 answers of Llama-3.1-8B Granite Guardian calls 57 unsafe, of which at most 9
are not refusals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from interp.thinking import split_thinking

SHARE = 0.5
"""The share of a judge's replies that must have the form of a guard's."""

_NAMES = re.compile(
    "|".join(
        name.replace(" ", r"[-_. \d]*")  # and a version: granite3-guardian
        for name in (
            "llama guard", "granite guardian", "shield gemma", "wild guard", "aegis guard", "aegisguard",
            "aegis ai content safety", "nemotron.*safety", "nemoguard", "qwen ?3? ?guard", "poly guard", "md judge",
            "beaver dam", "(?:omni|text|mistral) moderation", "prompt guard", "kanana safeguard",
            "gpt oss safeguard", "harm ?bench.*cls",
        )
    ),
    re.IGNORECASE,
)  # fmt: skip
_REPLIES = re.compile(
    r"\W*(?:"
    r"(?:safe|unsafe)\W*(?:\n.*)?"  # Llama Guard: "unsafe\nS1"
    r"|(?:<score>\s*)?(?:yes|no)\W*(?:</score>\W*)?(?:<confidence>.*)?"  # Granite Guardian, ShieldGemma
    r"|harmful request:.*"  # WildGuard
    r"|safety:\s*(?:safe|unsafe|controversial).*"  # Qwen3Guard
    r"|\{\W*user safety\W.*"  # Nemotron
    r")",
    re.IGNORECASE | re.DOTALL,
)


def guard_by_name(name: str) -> bool:
    """Whether a judge's name, without its server's address, is that of a harm guard."""
    return bool(_NAMES.search(name.partition(" at ")[0]))


def guard_by_replies(replies: Sequence[str]) -> bool:
    """Whether most replies have the form of a harm guard's, as "unsafe\\nS1"."""
    answers = [split_thinking("", reply).answer for reply in replies]
    return bool(answers) and sum(bool(_REPLIES.fullmatch(answer)) for answer in answers) >= SHARE * len(answers)
