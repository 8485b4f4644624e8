"""Bias, coverage and width of `slm-judge estimate` on simulated corpora whose truth is known.

python benchmarks/estimate.py --repeats 1000
python benchmarks/estimate.py --only regression --repeats 200

Each row is a corpus drawn anew `--repeats` times. "Naive" is what the same labels give where how
they were drawn, or that the judge knows them, is not told; the last table counts the warnings.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from slm_judge.agreement.estimate import (
    CorpusEstimate,
    ModelRows,
    corpus_coefficients,
    corpus_means,
    linear,
    logistic,
)
from slm_judge.agreement.sample import Sample
from slm_judge.evaluation.doubts import RISK, doubts_about
from slm_judge.evaluation.select import Choice, choose
from slm_judge.rubric import Noul

Random = np.random.Generator
TRUE = 0.3553
"""Share of true among the texts of `_texts`, measured on ten million."""
QUESTION = Noul(name="refund", instructions="Is a refund asked for?")


@dataclass
class Found:
    """Of one corpus."""

    truth: float
    ours: CorpusEstimate
    naive: CorpusEstimate | None = None


def both(values: np.ndarray) -> np.ndarray:
    """Shares of false and true."""
    return np.stack([1 - values, values], axis=1).astype(float)


def share(human: np.ndarray, judged: np.ndarray, sample: Sample) -> CorpusEstimate:
    """The share of true."""
    return corpus_means(both(human), both(judged), sample)[1]


def wrong(rng: Random, truth: np.ndarray, misses: float, alarms: float) -> np.ndarray:
    """A judge's labels."""
    chance = np.where(truth, 1 - misses, alarms)
    return rng.random(len(truth)) < chance


def simple(rate: float, n: int, misses: float, alarms: float) -> Callable[[Random], Found]:
    """A simple random sample."""

    def draw(rng: Random) -> Found:
        truth = rng.random(5000) < rate
        judged = wrong(rng, truth, misses, alarms)
        return Found(rate, share(truth[:n], judged, Sample.drawn(5000, range(n))))

    return draw


def score(rng: Random) -> Found:
    """A score from 1 to 5, which the judge gives too high, to 100 items."""
    levels = rng.choice(5, 4000, p=[0.1, 0.2, 0.4, 0.2, 0.1]) + 1.0
    judged = np.clip(levels + rng.choice([0, 1, -1], 4000, p=[0.5, 0.4, 0.1]), 1, 5)
    sample = Sample.drawn(4000, range(100))
    return Found(3.0, corpus_means(levels[:100, None], judged[:, None], sample, 1.0)[0])


def votes(rng: Random) -> Found:
    """Three to five annotators an item; a fifth of the votes on most items are true."""
    chance = np.where(rng.random(4000) < 0.2, 0.6, 0.2)
    judged = chance > 0.5
    number = rng.integers(3, 6, 300)
    given = rng.binomial(number, chance[:300]) / number
    sample = Sample.drawn(4000, range(300))
    majority = given > 0.5
    return Found(0.28, share(given, judged, sample), share(majority, judged, sample))


def queue(rng: Random) -> Found:
    """All items of low confidence, and 3 % of the others; errors are where confidence is low."""
    sure = rng.random(6000)
    truth = rng.random(6000) < 0.3
    judged = np.where(rng.random(6000) < 0.05 + 0.5 * (sure < 0.1), ~truth, truth)
    judged |= (sure > 0.7) & (rng.random(6000) < 0.1)
    chances = np.where(sure < 0.1, 1.0, 0.03)
    rows = np.flatnonzero(rng.random(6000) < chances)
    ours = share(truth[rows], judged, Sample.drawn(6000, rows, chances[rows]))
    return Found(0.3, ours, share(truth[rows], judged, Sample.drawn(6000, rows)))


def selected(rng: Random) -> Found:
    """300 items of `slm-judge select --audit 0.2`; the judge misses most where it doubts.

    Near duplicates, of which 600 are of a kind, have a label in common in nine of ten, and a doubt.
    The share is that of the corpus: of texts like it, so large a kind would be one group.
    """
    alike = rng.integers(0, 3000, 6000) * (rng.random(6000) < 0.9)
    alike = np.unique(alike, return_inverse=True)[1]
    kinds = alike.max() + 1
    own = rng.random(6000) < 0.1
    truth = np.where(own, rng.random(6000), rng.random(kinds)[alike]) < 0.3
    sure = (rng.beta(4, 1, kinds) / 2 + 0.5)[alike]
    judged = truth & (rng.random(6000) < sure)
    choice = Choice(300, 0.2, seed=int(rng.integers(2**31)))
    chances, rows = choose(alike, 1 - sure, choice)
    ours = share(truth[rows], judged, Sample.drawn(6000, rows, chances[rows]))
    return Found(truth.mean(), ours, share(truth[rows], judged, Sample.drawn(6000, rows)))


def strata(rng: Random) -> Found:
    """Three sources of unequal size and share, of each of which 80 items are annotated."""
    source = rng.choice(3, 6000, p=[0.8, 0.15, 0.05])
    rates = np.array([0.1, 0.4, 0.8])
    truth = rng.random(6000) < rates[source]
    judged = wrong(rng, truth, 0.3, 0.1)
    rows = np.concatenate([np.flatnonzero(source == s)[:80] for s in range(3)])
    ours = share(truth[rows], judged, Sample.drawn(6000, rows, strata=source))
    rate = float(np.dot([0.8, 0.15, 0.05], rates))
    return Found(rate, ours, share(truth[rows], judged, Sample.drawn(6000, rows)))


def conversations(number: int) -> Callable[[Random], Found]:
    """Whole conversations of 20 messages are annotated; messages and errors are alike in them."""

    def draw(rng: Random) -> Found:
        group = np.repeat(np.arange(300), 20)
        truth = rng.random(6000) < rng.beta(1.5, 3.5, 300)[group]
        judged = wrong(rng, truth, 0.1, 0.0) | (rng.random(6000) < rng.beta(0.3, 1.7, 300)[group])
        rows = np.flatnonzero(group < number)
        ours = share(truth[rows], judged, Sample.drawn(6000, rows, groups=group))
        return Found(0.3, ours, share(truth[rows], judged, Sample.drawn(6000, rows)))

    return draw


def _fitted(
    x: np.ndarray, human: np.ndarray, judged: np.ndarray, samples: list[Sample], logit: bool
) -> list[CorpusEstimate]:
    """The second coefficient, with each sample."""
    rows, everywhere = samples[0].rows, np.arange(len(x))
    ours = ModelRows(x[rows], human, np.arange(len(rows)), np.ones(len(rows)))
    theirs = ModelRows(x, judged, everywhere, np.ones(len(x)))
    link = logistic if logit else linear
    return [corpus_coefficients(ours, theirs, sample, link)[1] for sample in samples]


def regression(logit: bool = False, bad: bool = False, n: int = 300) -> Callable[[Random], Found]:
    """The judge sees refunds mainly in e-mails, so that it finds an effect of the channel."""

    def draw(rng: Random) -> Found:
        email = (rng.random(6000) < 0.4).astype(float)
        chance = 1 / (1 + np.exp(1 - email)) if logit else 0.3 + 0.2 * email
        truth = rng.random(6000) < chance
        judged = rng.random(6000) < 0.5 if bad else wrong(rng, truth, 0.3 - 0.3 * email, 0.1)
        x, sample = np.stack([np.ones(6000), email], axis=1), Sample.drawn(6000, range(n))
        found = _fitted(x, truth[:n].astype(float), judged.astype(float), [sample], logit)
        return Found(1.0 if logit else 0.2, found[0])

    return draw


def drawn_regression(rng: Random) -> Found:
    """Conversations with unequal chances, in a regression."""
    group = np.repeat(np.arange(600), 10)
    email = (rng.random(600) < 0.4)[group].astype(float)
    truth = rng.random(6000) < np.clip(
        0.3 + 0.2 * email + rng.uniform(-0.25, 0.25, 600)[group], 0, 1
    )
    judged = wrong(rng, truth, 0.3 - 0.3 * email, 0.1)
    means = np.bincount(group, judged) / 10
    chances = np.where(means > 0.5, 0.3, 0.06)[group]
    rows = np.flatnonzero(rng.random(600)[group] < chances)
    x = np.stack([np.ones(6000), email], axis=1)
    samples = [Sample.drawn(6000, rows, chances[rows], groups=group), Sample.drawn(6000, rows)]
    human = truth[rows].astype(float)
    return Found(0.2, *_fitted(x, human, judged.astype(float), samples, False))


def queued_regression(rng: Random) -> Found:
    """A queue for review: the judge errs in half of its tenth, and in 5 % of the other items."""
    email, low = (rng.random(2000) < 0.4).astype(float), np.arange(2000) % 10 == 0
    truth = rng.random(2000) < 0.3 + 0.2 * email
    judged = np.where(rng.random(2000) < np.where(low, 0.5, 0.05), ~truth, truth)
    chances = np.where(low, 1.0, 0.03)
    rows = np.flatnonzero(rng.random(2000) < chances)
    x, human = np.stack([np.ones(2000), email], axis=1), truth[rows].astype(float)
    samples = [Sample.drawn(2000, rows, chances[rows]), Sample.drawn(2000, rows)]
    return Found(0.2, *_fitted(x, human, judged.astype(float), samples, False))


def covariate(rng: Random) -> Found:
    """The label explains an outcome that is known of all items."""
    truth = rng.random(6000) < 0.3
    judged = wrong(rng, truth, 0.3, 0.2)
    y, n = 1 + 0.5 * truth + rng.normal(0, 0.5, 6000), 300

    def rows(labels: np.ndarray, outcome: np.ndarray) -> ModelRows:
        x = np.stack([np.ones(len(labels)), labels], axis=1)
        return ModelRows(x, outcome, np.arange(len(labels)), np.ones(len(labels)))

    known, sample = rows(truth[:n], y[:n]), Sample.drawn(6000, range(n))
    return Found(0.5, corpus_coefficients(known, rows(judged, y), sample)[1])


def _texts(rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """Features of texts, and their labels, 35 % of them true."""
    x = rng.normal(size=(3000, 120))
    return x, rng.random(3000) < 1 / (1 + np.exp(0.8 - x[:, :4] @ [1.0, 0.7, 0.5, 0.3]))


def _trained(x: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """A judge that learns its labels by heart, and finds too little true elsewhere."""
    weights = {False: 4.0, True: 1.0}
    return LogisticRegression(C=100.0, class_weight=weights, max_iter=2000).fit(x, labels)


def trained(rng: Random) -> Found:
    """A judge trained on 200 labels; ours from 200 fresh ones, naive from the same."""
    x, truth = _texts(rng)
    judged = _trained(x[:200], truth[:200]).predict(x)
    naive = share(truth[:200], judged, Sample.drawn(3000, range(200)))
    rest = Sample.drawn(2800, range(200))
    return Found(TRUE, share(truth[200:400], judged[200:], rest), naive)


def by_heart(rng: Random) -> Found:
    """A judge that knows 300 labels by heart, and elsewhere says true of one text in twenty."""
    truth = rng.random(6000) < 0.35
    judged = wrong(rng, truth, 0.9, 0.026)
    judged[:300] = truth[:300]
    naive = share(truth[:300], judged, Sample.drawn(6000, range(300)))
    rest = Sample.drawn(5700, range(300))
    return Found(0.35, share(truth[300:600], judged[300:], rest), naive)


def folds(rng: Random) -> Found:
    """Five judges, each trained on four fifths of 200 labels, that judge the fifth left over."""
    x, truth = _texts(rng)
    part = np.arange(200) % 5
    judges = [_trained(x[:200][part != k], truth[:200][part != k]) for k in range(5)]
    judged = np.mean([judge.predict(x) for judge in judges], axis=0)
    for k, judge in enumerate(judges):
        judged[:200][part == k] = judge.predict(x[:200][part == k])
    return Found(TRUE, share(truth[:200], judged, Sample.drawn(3000, range(200))))


def unequal_folds(rng: Random) -> Found:
    """Two judges, one much worse, on parts of 240 and 60 labels; naive: both count alike."""
    truth, part = rng.random(5000) < 0.3, np.repeat([0, 1], [240, 60])
    judges = np.stack([wrong(rng, truth, 0.1, alarms) for alarms in (0.25, 0.02)], axis=1)
    sample, found = Sample.drawn(5000, range(300)), []
    for shares in (sample.shares_of(part, 2), np.full((5000, 2), 0.5)):
        judged = (judges * shares).sum(axis=1)
        judged[:300] = judges[np.arange(300), part]
        found.append(share(truth[:300], judged, sample))
    return Found(0.3, *found)


CORPORA: dict[str, Callable[[Random], Found]] = {
    "share .35, n 300, good judge": simple(0.35, 300, 0.1, 0.05),
    "share .35, n 300, coin for a judge": simple(0.35, 300, 0.5, 0.5),
    "share .35, n 30": simple(0.35, 30, 0.2, 0.1),
    "share .02, n 100": simple(0.02, 100, 0.2, 0.02),
    "share .02, n 100, hardly an error": simple(0.02, 100, 0.05, 0.001),
    "mean of a score, n 100": score,
    "several annotators (naive: majority)": votes,
    "queue for review (naive: no chances)": queue,
    "chosen by select (naive: no chances)": selected,
    "strata (naive: none)": strata,
    "40 conversations (naive: no groups)": conversations(40),
    "15 conversations (naive: no groups)": conversations(15),
    "regression, n 300": regression(),
    "regression, coin for a judge": regression(bad=True),
    "regression, n 60": regression(n=60),
    "logistic regression": regression(logit=True),
    "regression, chances and groups (naive: none)": drawn_regression,
    "regression, queue for review (naive: no chances)": queued_regression,
    "regression on a label": covariate,
    "learnt by heart (naive: same labels)": by_heart,
    "trained on (naive: same labels)": trained,
    "trained on, five folds": folds,
    "trained on, unequal parts (naive: as if equal)": unequal_folds,
}


def measure(draw: Callable[[Random], Found], repeats: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Of people alone, judge alone, ours and naive: bias, coverage in percent, and width."""
    rows = []
    for repeat in range(repeats):
        found = draw(np.random.default_rng((seed, repeat)))
        last = found.naive.prediction_powered if found.naive else None
        cells = [(found.ours.judge_alone - found.truth, np.nan, np.nan)]
        for one in (found.ours.humans_alone, found.ours.prediction_powered, last):
            if one is None:
                cells.append((np.nan,) * 3)
                continue
            covered = 100.0 * (one.low <= found.truth <= one.high)
            cells.append((one.estimate - found.truth, covered, one.high - one.low))
        rows.append(cells)
    means = np.array(rows).mean(axis=0)
    return dict(zip(("judge", "people", "ours", "naive"), means, strict=True))


def alarms(chosen: Callable[[Random], "Chosen"], repeats: int) -> float:
    """How often there is a warning, by how the annotated items were chosen."""
    count = 0
    for repeat in range(repeats):
        sample, judged, people, sure = chosen(np.random.default_rng((1, repeat)))
        tested = doubts_about(QUESTION, sample, both(judged), both(people), sure)
        count += any(p * len(tested) < RISK for _, p in tested)
    return count / repeats


Chosen = tuple[Sample, np.ndarray, np.ndarray, np.ndarray]


def _random(off: float = 0.0, n: int = 300) -> Callable[[Random], Chosen]:
    """A random sample; confidences are off by so much."""

    def choose(rng: Random) -> Chosen:
        sure = rng.beta(5, 2, 4000) / 2 + 0.5
        judged = rng.random(4000) < 0.3
        people = np.where(rng.random(4000) < sure, judged, ~judged)[:n]
        return Sample.drawn(4000, range(n)), judged, people, np.clip(sure + off, 0, 1)

    return choose


def _drawn(rng: Random) -> Chosen:
    """Conversations, and all items of low confidence, with their chances."""
    group = np.repeat(np.arange(800), 5)
    sure = np.clip(rng.beta(5, 2, 4000) / 2 + 0.4 + rng.uniform(0, 0.1, 800)[group], 0, 1)
    judged = rng.random(4000) < rng.beta(1, 2, 800)[group]
    people = np.where(rng.random(4000) < sure, judged, ~judged)
    chances = np.where(np.bincount(group, sure < 0.7) > 1, 0.5, 0.1)[group]
    rows = np.flatnonzero(rng.random(800)[group] < chances)
    return Sample.drawn(4000, rows, chances[rows], groups=group), judged, people[rows], sure


def _review(rng: Random) -> Chosen:
    """Those of low confidence alone."""
    _, judged, _, sure = _random()(rng)
    rows = np.flatnonzero(sure < np.quantile(sure, 0.1))
    people = np.where(rng.random(len(rows)) < sure[rows], judged[rows], ~judged[rows])
    return Sample.drawn(4000, rows), judged, people, sure


def _known(rng: Random) -> Chosen:
    """Those that the judge was trained on."""
    x, truth = _texts(rng)
    chances = _trained(x[:200], truth[:200]).predict_proba(x)
    return Sample.drawn(3000, range(200)), chances[:, 1] > 0.5, truth[:200], chances.max(axis=1)


def _mildly(rng: Random) -> Chosen:
    """Those that a judge was trained on that did not overfit: shrunken weights, calibrated."""
    x, truth = _texts(rng)
    judge = LogisticRegression(C=0.01, max_iter=2000).fit(x[:200], truth[:200])
    chances = judge.predict_proba(x)
    return Sample.drawn(3000, range(200)), chances[:, 1] > 0.5, truth[:200], chances.max(axis=1)


WARNED: dict[str, Callable[[Random], Chosen]] = {
    "random sample": _random(),
    "random sample, n 30": _random(n=30),
    "random sample, confidence .05 too low": _random(-0.05),
    "random sample, confidence .2 too low": _random(-0.2),
    "random sample, confidence .1 too high": _random(0.1),
    "random, chances and groups": _drawn,
    "queue for review": _review,
    "trained on": _known,
    "trained on, a judge that did not overfit": _mildly,
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--only", default="", help="rows with this in their name")
    arguments = parser.parse_args()
    print("bias, coverage (%), width".center(120))
    print(f"{'':46}{'judge alone':>12}{'people alone':>22}{'corrected':>22}{'naive':>22}")
    for name, draw in CORPORA.items():
        if arguments.only in name:
            found = measure(draw, arguments.repeats)
            cells = [
                "" if np.isnan(bias) else f"{bias:+.3f} {cover:5.1f} {width:.3f}"
                for bias, cover, width in list(found.values())[1:]
            ]
            print(f"{name:46}{found['judge'][0]:>+12.3f}" + "".join(f"{c:>22}" for c in cells))
    print("\nshare of corpora with a warning")
    for name, chosen in WARNED.items():
        if arguments.only in name:
            print(f"{name:46}{alarms(chosen, arguments.repeats):12.3f}")


if __name__ == "__main__":
    main()
