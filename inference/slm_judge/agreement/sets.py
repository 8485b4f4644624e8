"""Agreement of sets of options: which of K options several people, or a judge, chose of an item.

Alpha of Krippendorff (see `alpha`) with a distance between sets in place of delta^2: by default
MASI, 1 - J M, where J is the Jaccard index and M is 1 for equal sets, 2/3 where one holds the
other, 1/3 where they overlap, and 0 where they do not (Passonneau, "Measuring Agreement on
Set-valued Items (MASI) for Semantic and Pragmatic Annotation", LREC 2006); or Jaccard's, 1 - J.
Two empty sets are equal.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .alpha import Floats
from .compare import with_changes

Chosen = frozenset[int]
"""Options."""
TRIED = 10
"""Sets that a judge might always say."""


def set_distances(sets: Sequence[Chosen], distance: str) -> Floats:
    """Distances, V x V, of V sets."""
    rows = [[_distance(a, b, distance) for b in sets] for a in sets]
    return np.array(rows, dtype=float).reshape(len(sets), len(sets))


def _distance(a: Chosen, b: Chosen, distance: str) -> float:
    if a == b:
        return 0.0
    shared = len(a & b)
    jaccard = shared / len(a | b)
    if distance == "jaccard" or not shared:
        return 1 - jaccard
    return 1 - jaccard * (2 / 3 if a < b or b < a else 1 / 3)


@dataclass(frozen=True)
class Pairs:
    """Sums over pairs of sets, N x ... for N items, of which a bootstrap takes totals."""

    distances: Floats
    """V x V, of the V sets that occur."""
    per_item: Floats
    """N x (1 + V + 2 + 3 K): disagreement; how often each set stands in a pair; pairs that are
    equal, and all; and of each option how often both chose it, the judge alone, the other alone."""
    change: Floats
    """Of their sum, if each item's set were another one, any as likely (of annotators, one's)."""

    def unseen(
        self, totals: Floats, groups: Sequence[Hashable] | npt.NDArray[np.int64]
    ) -> Floats | None:
        """Totals with errors that were not seen: see `with_unseen`."""
        equal, pairs = self.per_item[:, len(self.distances) + 1 :][:, :2].T
        return with_changes(totals, self.change, _ratio(equal, pairs), groups)

    def alpha(self, totals: Floats) -> Floats:
        """Of totals; nan where there is no pair, 1 where one set alone occurs."""
        v = len(self.distances)
        disagreement, marginals = totals[..., 0], totals[..., 1 : v + 1]
        total = marginals.sum(axis=-1)
        expected = ((marginals @ self.distances) * marginals).sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            alpha = 1 - (total - 1) * disagreement / expected
        return np.where(total == 0, np.nan, np.where(expected > 0, alpha, 1.0))

    def subset_accuracy(self, totals: Floats) -> Floats:
        """Share of pairs whose sets are equal."""
        v = len(self.distances)
        return _ratio(totals[..., v + 1], totals[..., v + 2])

    def micro_f1(self, totals: Floats) -> Floats:
        """F1 of all options counted together."""
        both, one, other = self._counts(totals).sum(axis=-2).T
        return _ratio(2 * both, 2 * both + one + other).T

    def macro_f1(self, totals: Floats) -> Floats:
        """Mean F1 of the options that somebody chose."""
        counts = self._counts(totals)
        scores = _ratio(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])
        used = np.isfinite(scores)
        return _ratio(np.where(used, scores, 0).sum(axis=-1), used.sum(axis=-1).astype(float))

    def _counts(self, totals: Floats) -> Floats:
        start = len(self.distances) + 3
        return totals[..., start:].reshape(*totals.shape[:-1], -1, 3)

    def statistics(self, totals: Floats) -> dict[str, Floats]:
        """All of them, by name."""
        names = ("alpha", "subset_accuracy", "micro_f1", "macro_f1")
        return {name: getattr(self, name)(totals) for name in names}


def annotator_pairs(votes: Sequence[Sequence[Chosen]], n_options: int, distance: str) -> Pairs:
    """Every annotator of an item against each other one; an item with m of them weighs as m."""
    return _pairs([(row, row, len(row) - 1) for row in votes], n_options, distance)


def judge_pairs(
    judged: Sequence[Chosen | None],
    votes: Sequence[Sequence[Chosen]],
    n_options: int,
    distance: str,
) -> Pairs:
    """The judge against each annotator of an item; None makes no pair."""
    rows = [([] if own is None else [own], row, 1) for own, row in zip(judged, votes, strict=True)]
    return _pairs(rows, n_options, distance)


def best_constants(
    votes: Sequence[Sequence[Chosen]], n_options: int, distance: str
) -> dict[str, Pairs]:
    """By statistic, the pairs of a judge that always says the same set: the best one for it.

    Tried are the `TRIED` sets that annotators choose most often; some annotator chose one.
    """
    said = Counter(one for row in votes for one in row).most_common(TRIED)
    tried = [judge_pairs([one] * len(votes), votes, n_options, distance) for one, _ in said]
    found = [{name: float(np.nan_to_num(value, nan=-np.inf))
              for name, value in pairs.statistics(pairs.per_item.sum(axis=0)).items()}
             for pairs in tried]  # fmt: skip
    return {name: tried[max(range(len(tried)), key=lambda k: found[k][name])] for name in found[0]}


def _pairs(
    rows: Sequence[tuple[Sequence[Chosen], Sequence[Chosen], int]], n_options: int, distance: str
) -> Pairs:
    """Of items: those who judge, those whom they are compared with (who may be the same people,
    whose pairs with themselves do not count), and by what the sums are divided.
    """
    known = {one: k for k, one in enumerate(dict.fromkeys(
        one for own, others, _ in rows for one in (*own, *others)))}  # fmt: skip
    if len(known) == 1:  # the one that might have been another
        (one,) = known
        known[one ^ {min(one, default=0)}] = 1
    found = np.zeros((len(rows), 3 + len(known) + 3 * n_options))
    distances = set_distances(list(known), distance)
    options = np.stack([_chosen([one], n_options) for one in known]) if known else np.zeros((0, 0))
    change = np.zeros(found.shape[1])
    for item, (own, others, weight) in zip(found, rows, strict=True):
        if not own or not others or not weight:
            continue
        same = own is others
        a, b = _counts(own, known), _counts(others, known)
        x, y = _chosen(own, n_options), _chosen(others, n_options)
        both = x * y - x if same else x * y
        pairs = len(own) * (len(others) - same)
        sides = 1 if same else 2  # of a judge, both orders of a pair are coincidences
        counts = np.stack([both, x * (len(others) - same) - both, y * (len(own) - same) - both], 1)
        item[0] = sides * a @ distances @ b / weight
        item[1 : len(known) + 1] = a if same else a * len(others) + b
        item[len(known) + 1 :] = (
            np.array([a @ b - same * len(own), pairs, *counts.ravel()]) / weight
        )
        for k in np.flatnonzero(a).tolist():
            rest = b - same * (np.arange(len(b)) == k)
            moved = _moved(k, rest, distances, options, same)
            change += moved * a[k] / len(own) / weight
    return Pairs(distances, found, change)


def _moved(k: int, others: Floats, distances: Floats, options: Floats, same: bool) -> Floats:
    """What an item's sums gain if one of its sets, the k-th of V, is another one.

    Args:
        k: the set.
        others: V, how often each set stands against it.
        distances: V x V.
        options: V x K, which of them each set holds.
        same: the others are also compared with it.
    """
    step, number = np.full(len(others), 1 / (len(others) - 1)), others.sum()
    step[k] = -1.0
    both = (step @ options) * (others @ options)
    single = np.stack([both, number * (step @ options) - both, -both], axis=1)
    if same:
        single += single[:, [0, 2, 1]]
    equal = (1 + same) * step @ others
    disagreement = 2 * step @ distances @ others
    return np.concatenate([[disagreement], step * number, [equal, 0], single.ravel()])


def _counts(sets: Sequence[Chosen], known: Mapping[Chosen, int]) -> Floats:
    return np.bincount([known[one] for one in sets], minlength=len(known)).astype(float)


def _chosen(sets: Sequence[Chosen], n_options: int) -> Floats:
    """How many chose each option."""
    return np.bincount([k for one in sets for k in one], minlength=n_options).astype(float)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    top, bottom = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    found: Floats = np.divide(top, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)
    return found
