"""What more items would bring: a law of growth through alpha at several sizes, and how sure it is.

The law is the inverse power law of learning curves (Figueroa et al., "Predicting sample size
required for classification performance", 2012; Hestness et al., 2017, arXiv 1712.00409), with an
offset, so that it may level off as fast as an exponential, which it is with large d and c, and
beyond c = 0, where it is a logarithm, to c = -1, where it is a line:

    alpha(n) = a + b (1 - x^-c) / c,    x = (n + d) / (m + d),    b >= 0,

where m is the largest size, a alpha there, and b its growth. In shapes, K is the number of sizes, S
that of seeds, B that of resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .alpha import Floats
from .bootstrap import Interval, wider

GAIN = 0.05
"""Of alpha: what one asks for."""
FURTHEST = 4
"""Times the largest size, beyond which nothing is said."""
_FEWEST_SIZES = 5  # the law has four parameters
_RATES = np.concatenate([np.linspace(-1, -0.05, 12), np.geomspace(0.05, 12, 50)])  # of c, not 0
_OFFSETS = np.concatenate([[0], np.geomspace(0.02, 1.6, 12), [3, 6, 15]])  # d, as a share of m
_POWERS = 13  # of the offsets; with the others the law is nearly an exponential
_MISFIT = 0.01  # p, below which the points follow no such law
_LINES = 0.2  # share of resamples that grow, with c = -1, above which it has not begun to slow down


@dataclass(frozen=True)
class Laws:
    """Of B rows of alphas: the parameters, with d as a share of m, and the sum of squares."""

    a: Floats
    b: Floats
    c: Floats
    d: Floats
    errors: Floats

    @classmethod
    def fit(cls, sizes: Floats, alphas: Floats, offsets: Floats = _OFFSETS) -> "Laws":
        """The law with the least squares of each row.

        Args:
            sizes: K, rising.
            alphas: B x K.
            offsets: to be tried.
        """
        c, d = (one.ravel()[:, None] for one in np.meshgrid(_RATES, offsets))
        c = np.where(c > 0, c * (1 + d), c)  # as fast, whatever the offset
        grown = _grown(sizes / sizes[-1], c, d)
        centred = grown - grown.mean(axis=1, keepdims=True)
        squares = (centred**2).sum(axis=1)
        b = np.maximum(alphas @ centred.T / squares, 0)
        errors = ((alphas - alphas.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)[:, None]
        best = np.arange(len(alphas)), (errors - b**2 * squares).argmin(axis=1)
        a = alphas.mean(axis=1) - b[best] * grown.mean(axis=1)[best[1]]
        left = (errors - b**2 * squares)[best]
        return cls(a, b[best], c[best[1], 0], d[best[1], 0], left)

    def beside(self, other: "Laws") -> "Laws":
        """Rows of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Laws(*map(np.concatenate, pairs))

    def at(self, times: Floats) -> Floats:
        """Alpha at multiples of the largest size, B x the number of these."""
        grown = _grown(times, self.c[:, None], self.d[:, None])
        return np.minimum(self.a[:, None] + self.b[:, None] * grown, 1)

    def times(self, gain: float) -> Floats:
        """Multiples of the largest size that gain so much over it, B; inf where none does."""
        needed = np.divide(gain, self.b, out=np.full_like(self.b, np.inf), where=self.b > 1e-9)
        left = 1 - self.c * np.minimum(needed, 1e6)
        x = np.where(left > 0, np.maximum(left, 1e-9) ** (-1 / self.c), np.inf)
        never = np.isinf(needed) | (self.a + gain > 1)
        return np.where(never, np.inf, x * (1 + self.d) - self.d)


def _grown(times: Floats, c: Floats, d: Floats) -> Floats:
    grown: Floats = (1 - ((times + d) / (1 + d)) ** -c) / c
    return grown


@dataclass(frozen=True)
class Outlook:
    """What a curve says about larger sizes."""

    said: str
    """In a sentence."""
    verdict: str
    """`items`, `no` or `cannot be said`."""
    more: Interval | None = None
    """Further items for `GAIN` (95 %); inf beyond `FURTHEST` times the largest size."""
    twice: Interval | None = None
    """What twice the largest size would gain (95 %)."""
    curve: dict[str, list[float]] | None = None
    """The law and its 95 % interval: items, estimate, low, high."""


def outlook(
    sizes: Sequence[float], alphas: Floats, seed: int = 0, units: int | None = None
) -> Outlook:
    """How many more items would raise alpha by `GAIN`.

    What is resampled: the test items, which all sizes share; and the chance of a training, normal
    with the deviation that seeds of one size have, half of it pooled over the sizes (by Student's
    t), since few items may teach less surely than many. Points that level off do not tell whether
    as an exponential, so half of the laws may do so.

    Args:
        sizes: K, rising.
        alphas: (1 + B) x K x S: the estimates, then those of resampled test items.
        seed: of the chance of a training.
        units: see `percentile_interval`: of few, resamples vary too little.
    """
    n_sizes, n_seeds = alphas.shape[1:]
    if n_sizes < _FEWEST_SIZES or n_seeds < 2:
        return _unknown(f"{_FEWEST_SIZES} sizes and 2 seeds are needed, there are {n_sizes} and "
                        f"{n_seeds}")  # fmt: skip
    means = alphas.mean(axis=2)
    means = means[np.isfinite(means).all(axis=1)]
    if len(means) < len(alphas) / 2 or not np.isfinite(alphas[0]).all() or (units or 2) < 2:
        return _unknown("alpha is not defined at all sizes")
    draws, known = _draws(alphas[0], means, seed, units), np.asarray(sizes, dtype=float)
    law, half = Laws.fit(known, means[:1]), len(draws) // 2
    laws = Laws.fit(known, draws[:half]).beside(Laws.fit(known, draws[half:], _OFFSETS[:_POWERS]))
    noise = draws - means[0] + law.at(known / known[-1])
    if (Laws.fit(known, noise).errors >= law.errors).mean() < _MISFIT:
        return _unknown(
            "the points do not follow a law of growth (few items may teach nothing yet)"
        )
    if ((laws.c <= _RATES[0]) & (laws.b > GAIN)).mean() > _LINES:
        return _unknown("alpha grows ever faster, and where that ends the points do not show")
    shares = np.quantile(1 / laws.times(GAIN), [0.975, 0.025])  # since some times are infinite
    low, high = (known[-1] * (1 / s - 1) if s > 1 / FURTHEST else np.inf for s in shares)
    times = float(law.times(GAIN)[0])
    best = known[-1] * (times - 1) if times < FURTHEST else np.inf
    more = _interval(best, low, high)
    gains = (one.at(np.array([2.0]))[:, 0] - one.at(np.array([1.0]))[:, 0] for one in (law, laws))
    best, spread = float(next(gains)[0]), np.quantile(next(gains), [0.025, 0.975])
    twice = _interval(best, *spread)
    said, verdict = _said(more, twice)
    return Outlook(said, verdict, more, twice, _curve(known, law, laws))


def _interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(float(np.clip(estimate, low, high)), float(low), float(high))


def _unknown(why: str) -> Outlook:
    return Outlook(f"What more items would bring cannot be said: {why}.", "cannot be said")


def _draws(alphas: Floats, means: Floats, seed: int, units: int | None) -> Floats:
    """Means of other test items and other seeds, B x K, from K x S estimates, and the 1 + B means
    of these and of resampled test items.
    """
    rng, (n_sizes, n_seeds) = np.random.default_rng(seed), alphas.shape
    freedom, variance = n_sizes * (n_seeds - 1), alphas.var(axis=1, ddof=1)
    deviation = np.sqrt((variance + variance.mean()) / 2 / n_seeds)
    chance = rng.standard_normal(means[1:].shape)
    chance *= deviation * np.sqrt(freedom / rng.chisquare(freedom, (len(chance), 1)))
    moved: Floats = means[0] + (means[1:] - np.median(means[1:], axis=0)) * wider(units) + chance
    return moved


def _said(more: Interval, twice: Interval) -> tuple[str, str]:
    low, high = map(_round, (more.low, more.high))
    gain = (
        f"If it goes on as so far, twice as many items bring +{twice.estimate:.3f} (95 % "
        f"interval: +{twice.low:.3f} to +{twice.high:.3f}). "
    )
    if np.isfinite(more.high):
        best = _round(more.estimate)
        return f"{gain}About {best} more items for +{GAIN} ({low} to {high}).", "items"
    if np.isinf(more.low):
        return (
            f"{gain}More items of this kind will hardly help: {FURTHEST} times as many would not "
            f"bring +{GAIN}."
        ), "no"
    return (
        f"{gain}How many would bring +{GAIN} cannot be said: at least {low} more, and {FURTHEST} "
        "times as many may be too few."
    ), "cannot be said"


def _round(number: float) -> str:
    """Two digits count."""
    return f"{float(f'{number:.2g}'):,.0f}" if np.isfinite(number) else "inf"


def _curve(sizes: Floats, law: Laws, laws: Laws) -> dict[str, list[float]]:
    times = np.geomspace(sizes[0] / sizes[-1], FURTHEST, 40)
    low, high = np.quantile(laws.at(times), [0.025, 0.975], axis=0)
    found = {"items": times * sizes[-1], "estimate": law.at(times)[0], "low": low, "high": high}
    return {name: values.tolist() for name, values in found.items()}
