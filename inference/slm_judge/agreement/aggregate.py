"""One label an item from several annotators, and the raters of an item side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slm_judge.rubric import Dimension

from .alpha import Counts, Floats, Votes, numeric_values, vote_counts

Ratings = npt.NDArray[np.int64]
"""N items x M annotators: option indices, -1 where an annotator did not answer."""


def ratings_of(votes: Sequence[Mapping[str, int]]) -> tuple[Ratings, list[str]]:
    """Ratings, and the M annotators in the order of their names.

    Args:
        votes: per item, annotator -> option index.
    """
    annotators = sorted({name for row in votes for name in row})
    column = {name: m for m, name in enumerate(annotators)}
    ratings = np.full((len(votes), len(annotators)), -1, dtype=np.int64)
    for n, row in enumerate(votes):
        for name, option in row.items():
            ratings[n, column[name]] = option
    return ratings, annotators


def aggregate(votes: Votes, dimension: Dimension) -> npt.NDArray[np.int64]:
    """The annotators' aggregate label: the lower median of ordered options, else the majority.

    Of options with as many votes, the one that is more common among all votes is taken. Where more
    say that the question does not apply than give an answer, that is the label; else those who say
    so do not count.

    Args:
        votes: N items; their annotators' option indices.
        dimension: gives the options and the level of measurement.

    Returns:
        N option indices, -1 where nobody answered.
    """
    counts = vote_counts(votes, len(dimension.options))
    return _aggregate(counts, counts.sum(axis=0), dimension)


def _aggregate(counts: Counts, common: Counts, dimension: Dimension) -> npt.NDArray[np.int64]:
    """Of counts, N x V; `common` (V) decides between options with as many votes."""
    answered, n = counts.sum(axis=1) > 0, dimension.n_levels
    if n < len(dimension.options):
        beside, scale = counts[:, n:], counts[:, :n]
        off = n + (beside + common[n:] / (common.sum() + 1.0)).argmax(axis=1)
        on = _aggregate(scale, common[:n], dimension.scale)
        return np.where(beside.sum(axis=1) > scale.sum(axis=1), off, on)
    if dimension.level_of_measurement == "nominal":
        labels = (counts + common / (common.sum() + 1.0)).argmax(axis=1)
    else:
        half = (counts.sum(axis=1, keepdims=True) + 1) // 2
        labels = (counts.cumsum(axis=1) >= half).argmax(axis=1)
    return np.where(answered, labels, -1)


def aggregate_of_others(votes: Votes, dimension: Dimension) -> Floats:
    """Per item, how often an annotation was c and the `aggregate` of the item's others k.

    It is what a judge reaches that knows all of an item's annotations but the one it is compared
    with: more than an annotator, where an item has several others to make the aggregate.

    Returns:
        N x V x V; zeros where an item has fewer than two annotations.
    """
    n_options = len(dimension.options)
    counts = vote_counts(votes, n_options)
    common, found = counts.sum(axis=0), np.zeros((len(counts), n_options, n_options))
    for option, own in enumerate(np.eye(n_options, dtype=np.int64)):
        rows = np.flatnonzero((counts[:, option] > 0) & (counts.sum(axis=1) > 1))
        others = _aggregate(counts[rows] - own, common - own, dimension)
        found[rows, option, others] = counts[rows, option]
    return found


def mean_levels(votes: Votes, dimension: Dimension) -> Floats:
    """The annotators' mean value of each item (ranks where the options are no numbers), N.

    nan where nobody answered.
    """
    levels = level_values(dimension)
    counts = vote_counts(votes, len(dimension.options))
    total = counts.sum(axis=1)
    means: Floats = np.divide(
        counts @ levels, total, out=np.full(len(total), np.nan), where=total > 0
    )
    return means


def level_values(dimension: Dimension) -> Floats:
    """The options' numbers, or their ranks where they are words; nan where none applies."""
    scale = dimension.values[: dimension.n_levels]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in scale)
    found = np.full(len(dimension.options), np.nan)
    found[: len(scale)] = numeric_values(scale, "interval" if numbers else "ordinal")
    return found


def vote_shares(votes: Sequence[int], n_options: int) -> list[float]:
    """Share of the annotators who chose each option; zeros where nobody answered."""
    return [votes.count(option) / len(votes) if votes else 0.0 for option in range(n_options)]


def majority_shares(votes: Sequence[int], n_options: int) -> list[float]:
    """1 for the option with most votes, shared equally where several have as many."""
    counts = [votes.count(option) for option in range(n_options)]
    winners = [count == max(counts) and count > 0 for count in counts]
    return [won / max(sum(winners), 1) for won in winners]
