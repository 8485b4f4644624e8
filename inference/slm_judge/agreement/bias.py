"""Bias probes: does the judge agree less, or rate higher, on some items than on others?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .alpha import Floats
from .bootstrap import Interval

FEWEST_ITEMS = 10
"""Smaller groups are left out: their intervals would say nothing."""


@dataclass(frozen=True)
class Probe:
    """One group of items against the others."""

    attribute: str
    """What the items are grouped by."""
    group: str
    measure: str
    """agreement (share of the annotators who agree with the judge), or shift (judge minus the
    annotators' mean, in levels)."""
    n_items: int
    mean: float
    """Of the group."""
    difference: Interval
    """Group minus the others, Welch's 95 % interval."""
    p_value: float
    p_adjusted: float = float("nan")
    """With the false discovery rate of all probes controlled (Benjamini and Hochberg, 1995)."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "difference": self.difference.as_dict()}


def probe_groups(
    attribute: str, groups: Sequence[str], measure: str, per_item: Floats
) -> list[Probe]:
    """Compare each group with the items outside of it, by Welch's t-test (Welch, 1947).

    Args:
        attribute: what the items are grouped by.
        groups: of N items.
        measure: what is compared.
        per_item: N; items that are nan do not count.

    Returns:
        Of the groups with at least `FEWEST_ITEMS` items inside and outside, sorted by name.
        p is 1 where neither side varies and both are the same.
    """
    from scipy.stats import ttest_ind

    names = np.asarray(groups, dtype=object)
    known = np.isfinite(per_item)
    found = []
    for group in sorted(set(names.tolist()), key=str):
        inside, outside = per_item[known & (names == group)], per_item[known & (names != group)]
        if min(len(inside), len(outside)) < FEWEST_ITEMS:
            continue
        estimate = float(inside.mean() - outside.mean())
        if not np.ptp(inside) and not np.ptp(outside):
            interval, p = Interval(estimate, estimate, estimate), float(estimate == 0)
        else:
            test = ttest_ind(inside, outside, equal_var=False)
            low, high = test.confidence_interval(0.95)
            interval, p = Interval(estimate, float(low), float(high)), float(test.pvalue)
        found.append(
            Probe(attribute, str(group), measure, len(inside), float(inside.mean()), interval, p)
        )
    return found


def adjusted(probes: Sequence[Probe]) -> list[Probe]:
    """The probes of a report, corrected for their number."""
    from scipy.stats import false_discovery_control

    if not probes:
        return []
    values = false_discovery_control([probe.p_value for probe in probes], method="bh")
    return [replace(p, p_adjusted=float(q)) for p, q in zip(probes, values, strict=True)]


def quarters(values: Sequence[float], unit: str) -> list[str]:
    """Groups of items by a number: the quarters of its distribution, named by their ranges."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return []
    edges = np.unique(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    if len(edges) < 3:
        return [f"{edges[0]:g} to {edges[-1]:g} {unit}"] * len(numbers)
    index = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    return [f"{k + 1}: {edges[k]:g} to {edges[k + 1]:g} {unit}" for k in index]
