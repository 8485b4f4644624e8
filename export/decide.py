"""Which thresholds of `verify` hold, which do not, and which the items at hand do not decide."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from slm_judge.model_card.page import interval, number

from slm_judge.agreement.bootstrap import Interval
from slm_judge.agreement.compare import items_to_decide
from slm_judge.recipe import VerifyConfig

NEARLY_ALL = 0.98
"""Share of equal labels from which on alpha between artefacts does not count. With an option of 2 %
of the items, 1 % of other labels makes it 0.75: it says how rare the option is. What that costs
against the annotators is decided by itself."""
Verdict = Literal["holds", "does not hold", "not decided", "not defined"]


@dataclass(frozen=True)
class Check:
    """A threshold, and what was measured."""

    dimension: str
    artefact: str
    said: str
    """What the interval is of."""
    interval: Interval
    """90 %, so that either side errs in 5 % of the cases."""
    threshold: str
    bound: float
    """What the interval's statistic must be, at least."""
    n_items: int

    @property
    def verdict(self) -> Verdict:
        """By the side of the bound on which the whole interval is."""
        if not np.isfinite([self.interval.estimate, self.interval.low, self.interval.high]).all():
            return "not defined"
        if self.interval.low >= self.bound:
            return "holds"
        return "does not hold" if self.interval.high < self.bound else "not decided"

    @property
    def may_fail(self) -> bool:
        """Whether it does not hold, or more items would rather show that."""
        return self.verdict != "holds" and not self.interval.estimate >= self.bound

    def __str__(self) -> str:
        wanted = f"{self.threshold} = {number(self.bound).rstrip('0').rstrip('.')}"
        found = f"{self.said} {interval(self.interval.as_dict(), 3)}"
        if self.verdict == "not defined":
            return f"{self.said} –, which is not defined and so does not hold {wanted}"
        if self.verdict != "not decided":
            return f"{found}, a 90 % interval: less than {wanted}"
        needed = items_to_decide(self.interval, self.bound, self.n_items)
        more = f"about {needed - self.n_items}" if needed else "more than a million"
        return (
            f"{found}, a 90 % interval: not decided whether less than {wanted}; {more} more "
            "held-out items would decide"
        )


def in_words(checks: Iterable[Check]) -> list[str]:
    """A line a finding, with the artefacts that share it."""
    found: dict[tuple[str, str], list[str]] = {}
    for check in checks:
        found.setdefault((check.dimension, str(check)), []).append(check.artefact)
    return [f"{name}, {', '.join(who)}: {said}" for (name, said), who in found.items()]


def checks(
    dimension: str,
    artefact: str,
    alike: Mapping[str, Any],
    loss: Mapping[str, Any] | None,
    n_items: int,
    thresholds: VerifyConfig,
    is_set: bool = False,
) -> list[Check]:
    """What is decided about an artefact in a dimension.

    Args:
        dimension: its name.
        artefact: its name.
        alike: of `answers.between`, with the adapter; of a set, of `sets.set_report`.
        loss: of `answers.losses`; None where there are no annotations to agree with.
        n_items: that were asked about.
        thresholds: of the recipe.
        is_set: of options; each one's share of equal labels is held to `min_agreement`, not that of
            equal sets, which falls with their number.
    """

    def check(said: str, found: Interval, threshold: str, bound: float, items: int) -> Check:
        return Check(dimension, artefact, said, found, threshold, bound, items)

    equal, alpha = (_interval(alike[f"{key}_interval"]) for key in ("agreement", "alpha"))
    least = thresholds.min_agreement
    said = "share of labels equal to the adapter's"
    found = [] if is_set else [check(said, equal, "min_agreement", least, n_items)]
    if not equal.high >= NEARLY_ALL or not np.isfinite(alpha.estimate):
        least = thresholds.min_alpha_between
        found.append(check("alpha with the adapter", alpha, "min_alpha_between", least, n_items))
    if loss is not None:
        said, most = "change of alpha against the annotators", thresholds.max_alpha_loss
        found.append(check(said, _interval(loss), "−max_alpha_loss", -most, loss["items"]))
    return found


def all_checks(report: Mapping[str, Any], thresholds: VerifyConfig, reference: str) -> list[Check]:
    """The checks of a report of `verify`, artefact by artefact against the reference."""
    parts, sets = report["dimensions"], report.get("sets", {})
    return [
        check
        for name, dimension in [*parts.items(), *sets.items()]
        for artefact in dimension["loss"]
        for check in checks(
            name,
            artefact,
            dimension["between"][f"{reference} / {artefact}"],
            dimension["loss"][artefact] if dimension["annotations"] else None,
            report["items"],
            thresholds,
            name in sets,
        )
    ]


def _interval(found: Mapping[str, float | None]) -> Interval:
    """What JSON holds; None is not a number."""
    keys = ("estimate", "low", "high")
    return Interval(*(float("nan") if (x := found[key]) is None else x for key in keys))
