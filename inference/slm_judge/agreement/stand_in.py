"""May a judge stand in for an annotator? The verdict, which no trivial judge passes.

The alternative annotator test asks how often the judge represents the annotators as well as one of
them does. Where most annotations are one option, always saying it does that well. So a judge must
also agree with the annotators beyond chance, and more than the best judge that always says the
same. Both are measured in alpha: in accuracy, where most annotations are one option, even one more
annotator like the others would be worse than that constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .alpha import Floats, alpha_of_coincidences
from .alt_test import AltTest
from .bootstrap import Interval


def constant_confusion(said: Floats, option: int) -> Floats:
    """Confusions of a judge that always says one option, ... x V x V.

    Args:
        said: ... x V, how often annotators said each option.
        option: what it says.
    """
    found: Floats = np.zeros((*said.shape, said.shape[-1]))
    found[..., option] = said
    return found


def best_constant(said: Floats, values: Sequence[object], level: str) -> tuple[int, Floats]:
    """The option that, always said, has the highest alpha with the annotators; and its alphas.

    Args:
        said: annotations of each option, R x V; the first row decides, e.g. `Bootstrap.totals`.
        values: the V values.
        level: level of measurement.

    Returns:
        The option, and R alphas.
    """
    found = []
    for option in range(len(values)):
        confusion = constant_confusion(said, option)
        both = confusion + np.swapaxes(confusion, -1, -2)
        found.append(alpha_of_coincidences(both, values, level))
    first = np.nan_to_num([alphas[0] for alphas in found], nan=-np.inf)
    best = int(np.lexsort((said[0], first))[-1])
    return best, found[best]


@dataclass(frozen=True)
class StandIn:
    """The alternative annotator test, and what else a judge must show."""

    test: AltTest
    alpha: Interval
    """Of the judge with the annotators."""
    over_constant: Interval
    """That, minus the alpha of the best constant judge, on the same resampled items."""
    constant: str
    """What the best constant judge says."""

    @property
    def trivial(self) -> str:
        """Why a judge that always says the same might do as well; empty where it would not."""
        if not self.alpha.low > 0:
            return f"its agreement is not shown to be beyond chance: alpha {_brief(self.alpha)}"
        if not self.over_constant.low > 0:
            return (
                f"it is not shown to agree more than always saying {self.constant}: a difference "
                f"in alpha of {_brief(self.over_constant)}"
            )
        return ""

    @property
    def passed(self) -> bool:
        """Whether the judge passes the test and is not trivial."""
        return self.test.passed and not self.trivial

    @property
    def verdict(self) -> str:
        """In words."""
        told = self.test.told
        if not self.test.comparisons:
            return f"The alternative annotator test cannot be done here: {told}."
        if not self.test.passed:
            return f"It is not shown that the judge may replace an annotator here: {told}."
        if self.trivial:
            return (
                f"It is not shown that the judge may replace an annotator here: although {told}, "
                f"{self.trivial}."
            )
        return (
            f"The judge may replace an annotator here: {told}, and it agrees more than always "
            f"saying {self.constant}, by {_brief(self.over_constant)} in alpha."
        )


def _brief(interval: Interval) -> str:
    numbers = (f"{x:.2f}".replace("-", "−") for x in (interval.low, interval.high))
    return f"{interval.estimate:.2f} [{', '.join(numbers)}]".replace("-", "−")
