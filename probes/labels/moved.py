"""Did the refusals move, or their wording? The change that an outcome counts beside the change of the study's openings.

A cell that begins its refusals in other words loses "refusals" that only a list of openings has lost; and a cell that
says "I'm sorry, but here is …" keeps openings that refuse nothing. Both lexicons read the same answers, so the
difference of the two changes is paired, prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from interp.errors import InputError
from probes.labels.refused import REFUSED_COLUMN, STUDY_COLUMN, by_cell
from probes.stats.intervals import ALPHA, CONFIDENCE, TOLERANCE, Estimate, interval_columns
from probes.stats.paired_tests import mcnemar_p

Outcomes = Bool[np.ndarray, "_"]
"""[prompts] of a baseline or a cell."""
SMALL = 0.25
"""Refusals that moved by more than this share of the openings' change may have moved, whatever few prompts show."""
COLUMN = "lexicons_disagree"
"""The column that holds the sentence, or ""."""


class Moved(NamedTuple):
    """Two counts of the same answers' refusals, and how far they moved, cell − baseline.

    Attributes:
        n: prompts.
        outcome: change of the refusal rate, as a fraction.
        study: change of the share of answers with one of the study's openings.
        difference: study − outcome, paired, with its 95 % interval.
        words: what moved, in words; "" where the two counts agree.
    """

    n: int
    outcome: float
    study: float
    difference: Estimate
    words: str

    def said(self, counted_by: str) -> str:
        """The sentence with its numbers, naming who decided the outcome; "" where the two counts agree."""
        if not self.words:
            return ""
        low, high = _points(self.difference.low), _points(self.difference.high)
        bounds = "" if np.isnan(self.difference.low) else f" [{low}, {high}]"
        return (
            f"{self.words}: {_points(self.study)} points by the study's openings, {_points(self.outcome)} by the "
            f"outcome ({counted_by}), difference {_points(self.difference.value)}{bounds} over {self.n} prompts"
        )

    def columns(self, counted_by: str) -> dict[str, float | str]:
        """For a table: refusal_rate_study_lexicon_delta, lexicon_difference (_low, _high), lexicons_disagree."""
        return {
            "refusal_rate_study_lexicon_delta": self.study,
            **interval_columns("lexicon_difference", self.difference),
            COLUMN: self.said(counted_by),
        }


def moved(
    outcome: tuple[Outcomes, Outcomes], study: tuple[Outcomes, Outcomes], self_flip_rate: float = np.nan
) -> Moved:
    """Compare what an outcome and the study's openings say of a cell's change.

    The two disagree where the interval of the difference excludes 0, or where the difference exceeds the share of
    prompts on which the baseline flips against itself. Whether one of them moved at all is McNemar's exact test, and a
    change no larger than the baseline's own flips did not.

    Args:
        outcome: whether baseline and cell refused each prompt.
        study: the same by the study's lexicon, on the same prompts.
        self_flip_rate: share of prompts on which the baseline, asked again, flips; NaN where it was not asked again.

    Raises:
        InputError: different numbers of prompts.
    """
    sizes = {len(outcomes) for outcomes in (*outcome, *study)}
    if len(sizes) > 1:
        raise InputError(f"Outcomes of {sorted(sizes)} prompts", "both counts of the same prompts in baseline and cell")
    n = sizes.pop()
    if n == 0:
        return Moved(0, np.nan, np.nan, Estimate(np.nan), "")
    changes = [cell.astype(float) - baseline.astype(float) for baseline, cell in (outcome, study)]
    by_outcome, by_study = (float(change.mean()) for change in changes)
    difference = difference_interval(changes[1] - changes[0])
    beyond_flips = abs(difference.value) > self_flip_rate + TOLERANCE
    words = ""
    if beyond_flips or difference.low > 0 or difference.high < 0:
        outcome_moved, study_moved = (_direction(change, self_flip_rate) for change in changes)
        sure = difference.low > 0 or difference.high < 0
        words = _words(by_outcome, by_study, outcome_moved, study_moved, sure)
    return Moved(n, by_outcome, by_study, difference, words)


def difference_interval(differences: Float[np.ndarray, " prompts"]) -> Estimate:
    """Mean of a paired difference of two changes, each −1, 0 or 1 a prompt, with a 95 % interval.

    Bonett and Price's (2012) adjusted interval for paired proportions: the interval is that of the values with one
    difference of +1 and one of −1 added, here with Student's t, so that it has a width where all prompts agree and few
    prompts exclude nothing. Source: Journal of Educational and Behavioral Statistics 37, 479–488.
    """
    added = np.concatenate([differences, [1.0, -1.0]])
    centre, spread = float(added.mean()), float(added.std() / np.sqrt(len(added)))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(added) - 1)) * spread
    return Estimate(float(differences.mean()), centre - half, centre + half)


def _direction(change: Float[np.ndarray, " prompts"], self_flip_rate: float) -> int:
    """−1 where it fell, 1 where it rose, 0 where chance or the baseline's own flips explain it."""
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    within_flips = abs(change.mean()) <= self_flip_rate + TOLERANCE
    return 0 if within_flips or mcnemar_p(lost, gained) >= ALPHA else int(np.sign(gained - lost))


def _words(outcome: float, study: float, outcome_moved: int, study_moved: int, sure: bool) -> str:
    fell = {-1: "fell", 1: "rose"}
    if outcome_moved == study_moved == 0:
        return "the wording and the refusals moved apart, neither by more than chance explains"
    if outcome_moved == 0:
        if abs(outcome) <= SMALL * abs(study) + TOLERANCE:
            return "the wording moved, not the refusals"
        return "the wording moved; whether the refusals did, these prompts cannot tell"
    if study_moved == 0:
        return f"the refusals {fell[outcome_moved]}, and their openings do not show it"
    if outcome_moved != study_moved:
        return f"the refusals {fell[outcome_moved]} while their openings {fell[study_moved]}"
    if not sure:
        return f"the refusals and their openings {fell[outcome_moved]}; whether one by more, these prompts cannot tell"
    if abs(study) > abs(outcome):
        return f"the refusals {fell[outcome_moved]}, but by less than their openings: the wording moved, too"
    return f"the refusals {fell[outcome_moved]}, and by more than their openings show"


def moved_by_cell(completions: pd.DataFrame, baseline: str, prompts: str = "harmful") -> dict[str, Moved]:
    """Cell → what moved, over the prompts that both counts have of it and of the baseline.

    Args:
        completions: of a study, with `refused` and `refused_study_lexicon`.
        baseline: its name.
        prompts: "harmful" or "harmless".
    """
    counts = [by_cell(completions, prompts, column) for column in (REFUSED_COLUMN, STUDY_COLUMN)]
    return {cell: moved(*_all_scored(baseline, cell, counts)) for cell in counts[0]}


def _all_scored(
    baseline: str, cell: str, counts: Sequence[dict[str, pd.Series]]
) -> tuple[tuple[Outcomes, Outcomes], tuple[Outcomes, Outcomes]]:
    """Baseline and cell by either count, on the prompts that are scored in all four."""
    columns = [count[name] for count in counts for name in (baseline, cell)]
    a, b, c, d = pd.concat(columns, axis=1, join="inner").dropna().to_numpy(dtype=bool).T
    return (a, b), (c, d)


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")
