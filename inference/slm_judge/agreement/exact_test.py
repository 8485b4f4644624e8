"""An exact test of paired outcomes: is one side better than the other by less than a margin?

The score test of Tango ("Equivalence test and confidence interval for the difference in proportions
for the paired-sample design", Statistics in Medicine, 1998), made exact as by Hsueh, Liu and Chen
("Unconditional exact tests for equivalence or noninferiority for paired binary endpoints",
Biometrics, 2001): the p-value is the largest probability, under the hypothesis, of outcomes whose
score is as small, so that no number of items and no skew lets it err more often than it says.
"""

from functools import lru_cache

import numpy as np

from .alpha import Floats

_GRID = 64  # shares of items with a difference at which the largest probability is looked for
_NEGLIGIBLE = 1e-15


@lru_cache(maxsize=4096)
def noninferiority_p(wins: int, losses: int, n: int, margin: float) -> float:
    """The p-value of the hypothesis that P(win) - P(loss) >= margin.

    Args:
        wins: items on which the first side is better.
        losses: items on which it is worse.
        n: all items; on the others both are equal.
        margin: 0 <= margin < 1.
    """
    from scipy.special import bdtr
    from scipy.stats import binom

    observed = float(_score(np.array([wins]), np.array([losses]), n, margin)[0])
    differ = np.arange(n + 1.0)
    most = _most_wins(differ, observed, n, margin)
    share = np.linspace(max(margin, 1e-9), 1.0, _GRID)[:, None]
    weight = binom.pmf(differ, n, share)
    below = np.broadcast_to((most >= differ).astype(float), weight.shape).copy()
    open_ones = (weight > _NEGLIGIBLE) & (most >= 0) & (most < differ)
    bdtr(most, differ, (share + margin) / (2 * share), out=below, where=open_ones)
    chances = (weight * below).sum(axis=1)
    return float(min(chances.max(), 1.0))


def _score(wins: Floats, losses: Floats, n: int, margin: float) -> Floats:
    """Tango's statistic, small where the hypothesis does not fit.

    Its variance is that of the share of losses that is likeliest under the hypothesis.
    """
    d = margin
    linear = wins * (1 + d) + losses * (1 - d) - 2 * n * d
    share = (linear + np.sqrt(linear**2 + 8 * n * losses * d * (1 - d))) / (4 * n)
    variance = (2 * share + d - d**2) / n
    gap = (wins - losses) / n - d
    found: Floats = np.divide(gap, np.sqrt(variance), out=np.zeros_like(gap), where=variance > 0)
    return found


def _most_wins(differ: Floats, observed: float, n: int, margin: float) -> Floats:
    """The most wins among so many differing items whose score is `observed` at most; -1: none."""
    low, high = np.full(len(differ), -1.0), differ.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2  # the score grows with the wins
        fits = _score(middle, differ - middle, n, margin) <= observed + 1e-9
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low
