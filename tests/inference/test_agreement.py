import math

import numpy as np
import pytest

from slm_judge import Rubric
from slm_judge.agreement import (
    annotators_alpha,
    judge_alpha,
    krippendorff_alpha,
    pair_accuracy,
    vote_counts,
)

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
