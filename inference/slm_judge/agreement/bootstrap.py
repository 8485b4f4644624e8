"""Percentile bootstrap over items or groups of them, for statistics of sums over items.

Most agreement statistics are functions of a sum over items (a matrix of coincidences, a confusion
matrix), so a resample is a vector of weights and many resamples are one matrix product.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import RESAMPLES as RESAMPLES
from .alpha import Floats

Floats32 = npt.NDArray[np.float32]
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
        if not np.isfinite(self.low):
            return fixed(self.estimate)
        return f"{fixed(self.estimate)} [{fixed(self.low)}, {fixed(self.high)}]"

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def fixed(value: float, digits: int = 3, sign: str = "") -> str:
    """A number in so many digits, of which 0 has no minus."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


class Bootstrap:
    """Resamples of N items, the same for every statistic, so that differences are paired.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13: percentile intervals.
    Items are drawn, not ratings, since an item's ratings belong together; where items belong
    together too (a conversation, an author), their groups are drawn whole (Davison and Hinkley,
    Bootstrap Methods and Their Application, 1997, section 3.8).
    """

    def __init__(
        self,
        n_items: int,
        n_resamples: int = RESAMPLES,
        seed: int = 0,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        """Draw `n_resamples` samples with replacement, of the items or of their N `groups`."""
        self.n_items, self.n_resamples, self.seed = n_items, n_resamples, seed
        number: dict[Hashable, int] = {}
        names = range(n_items) if groups is None else groups
        self.unit = np.array([number.setdefault(name, len(number)) for name in names], dtype=int)
        """What each item is drawn with, N."""
        self.units = len(number)
        """How many are drawn: groups, or items."""

    def draws(self, units: int, seed: int | Sequence[int]) -> Iterator[Floats32]:
        """How often each of `units` is drawn, a part of the resamples after the other."""
        rng = np.random.default_rng(seed)
        for start in range(0, self.n_resamples, _CHUNK):
            size = min(_CHUNK, self.n_resamples - start)
            drawn = rng.integers(0, units, (size, units))
            drawn += np.arange(size)[:, None] * units
            weights = np.bincount(drawn.ravel(), minlength=size * units)
            yield weights.reshape(size, units).astype(np.float32)

    def weights(self) -> Iterator[Floats32]:
        """How often each item is drawn, ... x N; first once each, as in `totals`."""
        yield np.ones((1, self.n_items), dtype=np.float32)
        for drawn in self.draws(self.units, self.seed) if self.units else ():
            yield drawn[:, self.unit]

    def sums(self, per_item: Floats) -> Floats:
        """Sums over each resample: n_resamples x ... from N x ..."""
        flat = per_item.reshape(self.n_items, -1)
        if self.units < self.n_items:
            flat, rows = np.zeros((self.units, flat.shape[1])), flat
            np.add.at(flat, self.unit, rows)
        single = flat.astype(np.float32)
        parts = [weights @ single for weights in self.draws(self.units, self.seed)]
        return np.concatenate(parts).reshape(-1, *per_item.shape[1:]).astype(float)

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
        return percentile_interval(statistic(self.totals(per_item)), confidence, units=self.units)


def percentile_interval(
    values: Floats,
    confidence: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    units: int | None = None,
) -> Interval:
    """The interval of a statistic of `Bootstrap.totals`: the estimate, then resampled values.

    Percentiles, moved by the median bias of the resamples (Efron, "Better Bootstrap Confidence
    Intervals", 1987, on why it matters): they lack some of the rare options, which moves a macro-F1
    of many options so far that plain percentiles may leave out their own estimate. They are
    expanded for few units (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015): of a
    mean of n, as wide as Student's interval with n - 1 degrees of freedom.

    Args:
        values: 1 + n_resamples.
        confidence: coverage of the interval.
        bounds: what the statistic can be, at least and at most.
        units: items or groups that were drawn; None for so many that it does not matter.
    """
    estimate, resampled = float(values[0]), values[1:]
    defined = resampled[np.isfinite(resampled)]
    if not len(defined) or not np.isfinite(estimate) or (units is not None and units < 2):
        return Interval(estimate, float("nan"), float("nan"))
    tail = _tail((1 - confidence) / 2, units)
    low, middle, high = np.quantile(defined, [tail, 0.5, 1 - tail])
    low, high = np.clip(np.array([low, high]) + estimate - middle, *bounds)
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))


def _tail(tail: float, units: int | None) -> float:
    """The share of the resamples outside of an interval, on either side."""
    from scipy.stats import norm, t

    if units is None:
        return tail
    return float(norm.sf(np.sqrt(units / (units - 1)) * t.isf(tail, units - 1)))


def wider(units: int | None, tail: float = 0.025) -> float:
    """By how much an interval of `percentile_interval` is wider than of many units."""
    from scipy.stats import norm

    return float(norm.isf(_tail(tail, units)) / norm.isf(tail))
