"""What a study that is still to be annotated would show: simulated, with the report's statistics.

An annotator says what is true with probability s, and otherwise draws an option by its frequency; a
judge likewise, with q. So all have the same frequencies p, and whatever the level of measurement,
the expected disagreement of two annotators is (1 - s^2) D_e: alpha is s^2 among annotators, and s q
of the judge with them. An artefact that draws a share c of the judge's labels anew loses s q c.

Where items come in groups, an item repeats with probability sqrt(r) all that is said of a prototype
of its group: then r is the correlation, within a group, of whatever is computed of an item, and
nothing else changes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm_judge.rubric import Dimension

from .aggregate import Ratings, level_values
from .alpha import (
    Floats,
    alpha_of_coincidences,
    annotator_coincidences,
    judge_confusions,
    vote_counts,
)
from .alt_test import FEWEST_ITEMS, Score, alt_test
from .bootstrap import Bootstrap, Interval, percentile_interval
from .compare import change_cost, difference
from .estimate import corpus_means, items_needed
from .sample import Sample
from .stand_in import StandIn, best_constant

RESAMPLES = 400
"""Of each study's bootstrap: widths and shares are means over studies."""
LOSSES = (0.0, 0.5, 2.0)
"""Of the margin, that artefacts lose."""
_STUDIES = (20, 100)  # at least and at most
_WORK = 30_000_000  # entries of matrices of coincidences in all studies
_TESTED = 40_000  # annotations in all studies whose exact tests, which take longest, are done
_CHUNK = 10_000_000  # at once, which bounds memory
_CORPORA = 20  # simulated: their widths hardly vary
_SIMULATED = ((20, 10), (1_000, 30))
"""Items, and groups, at least and at most, at which widths are simulated; above they fall with the
root."""
_RARE = 20  # items beside those of the commonest option that a simulated study has on average


@dataclass(frozen=True)
class World:
    """What is expected of annotators and judge, and what the study is for."""

    dimension: Dimension
    prevalence: tuple[float, ...]
    """Share of each option, V."""
    alpha: float
    """Among annotators, above 0."""
    judge: float
    """Alpha of the judge with annotators, at most the root of theirs."""
    annotators: int
    """Of each item."""
    pool: int
    """All annotators, of whom those of an item are drawn."""
    epsilon: float
    """Of the alternative annotator test."""
    margin: float
    """Alpha that an artefact may lose."""
    corpus: int
    """Further items, which the judge alone labels, for `estimate`."""
    group_size: int = 1
    """Items that belong together, e.g. to a conversation."""
    correlation: float = 0.0
    """Of what is computed of the items of a group."""
    seed: int = 0

    def groups(self, n: int) -> Ratings:
        """Of N items."""
        return np.arange(n) // self.group_size

    def units(self, n: int) -> int:
        """Groups of N items."""
        return -(-n // self.group_size)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ratings, Ratings]:
        """Ratings, N x pool, and the judge's labels."""
        skill, rows = float(np.sqrt(self.alpha)), np.arange(n)
        if self.group_size > 1:  # prototypes come last
            rows = np.where(rng.random(n) < np.sqrt(self.correlation), n + self.groups(n), rows)
        truth = self.options(drawn := int(rows.max()) + 1, rng)
        said = self.anew(np.tile(truth[:, None], self.annotators), 1 - skill, rng)
        who = np.argsort(rng.random((drawn, self.pool)), axis=1)[:, : self.annotators]
        ratings = np.full((drawn, self.pool), -1, dtype=np.int64)
        ratings[np.arange(drawn)[:, None], who] = said
        return ratings[rows], self.anew(truth, 1 - self.judge / skill, rng)[rows]

    def anew(self, labels: Ratings, share: float, rng: np.random.Generator) -> Ratings:
        """Labels of which a share is drawn anew."""
        return np.where(rng.random(labels.shape) < share, self.options(labels.shape, rng), labels)

    def options(self, shape: int | tuple[int, ...], rng: np.random.Generator) -> Ratings:
        """Options by their frequency."""
        return rng.choice(len(self.prevalence), shape, p=self.prevalence)


@dataclass(frozen=True)
class Power:
    """What studies of N items showed; nan is what cannot be had."""

    among: float
    """Mean width of the interval of alpha among annotators."""
    judge: float
    """The same of the judge's."""
    shown: float
    """Share of the studies in which the judge may replace an annotator."""
    testable: float
    """Share of the studies in which the alternative annotator test can be done."""
    verified: list[float]
    """Share in which an artefact that loses so much of the margin (`LOSSES`) is shown to be no
    worse; of one that loses more than it, to be worse."""
    powered: float
    """Width of the interval of `estimate`, of the widest share or of a score's mean."""
    people: float
    """The same from people's labels alone."""


def n_studies(world: World, n: int) -> int:
    """How many studies of N items are simulated: as many as take about as long whatever N is."""
    return int(np.clip(_WORK // (n * len(world.prevalence) ** 2), *_STUDIES))


def simulate(world: World, n: int, advance: Callable[[], object] = lambda: None) -> Power:
    """Simulate studies of N items; `advance` after each."""
    cost, rows = 0.0, list[tuple[float, ...]]()
    tested = int(np.clip(_TESTED // (n * world.annotators), *_STUDIES))
    wanted = ["inferior" if loss > 1 else "not inferior" for loss in LOSSES]
    units = world.units(n)
    for ratings, labels, conf, among in _studies(world, n, n_studies(world, n)):
        reference, *others = (_alphas(conf[:, k], world) for k in range(conf.shape[1]))
        wide = _width(_alphas(among / 2, world), units) if world.annotators > 1 else np.nan
        test = (np.nan, np.nan)
        if len(rows) < tested:
            test = _stand_in(world, ratings, labels, reference, conf[:, 0].sum(axis=-1))
        # It hardly varies between studies.
        cost = cost or change_cost(labels, _votes(ratings), world.dimension)
        found = (difference(reference, one, world.margin, cost, units).verdict for one in others)
        rows.append((wide, _width(reference, units), *test, *map(str.__eq__, found, wanted)))
        advance()
    own, of_judge, _, _, *verified = np.mean(rows, axis=0).tolist()
    shown, testable = np.nanmean(np.array(rows)[:, 2:4], axis=0).tolist()
    for k, loss in enumerate(LOSSES):
        if loss * world.margin > world.judge:  # which it cannot lose
            verified[k] = np.nan
    powered, people = _corpus_widths(world, n)
    return Power(own, of_judge, shown, testable, verified, powered, people)


def items_for_width(world: World, width: float) -> tuple[float, float]:
    """Items with which the interval of alpha would have a width: annotators' (or nan), judge's."""
    found, enough = [], int(min(_RARE / (1 - max(world.prevalence)), 20_000))
    for which in (0, 1) if world.annotators > 1 else (1,):
        n = max(300, enough)
        for _ in range(2):  # a study without a rare option would count as wholly precise
            least, most = (max(k, enough, m * world.group_size) for k, m in _SIMULATED)
            at = int(np.clip(n, least, most))
            units = world.units(at)
            studies = _studies(world, at, _STUDIES[0], losses=())
            parts = (among / 2 if which == 0 else conf[:, 0] for _, _, conf, among in studies)
            wide = float(np.mean([_width(_alphas(part, world), units) for part in parts]))
            n = items_needed(Interval(0.0, 0.0, wide), at, width)
        found.append(float(n))
    return (found[0], found[1]) if len(found) > 1 else (float("nan"), found[0])


def correlation_within(
    coincidences: Floats, groups: npt.ArrayLike, dimension: Dimension
) -> tuple[float, float]:
    """How much items of a group are alike in what they add to alpha, and how many a group has.

    From the variance of alpha by groups and by items (linearized), and the size m of equal groups
    with the same design effect, 1 + (m - 1) r (Kish, Survey Sampling, 1965).

    Args:
        coincidences: N x V x V.
        groups: N numbers, from 0.
        dimension: gives the options and the level of measurement.
    """
    sizes, total, step = np.bincount(groups), coincidences.sum(axis=0), 1e-4
    values, level = dimension.values, dimension.level_of_measurement
    added = alpha_of_coincidences(total + step * coincidences, values, level)
    added -= alpha_of_coincidences(total, values, level)
    effect = (np.bincount(groups, added) ** 2).sum() / max((added**2).sum(), 1e-300)
    size = (sizes**2).sum() / len(added)
    return float(np.clip((effect - 1) / max(size - 1, 1e-9), 0, 1)), float(size)


def items_to_compare(world: World) -> int | None:
    """Items with which an annotator shares 30 with others; None where no item has two."""
    if world.annotators < 2:
        return None
    return int(np.ceil(FEWEST_ITEMS * world.pool / world.annotators))


def _votes(ratings: Ratings) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in ratings]


def _studies(
    world: World, n: int, studies: int, losses: tuple[float, ...] = LOSSES
) -> Iterator[tuple[Ratings, Ratings, Floats, Floats]]:
    """Ratings and labels of studies, with totals of confusions and coincidences, 1 + R x ...

    Confusions are those of the judge and of artefacts. All studies share the drawn items, so that
    their resamples are one matrix product.
    """
    rng, v = np.random.default_rng((world.seed, n)), len(world.prevalence)
    bootstrap = Bootstrap(n, RESAMPLES, world.seed, world.groups(n).tolist())
    size = int(np.clip(_CHUNK // ((n + RESAMPLES) * v * v * (len(losses) + 2)), 1, studies))
    shares = [min(loss * world.margin / max(world.judge, 1e-9), 1.0) for loss in losses]
    for start in range(0, studies, size):
        drawn, parts = [], []
        for _ in range(min(size, studies - start)):
            ratings, labels = world.draw(n, rng)
            votes = _votes(ratings)
            judged = [labels, *(world.anew(labels, share, rng) for share in shares)]
            sums = [judge_confusions(one.tolist(), votes, v) for one in judged]
            parts.append(np.stack([*sums, annotator_coincidences(votes, v)], axis=1))
            drawn.append((ratings, labels))
        totals = bootstrap.totals(np.stack(parts, axis=1))
        for k, (ratings, labels) in enumerate(drawn):
            yield ratings, labels, totals[:, k, :-1], totals[:, k, -1]


def _alphas(confusions: Floats, world: World) -> Floats:
    both, dimension = confusions + np.swapaxes(confusions, -1, -2), world.dimension
    return alpha_of_coincidences(both, dimension.values, dimension.level_of_measurement)


def _width(alphas: Floats, units: int) -> float:
    found = percentile_interval(alphas, bounds=(-np.inf, 1.0), units=units)
    return found.high - found.low


def _stand_in(
    world: World, ratings: Ratings, labels: Ratings, alphas: Floats, said: Floats
) -> tuple[bool, bool]:
    """Whether a report says that the judge may replace an annotator, and whether it can be said."""
    dimension, n = world.dimension, len(labels)
    score: Score = "accuracy" if dimension.level_of_measurement == "nominal" else "neg_rmse"
    names, levels = [str(m) for m in range(world.pool)], level_values(dimension)
    groups = world.groups(n).tolist()
    test = alt_test(labels.tolist(), ratings, names, levels, world.epsilon, score, groups=groups)
    constant = best_constant(said, dimension.values, dimension.level_of_measurement)[1]
    units = world.units(n)
    alpha = percentile_interval(alphas, bounds=(-np.inf, 1.0), units=units)
    found = StandIn(test, alpha, percentile_interval(alphas - constant, units=units), "")
    return found.passed, bool(test.comparisons)


def _corpus_widths(world: World, n: int) -> tuple[float, float]:
    """Of `estimate`: corrected by n labelled items, and from these alone."""
    rng, dimension = np.random.default_rng((world.seed, n, 1)), world.dimension
    is_score = dimension.type == "score"
    levels = level_values(dimension)[:, None] if is_score else np.eye(len(world.prevalence))
    step = float(np.diff(levels[:, 0]).mean()) if is_score else None
    groups = np.concatenate([world.groups(n), world.units(n) + world.groups(world.corpus)])
    sample = Sample.drawn(n + world.corpus, np.arange(n), groups=groups)
    found = []
    for _ in range(_CORPORA):
        ratings, judged = world.draw(n, rng)
        human = vote_counts(_votes(ratings), len(world.prevalence)) @ levels / world.annotators
        everywhere = np.concatenate([judged, world.draw(world.corpus, rng)[1]])
        means = corpus_means(human, levels[everywhere], sample, step)
        kinds = ([one.prediction_powered for one in means], [one.humans_alone for one in means])
        found.append([max(one.high - one.low for one in kind) for kind in kinds])
    powered, people = np.mean(found, axis=0).tolist()
    return powered, people
