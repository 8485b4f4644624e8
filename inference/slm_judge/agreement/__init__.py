"""Agreement between annotators, and between a judge and annotators. Pure functions on arrays."""

from .aggregate import aggregate, level_values, mean_levels, ratings_of
from .alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    annotators_alpha,
    judge_alpha,
    judge_coincidences,
    judge_confusions,
    krippendorff_alpha,
    vote_counts,
)
from .alt_test import EPSILON, AltTest, alt_test
from .bias import Probe, adjusted, probe_groups, quarters
from .bootstrap import Bootstrap, Interval, percentile_interval
from .calibration import (
    brier_score,
    choose_threshold,
    cross_entropy,
    expected_calibration_error,
    reliability,
    risk_coverage,
)
from .compare import Difference, difference, paired_difference
from .estimate import corpus_mean, items_needed, widths
from .scores import (
    accuracy,
    agreeing_share,
    cohen_kappa,
    f1_per_option,
    macro_f1,
    mean_absolute_error,
    mean_shift,
    pair_accuracy,
    per_option,
    rank_correlations,
)

__all__ = [
    "EPSILON",
    "AltTest",
    "Bootstrap",
    "Difference",
    "Interval",
    "Probe",
    "accuracy",
    "adjusted",
    "aggregate",
    "agreeing_share",
    "alpha_of_coincidences",
    "alt_test",
    "annotator_coincidences",
    "annotators_alpha",
    "brier_score",
    "choose_threshold",
    "cohen_kappa",
    "corpus_mean",
    "cross_entropy",
    "difference",
    "expected_calibration_error",
    "f1_per_option",
    "items_needed",
    "judge_alpha",
    "judge_coincidences",
    "judge_confusions",
    "krippendorff_alpha",
    "level_values",
    "macro_f1",
    "mean_absolute_error",
    "mean_levels",
    "mean_shift",
    "pair_accuracy",
    "paired_difference",
    "per_option",
    "percentile_interval",
    "probe_groups",
    "quarters",
    "rank_correlations",
    "ratings_of",
    "reliability",
    "risk_coverage",
    "vote_counts",
    "widths",
]
