"""What the labels are for: how many items a study needs, and estimates for a whole corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slm_judge.errors import require

from .alpha import Floats
from .bootstrap import Interval


def items_needed(interval: Interval, n_items: int, width: float) -> int:
    """Items with which an interval would have this width, from the width that N items gave.

    Standard errors fall with the square root of the number of items.
    """
    return int(np.ceil(n_items * ((interval.high - interval.low) / width) ** 2))


def widths(interval: Interval, n_items: int, sizes: Sequence[int]) -> dict[int, float]:
    """Expected width of the interval with other numbers of items."""
    measured = interval.high - interval.low
    return {size: measured * float(np.sqrt(n_items / size)) for size in sizes}


@dataclass(frozen=True)
class CorpusMean:
    """The mean of a corpus, three ways."""

    prediction_powered: Interval
    """Judge on the whole corpus, corrected by what humans said on a part of it."""
    humans_alone: Interval
    """From the part that humans annotated."""
    judge_alone: float
    """Uncorrected, so biased by an unknown amount."""
    n_human: int
    n_judged: int


def corpus_mean(
    human: Floats, judged: Floats, unlabelled: Floats, confidence: float = 0.95
) -> CorpusMean:
    """Prediction-powered estimate of a mean, or of a share where values are 0 and 1.

    PPI++ (Angelopoulos, Duchi and Zrnic, 2023), by the `ppi-python` package: the judge's bias is
    estimated from the items that humans annotated, which must be a random sample of the corpus.
    The interval is valid however bad the judge is; it is narrow where the judge is good.

    Args:
        human: values of n items, as humans said (an item's mean over annotators).
        judged: values of the same items, as the judge said.
        unlabelled: values of N further items, as the judge said.
        confidence: coverage of the intervals.

    Raises:
        ValueError: fewer than two items have human labels, or none is without.
    """
    if len(human) < 2 or len(human) != len(judged) or not len(unlabelled):
        raise ValueError("at least two items with human labels, and one without, are needed")
    ppi = require("ppi_py", "evaluate")
    alpha = 1 - confidence
    # A judge that always says the same tells nothing; how far to trust it is 0 / 0 then.
    trust = None if np.ptp(np.concatenate([judged, unlabelled])) else 0.0
    point = ppi.ppi_mean_pointestimate(human, judged, unlabelled, lam=trust)
    powered = (point, *ppi.ppi_mean_ci(human, judged, unlabelled, alpha=alpha, lam=trust))
    classical = (human.mean(), *ppi.classical_mean_ci(human, alpha=alpha))
    return CorpusMean(
        Interval(*(float(np.squeeze(x)) for x in powered)),
        Interval(*(float(np.squeeze(x)) for x in classical)),
        float(np.concatenate([judged, unlabelled]).mean()),
        len(human),
        len(unlabelled),
    )
