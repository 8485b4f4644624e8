"""Bias probes on simulated data: what is there is found, what is not there is not claimed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.intervals import WORLDS, report_of
from slm_judge.agreement.bias import (
    AGREEMENT,
    BEYOND,
    SHIFT,
    adjusted,
    annotation_measures,
    closeness,
    measures,
    probe_groups,
)


def noisy(rng, truth, right, options=2):
    wrong = (truth + rng.integers(1, options, truth.shape)) % options
    return np.where(rng.random(truth.shape) < right, truth, wrong)


def probed(values, groups, clusters=None, measure=AGREEMENT):
    found, skipped = probe_groups("source", list(groups), measure, np.asarray(values), clusters)
    return found, skipped


# --- what is measured ---


def test_measures_by_hand():
    votes = [[0, 0, 1], [2, 2], [1], []]
    found = measures(np.array([0, 1, 1, 0]), votes, np.array([0.0, 1, 2]))
    # 2 of 3 agree with the judge, and 1 of 3 pairs with each other; 0, and all; the rest has no pair.
    assert found[BEYOND][:2] == pytest.approx([2 / 3 - 1 / 3, 0 - 1])
    assert np.isnan(found[BEYOND][2:]).all()
    assert found[SHIFT][:3] == pytest.approx([-1 / 3, -1, 0])
    assert np.isnan(found[SHIFT][3])
    alone = measures(np.array([0, 1, 1]), [[0], [0], [1, 2]], np.arange(3.0))
    assert alone[AGREEMENT].tolist() == [1, 0, 0.5]  # most items have one annotator


def test_measures_of_annotations_by_hand():
    votes = [{"a": 0, "b": 0, "c": 1}, {"a": 2}]
    names, found = annotation_measures(np.array([0, 2]), votes, np.array([0.0, 1, 2]))
    assert names == ["a", "b", "c", "a"]
    assert found[BEYOND][:3].tolist() == [1 - 0.5, 1 - 0.5, 0 - 0]
    assert np.isnan(found[BEYOND][3])  # nobody else
    assert found[SHIFT].tolist() == [0, 0, -1, 0]
    # The mean over an item's annotations is the measure of the item.
    item = measures(np.array([0, 2]), [list(row.values()) for row in votes], np.arange(3.0))
    assert found[BEYOND][:3].mean() == pytest.approx(item[BEYOND][0])


# --- p ---


def test_p_is_that_of_an_exact_test():
    """Of two groups of 0 and 1, that of the hypergeometric distribution (Fisher's exact test)."""
    values = np.array([1.0] * 8 + [0] * 4 + [1] * 28)
    (found,), _ = probed(values, ["a"] * 12 + ["b"] * 28)
    lower = stats.hypergeom(40, 36, 12).cdf(8)
    assert found.p_value == pytest.approx(2 * lower, abs=0.002)
    assert (found.group, found.others, found.n) == ("a", "b", (12, 28))
    assert found.difference.estimate == pytest.approx(8 / 12 - 1)


def test_p_is_uniform_however_small_the_groups():
    """0/1 agreement of 0.9 in groups of 10: by Welch's t-test, 36 % of them are below 5 %."""
    ours, welch = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values, groups = (
            (rng.random(120) < 0.9) * 1.0,
            np.array([f"s{i % 12:02}" for i in range(120)]),
        )
        ours += [p.p_value for p in probed(values, groups)[0]]
        for k in np.unique(groups):
            inside, outside = values[groups == k], values[groups != k]
            welch.append(stats.ttest_ind(inside, outside, equal_var=False).pvalue)
    assert len(ours) == 480
    assert np.mean(np.array(welch) <= 0.05) > 0.25
    assert np.mean(np.array(ours) <= 0.05) <= 0.06


def test_items_of_a_conversation_are_permuted_together():
    """The judge is as good throughout a conversation; by items, it would be biased in most reports."""
    whole, items = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        talk = np.arange(200) // 10
        values = (rng.random(200) < rng.choice([0.4, 0.95], 20)[talk]) * 1.0
        groups = np.where(talk % 2 == 0, "x", "y")
        whole.append(probed(values, groups, talk.tolist())[0][0].p_value)
        items.append(probed(values, groups)[0][0].p_value)
    assert np.mean(np.array(whole) <= 0.05) <= 0.12
    assert np.mean(np.array(items) <= 0.05) > 0.3


def test_groups_within_a_conversation_are_permuted_within():
    """Conversations differ, and their shares of long texts too; length itself does not matter."""
    null, real = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        talk = np.arange(300) // 10
        good, share = rng.choice([0.3, 0.95], 30), rng.random(30)
        groups = np.where(rng.random(300) < share[talk], "long", "short")
        for drop, found in ((0.0, null), (0.3, real)) if seed < 10 else ((0.0, null),):
            values = (rng.random(300) < good[talk] - drop * (groups == "long")) * 1.0
            found.append(probed(values, groups, talk.tolist())[0][0].p_value)
    assert np.mean(np.array(null) <= 0.05) <= 0.13
    assert np.mean(np.array(real) <= 0.05) >= 0.8


def test_one_group_that_is_most_items_shows_no_difference_by_p_alone():
    """Groups of very different sizes cannot be exchanged, so p alone is too low too often."""
    claimed = by_p = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        owner = np.repeat(np.arange(26), [200] + [5] * 25)
        names = np.where(owner < 5, "new", "old")
        values = (rng.random(len(owner)) < np.repeat(rng.beta(6, 2, 26), [200] + [5] * 25)) * 1.0
        (found,), _ = probed(values, names.tolist(), owner.tolist())
        (found,) = adjusted([found])
        by_p += found.p_adjusted < 0.05
        claimed += found.shown
    assert claimed <= 6
    assert by_p > claimed


def test_a_difference_is_that_within_conversations():
    """Long texts stand in good conversations, and are worse than the short ones beside them."""
    rng = np.random.default_rng(0)
    talk = np.arange(600) // 20
    good = np.where(talk % 2 == 0, 0.95, 0.5)
    groups = np.where(rng.random(600) < np.where(talk % 2 == 0, 0.8, 0.2), "long", "short")
    values = (rng.random(600) < good - 0.2 * (groups == "long")) * 1.0
    assert values[groups == "long"].mean() > values[groups == "short"].mean()
    (found,), _ = probed(values, groups, talk.tolist())
    assert found.p_value < 0.01
    assert found.difference.estimate == pytest.approx(-0.2, abs=0.08)


def test_groups_may_vary_differently():
    """A small group of the same mean with more variance: the pooled test finds it too often."""
    ours, pooled = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.normal(0, 3, 30), rng.normal(0, 1, 300)]).round()
        groups = ["a"] * 30 + ["b"] * 300
        ours.append(probed(values, groups)[0][0].p_value)
        pooled.append(stats.ttest_ind(values[:30], values[30:]).pvalue)
    assert np.mean(np.array(pooled) <= 0.05) > 0.15
    assert np.mean(np.array(ours) <= 0.05) <= 0.11


# --- what is said ---


def test_a_planted_bias_is_found_with_its_size():
    held = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        groups = np.array(["x", "y", "z", "tiny"])[rng.choice(4, 600, p=[0.33, 0.33, 0.33, 0.01])]
        values = (rng.random(600) < np.where(groups == "y", 0.5, 0.8)) * 1.0
        values[0] = np.nan
        found, skipped = probed(values, groups)
        found = {p.group: p for p in adjusted(found)}
        assert (list(found), skipped) == (["x", "y", "z"], ["tiny"])
        assert found["y"].p_adjusted < 0.01
        assert found["y"].difference.high < 0
        held += found["y"].difference.low <= -0.3 <= found["y"].difference.high
    assert held >= 17
    assert adjusted([]) == []


def test_closeness_by_hand():
    votes = [[0, 0, 2], [1, 2], [1]]
    found = closeness(np.array([0, 0, 1]), votes, np.array([0.0, 1, 2]))
    (beyond, plain), (nearer, near) = found[BEYOND], found[SHIFT]
    assert plain[:2] == pytest.approx([2 / 3, 0])
    assert beyond[:2] == pytest.approx([2 / 3 - 1 / 3, 0])
    assert near[:2] == pytest.approx([-2 / 3, -1.5])
    assert nearer[:2] == pytest.approx([-2 / 3 + 4 / 3, -1.5 + 1])
    assert all(np.isnan(one[2]) for one in (beyond, plain, nearer, near))  # nobody to compare with


@pytest.mark.parametrize(
    "name", [name for name in WORLDS if "people" in name or "women say" in name]
)
def test_errors_of_annotators_are_no_bias_of_the_judge(name):
    """It is always right, or as good everywhere, or between women and men; all of it differs."""
    for seed in range(3):
        probes = [p for d in report_of(WORLDS[name], seed).values() for p in d["probes"]]
        assert not any(p["verdict"] == "bias" for p in probes)
        assert any(p["verdict"] == "difference" for p in probes) or "85" in name


def test_a_judge_that_rates_one_source_higher_is_biased():
    found = [report_of(WORLDS["bias: one level more on half of one source of 50"], s)["grade"]["probes"]
             for s in range(4)]  # fmt: skip
    biased = [{p["group"] for p in one if p["verdict"] == "bias" and p["measure"] == SHIFT}
              for one in found]  # fmt: skip
    assert {"s00"} in biased
    assert set().union(*biased) == {"s00"}


def noisier(seed, judge):
    """Annotators err more in group b; the judge is as the third party says."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(["a", "b"], 400)
    truth = rng.integers(0, 2, 800)
    said = noisy(rng, np.tile(truth[:, None], 3), np.where(groups == "a", 0.95, 0.7)[:, None])
    labels = noisy(rng, truth, judge(groups))
    values = measures(labels, said.tolist(), np.arange(2.0))
    closer = closeness(labels, said.tolist(), np.arange(2.0))[BEYOND]
    return (
        adjusted(probe_groups("", groups, BEYOND, values[BEYOND], closer=closer)[0])[0],
        adjusted(probed((labels[:, None] == said).mean(axis=1), groups)[0])[0],
    )


def test_a_judge_that_is_always_right_has_no_bias():
    """Beside annotators who err more on one side, agreement itself differs by far."""
    for seed in range(20):
        beyond, agreement = noisier(seed, lambda groups: np.ones(len(groups)))
        assert agreement.p_value < 0.001
        assert beyond.verdict != "bias"
        assert agreement.verdict == "difference"  # of agreement alone, nothing more is said


def test_a_judge_that_falls_short_on_one_side_has_one():
    for seed in range(10):
        beyond, _ = noisier(seed, lambda groups: np.where(groups == "a", 0.5, 1.0))
        assert beyond.verdict == "bias"
        assert beyond.means[0].high < 0  # group a


def test_a_judge_as_good_everywhere_is_not_biased_where_annotators_are_better():
    """It falls short of them there alone, though it is no farther from what they say."""
    short = 0
    for seed in range(10):
        beyond, _ = noisier(seed, lambda groups: np.full(len(groups), 0.85))
        assert beyond.verdict != "bias"
        short += beyond.verdict == "difference" and beyond.means[0].high < 0
    assert short == 10


def test_one_annotator_who_errs_is_no_bias_against_women():
    """Labels of annotators are permuted among annotators, not among annotations."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth, skill = rng.integers(0, 2, 300), np.where(rng.random(12) < 0.2, 0.5, 0.95)
        said = noisy(rng, np.tile(truth[:, None], 12), skill[None])
        votes = [{f"p{m:02}": int(v) for m, v in enumerate(row)} for row in said]
        names, values = annotation_measures(truth, votes, np.arange(2.0))
        gender = ["wm"[int(name[1:]) % 2] for name in names]
        (probe,), _ = probe_groups("gender", gender, BEYOND, values[BEYOND], names)
        (naive,), _ = probe_groups("gender", gender, BEYOND, values[BEYOND])
        found.append((probe.p_value, naive.p_value))
    ours, naive = (np.array(found) <= 0.05).mean(axis=0)
    assert ours <= 0.15
    assert naive > 0.5


def test_differences_in_agreement_let_no_shift_pass():
    """24 surely differ in agreement; together, the 25th would be the last of 25 with p = .03."""
    (one,), _ = probed([0.0, 1] * 20 + [1.0] * 40, ["a"] * 40 + ["b"] * 40, measure=BEYOND)
    probes = [replace(one, p_value=1e-4) for _ in range(24)]
    probes.append(replace(one, measure=SHIFT, p_value=0.03))
    *differences, shift = adjusted(probes)
    assert stats.false_discovery_control([p.p_value for p in probes])[-1] == pytest.approx(0.03)
    assert shift.p_adjusted == pytest.approx(0.06)
    assert shift.verdict == ""
    assert [p.p_adjusted for p in differences] == pytest.approx([2e-4] * 24)


def test_nothing_is_said_where_nothing_can_be_tested():
    assert probed(np.ones(40), ["a", "b"] * 20) == ([], ["a", "b"])  # nothing varies
    assert probed([0.0, 1] * 20, ["a"] * 40) == ([], ["a"])  # one group
    assert probed([0.0, 1] * 10, ["a"] * 9 + ["b"] * 11) == ([], ["a", "b"])
    few = probed([0.0, 1] * 50, ["a"] * 50 + ["b"] * 50, [i // 20 for i in range(100)])
    assert few == ([], ["a", "b"])  # of five conversations, three and two
    assert probed(np.full(30, np.nan), ["a", "b", "c"] * 10) == ([], [])
