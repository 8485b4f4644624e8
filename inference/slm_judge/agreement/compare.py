"""Two systems on the same items: the paired difference, and whether one is not inferior."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slm_judge.rubric import Dimension

from . import MARGIN as MARGIN
from .alpha import Floats, Votes, alpha_of_coincidences, judge_coincidences
from .bootstrap import Bootstrap, Interval, percentile_interval
from .sample import Sample
from .scores import agreeing_of

CONFIDENCE = 0.9
"""Of intervals by which something is decided, so that 5 % are left on either side."""
UNSEEN = 1.5
"""Changed labels that a lower limit counts on beside those that were seen; with 1 more than 5 % of
the limits were too high, with 2 few (`benchmarks/guarantees.py`)."""
FEW = 5
"""Wrong labels, with fewer of which resamples vary too little; `benchmarks/intervals.py`."""
_MOST_ITEMS = 10**6  # nobody annotates more to decide about a file
Verdict = Literal["not inferior", "inferior", "not decided", "not defined"]


@dataclass(frozen=True)
class Difference:
    """How much a statistic changes from a reference to another system."""

    interval: Interval
    """Of the other system's statistic minus the reference's, 90 % (so 5 % on either side)."""
    margin: float
    """Loss that does not matter."""

    @property
    def verdict(self) -> Verdict:
        """By the confidence interval (Piaggio et al., CONSORT, 2012), at the 5 % level.

        Not inferior: the loss is surely smaller than the margin; inferior: surely larger.
        """
        if not np.isfinite([self.interval.estimate, self.interval.low, self.interval.high]).all():
            return "not defined"
        if self.interval.low > -self.margin:
            return "not inferior"
        return "inferior" if self.interval.high < -self.margin else "not decided"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.interval.as_dict(), "margin": self.margin, "verdict": self.verdict}


def difference(
    reference: Floats,
    other: Floats,
    margin: float = 0.0,
    change: float = 0.0,
    units: int | None = None,
) -> Difference:
    """The difference of two statistics of `Bootstrap.totals`, of the same resampled items.

    Args:
        reference: 1 + n_resamples.
        other: 1 + n_resamples.
        margin: loss that does not matter.
        change: see `lower_limit`.
        units: see `percentile_interval`.
    """
    found = percentile_interval(other - reference, CONFIDENCE, units=units)
    return Difference(lower_limit(found, other - reference, change), margin)


def lower_limit(interval: Interval, values: Floats, change: float) -> Interval:
    """The interval, with a lower limit that counts on changes that were not seen.

    Two systems that rarely differ may not do so on the items at hand at all, and then resamples do
    not vary either, though as many as 3 of n items may well differ (the rule of three, Hanley and
    Lippman-Hand, 1983). So `UNSEEN` changed labels are added to each resample on average, a
    Poisson number, as if they were items that are drawn like all others.

    Args:
        interval: of `values`.
        values: 1 + n_resamples, alphas of `Bootstrap.totals` or differences of such.
        change: what alpha loses by one changed label (`change_cost`).
    """
    resampled = values[1:][np.isfinite(values[1:])]
    if not change > 0 or not np.isfinite(interval.low):
        return interval
    times = np.random.default_rng(0).poisson(UNSEEN, len(resampled))
    low = np.quantile(resampled - change * times, (1 - CONFIDENCE) / 2)
    low = max(float(low + values[0] - np.median(resampled)), -1.0)
    return Interval(interval.estimate, min(low, interval.low), interval.high)


def with_unseen(
    totals: Floats,
    agreeing: Floats,
    groups: Sequence[Hashable] | npt.NDArray[np.int64],
    symmetric: bool = False,
) -> Floats | None:
    """Confusions in which labels are wrong that none at hand is, as many as `UNSEEN` on average.

    Args:
        totals: (1 + n_resamples) x V x V of `Bootstrap.totals`; the first stays what it is.
        agreeing: N, the share of an item's pairs that agree; nan of items without any.
        groups: N, what each item belongs to.
        symmetric: they are coincidences, of which either side may become another label.

    Returns:
        What becomes of them if, of a Poisson number of items like those at hand, the judge's label
        becomes another one, any as likely; of groups, for as many items as theirs are worth. None
        where so many are wrong already (`FEW`) that resamples vary as they should.
    """
    first, others = totals[0], max(totals.shape[-1] - 1, 1)
    change = (first.sum(axis=-1, keepdims=True) - first * (others + 1)) / others
    if symmetric:
        change = (change + change.T) / 2
    return with_changes(totals, change, agreeing, groups)


def with_changes(
    totals: Floats,
    change: Floats,
    agreeing: Floats,
    groups: Sequence[Hashable] | npt.NDArray[np.int64],
) -> Floats | None:
    """`with_unseen` of totals of any shape; `change` is what they gain if all labels are wrong."""
    known = np.isfinite(agreeing)
    if not known.any() or (1 - agreeing[known]).sum() >= FEW:
        return None
    items = independent_items(agreeing[known], np.asarray(groups)[known].tolist())
    times = np.random.default_rng(0).poisson(UNSEEN, len(totals)) * (np.arange(len(totals)) > 0)
    wrong = times.reshape(-1, *[1] * change.ndim)
    found: Floats = np.maximum(totals + wrong * (change / items), 0)
    return found


def careful_interval(
    values: Floats, unseen: Floats | None, bounds: tuple[float, float], units: int
) -> Interval:
    """The percentile interval (95 %), as wide as that of `with_unseen` at least, if there is one.

    Args:
        values: 1 + n_resamples, a statistic of totals.
        unseen: 1 + n_resamples, the same of `with_unseen`.
        bounds: of the statistic.
        units: see `percentile_interval`.
    """
    interval = percentile_interval(values, bounds=bounds, units=units)
    if unseen is None:
        return interval
    defined = np.isfinite(values) & np.isfinite(unseen)
    defined[0] = False
    if not np.isfinite(interval.low) or not defined.any():
        return interval
    moved = values[0] - np.median(values[defined])
    low, high = np.clip(np.quantile(unseen[defined], [0.025, 0.975]) + moved, *bounds).tolist()
    return Interval(interval.estimate, min(low, interval.low), max(high, interval.high))


def careful_alpha(
    totals: Floats, per_item: Floats, dimension: Dimension, bootstrap: Bootstrap
) -> Interval:
    """The `careful_interval` of alpha, of coincidences.

    Args:
        totals: (1 + n_resamples) x V x V of `Bootstrap.totals`.
        per_item: N x V x V, of which they are.
        dimension: of V options.
        bootstrap: of the N items.
    """
    level = dimension.values, dimension.level_of_measurement
    unseen = with_unseen(totals, agreeing_of(per_item), bootstrap.unit, symmetric=True)
    more = None if unseen is None else alpha_of_coincidences(unseen, *level)
    values = alpha_of_coincidences(totals, *level)
    return careful_interval(values, more, (-np.inf, 1.0), bootstrap.units)


def share_widened(
    interval: Interval, values: Floats, groups: Sequence[Hashable] | None = None
) -> Interval:
    """A percentile interval of a share; where fewer than `FEW` items are no ones, or ones, as wide
    as the exact one at least, which resamples of such items are not.

    Args:
        interval: 95 %.
        values: N, from 0 to 1.
        groups: see `share_of`.
    """
    few = min(values.sum(), (1 - values).sum()) < FEW
    if not few or not np.isfinite(interval.low):
        return interval
    exact = share_of(values, groups, 0.95)
    low, high = np.fmin(interval.low, exact.low), np.fmax(interval.high, exact.high)
    return Interval(interval.estimate, float(low), float(high))


def change_cost(judged: npt.NDArray[np.int64], votes: Votes, dimension: Dimension) -> float:
    """What alpha against the annotators loses on average if one label becomes another one.

    Args:
        judged: N option indices; -1 for none.
        votes: N items; their annotators' option indices.
        dimension: gives the options and the level of measurement.

    Returns:
        1, all that can be lost, where one option is said of all items: what the others are worth
        cannot be seen then. At least 0.
    """
    if len(np.unique(judged[judged >= 0])) < 2:
        return 1.0
    own = judge_coincidences(judged.tolist(), votes, len(dimension.options))
    values, level, total = dimension.values, dimension.level_of_measurement, own.sum(axis=0)
    costs = []
    for option in range(len(dimension.options)):
        said = [option] * len(votes)
        other = total - own + judge_coincidences(said, votes, len(dimension.options))
        changed = (judged >= 0) & (judged != option)
        costs.append(alpha_of_coincidences(other, values, level)[changed])
    now = alpha_of_coincidences(total, values, level)
    return max(0.0, float(now - np.concatenate(costs).mean()))


def share_interval(count: float, total: float, confidence: float = CONFIDENCE) -> Interval:
    """A share with its exact interval (Clopper and Pearson, 1934); nan where there is nothing."""
    from scipy.stats import beta

    if not total:
        return Interval(float("nan"), float("nan"), float("nan"))
    rest, tail = total - count, (1 - confidence) / 2
    low = float(beta.ppf(tail, count, rest + 1)) if count > 0 else 0.0
    high = float(beta.isf(tail, count + 1, rest)) if rest > 0 else 1.0
    return Interval(count / total, low, high)


def independent_items(values: Floats, groups: Sequence[Hashable]) -> float:
    """How many independent items N values are worth, of which those of a group are alike.

    N over the design effect, at most N and at least the number of groups, which it is where the
    values are all alike, since then nothing shows how alike those of a group are; less for few
    groups (Korn and Graubard, "Confidence Intervals for Proportions with Small Expected Number of
    Positive Counts Estimated From Survey Data", Survey Methodology, 1998).
    """
    from scipy.stats import t

    owner, n = np.unique([str(group) for group in groups], return_inverse=True)[1], len(values)
    units = int(owner.max(initial=-1)) + 1
    if not 2 <= units < n:
        return float(min(units, n))
    worth = Sample.drawn(n, np.arange(n), groups=owner).effective((values - values.mean())[:, None])
    tail = (1 - CONFIDENCE) / 2
    return float(worth[0] * (t.isf(tail, n - 1) / t.isf(tail, units - 1)) ** 2)


def share_of(
    values: Floats, groups: Sequence[Hashable] | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """The share of ones with its interval, for as many items as those of groups are worth.

    Args:
        values: N, 0 or 1, or what of each item is.
        groups: what each item belongs to, by default to itself.
        confidence: of the interval.
    """
    worth = independent_items(values, range(len(values)) if groups is None else groups)
    return share_interval(values.sum() / max(len(values), 1) * worth, worth, confidence)


def items_to_decide(interval: Interval, bound: float, n_items: int) -> int | None:
    """About how many items would show on which side of a bound a statistic is.

    If it stays what it is, that is where its interval, which narrows with the square root of the
    number of items, leaves the bound out. Where all was alike, limits narrow with the number.

    Returns:
        None where that are more than a million items.
    """
    above = interval.estimate > bound
    distance = abs(interval.estimate - bound)
    reach = interval.estimate - interval.low if above else interval.high - interval.estimate
    power = 1 if interval.high == interval.estimate else 2
    if not distance or not np.isfinite(reach) or not n_items:
        return None
    needed = n_items * (reach / distance) ** power
    return int(np.ceil(needed)) if needed <= _MOST_ITEMS else None
