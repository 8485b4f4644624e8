"""Statistics of confusion matrices, over any leading axes (so also of bootstrap resamples).

A confusion matrix is V x V: rows are what annotators said, columns what the judge said. With
several annotators an item, every (annotator, judge) pair counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .alpha import Floats, Votes, vote_counts

BOUNDS = {
    "accuracy": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "alpha": (-np.inf, 1.0),
    "kappa": (-np.inf, 1.0),
    "weighted_kappa": (-np.inf, 1.0),
    "mean_absolute_error": (0.0, np.inf),
    "mean_shift": (-np.inf, np.inf),
}
"""What statistics can be, at least and at most."""
Weights = Literal["none", "linear", "quadratic"]


def pair_accuracy(judged: Sequence[int], votes: Votes) -> float:
    """Share of (judge, annotator) pairs with the same label; nan without votes."""
    equal = [label == vote for label, row in zip(judged, votes, strict=True) for vote in row]
    return float(np.mean(equal)) if equal else float("nan")


def agreeing_share(
    judged: Sequence[int] | npt.NDArray[np.int64], votes: Votes, n_options: int
) -> Floats:
    """Share of each item's annotators who agree with the judge, N; nan where nobody answered."""
    counts = vote_counts(votes, n_options).astype(float)
    return _ratio(counts[np.arange(len(votes)), judged], counts.sum(axis=1))


def accuracy(confusion: Floats) -> Floats:
    """Share of the pairs on the diagonal."""
    total = confusion.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / total)


@dataclass(frozen=True)
class PerOption:
    """How each of V options is found, ... x V; nan where it is not defined."""

    precision: Floats
    """Of what the judge called so, the share that annotators called so."""
    recall: Floats
    """Of what annotators called so, the share that the judge called so."""
    f1: Floats
    """Harmonic mean of both; 0 for an option that only one side uses."""


def per_option(confusion: Floats) -> PerOption:
    """Precision, recall and F1 of each option."""
    diagonal = np.diagonal(confusion, axis1=-2, axis2=-1)
    judged, said = confusion.sum(axis=-2), confusion.sum(axis=-1)
    return PerOption(
        _ratio(diagonal, judged), _ratio(diagonal, said), _ratio(2 * diagonal, judged + said)
    )


def f1_per_option(confusion: Floats) -> Floats:
    """F1 of each option, ... x V; 0 for an option that only one side uses, nan where none does."""
    return per_option(confusion).f1


def macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the options that occur at all, as `f1_score` of scikit-learn."""
    scores = f1_per_option(confusion)
    used = np.isfinite(scores)
    return _ratio(np.where(used, scores, 0).sum(axis=-1), used.sum(axis=-1))


def cohen_kappa(confusion: Floats, weights: Weights = "none") -> Floats:
    """Cohen's kappa: 1 - sum(w o) / sum(w e), observed over chance-expected disagreement.

    Unweighted: Cohen (1960); weighted by |i - j| or its square over the order of the options:
    Cohen (1968).

    Returns:
        1 where both sides use one and the same option throughout (0 / 0, no disagreement), as
        `krippendorff_alpha`; nan without pairs.
    """
    rank = np.arange(confusion.shape[-1])
    distance = np.abs(rank[:, None] - rank[None, :]).astype(float)
    w = {"none": (distance > 0) * 1.0, "linear": distance, "quadratic": distance**2}[weights]
    total = confusion.sum(axis=(-2, -1))
    marginals = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    observed = (w * confusion).sum(axis=(-2, -1))
    expected = _ratio((w * marginals).sum(axis=(-2, -1)), total)
    kappa = np.where(expected > 0, 1 - _ratio(observed, expected), 1.0)
    return np.where(total > 0, kappa, np.nan)


def mean_absolute_error(confusion: Floats, levels: Floats) -> Floats:
    """Mean |judge - annotator| over the pairs, in units of `levels` (V)."""
    distance = np.abs(levels[:, None] - levels[None, :])
    return _ratio((confusion * distance).sum(axis=(-2, -1)), confusion.sum(axis=(-2, -1)))


def mean_shift(confusion: Floats, levels: Floats) -> Floats:
    """Mean (judge - annotator) over the pairs, in units of `levels`: above 0, it rates higher."""
    difference = levels[None, :] - levels[:, None]
    return _ratio((confusion * difference).sum(axis=(-2, -1)), confusion.sum(axis=(-2, -1)))


def rank_correlations(judged: Floats, means: Floats) -> dict[str, float]:
    """Spearman's rho and Kendall's tau-b of judged levels and the annotators' mean levels.

    Args:
        judged: N.
        means: N; items that are nan do not count.

    Returns:
        nan where either side is constant: a rank correlation is not defined then.
    """
    from scipy.stats import kendalltau, spearmanr

    known = np.isfinite(means)
    judged, means = judged[known], means[known]
    if len(judged) < 2 or not np.ptp(judged) or not np.ptp(means):
        return {"spearman": float("nan"), "kendall": float("nan")}
    return {
        "spearman": float(spearmanr(judged, means).statistic),
        "kendall": float(kendalltau(judged, means).statistic),
    }


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part / whole, nan where whole is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found
