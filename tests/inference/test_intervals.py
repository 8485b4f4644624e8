"""Intervals of what is grouped, of new annotators, and of further coefficients."""

import numpy as np
import pytest
from scipy import stats

from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    judge_coincidences,
    judge_confusions,
)
from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.agreement.compare import difference
from slm_judge.agreement.scores import (
    accuracy,
    gwet_ac,
    gwet_parts,
    icc,
    icc_pair_parts,
    icc_parts,
    mean_shift,
    pair_parts,
    per_option,
    rank_correlations,
)
from slm_judge.agreement.two_way import TwoWay

# Krippendorff's example with missing data, which is `cac.raw4raters` of Gwet's irrCAC too.
RATINGS = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
]  # fmt: skip
VOTES = [[value - 1 for value in unit if value] for unit in RATINGS]


def alpha(coincidences):
    return alpha_of_coincidences(coincidences, ["a", "b"], "nominal")


def users(rng, groups, size=10):
    """A judge that is better on some users than on others; 3 annotators an item."""
    user = np.repeat(np.arange(groups), size)
    prevalence, skill = (1 / (1 + np.exp(-rng.normal(m, 1, groups))) for m in (0, 1.5))
    truth = (rng.random(len(user)) < prevalence[user]).astype(int)
    judged = np.where(rng.random(len(user)) < skill[user], truth, 1 - truth)
    right = rng.random((len(user), 3)) < 0.85
    return judged.tolist(), np.where(right, truth[:, None], 1 - truth[:, None]).tolist(), user


def holds(found, truth):
    return found.low <= truth <= found.high


# --- groups ---


def test_groups_are_drawn_whole():
    rng = np.random.default_rng(0)
    groups = rng.choice(["a", "b", "c", "d"], 30).tolist()
    bootstrap = Bootstrap(30, 200, 0, groups)
    weights = np.concatenate(list(bootstrap.weights()))
    assert bootstrap.units == 4
    assert (weights[0] == 1).all()
    for row in weights[1:]:
        assert all(len({row[i] for i, g in enumerate(groups) if g == name}) == 1 for name in "abcd")
    per_item = rng.random((30, 2))
    assert bootstrap.totals(per_item) == pytest.approx(weights @ per_item, rel=1e-5)
    # Each by itself is a group: the same as items.
    alone = Bootstrap(30, 50, 3, [f"g{i}" for i in range(30)])
    assert np.array_equal(alone.sums(per_item), Bootstrap(30, 50, 3).sums(per_item))


def test_intervals_of_users_hold_the_truth():
    """20 users with 10 items each: drawn by items, 95 % intervals hold the truth in 85 % of cases."""
    judged, votes, _ = users(np.random.default_rng(99), 20_000)
    truth = float(alpha(judge_coincidences(judged, votes, 2).sum(axis=0)))
    hits = {"items": 0, "groups": 0}
    for seed in range(150):
        judged, votes, user = users(np.random.default_rng(seed), 20)
        per_item = judge_coincidences(judged, votes, 2)
        hits["items"] += holds(Bootstrap(200, 400, seed).interval(per_item, alpha), truth)
        whole = Bootstrap(200, 400, seed, user.tolist())
        hits["groups"] += holds(whole.interval(per_item, alpha), truth)
    assert hits["items"] / 150 < 0.9
    assert 0.91 <= hits["groups"] / 150 <= 0.99


def test_few_units_are_expanded_to_student_s_interval():
    """Of a mean of 10 normal values, as wide as Student's t, within the error of the resampling."""
    drawn = np.random.default_rng(0).normal(size=10)
    values = Bootstrap(10, 20_000).totals(drawn) / 10
    found, plain = percentile_interval(values, units=10), percentile_interval(values)
    student = 2 * stats.t.isf(0.025, 9) * drawn.std(ddof=1) / np.sqrt(10)
    assert found.high - found.low == pytest.approx(student, rel=0.06)
    assert plain.high - plain.low < 0.85 * student
    assert np.isnan(percentile_interval(values, units=1).low)
    paired = difference(values, values + np.linspace(-1, 1, len(values)), 0.1, units=3)
    assert paired.interval.low == pytest.approx(-2.0, abs=0.05)  # moved by the median, all of it


def test_new_annotators():
    """Some annotators are better than others; with others, alpha would be another."""

    def draw(rng, annotators, items=200):
        skill, truth = rng.uniform(0.55, 1, annotators), rng.integers(0, 2, items)
        ratings = np.full((items, annotators), -1)
        who = np.argsort(rng.random((items, annotators)), axis=1)[:, :3]
        right = rng.random((items, 3)) < skill[who]
        ratings[np.arange(items)[:, None], who] = np.where(
            right, truth[:, None], 1 - truth[:, None]
        )
        return truth.tolist(), ratings

    def votes_of(ratings):
        return [row[row >= 0].tolist() for row in ratings]

    judged, ratings = draw(np.random.default_rng(5), 40)
    both, votes = TwoWay(Bootstrap(200, 50), ratings), votes_of(ratings)
    assert both.units == 40
    totals = both.annotator_totals(2)
    assert totals.shape == (51, 2, 2)
    assert totals[0] == pytest.approx(annotator_coincidences(votes, 2).sum(axis=0))
    expected = judge_confusions(judged, votes, 2).sum(axis=0)
    assert both.judge_totals(judged, 2)[0] == pytest.approx(expected)

    judged, ratings = draw(np.random.default_rng(6), 400, 40_000)
    truth = float(alpha(judge_coincidences(judged, votes_of(ratings), 2).sum(axis=0)))
    hits = np.zeros(2)
    for seed in range(60):
        judged, ratings = draw(np.random.default_rng(seed), 10)
        bootstrap, votes = Bootstrap(200, 300, seed), votes_of(ratings)
        pairs = TwoWay(bootstrap, ratings).judge_totals(judged, 2)
        hits += [
            holds(bootstrap.interval(judge_coincidences(judged, votes, 2), alpha), truth),
            holds(percentile_interval(alpha(pairs + pairs.swapaxes(1, 2)), units=10), truth),
        ]
    assert hits[0] / 60 < 0.75
    assert hits[1] / 60 >= 0.93


# --- coefficients ---


@pytest.mark.parametrize(
    ("weights", "published"), [("none", 0.77544), ("linear", 0.85874), ("quadratic", 0.914)]
)
def test_gwet_s_coefficient_is_that_of_irrcac(weights, published):
    """irrCAC 0.4.4: CAC(frame, weights="identity" ..., categories=[1, ..., 5]).gwet()."""
    assert gwet_ac(gwet_parts(VOTES, 5).sum(axis=0), weights) == pytest.approx(published, abs=6e-6)


def test_gwet_s_coefficient_of_pairs_is_that_of_two_raters():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 4, (2, 200))
    two[:120] = one[:120]
    confusion = judge_confusions(two.tolist(), one[:, None].tolist(), 4).sum(axis=0)
    raters = gwet_parts(np.stack([one, two], axis=1).tolist(), 4).sum(axis=0)
    for weights in ("none", "linear", "quadratic"):
        assert gwet_ac(pair_parts(confusion), weights) == pytest.approx(gwet_ac(raters, weights))
    # Nearly all of one option: alpha falls below 0, AC1 does not.
    rare = np.array([[95.0, 2], [3, 0]])
    assert alpha(rare + rare.T) < 0 < 0.9 < gwet_ac(pair_parts(rare))
    assert gwet_ac(pair_parts(np.diag([5.0, 0, 0]))) == 1
    assert np.isnan(gwet_ac(np.zeros((3, 4))))


def test_icc_reproduces_a_published_number():
    """Shrout and Fleiss (1979), table 2: 6 targets, 4 judges, ICC(1, 1) = 0.17."""
    rows = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    votes = [[value - 1 for value in row] for row in rows]
    levels = np.arange(1.0, 11)
    assert icc(icc_parts(votes, levels).sum(axis=0)) == pytest.approx(0.17, abs=0.005)
    first, second = ([row[k] for row in votes] for k in (0, 1))
    confusion = judge_confusions(second, [[v] for v in first], 10).sum(axis=0)
    two = icc(icc_parts([row[:2] for row in votes], levels).sum(axis=0))
    assert icc(icc_pair_parts(confusion, levels)) == pytest.approx(two)
    assert icc(icc_parts([[3, 3], [3, 3, 3]], levels).sum(axis=0)) == 1
    assert np.isnan(icc(icc_parts([[3], []], levels).sum(axis=0)))


def test_icc_is_the_share_of_variance_between_items():
    """Of items with 2 to 5 ratings on a fine scale: variances 4 and 1, so 0.8."""
    rng = np.random.default_rng(0)
    levels = np.arange(-60, 61) / 4
    sizes = rng.integers(2, 6, 3000)
    votes = [
        (np.clip(np.round(4 * (mean + rng.normal(0, 1, m))), -60, 60) + 60).astype(int).tolist()
        for mean, m in zip(rng.normal(0, 2, 3000), sizes, strict=True)
    ]
    assert icc(icc_parts(votes, levels).sum(axis=0)) == pytest.approx(0.8, abs=0.015)


def test_rank_correlations_of_resamples_are_those_of_scipy():
    rng = np.random.default_rng(0)
    judged = rng.integers(0, 5, 60).astype(float)
    means = (judged + rng.normal(0, 1.5, 60)).round(1)
    means[7] = np.nan
    bootstrap = Bootstrap(60, 40, 1, (np.arange(60) // 3).tolist())
    found = rank_correlations(judged, means, bootstrap)
    for n, row in enumerate(np.concatenate(list(bootstrap.weights())).astype(int)):
        drawn = np.repeat(np.arange(60), row)
        drawn = drawn[np.isfinite(means[drawn])]
        rho = stats.spearmanr(judged[drawn], means[drawn]).statistic
        tau = stats.kendalltau(judged[drawn], means[drawn]).statistic
        assert found["spearman"][n] == pytest.approx(rho)
        assert found["kendall"][n] == pytest.approx(tau)


def test_intervals_of_recall_and_rank_correlation_hold_the_truth():
    def draw(rng, n):
        truth = rng.integers(0, 4, n)
        judged = np.where(rng.random(n) < 0.7, truth, rng.integers(0, 4, n))
        return truth, judged

    truth, judged = draw(np.random.default_rng(7), 1_000_000)
    tau = stats.kendalltau(truth[:50_000], judged[:50_000]).statistic
    hits = np.zeros(2)
    for seed in range(100):
        truth, judged = draw(np.random.default_rng(seed), 150)
        bootstrap = Bootstrap(150, 300, seed)
        confusion = judge_confusions(judged.tolist(), truth[:, None].tolist(), 4)
        recall = per_option(bootstrap.totals(confusion)).recall[:, 0]
        found = rank_correlations(judged.astype(float), truth.astype(float), bootstrap)["kendall"]
        hits += [
            holds(percentile_interval(recall, units=150), 0.7 + 0.3 / 4),
            holds(percentile_interval(found, units=150), tau),
        ]
    assert (hits >= 89).all()


def test_an_annotator_who_is_held_out_shows_no_shift():
    """Against the lower median of the others it would: at the middle of a scale, by a fifth of a
    level."""
    shifts = []
    levels = np.arange(4.0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 4, 300)
        said = np.clip(truth[:, None] + rng.integers(-1, 2, (300, 5)), 0, 3)
        confusions = judge_confusions(said[:, 0].tolist(), said[:, 1:].tolist(), 4)
        found = Bootstrap(300, 200, seed).interval(confusions, lambda c: mean_shift(c, levels))
        shifts.append([found.estimate, holds(found, 0.0)])
    mean, covered = np.mean(shifts, axis=0)
    assert abs(mean) < 0.015
    assert covered >= 0.88


def test_accuracy_of_one_item_has_no_interval():
    found = Bootstrap(1, 20).interval(np.eye(2)[None], accuracy)
    assert found.estimate == 1
    assert np.isnan(found.low)
    assert str(found) == "1.000"
