"""Which items of a corpus people annotated, how these were drawn, and estimates that respect it.

The judge labelled all N items of a corpus, people n of them, drawn with known chances. With weights
w (the reciprocals of the chances) and a moment m of an item, an estimate solves

    sum over N of trust m(judge) + sum over n of w (m(people) - trust m(judge)) = 0,

for any trust between 0 (people alone) and 1: the prediction-powered estimate (PPI++; Angelopoulos,
Duchi and Zrnic, 2023, arXiv 2311.01453), which with unequal chances and moments of a regression is
design-based supervised learning (Egami, Hinck, Stewart and Wei, 2023, arXiv 2306.04746) with the
judge as the surrogate. Variances are those of the sums of an item's, or a group's, influence.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from slm_judge.errors import require

from . import AUDIT as AUDIT
from .alpha import Floats

Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """The n of N items that people annotated."""

    rows: Whole
    """n positions among the N items."""
    weights: Floats
    """n: how many items each stands for. Those of a stratum sum to its number of items."""
    strata: Whole
    """N: the stratum, from 0, within which an item was drawn."""
    groups: Whole
    """N: the group, from 0, whose items are alike, e.g. a conversation. Groups are independent."""

    @classmethod
    def drawn(
        cls,
        n_items: int,
        rows: npt.ArrayLike,
        chances: npt.ArrayLike | None = None,
        strata: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
    ) -> "Sample":
        """A random sample.

        Args:
            n_items: N.
            rows: n positions of the annotated items.
            chances: n inclusion probabilities, up to a factor within a stratum; by default equal.
            strata: N; by default all items are one.
            groups: N; by default each item is one.

        Raises:
            ValueError: fewer than two groups of some stratum are annotated.
        """
        rows = np.asarray(rows, dtype=np.int64)
        strata = np.zeros(n_items, np.int64) if strata is None else np.asarray(strata)
        groups = np.arange(n_items) if groups is None else np.asarray(groups)
        weights = np.ones(len(rows)) if chances is None else 1 / np.asarray(chances, dtype=float)
        own, sizes = strata[rows], np.bincount(strata)
        sums = np.bincount(own, weights, len(sizes))
        found = cls(rows, weights * (sizes / np.where(sums, sums, 1))[own], strata, groups)
        if found.groups_annotated.min() < 2:
            raise ValueError("at least two annotated items, or groups, in each stratum are needed")
        return found

    @cached_property
    def groups_annotated(self) -> Whole:
        """Of each stratum, the number of groups with annotated items."""
        pairs = np.unique(np.stack([self.strata[self.rows], self.groups[self.rows]]), axis=1)
        return np.bincount(pairs[0], minlength=self.strata.max() + 1)

    @property
    def freedom(self) -> int:
        """Degrees of freedom: annotated groups less strata."""
        found = self.groups_annotated
        return int(found.sum()) - len(found)

    def effective(self, influence: Floats | None = None) -> Floats:
        """Number of independent items of equal weight that tell as much (Kish, 1965).

        That of the items by their weights, less as the variance by groups exceeds that by items,
        but not less than that of the groups by their weights, which also counts where both are 0.

        Args:
            influence: N x p, of what is estimated; without it, groups count as items.
        """
        sums = np.bincount(self.groups[self.rows], self.weights)
        groups = float(sums.sum() ** 2 / (sums**2).sum())
        items = float(self.weights.sum() ** 2 / (self.weights**2).sum())
        if influence is None:
            return np.array([groups])
        alone = (influence**2).sum(axis=0) / len(self.groups) ** 2
        together = (self.sums(influence) ** 2).sum(axis=0)
        ratio = np.divide(alone, together, out=np.zeros_like(alone), where=together > 0)
        found: Floats = np.clip(items * ratio, groups, max(items, groups))
        return found

    def shares_of(self, folds: Whole, n_folds: int) -> Floats:
        """By how much each fold's judge counts on each item that nobody annotated, N x folds.

        As its annotated items do in the item's stratum, since they are what its errors are known
        by: where folds are of one size, as much as each other (Zrnic and Candes, "Cross-prediction-
        powered inference", 2024).

        Args:
            folds: n, of the annotated items.
            n_folds: how many there are.
        """
        sums = np.zeros((int(self.strata.max()) + 1, n_folds))
        np.add.at(sums, (self.strata[self.rows], folds), self.weights)
        found: Floats = (sums / sums.sum(axis=1, keepdims=True))[self.strata]
        return found

    def influence(self, judge: Floats, people: Floats, trust: float) -> Floats:
        """What each item adds to the mean of the corrected moments, N x p.

        Corrections count as deviations from the mean of their stratum, whose number of items is
        known, and are scaled for the one degree of freedom that the mean takes.

        Args:
            judge: N x p moments by the judge's labels.
            people: n x p moments by people's.
            trust: weight of the judge's.
        """
        gap, own = people - trust * judge[self.rows], self.strata[self.rows]
        sizes, found = np.bincount(self.strata), self.groups_annotated
        means = np.stack(
            [np.bincount(own, self.weights * column, len(sizes)) for column in gap.T], axis=1
        ) / sizes[:, None]  # fmt: skip
        added = trust * judge + means[self.strata]
        scaled = self.weights * np.sqrt(found / (found - 1))[own]
        added[self.rows] += scaled[:, None] * (gap - means[own])
        return added

    def sums(self, influence: Floats) -> Floats:
        """Sums over the items of each group, groups x p, over N: their squares sum to variances."""
        share = influence / len(self.groups)
        if self.groups.max() + 1 == len(self.groups):  # each item is one
            return share
        return np.stack([np.bincount(self.groups, column) for column in share.T], axis=1)

    def best_trust(self, judge: Floats, people: Floats, scale: Floats | None = None) -> float:
        """The trust, between 0 and 1, with which the variances have the least sum.

        Args:
            judge: N x p moments by the judge's labels.
            people: n x p moments by people's.
            scale: p x p, puts moments on the scale of what is estimated, transposed; then
                variances count relative to those of people alone.
        """
        alone = self.influence(judge, people, 0)
        gain = self.influence(judge, people, 1) - alone
        alone, gain = (self.sums(one - one.mean(axis=0)) for one in (alone, gain))
        if scale is not None:
            alone, gain = alone @ scale, gain @ scale
            norm = np.sqrt((alone**2).sum(axis=0))
            alone, gain = alone / norm, gain / norm
        square = (gain**2).sum()
        tiny = 1e-20 * max(1.0, float((alone**2).sum()))
        return float(np.clip(-(alone * gain).sum() / square, 0, 1)) if square > tiny else 0.0

    def quantile(self, confidence: float, parameters: int = 1) -> float:
        """Of Student's t, for a two-sided interval of as many estimated parameters."""
        stats, freedom = require("scipy.stats", "evaluate"), self.freedom - parameters + 1
        return float(stats.t.ppf((1 + confidence) / 2, freedom)) if freedom > 0 else float("inf")

    def away(self, values: Floats) -> tuple[Floats, Floats, Floats]:
        """How far the weighted means of the annotated items are from those of all.

        In a random sample as described they differ by chance alone, whatever the values are. The
        standard error is the larger one of what the annotated items show and of what all N items
        lead one to expect, so that rare values do not seem sure.

        Args:
            values: N x q, known of all items.

        Returns:
            q means of the annotated items, q of all, and q two-sided p-values.
        """
        stats = require("scipy.stats", "evaluate")
        inside = self.weights @ values[self.rows] / len(values)
        everywhere = values.mean(axis=0)
        apart = values - everywhere
        shown = (self.sums(self.influence(apart, apart[self.rows], 0) - apart) ** 2).sum(axis=0)
        share = (self.weights**2).sum() / len(values) ** 2
        expected = apart.var(axis=0) * share
        error = np.sqrt(np.maximum(shown, expected))
        t = np.divide(inside - everywhere, error, out=np.zeros_like(error), where=error > 1e-12)
        return inside, everywhere, 2 * stats.t.sf(np.abs(t), self.freedom)


def inclusion_chances(worth: Floats, n: int, even: float) -> Floats:
    """Chances with which N items are drawn, n of them: a share evenly, the rest by their worth.

    What would be above 1 is 1, and the others share what is left (Särndal, Swensson and Wretman,
    Model Assisted Survey Sampling, 1992, section 3.6.2).

    Args:
        worth: N numbers that are not below 0.
        n: how many are to be drawn, at most N.
        even: share of the n that does not depend on the worth, above 0 so that each has a chance.
    """
    total = worth.sum()
    share = worth / total if total > 0 else np.full(len(worth), 1 / len(worth))
    size: Floats = even / len(worth) + (1 - even) * share
    sure = np.zeros(len(worth), dtype=bool)
    while True:
        left = n - int(sure.sum())
        chances: Floats = np.where(sure, 1.0, left * size / max(size[~sure].sum(), 1e-300))
        if not (beyond := ~sure & (chances >= 1)).any():
            return chances
        sure |= beyond


def draw(chances: Floats, order: Whole, seed: int) -> Whole:
    """The rows of a sample with these chances, which sum to its size.

    It is systematic (Madow, "On the Theory of Systematic Sampling, II", 1949): at even steps of the
    summed chances, so that neighbours of `order` are seldom drawn together.
    """
    # Another stream than that by which rows of a chance may have been ordered.
    reached = np.round(chances[order].cumsum(), 9) + np.random.default_rng((seed, 1)).random()
    return np.sort(order[np.diff(np.floor(reached), prepend=0) > 0])
