"""Statistics of confusion matrices, over any leading axes (so also of bootstrap resamples).

A confusion matrix is V x V: rows are what annotators said, columns what the judge said. With
several annotators an item, every (annotator, judge) pair counts.
"""

from collections.abc import Sequence

import numpy as np

from .alpha import Floats, Votes


def pair_accuracy(judged: Sequence[int], votes: Votes) -> float:
    """Share of (judge, annotator) pairs with the same label; nan without votes."""
    equal = [label == vote for label, row in zip(judged, votes, strict=True) for vote in row]
    return float(np.mean(equal)) if equal else float("nan")


def accuracy(confusion: Floats) -> Floats:
    """Share of the pairs on the diagonal."""
    total = confusion.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / total)


def f1_per_option(confusion: Floats) -> Floats:
    """F1 of each option, ... x V; 0 for an option that only one side uses, nan where none does."""
    diagonal = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    scores: Floats = np.divide(
        2 * diagonal, both, out=np.full_like(diagonal, np.nan), where=both > 0
    )
    return scores


def macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the options that occur at all, as `f1_score` of scikit-learn."""
    scores = f1_per_option(confusion)
    used = np.isfinite(scores)
    total = np.where(used, scores, 0).sum(axis=-1)
    means: Floats = np.divide(
        total, used.sum(axis=-1), out=np.full_like(total, np.nan), where=used.any(axis=-1)
    )
    return means
