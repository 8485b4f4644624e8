"""The alternative annotator test: may a judge stand in for an annotator?

Calderon, Reichart and Dror, "The Alternative Annotator Test for LLM-as-a-Judge" (ACL 2025,
arXiv 2501.10970). Each annotator in turn is left out, and the judge and the one left out are
compared by how well they represent the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .aggregate import Ratings
from .alpha import Floats

EPSILON = {"expert": 0.2, "skilled": 0.15, "crowd": 0.1}
"""The paper's cost-benefit margins, by how costly and reliable the annotators are."""
FEWEST_ITEMS = 10
"""With fewer items, no outcome of the test would be significant."""
_T_TEST_ITEMS = 30

Score = Literal["accuracy", "neg_rmse"]


@dataclass(frozen=True)
class Comparison:
    """The judge against one annotator."""

    annotator: str
    n_items: int
    advantage: float
    """Share of items on which the judge represents the others at least as well (rho_j)."""
    p_value: float
    """Of the hypothesis that the annotator is better by epsilon or more."""
    judge_wins: bool
    """The hypothesis is rejected, with the false discovery rate of all annotators controlled."""


@dataclass(frozen=True)
class AltTest:
    """The outcome."""

    epsilon: float
    comparisons: list[Comparison]
    skipped: list[str]
    """Annotators with too few items that others annotated too."""

    @property
    def winning_rate(self) -> float:
        """Share of the annotators whom the judge may replace (omega); nan without any."""
        wins = [c.judge_wins for c in self.comparisons]
        return float(np.mean(wins)) if wins else float("nan")

    @property
    def advantage_probability(self) -> float:
        """Mean probability that the judge is as good as an annotator, or better (rho)."""
        found = [c.advantage for c in self.comparisons]
        return float(np.mean(found)) if found else float("nan")

    @property
    def passed(self) -> bool:
        """Whether the judge wins against at least half of the annotators."""
        return bool(self.comparisons) and self.winning_rate >= 0.5

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.comparisons:
            return (
                "The alternative annotator test cannot be done: it needs at least two annotators, "
                f"with at least {FEWEST_ITEMS} common items each."
            )
        wins = sum(c.judge_wins for c in self.comparisons)
        may = "may replace" if self.passed else "may not replace"
        return (
            f"The judge {may} an annotator here: it holds against {wins} of "
            f"{len(self.comparisons)} annotators (at least half are needed), at epsilon = "
            f"{self.epsilon}."
        )


def alt_test(
    judged: Sequence[int],
    ratings: Ratings,
    annotators: Sequence[str],
    levels: Floats,
    epsilon: float = EPSILON["skilled"],
    score: Score = "accuracy",
    false_discovery_rate: float = 0.05,
) -> AltTest:
    """Do the test.

    Annotators with 30 common items or more are compared with a t-test, those with fewer with
    Wilcoxon's signed-rank test; the false discovery rate is controlled by the procedure of
    Benjamini and Yekutieli (2001).

    Args:
        judged: the judge's option index of each of N items.
        ratings: N x M.
        annotators: the M names.
        levels: the V options' numbers, for `neg_rmse`.
        epsilon: how much better an annotator has to be to be worth the cost; see `EPSILON`.
        score: how well a rating represents the others: the share who gave the same (accuracy), or
            the negative root mean squared distance to theirs (neg_rmse), for ordered options.
        false_discovery_rate: q.
    """
    from scipy.stats import false_discovery_control

    answers = np.asarray(judged, dtype=int)
    found: list[tuple[str, int, float, float]] = []
    skipped = []
    for m, name in enumerate(annotators):
        others = np.delete(ratings, m, axis=1)
        items = np.flatnonzero((ratings[:, m] >= 0) & (others >= 0).any(axis=1))
        if len(items) < FEWEST_ITEMS:
            skipped.append(name)
            continue
        of_judge = _represents(answers[items], others[items], levels, score)
        of_human = _represents(ratings[items, m], others[items], levels, score)
        judge_holds, human_holds = of_judge >= of_human, of_human >= of_judge
        difference = human_holds.astype(float) - judge_holds
        p = _p_value(difference, epsilon)
        found.append((name, len(items), float(judge_holds.mean()), p))
    adjusted = false_discovery_control([p for *_, p in found], method="by") if found else []
    comparisons = [
        Comparison(name, n, advantage, p, bool(q <= false_discovery_rate))
        for (name, n, advantage, p), q in zip(found, adjusted, strict=True)
    ]
    return AltTest(epsilon, comparisons, skipped)


def _represents(label: Ratings, others: Ratings, levels: Floats, score: Score) -> Floats:
    """How well each item's label represents the others' ratings of it."""
    known = others >= 0
    if score == "accuracy":
        equal = (others == label[:, None]) & known
        shares: Floats = equal.sum(axis=1) / known.sum(axis=1)
        return shares
    squares = np.where(known, np.square(levels[others] - levels[label][:, None]), 0.0)
    roots: Floats = -np.sqrt(squares.sum(axis=1) / known.sum(axis=1))
    return roots


def _p_value(difference: Floats, epsilon: float) -> float:
    """Of H0: mean difference >= epsilon."""
    from scipy.stats import ttest_1samp, wilcoxon

    if not np.ptp(difference):  # no spread, so no test statistic
        return 0.0 if difference[0] < epsilon else 1.0
    if len(difference) >= _T_TEST_ITEMS:
        return float(ttest_1samp(difference, epsilon, alternative="less").pvalue)
    return float(wilcoxon(difference - epsilon, alternative="less").pvalue)
