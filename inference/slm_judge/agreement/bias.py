"""Bias probes: does the judge agree less, or rate higher, on some items than on others?"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .alpha import Floats, Votes, vote_counts
from .bootstrap import Interval
from .scores import agreeing_share

FEWEST = 10
"""Smaller groups are left out: nothing could be found in them."""
FEWEST_CLUSTERS = 5
"""Where items belong together, both sides need so many of what they belong to."""
SIGNIFICANT = 0.05
_STAGES = ((999, 0.05), (4_999, 0.01), (19_999, 0.0))  # permutations; enough where p is above
_CHUNK = 250  # permutations at once, which bounds memory
BEYOND, AGREEMENT, SHIFT = "agreement beyond annotators", "agreement", "shift"
Verdict = Literal["", "difference", "bias"]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """A group against the others."""

    attribute: str
    """What is grouped by."""
    group: str
    others: str
    """The other group, where there are two; else empty."""
    measure: str
    """See `measures`."""
    n: tuple[int, int]
    """Items, or annotations, of the group and of the others."""
    means: tuple[Interval, Interval]
    """Of the group and of the others."""
    difference: Interval
    """Group minus the others; of clusters with items of both, beyond what the clusters explain."""
    p_value: float
    of: str = "items"
    """What is compared: items, or annotations (of groups of annotators)."""
    p_adjusted: float = float("nan")
    """Corrected for all probes of the report; see `adjusted`."""
    of_judge: bool = False
    """Whether annotators who err more or less, or rate otherwise, are no explanation; see
    `closeness`."""

    @property
    def shown(self) -> bool:
        """Whether there is a difference, at the 5 % level.

        Its interval must leave out 0 too: of groups of very different sizes, which cannot be
        exchanged, p alone is below 0.05 more often than that.
        """
        return (
            self.p_adjusted < SIGNIFICANT and not self.difference.low <= 0 <= self.difference.high
        )

    @property
    def verdict(self) -> Verdict:
        """What may be said: a difference is a bias where it is of the judge."""
        if not self.shown:
            return ""
        return "bias" if self.of_judge else "difference"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "means": [mean.as_dict() for mean in self.means],
            "difference": self.difference.as_dict(),
            "verdict": self.verdict,
        }


def measures(labels: Integers, votes: Votes, levels: Floats) -> dict[str, Floats]:
    """What groups of N items are compared by, nan where an item does not count.

    - agreement beyond annotators: the share of an item's annotators who agree with the judge, minus
      the share of pairs of them who agree with each other; of items with two or more.
    - agreement: the first share alone, where less than half of the items have two annotators.
    - shift: the judge's level minus the annotators' mean.

    Args:
        labels: N option indices of the judge.
        votes: N items; their annotators' option indices.
        levels: of the V options.
    """
    counts = vote_counts(votes, len(levels)).astype(float)
    m = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shift = levels[labels] - counts @ levels / m
    if 2 * (m >= 2).sum() < (m >= 1).sum():
        return {AGREEMENT: agreeing_share(labels, votes, len(levels)), SHIFT: shift}
    return {BEYOND: closeness(labels, votes, levels)[BEYOND][0], SHIFT: shift}


def closeness(labels: Integers, votes: Votes, levels: Floats) -> dict[str, tuple[Floats, Floats]]:
    """By measure, how close the judge is to an item's annotators: beyond themselves, and plainly.

    A judge that is always right agrees less with annotators who err more, and rates otherwise than
    they do, since who errs is nearer to the middle of the scale; and one that is as good everywhere
    falls short of them where they are better. So a difference is of the judge where on one side it
    is farther from annotators than they are from each other, and farther than on the other side:
    were it as good there, they would have to err more, and then it would not fall short of them.

    Args:
        labels: N option indices of the judge.
        votes: N items; their annotators' option indices. Those with fewer than two are nan.
        levels: of the V options.
    """
    counts = vote_counts(votes, len(levels)).astype(float)
    apart = np.abs(levels[:, None] - levels)
    m, found = counts.sum(axis=1), {}
    for measure, likeness in ((BEYOND, np.eye(len(levels))), (SHIFT, -apart)):
        with np.errstate(divide="ignore", invalid="ignore"):
            plain = np.where(m >= 2, (counts * likeness[labels]).sum(axis=1) / m, np.nan)
            pairs = ((counts @ likeness) * counts).sum(axis=1) - counts @ likeness.diagonal()
            found[measure] = plain - pairs / (m * (m - 1)), plain
    return found


def annotation_measures(
    labels: Integers, votes: Sequence[Mapping[str, int]], levels: Floats
) -> tuple[list[str], dict[str, Floats]]:
    """The same of each annotation, and who made it.

    Agreement beyond annotators is 1 where the judge says the same, else 0, minus the share of the
    item's other annotators who do.
    """
    names = [name for row in votes for name in row]
    item = np.repeat(np.arange(len(votes)), [len(row) for row in votes])
    said = np.array([option for row in votes for option in row.values()], dtype=int)
    counts = vote_counts([list(row.values()) for row in votes], len(levels)).astype(float)
    others = counts.sum(axis=1)[item] - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        among = np.where(others > 0, (counts[item, said] - 1) / others, np.nan)
    beyond = (labels[item] == said) - among
    return names, {BEYOND: beyond, SHIFT: levels[labels[item]] - levels[said]}


def probe_groups(
    attribute: str,
    groups: Sequence[str],
    measure: str,
    values: Floats,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    closer: Sequence[Floats] = (),
) -> tuple[list[Probe], list[str]]:
    """Compare each group with the rest, by a permutation test; two groups with each other, once.

    The labels of the groups are permuted among what belongs together (whole clusters), or within a
    cluster that has items of several groups, so p is exact where labels do not matter, however
    small a group is. The statistic is the difference of means over its cluster-robust standard
    error, so p holds in large groups whose values vary differently, too (Chung and Romano, "Exact
    and Asymptotically Robust Permutation Tests", 2013). p is twice that of the nearer tail.
    Intervals are Student's, of that error or of the spread of the permuted differences, whichever
    is larger: in a small group, values that happen to be all alike have no error of their own.

    Args:
        attribute: what is grouped by.
        groups: of N items or annotations.
        measure: what is compared.
        values: N; those that are nan do not count.
        clusters: what each of the N belongs to, e.g. a conversation; by default each is its own.
        seed: of the permutations.
        closer: of the judge to annotators, see `closeness`; without it, nothing is of the judge.

    Returns:
        Probes, sorted by the group's name, and the groups that were not tested: with fewer than
        `FEWEST` values or `FEWEST_CLUSTERS` clusters inside or outside, or where nothing varies.
    """
    from scipy.stats import t

    known = np.flatnonzero(np.isfinite(values))
    names, codes = np.unique(np.asarray(groups, dtype=str)[known], return_inverse=True)
    if len(names) < 2 or not np.ptp(values[known]):
        return [], [str(name) for name in names]
    owner = known if clusters is None else _numbered(clusters)[known]
    units = _Units(codes.astype(np.int64), values[known], np.unique(owner, return_inverse=True)[1])
    enough = [k for k in range(len(names)) if units.fewest(k)]
    skipped = [str(names[k]) for k in range(len(names)) if k not in enough]
    found = []
    tested = enough[:1] if len(names) == 2 else enough
    for k in tested:
        p, centre, spread = units.test(k, seed)
        fewest = units.fewest(k)
        wide = float(t.isf(0.025, fewest - 1))
        inside, outside = (units.mean(side, wide) for side in (units.codes == k, units.codes != k))
        raw, error = (float(x[0]) for x in units.compare(*units.observed(k)))
        difference = raw - centre
        half = wide * max(error * float(np.sqrt(fewest / (fewest - 1))), spread)
        n = int((codes == k).sum())
        one = Probe(
            attribute,
            str(names[k]),
            str(names[1 - k]) if len(names) == 2 else "",
            measure,
            (n, len(codes) - n),
            (inside, outside),
            Interval(difference, difference - half, difference + half),
            p,
        )
        if closer and p < SIGNIFICANT:
            sides = np.where(np.asarray(groups, dtype=str) == one.group, "a", "b").tolist()
            both = [probe_groups("", sides, "", x, clusters, seed)[0] for x in closer]
            one = replace(one, of_judge=all(both) and _of_judge(one, *(x[0] for x in both)))
        found.append(one)
    return found, skipped


def _of_judge(found: Probe, beyond: Probe, plain: Probe) -> bool:
    """Whether the judge surely falls short on a side, where it is also surely farther off."""
    far = int(plain.difference.estimate > 0)
    sign = (1, -1)[far]  # of the far side minus the near one
    ends = [sign * end for end in (plain.difference.low, plain.difference.high)]
    toward = sign * found.difference.estimate
    if found.measure == SHIFT:  # away from 0 on the far side
        mean = found.means[far]
        as_shown = (mean.low > 0 and toward > 0) or (mean.high < 0 and toward < 0)
    else:
        as_shown = toward < 0
    return bool(as_shown and max(ends) < 0 and beyond.means[far].high < 0)


def _numbered(clusters: Sequence[Hashable]) -> Integers:
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in clusters], dtype=np.int64)


class _Units:
    """What labels are permuted among: clusters of one group, and items of the other clusters."""

    def __init__(self, codes: Integers, values: Floats, owner: Integers) -> None:
        order = np.argsort(owner, kind="stable")
        self.centre, self.spread = float(values.mean()), float(values.std())
        codes, values, owner = codes[order], values[order] - self.centre, owner[order]
        new = np.diff(owner, prepend=-1) != 0
        first = codes[new][np.cumsum(new) - 1]
        mixed = np.isin(owner, owner[codes != first])
        # A cluster of one group is one unit: its sum and its size.
        begins = np.flatnonzero(mixed | new)
        self.codes, self.owner, self.mixed = codes[begins], owner[begins], mixed[begins]
        self.total = np.add.reduceat(values, begins)
        self.size = np.diff(begins, append=len(owner)).astype(float)
        whole = np.stack([self.size, self.total], axis=1)[~self.mixed].round(12)
        kinds, self.kind, self.kinds = np.unique(
            whole, axis=0, return_inverse=True, return_counts=True
        )
        n, y = kinds.T
        self.moments = np.stack([n, y, y**2, y * n, n**2], axis=1)

    def fewest(self, k: int) -> int:
        """The clusters of a group, or of the rest, if they are fewer; 0 if too few to compare."""
        sides = (self.codes == k, self.codes != k)
        clusters = min(len(set(self.owner[side].tolist())) for side in sides)
        values = min(self.size[side].sum() for side in sides)
        return clusters if values >= FEWEST and clusters >= FEWEST_CLUSTERS else 0

    def observed(self, k: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """As `drawn`, of the labels as they are, 1 x ..."""
        inside = self.codes == k
        moments = self.moments[self.kind[inside[~self.mixed]]].sum(axis=0)
        return moments[None], inside[None, self.mixed]

    def drawn(
        self, k: int, number: int, rng: np.random.Generator
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """R permutations; equal clusters are drawn by their number.

        Returns:
            Sums of the moments of a group's whole clusters, R x 5, and which items of the mixed
            clusters are in it.
        """
        inside, own = self.codes == k, np.flatnonzero(self.mixed)
        whole = int(inside[~self.mixed].sum())
        found = np.zeros((number, 5))
        if whole:
            found = rng.multivariate_hypergeometric(self.kinds, whole, number) @ self.moments
        order = np.argsort(self.owner[own] + rng.random((number, len(own))), axis=1)
        return found, inside[own][order]

    def compare(self, within: Floats, inside: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Difference of means and its standard error, R, of what `drawn` gives."""
        sums = (within, self.kinds @ self.moments - within)
        total, variance, means, parts = self.total[self.mixed], np.zeros(len(within)), [], []
        for moments, side in zip(sums, (inside, ~inside), strict=True):
            n = moments[:, 0] + side.sum(axis=1)
            mean = (moments[:, 1] + side @ total) / n
            squares = moments[:, 2] - 2 * mean * moments[:, 3] + mean**2 * moments[:, 4]
            variance += squares.clip(0) / n**2
            means.append(mean)
            parts.append((total - mean[:, None]) / n[:, None])
        if len(total):
            starts = np.flatnonzero(np.diff(self.owner[self.mixed], prepend=-1))
            whole = np.add.reduceat(np.where(inside, parts[0], -parts[1]), starts, axis=1)
            variance += np.square(whole).sum(axis=1)
        return means[0] - means[1], np.sqrt(variance)

    def mean(self, side: npt.NDArray[np.bool_], wide: float) -> Interval:
        """Of the items on a side, with `wide` standard errors on either hand."""
        n = self.size[side].sum()
        mean = self.total[side].sum() / n
        parts = np.bincount(self.owner[side], self.total[side] - mean * self.size[side]) / n
        clusters = len(set(self.owner[side].tolist()))
        error = np.sqrt(np.square(parts).sum() * clusters / (clusters - 1))
        half = wide * max(float(error), self.spread / np.sqrt(n))
        mean = float(mean) + self.centre
        return Interval(mean, mean - half, mean + half)

    def test(self, k: int, seed: int) -> tuple[float, float, float]:
        """Of a group, p, and the mean and standard deviation of the permuted differences.

        Without mixed clusters the mean is 0 but for the error of the drawing, so 0.
        """
        p = centre = spread = 0.0
        for stage, (number, enough) in enumerate(_STAGES):
            rng = np.random.default_rng((seed, stage, k))
            parts = [self.compare(*self.observed(k))]
            for start in range(0, number, _CHUNK):
                size = min(_CHUNK, number - start)
                parts.append(self.compare(*self.drawn(k, size, rng)))
            difference, error = (np.concatenate(x) for x in zip(*parts, strict=True))
            p, spread = _p_value(difference, error), float(difference[1:].std())
            centre = float(difference[1:].mean()) if self.mixed.any() else 0.0
            if p > enough:  # p stays valid: what is low at last was low before
                break
        return p, centre, spread


def _p_value(difference: Floats, error: Floats) -> float:
    """Of the first statistic among all, twice that of the nearer tail."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = difference / np.where(error < 1e-9, 0.0, error)
        ratio = np.where(np.abs(difference) < 1e-9, 0.0, ratio).round(9)
    tails = (ratio <= ratio[0]).mean(), (ratio >= ratio[0]).mean()
    return min(1.0, 2 * float(min(tails)))


def adjusted(probes: Sequence[Probe]) -> list[Probe]:
    """The probes of a report, corrected for their number.

    The false discovery rate is controlled within each measure (Benjamini and Hochberg, 1995), and
    p multiplied by the number of measures (Bonferroni). Together, many differences in agreement,
    which may be no bias, would let differences in shift pass that are none.
    """
    from scipy.stats import false_discovery_control

    found, kinds = list(probes), {probe.measure for probe in probes}
    for measure in kinds:
        rows = [k for k, probe in enumerate(probes) if probe.measure == measure]
        values = false_discovery_control([probes[k].p_value for k in rows], method="bh")
        for k, value in zip(rows, values, strict=True):
            found[k] = replace(probes[k], p_adjusted=min(1.0, float(value) * len(kinds)))
    return found


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
