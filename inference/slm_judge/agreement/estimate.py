"""What the labels are for: how many items a study needs, and estimates for a whole corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .alpha import Floats
from .bootstrap import Interval
from .sample import Sample, Whole

_STEPS, _NEAR = 50, 1e-9  # of Newton's method


def items_needed(interval: Interval, n_items: int, width: float) -> int:
    """Items with which an interval would have this width, from the width that N items gave.

    Standard errors fall with the square root of the number of items.
    """
    return int(np.ceil(n_items * ((interval.high - interval.low) / width) ** 2))


def widths(interval: Interval, n_items: int, sizes: Sequence[int]) -> dict[int, float]:
    """Expected width of the interval with other numbers of items."""
    measured = interval.high - interval.low
    return {size: measured * float(np.sqrt(n_items / size)) for size in sizes}


@dataclass(frozen=True)
class CorpusEstimate:
    """A mean, a share or a coefficient of a corpus, three ways."""

    prediction_powered: Interval
    """Judge on the whole corpus, corrected by what people said on a part of it."""
    humans_alone: Interval
    """From the part that people annotated."""
    judge_alone: float
    """Uncorrected, so biased by an unknown amount."""
    n_human: int
    n_judged: int
    """Further items, which the judge alone labelled."""
    trust: float
    """Weight of the judge's labels, from 0 (people alone count) to 1."""
    uncut: float
    """The prediction-powered estimate before shares were moved to be above 0."""


def corpus_means(
    human: Floats,
    judged: Floats,
    sample: Sample,
    step: float | None = None,
    confidence: float = 0.95,
) -> list[CorpusEstimate]:
    """Prediction-powered means of K values an item (see `sample`), with one trust for all.

    The judge's bias is estimated from the items that people annotated. The interval holds however
    bad the judge is, and is narrow where it is good. So that it also holds where few of the
    annotated items show an error or a rare option, it is that of a sample with two items more, in
    which people and judge contradict each other, once each way, as Agresti and Coull (1998) and,
    for pairs, Bonett and Price (2012) do for shares; by Student's t.

    Where values are shares of K options and sum to 1 in each item, so do the estimates, since all
    have the same trust. Where one would be below 0, all are moved to the nearest ones that are not.

    Args:
        human: n x K values, as people said (an item's mean over annotators).
        judged: N x K values, as the judge said.
        sample: which of the N items are the n, and how they were drawn.
        step: distance of neighbouring values; None where the K values are shares.
        confidence: coverage of the intervals.
    """
    estimates: list[tuple[Floats, Floats, Floats, Floats]] = []
    trust = sample.best_trust(judged, human)
    for weight in (trust, 0.0):
        influence = sample.influence(judged, human, weight)
        mean = influence.mean(axis=0)
        variance = (sample.sums(influence - mean) ** 2).sum(axis=0)
        gap = mean - weight * judged.mean(axis=0)
        more = sample.effective(influence - mean) + 2
        ends = np.array([[1.0], [-weight]]) if step is None else np.array([gap - step, gap + step])
        centre = mean + (ends - gap).sum(axis=0) / more
        variance += ((ends - gap) ** 2).sum(axis=0) / more**2
        half = sample.quantile(confidence) * np.sqrt(variance)
        shown = nearest_shares(mean) if step is None else mean
        bounds = (0, 1) if step is None else (-np.inf, np.inf)
        low, high = np.clip(centre - half, *bounds), np.clip(centre + half, *bounds)
        estimates.append((shown, np.minimum(low, shown), np.maximum(high, shown), mean))
    return _estimates(estimates, judged.mean(axis=0), sample, trust)


def _estimates(
    found: Sequence[tuple[Floats, ...]], judge: Floats, sample: Sample, trust: float
) -> list[CorpusEstimate]:
    """Of estimate, ends of the interval, and estimate before it was moved, twice."""
    powered, alone = (np.stack(one, axis=1).tolist() for one in found)
    counts = len(sample.rows), len(sample.strata) - len(sample.rows)
    return [
        CorpusEstimate(Interval(*p[:3]), Interval(*h[:3]), float(j), *counts, trust, p[3])
        for p, h, j in zip(powered, alone, judge, strict=True)
    ]


def nearest_shares(values: Floats) -> Floats:
    """The nearest numbers that are not below 0, with the same sum (Euclidean projection)."""
    falling = np.sort(values)[::-1]
    over = (falling.cumsum() - values.sum()) / np.arange(1, len(values) + 1)
    most = np.flatnonzero(falling > over)
    return np.maximum(values - (over[most[-1]] if values.min() < 0 else 0), 0)


@dataclass(frozen=True)
class ModelRows:
    """The variables of a regression with p coefficients; several rows may share an item."""

    x: Floats
    """Rows x p."""
    y: Floats
    items: Whole
    """The item of each row, from 0."""
    share: Floats
    """Of an item; those of its rows sum to 1."""

    def moments(self, beta: Floats, link: "Link", n_items: int) -> Floats:
        """Items x p: x (y - mean of y)."""
        rest = self.x.T * (self.share * (self.y - link(self.x @ beta)[0]))
        return np.stack([np.bincount(self.items, one, n_items) for one in rest], axis=1)

    def information(self, beta: Floats, link: "Link", weights: Floats) -> Floats:
        """Minus the derivative of the sum of weighted moments, p x p; one weight an item."""
        slope = self.share * weights[self.items] * link(self.x @ beta)[1]
        found: Floats = (self.x * slope[:, None]).T @ self.x
        return found


Link = Callable[[Floats], tuple[Floats, Floats]]
"""Linear predictor -> mean of y, and its derivative."""


def linear(eta: Floats) -> tuple[Floats, Floats]:
    """Of linear regression."""
    return eta, np.ones_like(eta)


def logistic(eta: Floats) -> tuple[Floats, Floats]:
    """Of logistic regression."""
    mean = 1 / (1 + np.exp(-np.clip(eta, -500, 500)))
    return mean, mean * (1 - mean)


def corpus_coefficients(
    human: ModelRows,
    judged: ModelRows,
    sample: Sample,
    link: Link = linear,
    confidence: float = 0.95,
) -> list[CorpusEstimate]:
    """Coefficients of a regression on labels, corrected for the judge's errors; see `sample`.

    Any variable may be a label, outcome or not (Egami, Hinck, Stewart and Wei, 2024, "Using Large
    Language Model Annotations for the Social Sciences"; Kluger et al., 2025, arXiv 2501.18577).
    Variances are of the sandwich kind, and, as in `corpus_means`, those of a sample with two items
    more, in which people and judge differ as two items at random do: few of the annotated items may
    show an error. Trust is the one that makes variances least, taken together.

    Args:
        human: rows of the n annotated items, by people's labels.
        judged: rows of all N items, by the judge's.
        sample: which of the N items are the n, and how they were drawn.
        link: `linear` or `logistic`.
        confidence: coverage of the intervals.

    Raises:
        ValueError: the annotated items do not determine the coefficients, or nothing solves the
            equations.
    """
    n, n_items, p = len(sample.rows), len(sample.strata), human.x.shape[1]
    weights = np.zeros(n_items)
    weights[sample.rows] = sample.weights

    def solve(trust: float, start: Floats) -> tuple[Floats, Floats, Floats]:
        """Coefficients, and the inverse of the information, and influences."""

        def at(beta: Floats) -> tuple[Floats, Floats]:
            moments = judged.moments(beta, link, n_items), human.moments(beta, link, n)
            information = judged.information(beta, link, trust * (1 - weights))
            information += human.information(beta, link, sample.weights)
            return information / n_items, sample.influence(*moments, trust)

        return _newton(at, start)

    def alone(beta: Floats) -> tuple[Floats, Floats]:
        information = judged.information(beta, link, np.ones(n_items))
        return information / n_items, judged.moments(beta, link, n_items)

    start = solve(0.0, np.zeros(p))
    moments = judged.moments(start[0], link, n_items), human.moments(start[0], link, n)
    trust = sample.best_trust(*moments, start[1].T)
    found = []
    for beta, inverse, influence in (solve(trust, start[0]), start):
        parts = influence @ inverse.T
        variance = (sample.sums(parts) ** 2).sum(axis=0)
        own = (sample.weights @ (human.moments(beta, link, n) @ inverse.T) ** 2) / n_items
        variance += 4 * own / (sample.effective(parts) + 2) ** 2
        half = sample.quantile(confidence, p) * np.sqrt(variance)
        found.append((beta, beta - half, beta + half, beta))
    try:
        judge = _newton(alone, start[0])[0]
    except ValueError:  # the judge never gives some label
        judge = np.full(p, np.nan)
    return _estimates(found, judge, sample, trust)


def _newton(
    at: Callable[[Floats], tuple[Floats, Floats]], beta: Floats
) -> tuple[Floats, Floats, Floats]:
    """Where the mean moment is 0: coefficients, inverse information and moments there."""
    for _ in range(_STEPS):
        information, moments = at(beta)
        scale = np.sqrt(np.abs(np.diag(information)))
        scale = np.outer(scale, scale)
        if not scale.all() or np.linalg.matrix_rank(information / scale, hermitian=True) < len(
            beta
        ):
            raise ValueError("the annotated items do not tell all coefficients apart")
        inverse = np.asarray(np.linalg.inv(information), dtype=np.float64)
        step = inverse @ moments.mean(axis=0)
        beta = beta + step
        if np.abs(step).max() < _NEAR * (1 + np.abs(beta).max()):
            return beta, inverse, moments
    raise ValueError("no coefficients solve the equations, e.g. since some label is never given")
