"""Agreement between annotators, and between a judge and annotators. Pure functions on arrays."""

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
from .bootstrap import Bootstrap, Interval
from .scores import accuracy, f1_per_option, macro_f1, pair_accuracy

__all__ = [
    "Bootstrap",
    "Interval",
    "accuracy",
    "alpha_of_coincidences",
    "annotator_coincidences",
    "annotators_alpha",
    "f1_per_option",
    "judge_alpha",
    "judge_coincidences",
    "judge_confusions",
    "krippendorff_alpha",
    "macro_f1",
    "pair_accuracy",
    "vote_counts",
]
