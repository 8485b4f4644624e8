"""What is said of calibration and of thresholds, on simulated judges whose truth is known.

Longer runs of the same simulations: `python -m benchmarks.guarantees`.
"""

import numpy as np
import pytest

from benchmarks.guarantees import JUDGES, confidences, exceeded, shown_off
from slm_judge.agreement.calibration import (
    brier_score,
    calibration_error,
    choose_threshold,
    cross_entropy,
    guaranteed_threshold,
    items_to_guarantee,
    threshold_sequence,
)


@pytest.mark.parametrize("votes", [1, 3])
def test_a_perfect_judge_is_not_shown_to_be_off(votes):
    said = shown_off(JUDGES["perfect"], 100, votes, runs=60)
    assert said["off"] <= 0.05
    assert said["covered"] >= 0.95
    assert said["estimate"] == pytest.approx(said["perfect"], abs=0.01)
    assert said["estimate"] > 0.04  # which is why it is not read alone


def test_a_perfect_judge_of_conversations_is_not_shown_to_be_off():
    """Its errors come together: by items, it would be said to be off in half of the runs."""
    talk, off = np.repeat(np.arange(40), 10), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = np.where(rng.random(400) < np.sqrt(0.3), 400 + talk, np.arange(400))
        sure, luck = confidences(440, rng)[rows], rng.random(440)[rows]
        found = [
            calibration_error(sure, (luck < sure).astype(float), np.ones(400, int), 10, groups)
            for groups in (None, talk.tolist())
        ]
        off.append([one.low > 0 for one in found] + [one.estimate - one.perfect for one in found])
    by_items, by_groups, more, as_much = np.mean(off, axis=0)
    assert by_items > 0.3
    assert by_groups <= 0.05
    assert abs(as_much) < 0.01 < more


@pytest.mark.parametrize("name", ["too sure", "too sure at the top"])
def test_a_judge_that_is_off_is_found_out_and_the_interval_holds_how_far(name):
    said = shown_off(JUDGES[name], 1000, 1, runs=40)
    assert said["off"] >= 0.95
    assert said["covered"] >= 0.95


def test_a_calibration_error_of_little():
    nothing = calibration_error(np.array([]), np.array([]), np.array([], dtype=int))
    assert np.isnan(list(nothing.as_dict().values())).all()
    one = calibration_error(np.array([0.9]), np.array([1.0]), np.array([1]))
    assert (one.low, one.estimate) == (0, pytest.approx(0.1))
    assert one.high > 0.4  # one item shows next to nothing
    sure = calibration_error(np.ones(50), np.ones(50), np.full(50, 2))
    assert (sure.low, sure.estimate, sure.perfect) == (0, 0, 0)


def test_scores_do_not_depend_on_the_number_of_votes():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 20_000)
    found = []
    for votes in (1, 5):
        shares = rng.multinomial(votes, p) / votes
        found.append((brier_score(p, shares), cross_entropy(p, shares)))
    assert found[0] == pytest.approx(found[1], abs=0.01)


@pytest.mark.parametrize("name", JUDGES)
def test_a_guaranteed_threshold_exceeds_its_target_in_at_most_a_tenth_of_the_runs(name):
    said = exceeded(JUDGES[name], 300, runs=200)
    assert said["guaranteed"] <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 200)
    if name == "perfect":  # where a threshold is to be found
        assert said["estimate"] > 0.4
        assert said["guaranteed_keeps"] > 0.3


def test_a_guarantee_respects_conversations():
    """One error in ten, the target itself, which comes in tens: a tenth of the draws may pass."""
    talk, passed, sequence = np.repeat(np.arange(60), 10), [], np.array([0.5])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rows = np.where(rng.random(600) < np.sqrt(0.3), 600 + talk, np.arange(600))
        wrong = (rng.random(660) < 0.1).astype(float)[rows]
        passed.append([guaranteed_threshold(sequence, np.ones(600), wrong, 0.1, 0.9, one).coverage
                       for one in (None, talk.tolist())])  # fmt: skip
    by_items, by_groups = np.mean(passed, axis=0)
    assert by_items > 0.2
    assert by_groups <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 200)


def test_items_that_do_not_suffice_are_told_how_many_would():
    sequence = np.array([0.9, 0.8])
    right, sure = np.zeros(21), np.full(21, 0.95)
    assert guaranteed_threshold(sequence, sure, right, 0.1).coverage == 0
    assert items_to_guarantee(0.0, 1.0, 0.1) == 22  # 0.9 ** 22 < 0.1
    right, sure = np.zeros(22), np.full(22, 0.95)
    found = guaranteed_threshold(sequence, sure, right, 0.1)
    assert (found.confidence, found.coverage, found.risk) == (0.8, 1, 0)
    assert items_to_guarantee(0.0, 0.5, 0.1) == 44
    assert items_to_guarantee(0.05, 1.0, 0.1) > 60
    assert items_to_guarantee(0.1, 1.0, 0.1) is None
    assert items_to_guarantee(0.0999, 1.0, 0.1) > 10**6
    assert items_to_guarantee(0.09999, 1.0, 0.1) is None
    assert items_to_guarantee(float("nan"), 1.0, 0.1) is None
    nothing = np.array([])
    assert guaranteed_threshold(np.array([0.5]), nothing, nothing, 0.1).coverage == 0
    assert threshold_sequence(nothing, nothing, 0.1).tolist() == [0]


def test_the_order_of_tests_starts_where_other_items_speak_for_it():
    rng = np.random.default_rng(0)
    sure = confidences(2000, rng).round(2)
    wrong = (rng.random(2000) > sure).astype(float)
    sequence = threshold_sequence(sure, wrong, 0.1)
    assert sequence[-1] == 0
    assert np.diff(sequence) == pytest.approx(-0.01)
    assert choose_threshold(sure, wrong, 0.1).confidence < sequence[0] < 0.99
