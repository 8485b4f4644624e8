"""Agreement statistics: published numbers, other implementations, and the degenerate cases."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from slm_judge import Rubric
from slm_judge.agreement.aggregate import aggregate, level_values, mean_levels, ratings_of
from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    judge_coincidences,
    judge_confusions,
)
from slm_judge.agreement.alt_test import alt_test, exact_p
from slm_judge.agreement.bias import quarters
from slm_judge.agreement.bootstrap import Bootstrap, Interval, percentile_interval
from slm_judge.agreement.calibration import (
    brier_score,
    choose_threshold,
    cross_entropy,
    expected_calibration_error,
    reliability,
    risk_coverage,
)
from slm_judge.agreement.compare import difference
from slm_judge.agreement.estimate import items_needed, widths
from slm_judge.agreement.scores import (
    accuracy,
    cohen_kappa,
    macro_f1,
    mean_absolute_error,
    mean_shift,
    per_option,
    rank_correlations,
)
from slm_judge.evaluation.annotators import notes


@pytest.fixture(scope="module")
def dimensions():
    rubric = Rubric.model_validate(
        {
            "name": "r",
            "instructions": "i",
            "fields": ["text"],
            "dimensions": [
                {"name": "grade", "type": "score", "instructions": "g", "options": [-1, 0, 1, 2]},
                {"name": "kind", "type": "choice", "instructions": "k", "options": ["a", "b", "c"]},
            ],
        }
    )
    return {d.name: d for d in rubric.dimensions}


def confusion_of(said, judged, n):
    table = np.zeros((n, n))
    np.add.at(table, (said, judged), 1)
    return table


# --- kappa, accuracy, per option ---


def test_kappa_reproduces_fleiss():
    """Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions (2003), table 18.1."""
    table = np.array([[75.0, 1, 4], [5, 4, 1], [0, 0, 10]])
    assert cohen_kappa(table) == pytest.approx(0.68, abs=0.005)
    assert accuracy(table) == pytest.approx(0.89)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_is_that_of_scikit_learn(weights):
    rng = np.random.default_rng(0)
    said, judged = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    judged = np.where(rng.random(200) < 0.6, said, judged)
    expected = cohen_kappa_score(said, judged, weights=None if weights == "none" else weights)
    tables = np.stack([confusion_of(said, judged, 4)] * 2)
    assert cohen_kappa(tables, weights) == pytest.approx([expected] * 2)


def test_kappa_of_degenerate_tables():
    assert cohen_kappa(confusion_of([1, 1, 1], [1, 1, 1], 3)) == 1.0  # unanimity on one option
    assert np.isnan(cohen_kappa(np.zeros((3, 3))))
    assert cohen_kappa(confusion_of([0, 0], [1, 1], 2)) == 0.0  # as little as by chance


def test_precision_and_recall_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    said, judged = rng.integers(0, 3, 90), rng.integers(0, 2, 90)
    found = per_option(confusion_of(said, judged, 4))
    p, r, f, _ = precision_recall_fscore_support(said, judged, labels=[0, 1], zero_division=np.nan)
    assert found.precision[:2] == pytest.approx(p)
    assert found.recall[:2] == pytest.approx(r)
    assert found.f1[:2] == pytest.approx(f)
    assert np.isnan(found.precision[2])  # the judge never said it
    assert found.recall[2] == 0
    assert np.isnan(found.f1[3])  # nobody did


# --- levels ---


def test_errors_in_levels(dimensions):
    levels = level_values(dimensions["grade"])
    assert levels.tolist() == [-1, 0, 1, 2]
    assert level_values(dimensions["kind"]).tolist() == [0, 1, 2]
    table = confusion_of([0, 1, 3], [1, 1, 1], 4)  # off by 1, 0 and 2
    assert mean_absolute_error(table, levels) == pytest.approx(1.0)
    assert mean_shift(table, levels) == pytest.approx((1 + 0 - 2) / 3)
    assert np.isnan(mean_absolute_error(np.zeros((4, 4)), levels))


def test_aggregates(dimensions):
    votes = [[0, 0, 3], [1, 2], [], [3]]
    assert aggregate(votes, dimensions["grade"]).tolist() == [0, 1, -1, 3]  # lower medians
    votes = [[0, 1], [1], [2, 2, 1], []]
    assert aggregate(votes, dimensions["kind"]).tolist() == [1, 1, 2, -1]  # 1 is the commoner
    assert mean_levels([[0, 3], []], dimensions["grade"]).tolist() == pytest.approx(
        [0.5, np.nan], nan_ok=True
    )


def test_rank_correlations_reproduce_a_published_number():
    """Spearman: the textbook example of IQ and hours of television, rho = -29/165."""
    iq = np.array([106.0, 100, 86, 101, 99, 103, 97, 113, 112, 110])
    hours = np.array([7.0, 27, 2, 50, 28, 29, 20, 12, 6, 17])
    found = rank_correlations(iq, hours)
    assert found["spearman"] == pytest.approx(-29 / 165)
    pairs = [(i, j) for i in range(10) for j in range(i)]
    concordant = [np.sign((iq[i] - iq[j]) * (hours[i] - hours[j])) for i, j in pairs]
    assert found["kendall"] == pytest.approx(np.mean(concordant))
    flat = rank_correlations(np.ones(3), np.array([1.0, 2, np.nan]))
    assert np.isnan(flat["spearman"])
    assert np.isnan(flat["kendall"])


# --- calibration ---


def test_scores_of_probabilities():
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    shares = np.array([[1.0, 0, 0], [0, 0.5, 0.5]])
    assert brier_score(p, shares) == pytest.approx((0.14 + (0.38 + 0.78) / 2) / 2)
    expected = -(np.log(0.7) + 0.5 * np.log(0.5) + 0.5 * np.log(0.3)) / 2
    assert cross_entropy(p, shares) == pytest.approx(expected)
    nothing = np.zeros((0, 3))
    assert np.isnan(brier_score(nothing, nothing))
    assert np.isnan(cross_entropy(nothing, nothing))


def test_calibration_error_of_equal_mass_bins():
    confidence = np.array([0.5, 0.5, 0.6, 0.6, 0.9, 0.9])
    agreement = np.array([1.0, 0, 0, 0, 1, 1])
    bins = reliability(confidence, agreement, 3)
    assert [b.n for b in bins] == [2, 2, 2]
    assert expected_calibration_error(confidence, agreement, 3) == pytest.approx(
        (0 + 0.6 + 0.1) / 3
    )
    assert expected_calibration_error(np.ones(3), np.ones(3)) == 0
    assert np.isnan(expected_calibration_error(np.array([]), np.array([])))


def test_a_calibrated_judge_has_nearly_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 20_000)
    agreement = (rng.random(20_000) < confidence).astype(float)
    assert expected_calibration_error(confidence, agreement) < 0.015
    assert expected_calibration_error(confidence**0.5, agreement) > 0.1


def test_risk_and_coverage():
    confidence = np.array([0.9, 0.8, 0.8, 0.4])
    errors = np.array([0.0, 1, 0, 1])
    curve = risk_coverage(confidence, errors)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.4]  # equal confidences go together
    assert curve.coverage.tolist() == [0.25, 0.75, 1]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 0.5])
    assert curve.area == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 * 0.5)
    assert len(risk_coverage(np.array([]), np.array([])).risk) == 0


def test_thresholds_hold_the_target():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 5000)
    errors = (rng.random(5000) > confidence).astype(float)
    chosen = choose_threshold(confidence, errors, 0.2)
    kept = confidence >= chosen.confidence
    assert errors[kept].mean() == pytest.approx(chosen.risk)
    assert chosen.risk <= 0.2 < chosen.risk_upper + 0.02
    assert kept.mean() == pytest.approx(chosen.coverage)
    assert chosen.coverage == pytest.approx(0.4, abs=0.05)  # E[1 - c | c > t] = 0.2 at t = 0.6
    never = choose_threshold(np.array([0.9, 0.8]), np.array([1.0, 1]), 0.1)
    assert never.coverage == 0
    assert never.confidence > 1
    assert choose_threshold(np.array([0.5]), np.array([0.0]), 0.0).risk_upper == pytest.approx(0.95)


# --- alternative annotator test ---


def test_alt_test_by_hand():
    """40 items, 3 annotators; the judge always says what the first two say, the third errs."""
    ratings = np.zeros((40, 3), dtype=int)
    ratings[:20, 2] = 1
    found = alt_test([0] * 40, ratings, ["a", "b", "c"], np.arange(2.0), epsilon=0.1)
    by_name = {c.annotator: c for c in found.comparisons}
    # Against a: the others are b and c. Judge and a say the same, so both hold everywhere.
    assert by_name["a"].advantage == 1
    assert by_name["a"].t_test_p_value == 0.0  # no spread below epsilon
    assert by_name["a"].p_value == exact_p(np.zeros(40), 0.1) > 0
    # Against c: the judge holds everywhere, c only on the last 20 items.
    assert by_name["c"].advantage == 1
    difference = np.array([-1.0] * 20 + [0.0] * 20)
    expected = stats.ttest_1samp(difference, 0.1, alternative="less").pvalue
    assert by_name["c"].t_test_p_value == pytest.approx(expected)
    assert by_name["c"].p_value < 1e-4
    assert found.winning_rate == found.t_test_winning_rate == 1
    assert found.passed
    assert "it holds against 3 of 3 annotators" in found.told


def test_a_tie_is_one_on_any_scale():
    """Levels .1 to .5, which a computer cannot hold, or 1 to 5: the same test."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 100)
    said = np.clip(truth[:, None] + rng.integers(-1, 2, (100, 3)), 0, 4)
    judged = np.clip(truth + rng.integers(-1, 2, 100), 0, 4).tolist()
    levels, names = np.arange(1.0, 6), ["a", "b", "c"]
    found = [alt_test(judged, said, names, by, 0.1, "neg_rmse")
             for by in (levels, levels / 10, levels * 1000, levels / 3e5)]  # fmt: skip
    assert all(one.comparisons == found[0].comparisons for one in found)


def test_alt_test_of_a_bad_judge():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 60)
    noisy = np.where(rng.random((60, 3)) < 0.9, truth[:, None], rng.integers(0, 4, (60, 3)))
    found = alt_test(rng.integers(0, 4, 60).tolist(), noisy, ["a", "b", "c"], np.arange(4.0))
    assert found.winning_rate == 0
    assert not found.passed
    assert found.advantage_probability < 0.6
    good = alt_test(truth.tolist(), noisy, ["a", "b", "c"], np.arange(4.0), 0.2, "neg_rmse")
    assert good.winning_rate == 1


def test_alt_test_with_few_items_or_annotators():
    ratings = np.zeros((29, 2), dtype=int)
    ratings[:7, 1] = -1
    found = alt_test([0] * 29, ratings, ["a", "b"], np.arange(2.0))
    assert found.skipped == {"a": 22, "b": 22}
    assert np.isnan(found.winning_rate)
    assert not found.passed
    assert "it needs annotators with 30 items" in found.told


def test_ratings_of_votes():
    ratings, names = ratings_of([{"b": 1}, {"a": 0, "b": 2}, {}])
    assert names == ["a", "b"]
    assert ratings.tolist() == [[-1, 1], [0, 2], [-1, -1]]


# --- comparisons, planning ---


def test_paired_differences(dimensions):
    rng = np.random.default_rng(0)
    dimension = dimensions["kind"]
    truth = rng.integers(0, 3, 400)
    votes = [[int(t), int(rng.integers(0, 3)) if rng.random() < 0.3 else int(t)] for t in truth]

    def judge(error):
        wrong = rng.random(400) < error
        return judge_coincidences(np.where(wrong, (truth + 1) % 3, truth).tolist(), votes, 3)

    bootstrap = Bootstrap(400, 1000)

    def change(reference, other, margin):
        values, level = dimension.values, dimension.level_of_measurement
        before, after = (
            alpha_of_coincidences(bootstrap.totals(c), values, level) for c in (reference, other)
        )
        return difference(before, after, margin)

    reference = judge(0.1)
    same = change(reference, reference, 0.02)
    assert same.interval == Interval(0.0, 0.0, 0.0)
    assert same.verdict == "not inferior"
    worse = change(reference, judge(0.4), 0.05)
    assert worse.verdict == "inferior"
    assert worse.interval.high < -0.2
    unclear = change(reference, judge(0.13), 0.045)
    assert unclear.verdict == "not decided"
    assert unclear.as_dict()["verdict"] == "not decided"
    nothing = np.full(1001, np.nan)
    assert difference(nothing, nothing).verdict == "not defined"


def test_a_large_bootstrap_takes_seconds():
    rng = np.random.default_rng(0)
    votes = [rng.integers(0, 5, 5).tolist() for _ in range(5000)]
    coincidences = judge_coincidences(rng.integers(0, 5, 5000).tolist(), votes, 5)
    found = Bootstrap(5000, 10_000).interval(
        coincidences, lambda sums: alpha_of_coincidences(sums, list(range(5)), "ordinal")
    )
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.1


def test_quarters_are_named_by_their_range():
    groups = quarters([1, 2, 3, 4, 5, 6, 7, 8], "words")
    assert len(set(groups)) == 4
    assert groups[0].startswith("1: 1 to ")
    assert len(set(quarters([5, 5, 5], "words"))) == 1
    assert quarters([], "words") == []


def test_planning():
    interval = Interval(0.5, 0.4, 0.6)
    assert items_needed(interval, 100, 0.1) == 400
    assert widths(interval, 100, [25, 400]) == pytest.approx({25: 0.4, 400: 0.1})


@pytest.mark.parametrize("seed", range(5))
def test_an_interval_never_leaves_out_its_own_estimate(seed):
    """With 60 options and 10 annotators an item, macro-F1 falls in nearly all resamples, since they
    lack some options: plain percentiles leave the estimate out."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 60, 150)
    said = np.where(rng.random((150, 11)) < 0.7, truth[:, None], rng.integers(0, 60, (150, 11)))
    votes, bootstrap = said[:, 1:].tolist(), Bootstrap(150, 300)
    for per_item in (
        judge_confusions(said[:, 0].tolist(), votes, 60),
        annotator_coincidences(votes, 60),
    ):
        totals = bootstrap.totals(per_item)
        assert np.quantile(macro_f1(totals)[1:], 0.975) < macro_f1(totals)[0]
        for statistic in (macro_f1, accuracy, cohen_kappa):
            found = percentile_interval(statistic(totals))
            assert 0 < found.low < found.estimate < found.high < 1
    falling = np.array([0.98, *np.linspace(0.9, 0.97, 100)])
    assert percentile_interval(falling).high > 1 == percentile_interval(falling, bounds=(0, 1)).high


def test_a_macro_f1_of_rare_options_is_said_to_be_hardly_known():
    kind = Rubric.parse(
        {
            "name": "r",
            "instructions": "?",
            "fields": ["t"],
            "dimensions": [
                {"name": "k", "type": "choice", "instructions": "?", "options": list("abcdefghij")}
            ],
        },
        "t",
    )
    dimension = kind.dimensions[0]
    often = [{"p": i % 10} for i in range(100)]
    assert len(notes(dimension, often, 100)) == 1  # that nobody annotated an item twice
    seldom = [{"p": i % 7} for i in range(100)] + [{"p": 8}] * 9
    assert "3 of 10 options were chosen in fewer than 10 items" in notes(dimension, seldom, 109)[1]


def test_intervals_of_many_options_cover_better_than_plain_percentiles():
    """The truth is the macro-F1 of two million items; it is above what few items show."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 61) ** 0.5

    def draw(n):
        said = rng.choice(60, n, p=chances / chances.sum())
        return said, np.where(rng.random(n) < 0.8, said, rng.integers(0, 60, n))

    truth = float(macro_f1(confusion_of(*draw(2_000_000), 60)))
    ours = plain = 0
    for seed in range(100):
        said, judged = draw(200)
        confusions = judge_confusions(judged.tolist(), said[:, None].tolist(), 60)
        values = macro_f1(Bootstrap(200, 300, seed).totals(confusions))
        found, (low, high) = percentile_interval(values), np.quantile(values[1:], [0.025, 0.975])
        ours += found.low <= truth <= found.high
        plain += low <= truth <= high
    assert ours > plain + 10


def test_intervals_cover_a_mean():
    """As often as they say, about: 95 % of the intervals of a mean of 60 hold the truth."""
    covered = 0
    for seed in range(200):
        drawn = np.random.default_rng(seed).exponential(1.0, 60)
        found = Bootstrap(60, 400, seed).interval(drawn, lambda sums: np.asarray(sums) / 60)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99
