"""Whether probabilities mean what they say, and what is left when unsure answers are put aside.

In shapes, N is the number of items and V that of the options of a dimension. Targets are vote
shares, so with one annotator an item they are one-hot and all figures are the usual ones.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from . import LEVEL as LEVEL
from .alpha import Floats
from .compare import independent_items

_DRAWS = 1000  # of what noise alone adds to a calibration error


@dataclass(frozen=True)
class Bin:
    """Items of about the same confidence."""

    n: int
    confidence: float
    """Their mean."""
    accuracy: float
    """Mean share of the annotators who agree with the label."""


def brier_score(probabilities: Floats, shares: Floats) -> float:
    """Mean squared distance of probabilities and single votes, summed over options (Brier, 1950).

    Each vote of an item is compared with the probabilities, and items count alike. The distance to
    the vote share would fall with the number of votes, whatever the judge; this one does not, nor
    does `cross_entropy`, which is linear in the shares.

    Args:
        probabilities: N x V.
        shares: N x V.

    Returns:
        Between 0 and 2; nan without items.
    """
    if not len(shares):
        return float("nan")
    of_shares = np.square(probabilities - shares).sum(axis=1)
    return float((of_shares + 1 - np.square(shares).sum(axis=1)).mean())


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
class CalibrationError:
    """The expected calibration error of equal-mass bins, and what it would be by chance."""

    estimate: float
    low: float
    """95 % interval of the error of these bins with any number of items."""
    high: float
    perfect: float
    """What a judge with these confidences would show on as many items if they were right."""

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def calibration_error(
    confidence: Floats,
    agreement: Floats,
    votes: npt.NDArray[np.int64],
    n_bins: int = 10,
    groups: Sequence[Hashable] | None = None,
) -> CalibrationError:
    """The expected calibration error, which is above 0 for every judge on few items.

    Consistency resampling (Broecker and Smith, 2007) gives what a perfect judge would show: the
    gaps of its bins are drawn with the variance that votes have when confidences are right, where
    votes of one item go together as much as they do here (as in a beta-binomial). The interval
    inverts tests on the gaps: by the triangle inequality the error is at least the estimate minus
    what noise alone adds up to; and it is at most the one that, spread alike over the bins (by
    Jensen's inequality the way in which it shows least), would give as small an estimate in 2.5 %.

    Args:
        confidence: N, the probability of the label.
        agreement: N, the share of the annotators who agree with the label.
        votes: N, the number of these annotators.
        n_bins: fewer where there are fewer items.
        groups: what each of N items belongs to, by default to itself; where they are alike in what
            confidence does not explain, noise is that of `independent_items`.

    Returns:
        nan without items.
    """
    n, b = len(confidence), min(n_bins, len(confidence))
    if not n:
        return CalibrationError(*[float("nan")] * 4)
    bins, order = np.empty(n, dtype=int), np.argsort(confidence, kind="stable")
    for k, rows in enumerate(np.array_split(order, b)):
        bins[rows] = k
    size = np.bincount(bins)
    gaps = np.bincount(bins, agreement - confidence) / size
    estimate = expected_calibration_error(confidence, agreement, n_bins)
    rest, spread = np.square(agreement - confidence - gaps[bins]), confidence * (1 - confidence)
    among = float((spread * (1 - 1 / votes)).sum())
    excess = float(rest.sum() * n / max(n - b, 1) - (spread / votes).sum())
    together = min(max(excess / among, 0.0), 1.0) if among > 1e-9 else 0.0
    of_perfect = np.bincount(bins, spread * (1 / votes + (1 - 1 / votes) * together)) / size**2
    own = np.bincount(bins, rest) / size / np.maximum(size - 1, 1)
    drawn = np.random.default_rng(0).standard_normal((_DRAWS, b))
    worth = n if groups is None else independent_items(agreement - confidence - gaps[bins], groups)
    drawn *= np.sqrt(n / worth)
    perfect = np.abs(drawn * np.sqrt(of_perfect)) @ size / n
    noise = drawn * np.sqrt(np.maximum(of_perfect, own))
    low = estimate - float(np.quantile(np.abs(noise) @ size / n, 0.975))
    least, most = estimate, 1.0
    while most - least > 1e-4:
        middle = (least + most) / 2
        shown = float(np.quantile(np.abs(middle + noise) @ size / n, 0.025))
        least, most = (middle, most) if shown <= estimate else (least, middle)
    return CalibrationError(estimate, max(low, 0.0), most, float(perfect.mean()))


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

    It is an estimate: on new items the error exceeds the target about as often as not, since the
    threshold is chosen where these items happen to have few errors. `guaranteed_threshold` does
    not.

    Args:
        confidence: N.
        errors: N, 0 (right) or 1 (wrong).
        target: largest error that is accepted among the answers that are kept.

    Returns:
        With coverage 0 where even the surest answers have more errors.
    """
    curve = risk_coverage(confidence, errors)
    fits = np.flatnonzero(curve.risk <= target + 1e-12)
    return _at(float(curve.threshold[fits[-1]]) if len(fits) else np.inf, confidence, errors)


def threshold_sequence(
    confidence: Floats, errors: Floats, target: float, step: float = 0.01
) -> Floats:
    """Thresholds in the order in which `guaranteed_threshold` is to test them on other items.

    From the one that these items speak for most clearly (least p-value), downwards in steps.

    Args:
        confidence: N, of items that are not those of the test.
        errors: N, 0 (right) or 1 (wrong).
        target: largest error that is accepted among the answers that are kept.
        step: what confidences are rounded to.
    """
    curve = risk_coverage(confidence, errors)
    kept = np.round(curve.coverage * len(confidence))
    p = _p_values(np.round(curve.risk * kept), kept, target)
    first = round(float(curve.threshold[p.argmin()]) / step) if len(p) else 0
    return np.arange(first, -1, -1).astype(float) * step


def guaranteed_threshold(
    sequence: Floats,
    confidence: Floats,
    errors: Floats,
    target: float,
    level: float = LEVEL,
    groups: Sequence[Hashable] | None = None,
) -> Threshold:
    """The last threshold of a sequence up to which all are shown to hold an error of `target`.

    Learn then test (Angelopoulos et al., 2021, arXiv 2110.01052) by fixed sequence testing: each
    threshold is tested with the exact binomial tail of its errors among the items that it keeps,
    and the first that fails ends it. So with probability `level`, over the items, the threshold's
    error on items drawn like them is at most the target, however confidence and errors are related.

    Args:
        sequence: thresholds in the order of testing, chosen without these items.
        confidence: N, of independent items.
        errors: N, 0 (right) or 1 (wrong).
        target: largest error that is accepted among the answers that are kept.
        level: of the guarantee.
        groups: what each of N items belongs to, by default to itself; those of groups count as as
            many as they are worth (`independent_items`), which holds in good approximation alone.

    Returns:
        With coverage 0 where the first one fails.
    """
    keeps = confidence[None, :] >= sequence[:, None] - 1e-9
    wrong, kept = keeps @ errors, keeps.sum(axis=1)
    if groups is not None:
        owner = np.unique([str(group) for group in groups], return_inverse=True)[1]
        worth = [independent_items(errors[row], owner[row]) for row in keeps]
        wrong, kept = np.ceil(wrong * worth / np.maximum(kept, 1)), np.floor(worth)
    p = _p_values(wrong, kept, target)
    failed = np.flatnonzero(p > 1 - level)
    passed = failed[0] if len(failed) else len(sequence)
    return _at(float(sequence[passed - 1]) if passed else np.inf, confidence, errors)


def items_to_guarantee(
    risk: float, coverage: float, target: float, level: float = LEVEL
) -> int | None:
    """About how many items would guarantee a threshold with such a risk and coverage.

    Returns:
        None where no number would, or more than a hundred million of those that are kept.
    """
    if not risk < target or not coverage > 0:
        return None
    kept = np.unique(np.geomspace(1, 10**8, 4000).round())
    enough = np.flatnonzero(_p_values(np.ceil(risk * kept - 1e-9), kept, target) <= 1 - level)
    return int(np.ceil(kept[enough[0]] / coverage)) if len(enough) else None


def _p_values(wrong: Floats, kept: Floats, target: float) -> Floats:
    """Of the hypothesis that more than `target` of what is kept is wrong; 1 where nothing is."""
    from scipy.stats import binom

    return np.where(kept > 0, binom.cdf(wrong, kept, target), 1.0)


def _at(threshold: float, confidence: Floats, errors: Floats) -> Threshold:
    """What a threshold does on items."""
    from scipy.stats import beta

    keeps = confidence >= threshold - 1e-9
    kept, wrong = int(keeps.sum()), int(np.ceil(errors[keeps].sum() - 1e-9))
    if not kept:
        return Threshold(float("inf"), 0.0, float("nan"), float("nan"))
    upper = 1.0 if wrong >= kept else float(beta.ppf(0.95, wrong + 1, kept - wrong))
    return Threshold(threshold, kept / len(confidence), float(errors[keeps].mean()), upper)
