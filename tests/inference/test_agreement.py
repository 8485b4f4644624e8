import math

import numpy as np
import pytest

from slm_judge import Rubric
from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    annotators_alpha,
    judge_alpha,
    judge_coincidences,
    judge_confusions,
    krippendorff_alpha,
    vote_counts,
)
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.scores import accuracy, macro_f1, pair_accuracy

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: 4 observers, 12
# units, values 1 to 5, missing data.
RATINGS = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
]  # fmt: skip
VOTES = [[value - 1 for value in unit if value] for unit in RATINGS]


@pytest.mark.parametrize(
    ("level", "published"),
    [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)],
)
def test_alpha_of_the_published_example(level, published):
    alpha = krippendorff_alpha(vote_counts(VOTES, 5), [1, 2, 3, 4, 5], level)
    assert alpha == pytest.approx(published, abs=0.0006)


def test_degenerate_cases_are_decided():
    same = vote_counts([[0, 0], [0, 0, 0]], 2)
    assert krippendorff_alpha(same, ["a", "b"], "nominal") == 1.0
    assert math.isnan(krippendorff_alpha(vote_counts([[0], []], 2), ["a", "b"], "nominal"))


@pytest.fixture
def dimension():
    return Rubric.parse(
        {
            "name": "r", "instructions": "?", "fields": ["text"],
            "dimensions": [{"name": "d", "type": "score", "instructions": "?", "options": [1, 2, 3]}],
        },
        "test",
    ).dimensions[0]  # fmt: skip


def test_judge_alpha_leaves_the_annotators_mutual_agreement_out(dimension):
    votes = [[0, 2], [0, 2], [1, 1], [2, 0]]  # the annotators disagree
    judged = [0, 0, 1, 2]
    pairs = [[j, v] for j, row in zip(judged, votes, strict=True) for v in row]
    expected = krippendorff_alpha(vote_counts(pairs, 3), [1, 2, 3], "ordinal")
    assert judge_alpha(judged, votes, dimension) == expected
    assert judge_alpha([row[0] for row in VOTES[:4]], [[v[0]] for v in VOTES[:4]], dimension) == 1.0
    assert annotators_alpha(votes, dimension) < 0


def test_pair_accuracy():
    assert pair_accuracy([0, 1], [[0, 1], [1]]) == pytest.approx(2 / 3)
    assert np.isnan(pair_accuracy([0], [[]]))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_coincidences_give_the_package_s_alpha(level):
    values = [1, 2, 3, 4, 5]
    matrix = annotator_coincidences(VOTES, 5).sum(axis=0)
    expected = krippendorff_alpha(vote_counts(VOTES, 5), values, level)
    assert float(alpha_of_coincidences(matrix, values, level)) == pytest.approx(expected, abs=1e-9)
    rng = np.random.default_rng(0)
    judged = rng.integers(0, 5, 200).tolist()
    votes = [rng.integers(0, 5, rng.integers(0, 4)).tolist() for _ in judged]
    pairs = [[j, v] for j, row in zip(judged, votes, strict=True) for v in row]
    expected = krippendorff_alpha(vote_counts(pairs, 5), values, level)
    matrix = judge_coincidences(judged, votes, 5).sum(axis=0)
    assert float(alpha_of_coincidences(matrix, values, level)) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_coincidences_decides_the_degenerate_cases():
    assert np.isnan(alpha_of_coincidences(np.zeros((3, 3)), [1, 2, 3], "ordinal"))
    assert float(alpha_of_coincidences(np.diag([4.0, 0, 0]), [1, 2, 3], "nominal")) == 1.0


def test_bootstrap_resamples_items():
    rng = np.random.default_rng(1)
    per_item = rng.random((40, 2, 2))
    bootstrap = Bootstrap(40, n_resamples=3000)
    sums = bootstrap.sums(per_item)
    assert sums.shape == (3000, 2, 2)
    assert sums.mean(axis=0) == pytest.approx(per_item.sum(axis=0), rel=0.02)
    # The standard error of a sum of N independent draws.
    assert sums.std(axis=0) == pytest.approx(per_item.std(axis=0) * np.sqrt(40), rel=0.1)
    assert np.array_equal(sums, bootstrap.sums(per_item))  # paired: the same resamples each time


def test_bootstrap_interval_covers():
    """The 95 % interval of a mean covers the true mean about that often."""
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        sample = np.stack([rng.normal(3, 1, 60), np.ones(60)], axis=1)
        found = Bootstrap(60, 400, seed).interval(sample, lambda s: s[:, 0] / s[:, 1])
        covered += found.low <= 3 <= found.high
    assert 0.9 <= covered / 200 <= 0.98


def test_interval_of_what_is_not_defined():
    found = Bootstrap(3, 50).interval(np.zeros((3, 2, 2)), lambda s: s[:, 0, 0] * np.nan)
    assert math.isnan(found.estimate)
    assert math.isnan(found.low)


def test_scores_are_those_of_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(3)
    truth, judged = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    judged[:150] = truth[:150]
    confusion = judge_confusions(judged.tolist(), [[t] for t in truth.tolist()], 6).sum(axis=0)
    assert float(accuracy(confusion)) == pytest.approx(metrics.accuracy_score(truth, judged))
    expected = metrics.f1_score(truth, judged, average="macro")
    assert float(macro_f1(confusion)) == pytest.approx(expected)  # options 4 and 5 never occur
    assert np.isnan(macro_f1(np.zeros((2, 2))))
