"""Percentile bootstrap over items, for statistics of sums over items.

Most agreement statistics are functions of a sum over items (a matrix of coincidences, a confusion
matrix), so a resample is a vector of weights and many resamples are one matrix product.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .alpha import Floats

RESAMPLES = 2000
"""Of the bootstrap, where nobody says otherwise."""
_CHUNK = 256  # resamples at once, which bounds memory


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if not np.isfinite(self.estimate):
            return "–"
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


class Bootstrap:
    """Resamples of N items, the same for every statistic, so that differences are paired.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13: percentile intervals.
    Items are drawn, not ratings, since an item's ratings belong together.
    """

    def __init__(self, n_items: int, n_resamples: int = RESAMPLES, seed: int = 0) -> None:
        """Draw `n_resamples` samples of `n_items` items with replacement."""
        self.n_items, self.n_resamples, self.seed = n_items, n_resamples, seed

    def sums(self, per_item: Floats) -> Floats:
        """Sums over each resample: n_resamples x ... from N x ..."""
        flat = per_item.reshape(self.n_items, -1).astype(np.float32)
        rng = np.random.default_rng(self.seed)
        found = np.empty((self.n_resamples, flat.shape[1]))
        for start in range(0, self.n_resamples, _CHUNK):
            size = min(_CHUNK, self.n_resamples - start)
            drawn = rng.integers(0, self.n_items, (size, self.n_items))
            drawn += np.arange(size)[:, None] * self.n_items
            weights = np.bincount(drawn.ravel(), minlength=size * self.n_items)
            found[start : start + size] = (
                weights.reshape(size, self.n_items).astype(np.float32) @ flat
            )
        return found.reshape(self.n_resamples, *per_item.shape[1:])

    def totals(self, per_item: Floats) -> Floats:
        """The sum over all items, followed by `sums`: (1 + n_resamples) x ... from N x ..."""
        return np.concatenate([per_item.sum(axis=0)[None], self.sums(per_item)])

    def interval(
        self, per_item: Floats, statistic: Callable[[Floats], Floats], confidence: float = 0.95
    ) -> Interval:
        """Estimate and percentile interval of a statistic of the sum over items.

        Args:
            per_item: N x ..., what is summed.
            statistic: from ... sums (any leading axes) to numbers.
            confidence: coverage of the interval.

        Returns:
            nan where the statistic is; resamples on which it is not defined are left out.
        """
        return percentile_interval(statistic(self.totals(per_item)), confidence)


def percentile_interval(
    values: Floats, confidence: float = 0.95, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """The interval of a statistic of `Bootstrap.totals`: the estimate, then resampled values.

    Percentiles, moved by the median bias of the resamples (Efron, "Better Bootstrap Confidence
    Intervals", 1987, on why it matters): they lack some of the rare options, which moves a macro-F1
    of many options so far that plain percentiles may leave out their own estimate.

    Args:
        values: 1 + n_resamples.
        confidence: coverage of the interval.
        bounds: what the statistic can be, at least and at most.
    """
    estimate, resampled = float(values[0]), values[1:]
    defined = resampled[np.isfinite(resampled)]
    if not len(defined) or not np.isfinite(estimate):
        return Interval(estimate, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, middle, high = np.quantile(defined, [tail, 0.5, 1 - tail])
    low, high = np.clip(np.array([low, high]) + estimate - middle, *bounds)
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))
