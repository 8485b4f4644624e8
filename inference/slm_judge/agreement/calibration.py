"""Whether probabilities mean what they say, and what is left when unsure answers are put aside.

In shapes, N is the number of items and V that of the options of a dimension. Targets are vote
shares, so with one annotator an item they are one-hot and all figures are the usual ones.
"""

from dataclasses import dataclass

import numpy as np

from .alpha import Floats


@dataclass(frozen=True)
class Bin:
    """Items of about the same confidence."""

    n: int
    confidence: float
    """Their mean."""
    accuracy: float
    """Mean share of the annotators who agree with the label."""


def brier_score(probabilities: Floats, shares: Floats) -> float:
    """Mean squared distance of probabilities and vote shares, summed over options (Brier, 1950).

    Args:
        probabilities: N x V.
        shares: N x V.

    Returns:
        Between 0 and 2; nan without items.
    """
    if not len(shares):
        return float("nan")
    return float(np.square(probabilities - shares).sum(axis=1).mean())


def cross_entropy(probabilities: Floats, shares: Floats) -> float:
    """Mean log loss of vote shares, in nats: -sum(shares log p); nan without items."""
    if not len(shares):
        return float("nan")
    return float(-(shares * np.log(probabilities.clip(1e-12))).sum(axis=1).mean())


def reliability(confidence: Floats, agreement: Floats, n_bins: int = 10) -> list[Bin]:
    """Bins with as many items each, by confidence (Nguyen and O'Connor, 2015).

    Args:
        confidence: N, the probability of the label.
        agreement: N, the share of the annotators who agree with the label.
        n_bins: fewer where there are fewer items.
    """
    order = np.argsort(confidence, kind="stable")
    return [
        Bin(len(rows), float(confidence[rows].mean()), float(agreement[rows].mean()))
        for rows in np.array_split(order, min(n_bins, len(order)) or 1)
        if len(rows)
    ]


def expected_calibration_error(confidence: Floats, agreement: Floats, n_bins: int = 10) -> float:
    """Mean |accuracy - confidence| over bins with as many items each.

    ECE is by Naeini et al. (2015); equal-mass bins estimate it with less bias than equal-width
    ones (Roelofs et al., 2022). nan without items.
    """
    bins = reliability(confidence, agreement, n_bins)
    if not bins:
        return float("nan")
    gaps = [b.n * abs(b.accuracy - b.confidence) for b in bins]
    return float(sum(gaps) / len(confidence))


@dataclass(frozen=True)
class RiskCoverage:
    """What keeping only answers with at least a confidence does; C thresholds, descending."""

    threshold: Floats
    """Smallest confidence that is kept."""
    coverage: Floats
    """Share of the items that are kept."""
    risk: Floats
    """Mean error of those."""

    @property
    def area(self) -> float:
        """Area under the curve, mean risk over coverages (AURC; Geifman and El-Yaniv, 2017)."""
        steps = np.diff(self.coverage, prepend=0.0)
        return float((self.risk * steps).sum())


def risk_coverage(confidence: Floats, errors: Floats) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv and Wiener, 2010).

    Args:
        confidence: N.
        errors: N, between 0 (right) and 1 (wrong).
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, wrong = confidence[order], errors[order].cumsum()
    # Items with one confidence are kept or put aside together.
    last = (
        np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(ranked) else np.array([], int)
    )
    kept = last + 1.0
    return RiskCoverage(ranked[last], kept / max(len(ranked), 1), wrong[last] / kept)


@dataclass(frozen=True)
class Threshold:
    """A confidence below which a human should look."""

    confidence: float
    """Keep answers with at least this; above 1 where no threshold reaches the target."""
    coverage: float
    risk: float
    """Error of what is kept, as measured."""
    risk_upper: float
    """Upper 95 % limit of that error (Clopper and Pearson, 1934)."""


def choose_threshold(confidence: Floats, errors: Floats, target: float) -> Threshold:
    """The threshold that keeps most answers with an error of at most `target` on these items.

    Args:
        confidence: N.
        errors: N, 0 (right) or 1 (wrong).
        target: largest error that is accepted among the answers that are kept.

    Returns:
        With coverage 0 where even the surest answers have more errors.
    """
    from scipy.stats import beta

    curve = risk_coverage(confidence, errors)
    fits = np.flatnonzero(curve.risk <= target + 1e-12)
    if not len(fits):
        return Threshold(float("inf"), 0.0, float("nan"), float("nan"))
    best = fits[-1]
    kept = round(float(curve.coverage[best]) * len(confidence))
    wrong = int(np.ceil(float(curve.risk[best]) * kept - 1e-9))
    upper = 1.0 if wrong >= kept else float(beta.ppf(0.95, wrong + 1, kept - wrong))
    return Threshold(
        float(curve.threshold[best]), float(curve.coverage[best]), float(curve.risk[best]), upper
    )
