"""The report's sections in order. Each is built from the run's tables, and left out where they are absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from probes.report import cause, damaged_units, flips, glossary, layers, matrix, provenance, tradeoff, verdict, wording
from probes.report.run import Run


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        key: its anchor and its template, `templates/<key>.html`.
        title: its heading.
        build: what the template shows, or None where the run lacks the tables.
    """

    key: str
    title: str
    build: Callable[[Run], Any]


SECTIONS = (
    Section("verdict", "What happened", verdict.build),
    Section("matrix", "All cells", matrix.build),
    Section("tradeoff", "Quality against refusal", tradeoff.build),
    Section("rtsi", "Wording of refusals", wording.build_index),
    Section("openings", "How refusals start", wording.build_openings),
    Section("layers", "Layer by layer", layers.build),
    Section("damage", "Most damaged units", damaged_units.build),
    Section("why", "Why", cause.build),
    Section("flips", "Flipped prompts", flips.build),
    Section("provenance", "Methods and provenance", provenance.build),
    Section("glossary", "Glossary", glossary.build),
)


def build(run: Run) -> list[tuple[Section, Any]]:
    """The sections that the run has something for."""
    built = ((section, section.build(run)) for section in SECTIONS)
    return [(section, content) for section, content in built if content is not None]
