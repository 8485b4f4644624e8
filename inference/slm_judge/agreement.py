"""Agreement between annotators, and between a judge and annotators.

Krippendorff's alpha (Krippendorff, Content Analysis, 2004, ch. 11) is 1 - D_o / D_e, observed
over expected disagreement, computed by the `krippendorff` package (GPL-3.0) from counts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .errors import require
from .rubric import Dimension

Counts = npt.NDArray[np.int64]


def krippendorff_alpha(counts: npt.ArrayLike, values: Sequence[object], level: str) -> float:
    """Krippendorff's alpha.

    Args:
        counts: units x V; how many raters gave value v to unit u. Units with fewer than two
            ratings do not count.
        values: the V values; their numbers matter at the interval and ratio levels.
        level: level of measurement.

    Returns:
        Alpha, at most 1. Where all ratings are one single value, alpha is 0 / 0; no disagreement
        was observed, so it is 1 here. Where no unit has two ratings there is nothing to compare:
        nan.
    """
    table = np.asarray(counts, dtype=np.int64)
    table = table[table.sum(axis=1) >= 2]
    if len(table) == 0:
        return float("nan")
    if (table.sum(axis=0) > 0).sum() < 2:
        return 1.0
    numeric = level in ("interval", "ratio")
    domain = [float(str(v)) for v in values] if numeric else list(range(len(values)))
    krippendorff = require("krippendorff", "evaluate")
    return float(
        krippendorff.alpha(value_counts=table, value_domain=domain, level_of_measurement=level)
    )


def vote_counts(votes: Sequence[Sequence[int]], n_options: int) -> Counts:
    """Counts, units x options, of the option indices in `votes` (one list a unit)."""
    counts = np.zeros((len(votes), n_options), dtype=np.int64)
    for unit, options in enumerate(votes):
        for option in options:
            counts[unit, option] += 1
    return counts


def annotators_alpha(votes: Sequence[Sequence[int]], dimension: Dimension) -> float:
    """Alpha of the annotators among themselves.

    Args:
        votes: per item, the option indices that annotators chose.
        dimension: gives the options and the level of measurement.
    """
    counts = vote_counts(votes, len(dimension.options))
    return krippendorff_alpha(counts, dimension.values, dimension.level_of_measurement)


def judge_alpha(
    judged: Sequence[int], votes: Sequence[Sequence[int]], dimension: Dimension
) -> float:
    """Alpha of a judge against the annotators.

    Every pair (judge, annotator) of an item is a unit of two ratings, so the annotators' agreement
    with each other does not enter, and the figure compares with `annotators_alpha`, which is made
    of pairs of annotators.

    Args:
        judged: per item, the judge's option index.
        votes: per item, the annotators' option indices.
        dimension: gives the options and the level of measurement.
    """
    pairs = [
        [label, vote] for label, row in zip(judged, votes, strict=True) for vote in row
    ]  # fmt: skip
    counts = vote_counts(pairs, len(dimension.options))
    return krippendorff_alpha(counts, dimension.values, dimension.level_of_measurement)


def pair_accuracy(judged: Sequence[int], votes: Sequence[Sequence[int]]) -> float:
    """Share of (judge, annotator) pairs with the same label; nan without votes."""
    equal = [label == vote for label, row in zip(judged, votes, strict=True) for vote in row]
    return float(np.mean(equal)) if equal else float("nan")
