"""Krippendorff's alpha: among annotators, and of a judge against them.

Alpha (Krippendorff, Content Analysis, 2004, ch. 11; "Computing Krippendorff's Alpha-Reliability",
2011) is 1 - D_o / D_e, observed over expected disagreement. A figure that is reported comes from
the `krippendorff` package (GPL-3.0); `alpha_of_coincidences` gives the same for thousands of
bootstrap resamples at once.

In shapes, N is the number of items and V that of the options of a dimension.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slm_judge.errors import require
from slm_judge.rubric import Dimension

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Votes = Sequence[Sequence[int]]
"""Per item, the option indices that annotators chose."""


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
    krippendorff = require("krippendorff", "evaluate")
    return float(
        krippendorff.alpha(
            value_counts=table,
            value_domain=numeric_values(values, level).tolist(),
            level_of_measurement=level,
        )
    )


def numeric_values(values: Sequence[object], level: str) -> Floats:
    """The values as numbers where the level needs them, else their ranks."""
    numeric = level in ("interval", "ratio")
    return np.array([float(str(v)) for v in values] if numeric else range(len(values)), float)


def vote_counts(votes: Votes, n_options: int) -> Counts:
    """Counts, units x options, of the option indices in `votes` (one list a unit)."""
    counts = np.zeros((len(votes), n_options), dtype=np.int64)
    for unit, options in enumerate(votes):
        for option in options:
            counts[unit, option] += 1
    return counts


def annotators_alpha(votes: Votes, dimension: Dimension) -> float:
    """Alpha of the annotators among themselves.

    It is also what an annotator, taken as the judge, reaches against the rest; a judge can reach
    more (`aggregate_of_others`).
    Every ordered pair of annotators of an item is then a (judge, annotator) pair, and alpha's own
    weight 1 / (m - 1) lets an item with m annotators weigh as in `judge_alpha`.

    Args:
        votes: per item, the option indices that annotators chose.
        dimension: gives the options and the level of measurement.
    """
    counts = vote_counts(votes, len(dimension.options))
    return krippendorff_alpha(counts, dimension.values, dimension.level_of_measurement)


def judge_alpha(judged: Sequence[int], votes: Votes, dimension: Dimension) -> float:
    """Alpha of a judge against the annotators.

    Every pair (judge, annotator) of an item is a unit of two ratings, so the annotators' agreement
    with each other does not enter, and the figure compares with `annotators_alpha`, which is made
    of pairs of annotators.

    Args:
        judged: per item, the judge's option index; -1 where it has none, which makes no pair.
        votes: per item, the annotators' option indices.
        dimension: gives the options and the level of measurement.
    """
    pairs = [[label, vote] for label, row in zip(judged, votes, strict=True) for vote in row
             if label >= 0]  # fmt: skip
    counts = vote_counts(pairs, len(dimension.options))
    return krippendorff_alpha(counts, dimension.values, dimension.level_of_measurement)


def annotator_coincidences(votes: Votes, n_options: int) -> Floats:
    """Coincidences of each item, N x V x V: o_ck = n_c (n_k - [c = k]) / (m - 1).

    Their sum over items is Krippendorff's matrix of observed coincidences.
    """
    counts = vote_counts(votes, n_options).astype(float)
    pairs: Floats = counts[:, :, None] * counts[:, None, :]
    pairs[:, range(n_options), range(n_options)] -= counts
    pairs /= np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None]
    return pairs


def judge_coincidences(judged: Sequence[int], votes: Votes, n_options: int) -> Floats:
    """Coincidences of each item's (judge, annotator) pairs, N x V x V, in both orders."""
    confusion = judge_confusions(judged, votes, n_options)
    return confusion + confusion.transpose(0, 2, 1)


def judge_confusions(judged: Sequence[int], votes: Votes, n_options: int) -> Floats:
    """Per item, how often annotators said c where the judge said k (not -1), N x V x V."""
    confusion, labels = np.zeros((len(votes), n_options, n_options)), np.asarray(judged, dtype=int)
    counts = vote_counts(votes, n_options) * (labels >= 0)[:, None]
    confusion[np.arange(len(votes)), :, labels] = counts
    return confusion


def alpha_of_coincidences(coincidences: Floats, values: Sequence[object], level: str) -> Floats:
    """Alpha of matrices of observed coincidences.

    Args:
        coincidences: ... x V x V, e.g. a matrix per bootstrap resample.
        values: the V values.
        level: level of measurement.

    Returns:
        ... alphas; 1 where only one value occurs and nan where nothing does, as
        `krippendorff_alpha`.
    """
    marginals = coincidences.sum(axis=-1)
    total = marginals.sum(axis=-1)
    distance = _squared_distance(marginals, numeric_values(values, level), level)
    observed = (coincidences * distance).sum(axis=(-2, -1))
    expected = (marginals[..., :, None] * marginals[..., None, :] * distance).sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = 1 - (total - 1) * observed / expected
    return np.where(total == 0, np.nan, np.where(expected > 0, alpha, 1.0))


def _squared_distance(marginals: Floats, values: Floats, level: str) -> Floats:
    """delta^2 between values, V x V or, at the ordinal level, ... x V x V."""
    if level == "ordinal":
        # Ranks: half of the own ratings lie below each value.
        middle = marginals.cumsum(axis=-1) - marginals / 2
        ranks: Floats = np.square(middle[..., :, None] - middle[..., None, :])
        return ranks
    difference: Floats = values[:, None] - values[None, :]
    if level == "nominal":
        difference = (difference != 0).astype(np.float64)
    elif level == "ratio":
        total = np.abs(values[:, None] + values[None, :])
        difference = np.divide(difference, total, out=np.zeros_like(difference), where=total > 0)
    squared: Floats = np.square(difference)
    return squared
