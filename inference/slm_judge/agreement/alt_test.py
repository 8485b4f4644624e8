"""The alternative annotator test: may a judge stand in for an annotator?

Calderon, Reichart and Dror, "The Alternative Annotator Test for LLM-as-a-Judge" (ACL 2025,
arXiv 2501.10970). Each annotator in turn is left out, and the judge and the one left out are
compared by how well they represent the others.

The paper's t-test rejects a true hypothesis in up to 18 % of the cases, not 5 %, where 30 to 50
items are compared and the judge is seldom better (`python -m benchmarks.alternative_test`). So an
exact test decides here, and the outcome of the t-test stands beside it.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from . import EPSILON as EPSILON
from .aggregate import Ratings
from .alpha import Floats
from .compare import independent_items
from .exact_test import noninferiority_p

FEWEST_ITEMS = 30
"""An annotator with fewer items that others annotated too is not compared, as in the paper."""

Score = Literal["accuracy", "neg_rmse"]


@dataclass(frozen=True)
class Comparison:
    """The judge against one annotator."""

    annotator: str
    n_items: int
    advantage: float
    """Share of items on which the judge represents the others at least as well (rho_j)."""
    p_value: float
    """Of the hypothesis that the annotator is better by epsilon or more; exact."""
    judge_wins: bool
    """The hypothesis is rejected, with the false discovery rate of all annotators controlled."""
    t_test_p_value: float
    """The same by the paper's t-test."""
    judge_wins_t_test: bool


@dataclass(frozen=True)
class AltTest:
    """The outcome."""

    epsilon: float
    comparisons: list[Comparison]
    skipped: dict[str, int]
    """Annotators with too few items that others annotated too, and how many they have."""
    n_items: int = 0
    """All items."""

    @property
    def winning_rate(self) -> float:
        """Share of the annotators whom the judge may replace (omega); nan without any."""
        return _share([c.judge_wins for c in self.comparisons])

    @property
    def t_test_winning_rate(self) -> float:
        """The same by the paper's t-test."""
        return _share([c.judge_wins_t_test for c in self.comparisons])

    @property
    def advantage_probability(self) -> float:
        """Mean probability that the judge is as good as an annotator, or better (rho)."""
        return _share([c.advantage for c in self.comparisons])

    @property
    def passed(self) -> bool:
        """Whether the judge wins against at least half of the annotators.

        A judge that always says the same may pass as well: see `stand_in`.
        """
        return bool(self.comparisons) and self.winning_rate >= 0.5

    @property
    def items_needed(self) -> int | None:
        """Items with which an annotator could be compared, annotated as these are."""
        most = max(self.skipped.values(), default=0)
        if self.comparisons or not most:
            return None
        return int(np.ceil(self.n_items * FEWEST_ITEMS / most))

    @property
    def told(self) -> str:
        """Against how many annotators the judge holds, or why that cannot be said."""
        if self.comparisons:
            wins = sum(c.judge_wins for c in self.comparisons)
            return (
                f"it holds against {wins} of {len(self.comparisons)} annotators (at least half are "
                f"needed), at epsilon = {self.epsilon}"
            )
        why = f"it needs annotators with {FEWEST_ITEMS} items that others annotated too"
        if self.items_needed is None:
            return f"{why}, and no two annotators who are named have an item in common"
        return (
            f"{why}; the one with most has {max(self.skipped.values())} among {self.n_items} "
            f"items, so about {self.items_needed} items annotated in this way would be needed"
        )


def _share(values: Sequence[Any]) -> float:
    return float(np.mean(values)) if values else float("nan")


def alt_test(
    judged: Sequence[int],
    ratings: Ratings,
    annotators: Sequence[str],
    levels: Floats,
    epsilon: float = EPSILON["skilled"],
    score: Score = "accuracy",
    false_discovery_rate: float = 0.05,
    groups: Sequence[Hashable] | None = None,
) -> AltTest:
    """Do the test.

    Annotators with at least `FEWEST_ITEMS` common items are compared, by an exact test
    (`noninferiority_p`) and by the paper's t-test; the false discovery rate is controlled by the
    procedure of Benjamini and Yekutieli (2001).

    Args:
        judged: the judge's option index of each of N items.
        ratings: N x M.
        annotators: the M names.
        levels: the V options' numbers, for `neg_rmse`.
        epsilon: how much better an annotator has to be to be worth the cost; see `EPSILON`.
        score: how well a rating represents the others: the share who gave the same (accuracy), or
            the negative root mean squared distance to theirs (neg_rmse), for ordered options.
        false_discovery_rate: q.
        groups: what each of N items belongs to, e.g. a conversation; by default to itself. The
            exact test is one of as many items as those of groups are worth (`independent_items`).
    """
    answers = np.asarray(judged, dtype=int)
    found: list[tuple[str, int, float, float, float]] = []
    skipped = {}
    for m, name in enumerate(annotators):
        mine = np.flatnonzero(ratings[:, m] >= 0)
        others = np.delete(ratings[mine], m, axis=1)
        shared = (others >= 0).any(axis=1)
        items, others = mine[shared], others[shared]
        if len(items) < FEWEST_ITEMS:
            skipped[name] = len(items)
            continue
        of_judge = represents(answers[items], others, levels, score)
        of_human = represents(ratings[items, m], others, levels, score)
        own, lead = groups and [groups[item] for item in items], of_human - of_judge
        p = exact_p(lead, epsilon, own), t_test_p(lead, epsilon)
        found.append((name, len(items), float((of_judge >= of_human).mean()), *p))
    exact, by_t_test = ([row[k] for row in found] for k in (3, 4))
    wins = _rejected(exact, false_discovery_rate), _rejected(by_t_test, false_discovery_rate)
    comparisons = [
        Comparison(name, n, advantage, p, won, t, won_t)
        for (name, n, advantage, p, t), won, won_t in zip(found, *wins, strict=True)
    ]
    return AltTest(epsilon, comparisons, skipped, len(ratings))


def _rejected(p_values: Sequence[Any], rate: float) -> list[bool]:
    from scipy.stats import false_discovery_control

    return (false_discovery_control(p_values, method="by") <= rate).tolist() if p_values else []


def represents(label: Ratings, others: Ratings, levels: Floats, score: Score) -> Floats:
    """How well each item's label represents the others' ratings of it.

    Args:
        label: N option indices.
        others: N x M, somebody's rating in every row.
        levels: see `alt_test`.
        score: see `alt_test`.
    """
    known = others >= 0
    if score == "accuracy":
        equal = (others == label[:, None]) & known
        shares: Floats = equal.sum(axis=1) / known.sum(axis=1)
        return shares
    squares = np.where(known, np.square(levels[others] - levels[label][:, None]), 0.0)
    roots = -np.sqrt(squares.sum(axis=1) / known.sum(axis=1))
    digits = 9 - int(np.ceil(np.log10(np.ptp(levels) or 1)))  # a tie is one on any scale
    found: Floats = roots.round(digits)
    return found


def exact_p(lead: Floats, epsilon: float, groups: Sequence[Hashable] | None = None) -> float:
    """Of H0: P(annotator better) - P(judge better) >= epsilon.

    Args:
        lead: N, the annotator's score minus the judge's; its sign alone counts.
        epsilon: the margin.
        groups: see `alt_test`.
    """
    better, worse, n = int((lead > 0).sum()), int((lead < 0).sum()), len(lead)
    if groups is not None:  # rounded to the judge's disadvantage
        share = independent_items(np.sign(lead), groups) / n
        better, worse, n = int(np.ceil(better * share)), int(worse * share), int(n * share)
    return noninferiority_p(better, worse, max(n, better + worse, 1), epsilon)


def t_test_p(lead: Floats, epsilon: float) -> float:
    """The same by the paper's t-test."""
    from scipy.stats import ttest_1samp

    signs = np.sign(lead)
    if not np.ptp(signs):  # no spread, so no test statistic
        return 0.0 if signs[0] < epsilon else 1.0
    return float(ttest_1samp(signs, epsilon, alternative="less").pvalue)
