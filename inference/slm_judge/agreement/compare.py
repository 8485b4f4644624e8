"""Two systems on the same items: the paired difference, and whether one is not inferior."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .alpha import Floats
from .bootstrap import Interval, percentile_interval

MARGIN = 0.05
"""Alpha that may be lost without being inferior, where nobody says otherwise."""
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
        if not np.isfinite(self.interval.estimate):
            return "not defined"
        if self.interval.low > -self.margin:
            return "not inferior"
        return "inferior" if self.interval.high < -self.margin else "not decided"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.interval.as_dict(), "margin": self.margin, "verdict": self.verdict}


def difference(
    reference: Floats, other: Floats, margin: float = 0.0, units: int | None = None
) -> Difference:
    """The difference of two statistics of `Bootstrap.totals`, of the same resampled `units`."""
    return Difference(percentile_interval(other - reference, confidence=0.9, units=units), margin)
