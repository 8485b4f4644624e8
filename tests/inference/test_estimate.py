"""Estimates for a corpus: other implementations, simulated corpora, and the degenerate cases."""

import math

import numpy as np
import ppi_py
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks import estimate as simulated
from slm_judge.agreement.estimate import (
    ModelRows,
    corpus_coefficients,
    corpus_means,
    linear,
    logistic,
    nearest_shares,
)
from slm_judge.agreement.sample import Sample
from slm_judge.evaluation.doubts import RISK, doubt_about_chances, doubts_about


def ends(found):
    return [(one.low, one.high) for one in found]


def rows_of(x, y):
    return ModelRows(np.asarray(x, float), np.asarray(y, float), np.arange(len(y)), np.ones(len(y)))


# --- other implementations ---


def test_a_mean_is_that_of_ppi_py():
    """Simple random sample of a large corpus; ppi-python takes the other items alone, and z for t."""
    rng = np.random.default_rng(0)
    truth = rng.normal(1, 1, 40_000)
    judged = truth + 0.5 + rng.normal(0, 0.5, 40_000)
    found = corpus_means(truth[:800, None], judged[:, None], Sample.drawn(40_000, range(800)), 1e-9)
    theirs = ppi_py.ppi_mean_ci(truth[:800], judged[:800], judged[800:], alpha=0.05)
    point = ppi_py.ppi_mean_pointestimate(truth[:800], judged[:800], judged[800:])
    ours = found[0].prediction_powered
    assert ours.estimate == pytest.approx(point[0], abs=0.002)
    assert (ours.low, ours.high) == pytest.approx((theirs[0][0], theirs[1][0]), abs=0.002)


def regression_data(n_items=8000):
    rng = np.random.default_rng(1)
    x = np.stack([np.ones(n_items), rng.normal(size=n_items)], axis=1)
    chances = rng.uniform(0.02, 0.2, n_items)
    rows = np.flatnonzero(rng.random(n_items) < chances)
    return rng, x, chances[rows], rows


def test_people_alone_in_a_regression_are_weighted_least_squares():
    rng, x, chances, rows = regression_data()
    y, group = x @ [1, 2] + rng.normal(size=len(x)), rng.integers(0, 60, len(x))
    sample = Sample.drawn(len(x), rows, chances, groups=group)
    judged = rows_of(x, rng.normal(size=len(x)))
    found = corpus_coefficients(rows_of(x[rows], y[rows]), judged, sample)
    fitted = sm.WLS(y[rows], x[rows], weights=1 / chances).fit(
        cov_type="cluster", cov_kwds={"groups": group[rows]}, use_t=True
    )
    alone = [one.humans_alone for one in found]
    assert [one.estimate for one in alone] == pytest.approx(fitted.params)
    for one, (low, high) in zip(alone, fitted.conf_int(), strict=True):
        assert one.high - one.low == pytest.approx(high - low, rel=0.03)
    assert sample.freedom == 59


def test_logistic_regression_is_that_of_statsmodels_and_ppi_py():
    rng, x, chances, rows = regression_data()
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-x @ [-0.5, 1]))).astype(float)
    judged = np.where(rng.random(len(x)) < 0.8, y, 1 - y)
    known = rows_of(x[rows], y[rows])
    found = corpus_coefficients(
        known, rows_of(x, judged), Sample.drawn(len(x), rows, chances), logistic
    )
    fitted = sm.GLM(
        y[rows], x[rows], var_weights=1 / chances, family=sm.families.Binomial()
    ).fit(cov_type="HC1")  # fmt: skip
    assert [one.humans_alone.estimate for one in found] == pytest.approx(fitted.params)
    for one, (low, high) in zip(found, fitted.conf_int(), strict=True):
        assert ends([one.humans_alone])[0] == pytest.approx((low, high), abs=0.01)
    alone = sm.Logit(judged, x).fit(disp=0)
    assert [one.judge_alone for one in found] == pytest.approx(alone.params)
    ours = corpus_coefficients(
        rows_of(x[:800], y[:800]), rows_of(x, judged), Sample.drawn(len(x), range(800)), logistic
    )
    theirs = ppi_py.ppi_logistic_pointestimate(
        x[:800], y[:800], judged[:800], x[800:], judged[800:], lam=ours[0].trust
    )
    for one, value in zip(ours, theirs, strict=True):
        assert one.prediction_powered.estimate == pytest.approx(value, abs=0.03)


# --- simulated corpora whose truth is known: benchmarks/estimate.py has them all, and more often ---


@pytest.mark.parametrize(
    "name",
    [
        "share .35, n 300, good judge",
        "share .35, n 300, coin for a judge",
        "share .02, n 100",
        "mean of a score, n 100",
        "queue for review (naive: no chances)",
        "chosen by select (naive: no chances)",
        "40 conversations (naive: no groups)",
        "regression, coin for a judge",
        "logistic regression",
        "regression, chances and groups (naive: none)",
        "regression on a label",
        "regression, queue for review (naive: no chances)",
        "trained on, unequal parts (naive: as if equal)",
    ],
)
def test_intervals_cover_the_truth(name):
    found = simulated.measure(simulated.CORPORA[name], 100)
    bias, covered, width = found["ours"]
    assert covered >= 89  # 95 less almost three standard errors
    assert abs(bias) < 0.15 * width
    assert width < 1.05 * found["people"][2]
    if name.startswith(("40 conv", "regression, chances", "chosen")):
        assert found["naive"][1] < 80


def test_a_judge_alone_can_be_wrong_where_the_corrected_one_is_right():
    for name in ("regression on a label", "learnt by heart (naive: same labels)"):
        found = simulated.measure(simulated.CORPORA[name], 20)
        assert abs(found["judge"][0]) > 0.25 > 10 * abs(found["ours"][0])


@pytest.mark.parametrize(
    ("people", "known", "warned"), [(1, True, 20), (1, False, 0), (2, False, 0)]
)
@pytest.mark.parametrize(("share", "skill"), [(0.35, 0.9), (0.35, 0.7), (0.02, 0.9)])
def test_agreement_that_no_judge_reaches_is_doubted_without_confidences(
    people, known, warned, share, skill
):
    """The best judge there is says the truth; one that knows the labels says these."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = rng.random(3000) < share
        said = np.where(
            rng.random((300, people)) < skill, truth[:300, None], rng.random((300, people)) < share
        )
        judged = np.r_[said[:, 0], truth[300:]] if known else truth
        shares = [np.stack([1 - x, x], axis=1).astype(float) for x in (judged, said.mean(axis=1))]
        tested = doubts_about(
            simulated.QUESTION, Sample.drawn(3000, range(300)), *shares, None, np.full(300, people)
        )
        found += any(
            "agrees with people on" in text and p * len(tested) < RISK for text, p in tested
        )
    assert found == (0 if share < 0.1 else warned)  # of rare options, 300 labels say too little


def test_items_that_two_annotated_bound_the_agreement_on_the_others():
    """People agree on 68 % of the items that two annotated; the judge says what one said of each."""
    rng = np.random.default_rng(0)
    truth = rng.random(2000) < 0.5
    said = np.where(rng.random((600, 2)) < 0.8, truth[:600, None], ~truth[:600, None])
    votes = np.where(np.arange(600) < 100, said.mean(axis=1), said[:, 0])
    for judged, expected in ((np.r_[said[:, 0], truth[600:]], True), (truth, False)):
        shares = [np.stack([1 - x, x], axis=1).astype(float) for x in (judged, votes)]
        tested = doubts_about(simulated.QUESTION, Sample.drawn(2000, range(600)), *shares,
                              np.full(2000, 0.9), np.where(np.arange(600) < 100, 2, 1))  # fmt: skip
        told = [text for text, p in tested if "% of theirs, allow" in text and p < RISK]
        assert bool(told) is expected


def test_labels_that_the_judge_learnt_do_not_correct_it():
    """Share .35; with the labels that it was trained on the estimate is .07, sure and wrong."""
    found = simulated.measure(simulated.CORPORA["learnt by heart (naive: same labels)"], 40)
    assert found["naive"][0] < -0.27
    assert found["naive"][1] == 0
    assert abs(found["ours"][0]) < 0.02
    assert found["ours"][1] >= 85


def test_judges_that_each_leave_a_fold_out():
    found = simulated.measure(simulated.CORPORA["trained on, five folds"], 30)
    assert abs(found["ours"][0]) < 0.02
    assert found["ours"][1] >= 85


def test_judges_of_unequal_parts_count_as_their_items_do():
    found = simulated.measure(
        simulated.CORPORA["trained on, unequal parts (naive: as if equal)"], 40
    )
    assert found["naive"][0] < -0.02
    assert abs(found["ours"][0]) < 0.01
    sample = Sample.drawn(8, [0, 1, 2, 4, 5], strata=[0, 0, 0, 0, 1, 1, 1, 1])
    shares = sample.shares_of(np.array([0, 0, 1, 1, 1]), 2)
    assert shares[3].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert shares[7].tolist() == [0, 1]


def test_strata_of_unequal_shares():
    found = simulated.measure(simulated.CORPORA["strata (naive: none)"], 40)
    assert found["naive"][0] > 0.1 > 10 * abs(found["ours"][0])
    assert found["ours"][1] >= 85


def test_shares_of_votes_are_not_those_of_majorities():
    """28 % of the votes are true, and of most items a minority."""
    found = simulated.measure(simulated.CORPORA["several annotators (naive: majority)"], 40)
    assert found["naive"][0] < -0.08
    assert abs(found["ours"][0]) < 0.01
    assert found["ours"][1] >= 85


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("random sample", 0, 0.02),
        ("random sample, n 30", 0, 0.02),
        ("random sample, confidence .05 too low", 0, 0.02),
        ("random sample, confidence .1 too high", 0, 0.02),
        ("random, chances and groups", 0, 0.02),
        ("queue for review", 0.99, 1),
        ("trained on", 0.4, 1),
    ],
)
def test_warnings_come_where_they_should(name, low, high):
    assert low <= simulated.alarms(simulated.WARNED[name], 100) <= high


def test_probabilities_that_do_not_add_up():
    assert not doubt_about_chances(1000, np.full(100, 0.1))
    assert not doubt_about_chances(1000, [*np.ones(50), *np.full(95, 0.1)])
    assert "stand for 300 items; the corpus has 1,000" in doubt_about_chances(
        1000, np.full(30, 0.1)
    )


# --- shares ---


@given(arrays(float, st.integers(2, 12), elements=st.floats(-1, 1, width=32)))
def test_the_nearest_shares(values):
    values = values + (1 - values.sum()) / len(values)
    found = nearest_shares(values)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    if values.min() >= 0:
        assert found == pytest.approx(values)
    # All that are above 0 moved by the same; the others would have gone further (Kuhn and Tucker).
    moved = values - found
    kept = found > 1e-9
    assert moved[kept] == pytest.approx(np.full(kept.sum(), moved[kept][0]), abs=1e-6)
    assert (values[~kept] <= moved[kept][0] + 1e-6).all()


@pytest.mark.parametrize("seed", range(10))
def test_shares_sum_to_one_and_stand_in_their_intervals(seed):
    """28 options, most of them rare, a judge that is often wrong, several annotators."""
    rng = np.random.default_rng(seed)
    rates = 1 / np.arange(1, 29) ** 2
    truth = rng.choice(28, 3000, p=rates / rates.sum())
    judged = np.eye(28)[np.where(rng.random(3000) < 0.6, truth, rng.integers(0, 28, 3000))]
    human = np.mean([np.eye(28)[np.where(rng.random(150) < 0.8, truth[:150], rng.integers(0, 28, 150))]
                     for _ in range(3)], axis=0)  # fmt: skip
    found = corpus_means(human, judged, Sample.drawn(3000, range(150)))
    for kind in ("prediction_powered", "humans_alone"):
        intervals = [getattr(one, kind) for one in found]
        assert sum(one.estimate for one in intervals) == pytest.approx(1)
        assert all(0 <= one.low <= one.estimate <= one.high <= 1 for one in intervals)
    assert sum(one.uncut for one in found) == pytest.approx(1)
    assert sum(one.judge_alone for one in found) == pytest.approx(1)
    assert len({one.trust for one in found}) == 1


def test_what_nobody_saw_is_not_sure_to_be_absent():
    """No person and no judge says true of 100 items: up to 3 in 100 may be (rule of three)."""
    nothing = simulated.both(np.zeros(1000))
    found = corpus_means(nothing[:100], nothing, Sample.drawn(1000, range(100)))[1]
    for one in (found.prediction_powered, found.humans_alone):
        assert one.estimate == one.low == 0
        assert 0.02 < one.high < 0.05


# --- degenerate cases ---


def test_a_judge_without_information_leaves_what_people_say():
    rng = np.random.default_rng(0)
    human = rng.normal(size=(50, 1))
    for judged in (np.full((1000, 1), 3.0), np.zeros((1000, 1))):
        (found,) = corpus_means(human, judged, Sample.drawn(1000, range(50)), 1.0)
        assert found.trust == 0
        assert found.prediction_powered == found.humans_alone
        assert found.prediction_powered.estimate == pytest.approx(human.mean())


def test_equal_chances_in_each_stratum_are_a_stratified_mean():
    values = np.array([0.0, 1, 1, 1, 0, 0, 1, 1, 0, 1])
    strata = np.array([0] * 6 + [1] * 4)
    sample = Sample.drawn(10, [0, 1, 6, 8], strata=strata)
    assert sample.weights.tolist() == [3, 3, 2, 2]
    assert sample.freedom == 2
    (found,) = corpus_means(values[[0, 1, 6, 8], None], np.zeros((10, 1)), sample, 1.0)
    assert found.humans_alone.estimate == pytest.approx(0.5)
    # Weights within a stratum follow the chances, whatever their level.
    sample = Sample.drawn(10, [0, 1, 6, 8], [0.1, 0.2, 0.01, 0.03], strata)
    assert sample.weights == pytest.approx([4, 2, 3, 1])


@pytest.mark.parametrize(
    "options",
    [{}, {"strata": [0, 0, 0, 1, 1, 1]}, {"groups": [0, 0, 0, 1, 1, 1]}],
)
def test_too_little_to_tell_a_variance(options):
    rows = [0] if not options else [0, 1]
    with pytest.raises(
        ValueError, match="at least two annotated items, or groups, in each stratum"
    ):
        Sample.drawn(6, rows, **options)


def test_coefficients_that_cannot_be_told():
    x = np.stack([np.ones(100), np.arange(100) % 7], axis=1)
    sample = Sample.drawn(100, range(20))
    twice = np.concatenate([x, x[:, 1:]], axis=1)
    with pytest.raises(ValueError, match="do not tell all coefficients apart"):
        corpus_coefficients(rows_of(twice[:20], x[:20, 1]), rows_of(twice, x[:, 1]), sample, linear)
    apart = (x[:, 1] > 3).astype(float)
    with pytest.raises(ValueError, match=r"do not tell all|no coefficients solve"):
        corpus_coefficients(rows_of(x[:20], apart[:20]), rows_of(x, apart), sample, logistic)
    # The judge gives one label alone, so that its own regression is not defined; the others are.
    y, labels = np.random.default_rng(0).normal(size=100), np.arange(100) % 2
    known = rows_of(np.stack([np.ones(20), labels[:20]], axis=1), y[:20])
    judged = rows_of(np.stack([np.ones(100), np.zeros(100)], axis=1), y)
    found = corpus_coefficients(known, judged, sample)
    assert all(math.isnan(one.judge_alone) for one in found)
    assert all(math.isfinite(one.prediction_powered.high) for one in found)
