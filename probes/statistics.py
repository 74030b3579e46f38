"""The study's statistics and ours: paired tests, pairings of quality and safety, agreement, probe and outcome."""

from probes.agreement import Agreement, agreement, regime_changes, sampling_plan
from probes.bootstrap import cluster_interval, resampled_means, resampled_rates
from probes.outcomes import against_danger, against_outcomes, cross_correlations, mann_whitney, ratio_above_one
from probes.paired import minimum_detectable_effect, paired_tests, wilson
from probes.pairings import (
    Correlation,
    Slope,
    asymmetry,
    correlate,
    leave_one_out,
    mixed_effects,
    pairing,
    pairings,
    regress,
    repeated_measures,
    sign_reversal,
    within_groups,
)

__all__ = [
    "Agreement",
    "Correlation",
    "Slope",
    "against_danger",
    "against_outcomes",
    "agreement",
    "asymmetry",
    "cluster_interval",
    "correlate",
    "cross_correlations",
    "leave_one_out",
    "mann_whitney",
    "minimum_detectable_effect",
    "mixed_effects",
    "paired_tests",
    "pairing",
    "pairings",
    "ratio_above_one",
    "regime_changes",
    "regress",
    "repeated_measures",
    "resampled_means",
    "resampled_rates",
    "sampling_plan",
    "sign_reversal",
    "wilson",
    "within_groups",
]
