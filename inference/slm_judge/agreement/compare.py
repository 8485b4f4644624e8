"""Two systems on the same items: the paired difference, and whether one is not inferior."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .alpha import Floats
from .bootstrap import Bootstrap, Interval, percentile_interval

Verdict = Literal["not inferior", "inferior", "not decided"]


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
        if self.interval.low > -self.margin:
            return "not inferior"
        return "inferior" if self.interval.high < -self.margin else "not decided"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.interval.as_dict(), "margin": self.margin, "verdict": self.verdict}


def paired_difference(
    reference: Floats,
    other: Floats,
    statistic: Callable[[Floats], Floats],
    bootstrap: Bootstrap,
    margin: float = 0.0,
) -> Difference:
    """Bootstrap the difference of a statistic over the same resampled items.

    Args:
        reference: N x ..., what is summed over items for the reference.
        other: the same for the other system.
        statistic: of such sums.
        bootstrap: the resamples.
        margin: of non-inferiority.
    """
    before, after = (statistic(bootstrap.totals(per_item)) for per_item in (reference, other))
    return difference(before, after, margin)


def difference(reference: Floats, other: Floats, margin: float = 0.0) -> Difference:
    """The difference of two statistics of `Bootstrap.totals`, of the same resampled items."""
    return Difference(percentile_interval(other - reference, confidence=0.9), margin)
