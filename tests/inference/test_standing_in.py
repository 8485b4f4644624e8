"""May a judge stand in for an annotator? On data whose truth is known, "no" and "cannot be said" too."""

import warnings

import numpy as np
import pytest
from scipy import stats
from slm_judge.model_card.card import _results
from slm_judge.model_card.page import interval, render

from benchmarks.intervals import of_many_items
from slm_judge import Rubric
from slm_judge.agreement.aggregate import aggregate, aggregate_of_others
from slm_judge.agreement.alpha import annotators_alpha, judge_alpha
from slm_judge.agreement.alt_test import alt_test, exact_p, t_test_p
from slm_judge.agreement.annotators import by_annotator
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.exact_test import _score, noninferiority_p
from slm_judge.data.item import unnamed
from slm_judge.data.predictions import Answers
from slm_judge.evaluation.baselines import AGGREGATE, ANNOTATOR, _table, score
from slm_judge.evaluation.dimension import (
    Groups,
    Settings,
    _confusion_statistics,
    correct_probes,
    evaluate_dimension,
)
from slm_judge.files import finite
from slm_judge.recipe import Recipe
from tests.conftest import ROOT

DIMENSIONS = {
    d.name: d
    for d in Rubric.parse(
        {
            "name": "r", "instructions": "?", "fields": ["text"],
            "dimensions": [
                {"name": "kind", "type": "choice", "instructions": "?", "options": list("abcde")},
                {"name": "grade", "type": "score", "instructions": "?", "options": [1, 2, 3, 4, 5]},
                {"name": "two", "type": "noul", "instructions": "?"},
            ],
        },
        "test",
    ).dimensions
}  # fmt: skip
KIND, GRADE, TWO = DIMENSIONS["kind"], DIMENSIONS["grade"], DIMENSIONS["two"]
SKEWED = (0.58, 0.16, 0.12, 0.08, 0.06)
FAST = Settings(resamples=400)


def drawn(seed, n=200, people=4, skill=0.6, shares=SKEWED):
    """Truth, and what people say of it: right with a chance of `skill`, else as options occur."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(shares), n, p=shares)
    said = np.where(
        rng.random((n, people)) < skill,
        truth[:, None],
        rng.choice(len(shares), (n, people), p=shares),
    )
    return truth, said


def votes_of(said):
    return [{f"p{m}": int(option) for m, option in enumerate(row)} for row in said]


def judged(dimension, votes, labels, settings=FAST):
    report = evaluate_dimension(
        dimension, votes, {"judge": Answers(np.asarray(labels))}, None, settings
    )
    return report, report["systems"]["judge"]


# --- the exact test ---


def all_outcomes(n):
    return np.array([(a, b) for a in range(n + 1) for b in range(n + 1 - a)])


@pytest.mark.parametrize(("n", "epsilon"), [(30, 0.1), (40, 0.15)])
def test_the_exact_test_errs_as_seldom_as_it_says_and_the_t_test_does_not(n, epsilon):
    """Summed over all outcomes, for many chances of a difference: nothing is simulated."""
    table = all_outcomes(n)
    p = np.array([noninferiority_p(int(a), int(b), n, epsilon) for a, b in table])
    leads = np.array([np.repeat([1.0, -1.0, 0.0], [a, b, n - a - b]) for a, b in table])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows without spread, which are put right below
        t = stats.ttest_1samp(leads, epsilon, axis=1, alternative="less").pvalue
    t = np.where(np.ptp(leads, axis=1) > 0, t, leads[:, 0] >= epsilon)
    assert t[7] == pytest.approx(t_test_p(leads[7], epsilon))

    def error(rejected, gap):
        return max(
            stats.multinomial.pmf(
                np.c_[table, n - table.sum(axis=1)][rejected],
                n,
                [(q + gap) / 2, (q - gap) / 2, max(1 - q, 0.0)],
            ).sum()
            for q in np.linspace(gap, 1, 37)
        )

    for level in (0.05, 0.01):
        assert error(p <= level, epsilon) <= level
        assert error(p <= level, epsilon + 0.05) <= level  # and where the annotator is better still
    assert error(t <= 0.05, epsilon) > 0.11
    # It is not bought with power: where nobody is better, it rejects nearly as often.
    even = stats.multinomial.pmf(np.c_[table, n - table.sum(axis=1)], n, [0.15, 0.15, 0.7])
    assert even[p <= 0.05].sum() > even[t <= 0.05].sum() - 0.06


def test_the_score_is_that_of_tango():
    """At margin 0 it is McNemar's z; and wins make it larger, losses smaller, as the proof needs."""
    wins, losses = np.array([3.0, 10.0, 0.0]), np.array([9.0, 10.0, 4.0])
    expected = (wins - losses) / np.sqrt(wins + losses)
    assert _score(wins, losses, 40, 0.0) == pytest.approx(expected)
    a, b = all_outcomes(47).T.astype(float)
    for margin in (0.1, 0.2):
        here = _score(a, b, 47, margin)
        room = a + b < 47
        assert (_score(a[room] + 1, b[room], 47, margin) >= here[room] - 1e-12).all()
        assert (_score(a[room], b[room] + 1, 47, margin) <= here[room] + 1e-12).all()


def test_epsilon_has_an_effect():
    lead = np.repeat([1.0, 0.0], [4, 26])  # the annotator is better on 4 of 30 items
    found = [exact_p(lead, epsilon) for epsilon in (0.1, 0.15, 0.2, 0.4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.5
    assert found[-1] < 0.01


def test_conversations_do_not_make_the_test_err_more_often():
    """The annotator is preferable by just epsilon: in tens of items that are alike (correlation
    0.2), taken as 300 items, the judge wins three times as often as it may."""
    talk, wins = np.repeat(np.arange(30), 10), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        drawn = rng.choice([1, 0, -1], 330, p=[0.3, 0.55, 0.15])
        lead = drawn[np.where(rng.random(300) < np.sqrt(0.2), 300 + talk, np.arange(300))]
        wins.append([exact_p(lead, 0.15, one) <= 0.05 for one in (None, talk.tolist())])
    items, groups = np.mean(wins, axis=0)
    assert items > 0.1
    assert groups <= 0.05
    # Each by itself is a group: the same. And the test as a whole passes them on.
    assert exact_p(lead, 0.15, range(300)) == exact_p(lead, 0.15)
    ratings = np.tile((lead > 0)[:, None], 2).astype(int)
    for groups in (None, talk.tolist()):
        found = alt_test([0] * 300, ratings, ["a", "b"], np.arange(2.0), 0.4, groups=groups)
        assert found.comparisons[0].p_value == exact_p((lead > 0).astype(int), 0.4, groups)


def test_a_report_takes_conversations_into_account_wherever_it_decides():
    truth, said = drawn(0, 300)
    talk, votes = [str(n // 10) for n in range(300)], votes_of(np.repeat(said[::10], 10, axis=0))
    shown = []
    for clusters in (None, talk):
        answers = {"judge": Answers(np.repeat(truth[::10], 10), np.full((300, 5), 0.2))}
        one = evaluate_dimension(KIND, votes, answers, Groups(clusters), FAST)["systems"]["judge"]
        error = one["calibration"]["expected_calibration_error"]
        test = one["alternative_annotator_test"]["annotators"]
        shown.append((one["alpha"]["high"] - one["alpha"]["low"], error["high"] - error["low"],
                      *(row["p_value"] for row in test)))  # fmt: skip
    assert (np.array(shown[1]) > np.array(shown[0])).all()


def test_few_items_are_not_compared_and_it_is_said_how_many_would_be():
    """29 items, the annotators better on 4: a signed-rank test said p = .0095 at every epsilon."""
    ratings = np.zeros((29, 3), dtype=int)
    labels = [1] * 4 + [0] * 25
    found = alt_test(labels, ratings, ["a", "b", "c"], np.arange(2.0))
    assert found.comparisons == []
    assert found.skipped == dict.fromkeys("abc", 29)
    assert found.items_needed == 30
    _, system = judged(KIND, votes_of(ratings), labels)
    test = system["alternative_annotator_test"]
    assert "cannot be done here" in test["verdict"]
    assert "about 30 items annotated in this way would be needed" in test["verdict"]
    assert not test["passed"]
    half = np.where(np.arange(100)[:, None] % 5 < [5, 2], 0, -1)  # 40 of 100 items are shared
    assert alt_test([0] * 100, half[:50], ["a", "b"], np.arange(2.0)).items_needed == 75
    alone = alt_test([0] * 50, half[:50, :1], ["a"], np.arange(2.0))
    assert alone.items_needed is None
    assert "in common" in alone.told


# --- no trivial judge passes, and a good one does ---


@pytest.mark.parametrize("dimension", [KIND, GRADE])
def test_a_constant_judge_passes_the_test_by_itself_but_not_the_verdict(dimension):
    """Half of the items are one option, and people agree little: the test alone is passed."""
    shares = (0.8, 0.08, 0.06, 0.03, 0.03)
    _, said = drawn(0, 400, 4, 0.5, shares)
    report, system = judged(dimension, votes_of(said), np.zeros(400, dtype=int))
    test = system["alternative_annotator_test"]
    assert test["winning_rate"] >= 0.5
    assert test["t_test"]["passed"]
    assert not test["passed"]
    assert "It is not shown" in test["verdict"]
    assert "not shown to be beyond chance" in test["trivial"]
    assert report["constant"]["test"]["winning_rate"] == test["winning_rate"]
    assert report["constant"]["accuracy"]["estimate"] == system["accuracy"]["estimate"]
    assert report["constant"]["alpha"]["estimate"] >= system["alpha"]["estimate"]


def test_trivial_judges_seldom_pass_and_one_more_annotator_does():
    """Judges that draw options, mostly say one, or are one more person like the others."""
    passed = dict.fromkeys(("draws", "nearly one", "shuffled", "one more"), 0)
    for seed in range(6):
        truth, said = drawn(seed, 300, 5, 0.7, (0.7, 0.1, 0.1, 0.05, 0.05))
        rng = np.random.default_rng(100 + seed)
        draws = rng.choice(5, 300, p=(0.7, 0.1, 0.1, 0.05, 0.05))
        judges = {
            "draws": draws,
            "nearly one": np.where(rng.random(300) < 0.05, draws, 0),
            "shuffled": rng.permutation(truth),
            "one more": said[:, 4],
        }
        for name, labels in judges.items():
            _, system = judged(KIND, votes_of(said[:, :4]), labels, Settings(200))
            passed[name] += system["alternative_annotator_test"]["passed"]
    assert passed["one more"] == 6
    assert passed["draws"] + passed["nearly one"] + passed["shuffled"] <= 1


def test_an_annotator_may_be_less_accurate_than_a_constant_and_still_replace_one():
    """Why the constant is compared in alpha: in accuracy even one more annotator would fail."""
    _, said = drawn(3, 800, 6, 0.45, (0.75, 0.1, 0.05, 0.05, 0.05))
    report, system = judged(KIND, votes_of(said[:, :5]), said[:, 5])
    assert system["accuracy"]["high"] < report["constant"]["accuracy"]["estimate"]
    assert system["alternative_annotator_test"]["over_constant"]["low"] > 0
    assert system["alternative_annotator_test"]["passed"]


# --- as good as an annotator? on the same items ---


def test_judge_and_annotators_are_compared_on_the_same_items():
    """Items with one annotation are easy: all items together would make the judge look better."""
    rng = np.random.default_rng(0)
    _, said = drawn(1, 120, 2, 0.2)
    easy = rng.choice(5, 380, p=SKEWED)
    votes = votes_of(said) + [{"p0": int(option)} for option in easy]
    labels = np.r_[np.where(rng.random(120) < 0.4, said[:, 0], rng.choice(5, 120)), easy]
    report, system = judged(KIND, votes, labels)
    plain = [list(row.values()) for row in votes]
    shared = judge_alpha(labels[:120].tolist(), plain[:120], KIND)
    humans = annotators_alpha(plain, KIND)
    assert report["humans"]["items"] == system["compared"]["items"] == 120
    assert system["compared"]["alpha"]["estimate"] == pytest.approx(shared)
    assert system["minus_annotators"]["estimate"] == pytest.approx(shared - humans)
    assert system["apart"]["items"] == 380
    assert system["apart"]["alpha"]["estimate"] == 1.0
    assert system["alpha"]["estimate"] > system["compared"]["alpha"]["estimate"] + 0.2
    assert any("380 of 500 items have one annotation" in note for note in report["notes"])
    whole = [[*row, int(label)] for row, label in zip(plain[:120], labels, strict=False)]
    assert system["alpha_as_one_more"]["estimate"] == pytest.approx(annotators_alpha(whole, KIND))


def test_systems_differ_by_what_their_alphas_show():
    """The second one is worse on the items with one annotation alone, which stand apart."""
    rng = np.random.default_rng(0)
    _, said = drawn(1, 120, 2, 0.6)
    easy = rng.choice(5, 300, p=SKEWED)
    votes = votes_of(said) + [{"p0": int(option)} for option in easy]
    first, second = (np.r_[said[:, 0], rest] for rest in (easy, rng.permutation(easy)))
    systems = {"a": Answers(first), "b": Answers(second)}
    found = evaluate_dimension(KIND, votes, systems, None, FAST)["systems"]
    assert found["b"]["against_reference"]["estimate"] == 0
    assert found["b"]["compared"] == found["a"]["compared"]
    assert found["b"]["apart"]["alpha"]["high"] < 0.3


@pytest.mark.parametrize("mixed", [True, False])
def test_page_and_metadata_show_the_judge_where_the_annotators_are(mixed):
    """Every figure beside one of the annotators, and those of the Hub, are of the same items."""
    truth, said = drawn(1, 100, 2, 0.5)
    votes = votes_of(said) + [{"p0": int(option)} for option in truth if mixed]
    labels = np.r_[said[:, 0], truth][: len(votes)]
    report, _ = judged(GRADE, votes, labels)
    correct_probes({"grade": report})
    report["disagreements"] = []
    whole = {"title": "t", "items": len(votes), "held_out": True, "notes": [], "systems": ["judge"],
             "dimensions": {"grade": report}, "probes": {}, "settings": vars(FAST), "slm_judge": ""}  # fmt: skip
    page = render(finite(whole), dict.fromkeys(["alpha", "confusion-grade"], ""))
    table = page.partition("pair by pair")[2].partition("</table>")[0]
    alone, _ = judged(GRADE, votes[:100], labels[:100])
    for name in ("gwet_ac", "icc", "weighted_kappa", "mean_absolute_error", "mean_shift"):
        assert interval(alone["systems"]["judge"][name])[:5] in table
    assert ("the 100 items with several annotations" in table) is mixed
    report["systems"]["merged"] = report["systems"]["judge"]
    recipe = Recipe.model_validate({"name": "j", "rubric": "r.yaml", "data": {"train": "t.csv"}})
    for result in _results("", recipe, "data", whole):
        expected = alone["systems"]["judge"][
            {"krippendorff_alpha": "alpha", "accuracy": "accuracy", "f1": "macro_f1"}[
                result.metric_type
            ]
        ]["estimate"]
        assert result.metric_value == pytest.approx(expected, abs=1e-4)
        assert result.dataset_name.endswith("with several annotations") is mixed


def test_the_difference_to_the_annotators_covers_what_is_true():
    """One more annotator like the others: the difference is 0, and 95 % intervals say so."""
    covered = 0
    for seed in range(40):
        _, said = drawn(seed, 150, 4, 0.6)
        _, system = judged(KIND, votes_of(said[:, :3]), said[:, 3], Settings(200))
        gap = system["minus_annotators"]
        covered += gap["low"] <= 0 <= gap["high"]
    assert 34 <= covered <= 40
    truth, said = drawn(0, 300, 3, 0.6)
    for labels, told in ((truth, "it agrees with them more than"),
                         (np.random.default_rng(0).permutation(truth), "it agrees with them less"),
                         (said[:, 0][::-1] * 0, "it agrees with them less")):  # fmt: skip
        _, system = judged(KIND, votes_of(said), labels)
        assert told in system["minus_annotators"]["told"]


def test_chance_is_not_better_than_annotators_who_agree_less_than_chance():
    """Of each item one of two says b, never both: their alpha is below 0, that of "always a" about 0."""
    votes = [{"p": int(k % 2), "q": 1 - k % 2} for k in range(200)]
    _, system = judged(KIND, votes, [0] * 200)
    assert system["minus_annotators"]["low"] > 0
    assert system["minus_annotators"]["told"].startswith("theirs is lower, but it is not shown to")


def test_annotations_of_one_option_alone_decide_nothing():
    votes = [{"a": 0, "b": 0} for _ in range(40)]
    report, system = judged(KIND, votes, [0] * 40)
    assert any("All annotations are 'a'" in note for note in report["notes"])
    assert not system["alternative_annotator_test"]["passed"]


def test_one_disagreement_among_fifty_items_is_told():
    votes = [{"a": 0, "b": 0} for _ in range(49)] + [{"a": 0, "b": 1}]
    report, _ = judged(KIND, votes, [0] * 50)
    assert report["humans"]["alpha"]["estimate"] == pytest.approx(0.0, abs=1e-9)
    assert any("Only 1 of 50 items" in note for note in report["notes"])
    mixed = [{"a": k % 5, "b": k % 5} for k in range(49)] + [{"a": 0, "b": 1}]
    report, _ = judged(KIND, mixed, [0] * 50)
    assert not any("nearly undefined" in note for note in report["notes"])


def test_baselines_compare_systems_and_annotators_on_the_same_items():
    _, said = drawn(1, 60, 2, 0.2)
    votes = said.tolist() + [[0]] * 90
    systems = {"always a": [0] * 150, "first": [row[0] for row in votes]}
    rows = _table(systems, votes, KIND, Bootstrap(150, 100))
    where = ", the 60 items with several annotations"
    assert list(rows) == [*systems, f"{ANNOTATOR}{where}", f"{AGGREGATE}{where}",
                          *(f"{name}{where}" for name in systems)]  # fmt: skip
    assert rows["first"].alpha.estimate > rows[f"first{where}"].alpha.estimate
    expected = judge_alpha(systems["first"][:60], votes[:60], KIND)
    assert rows[f"first{where}"].alpha.estimate == pytest.approx(expected)
    assert rows[f"{ANNOTATOR}{where}"].alpha.estimate == pytest.approx(
        annotators_alpha(votes, KIND)
    )
    alike = _table({n: of[:60] for n, of in systems.items()}, votes[:60], KIND, Bootstrap(60, 100))
    assert list(alike) == [ANNOTATOR, AGGREGATE, *systems]
    alone = _table({n: of[60:] for n, of in systems.items()}, votes[60:], KIND, Bootstrap(90, 100))
    assert list(alone) == list(systems)  # nobody says anything about annotators


# --- what is reachable ---


@pytest.mark.parametrize("dimension", [KIND, GRADE])
def test_the_aggregate_of_the_others_by_hand(dimension):
    _, said = drawn(5, 40, 5)
    votes = [row[: 1 + n % 5].tolist() for n, row in enumerate(said)]
    found = aggregate_of_others(votes, dimension)
    expected = np.zeros_like(found)
    common = np.bincount(np.concatenate(votes), minlength=5)
    for n, row in enumerate(votes):
        for k, own in enumerate(row):
            others = row[:k] + row[k + 1 :]
            if others:
                # The tie-break knows all votes but the one left out.
                rest = [
                    [option]
                    for option in np.repeat(np.arange(5), common - np.eye(5, dtype=int)[own])
                ]
                counts = np.bincount(others, minlength=5)
                if dimension is GRADE:
                    label = sorted(others)[(len(others) - 1) // 2]
                else:
                    weight = counts + np.bincount(np.concatenate(rest), minlength=5) / 1e6
                    label = int(weight.argmax())
                expected[n, own, label] += 1
    assert (found == expected).all()
    assert found.sum() == sum(len(row) for row in votes if len(row) > 1)


def test_the_aggregate_of_the_others_agrees_more_than_an_annotator_of_popquorn():
    path = ROOT.parent / "shared/data/popquorn_offensiveness.csv"
    if not path.exists():
        pytest.skip("the POPQUORN annotations are not beside this checkout")
    from slm_judge.data.read import read_annotations

    rubric = Rubric.from_file(ROOT / "rubrics/offensiveness.yaml")
    items = read_annotations(str(path), rubric, annotator="annotator_id").items
    dimension = rubric.dimensions[0]
    votes = [item.votes[dimension.name] for item in items]
    plain = [list(row.values()) for row in votes]
    report, _ = judged(dimension, votes, aggregate(plain, dimension), Settings(200))
    assert report["humans"]["alpha"]["estimate"] == pytest.approx(0.292, abs=0.001)
    assert report["humans"]["aggregate"]["alpha"]["estimate"] == pytest.approx(0.387, abs=0.001)
    _, constant = judged(dimension, votes, np.zeros(len(votes), dtype=int), Settings(200))
    assert not constant["alternative_annotator_test"]["passed"]


# --- each annotator ---


def test_careless_annotators_are_found_and_others_are_not():
    """Three of 20 answer at random, always the same, or evenly; then nobody does."""
    found, falsely = 0, 0
    for seed in range(6):
        for careless in (3, 0):
            rng = np.random.default_rng(1000 + seed)
            _, said = drawn(seed, 200, 20, 0.7)
            if careless:
                said[:, 0], said[:, 1] = rng.choice(5, 200, p=SKEWED), 0
                said[:, 2] = rng.integers(0, 5, 200)
            votes = [
                {f"p{m:02d}": int(row[m]) for m in rng.choice(20, 5, replace=False)} for row in said
            ]
            guilty = {f"p{m:02d}" for m in range(careless)}
            flagged = {one.name for one in by_annotator(votes, KIND, 300) if one.careless}
            found += len(flagged & guilty)
            falsely += len(flagged - guilty)
    assert found == 18
    assert falsely <= 1


def test_conversations_are_drawn_whole_for_each_annotator():
    """Five items that are the same: their 60 groups show what 60 items do, and no more."""
    votes = votes_of(drawn(3, 60, 4, 0.7)[1])
    five, talk = [row for row in votes for _ in range(5)], np.repeat(np.arange(60), 5).tolist()

    def widths(one):
        return np.array([found.high - found.low for found in (one.alpha, one.minus_others)])

    single = by_annotator(votes, KIND)[0]
    whole, by_items = by_annotator(five, KIND, groups=talk)[0], by_annotator(five, KIND)[0]
    assert whole.alpha.estimate == pytest.approx(single.alpha.estimate, abs=0.01)
    assert widths(whole) == pytest.approx(widths(single), rel=0.15)
    assert (widths(by_items) < 0.6 * widths(whole)).all()
    assert whole.p_value == pytest.approx(single.p_value, abs=0.1)
    report = evaluate_dimension(
        KIND, five, {"j": Answers(np.zeros(300, dtype=int))}, Groups([str(t) for t in talk]), FAST
    )
    (row,) = (row for row in report["by_annotator"] if row["annotator"] == whole.name)
    assert row["alpha"]["high"] - row["alpha"]["low"] > 1.5 * widths(by_items)[0]


def test_the_table_by_annotator():
    _, said = drawn(2, 90, 3, 0.8)
    said[:, 2] = np.minimum(said[:, 2] + 1, 4)  # rates one level higher
    votes = votes_of(said)
    report, _ = judged(GRADE, votes, said[:, 0])
    rows = {row["annotator"]: row for row in report["by_annotator"]}
    assert [row["items"] for row in rows.values()] == [90] * 3
    others = [[a, b] for a, b in said[:, :2].tolist()]
    assert rows["p2"]["alpha"]["estimate"] == pytest.approx(
        judge_alpha(said[:, 2].tolist(), others, GRADE)
    )
    assert rows["p2"]["shift"] == pytest.approx(np.mean(said[:, 2] - said[:, :2].mean(axis=1)))
    assert rows["p2"]["shift"] > 0.4 > 0 > rows["p0"]["shift"]
    assert rows["p0"]["judge"]["judge_wins"]  # the judge says what they say
    votes[0]["few"] = 1
    report, _ = judged(GRADE, votes, said[:, 0])
    few = report["by_annotator"][-1]
    assert (few["annotator"], few["items"], few["judge"], few["careless"]) == (
        "few",
        1,
        None,
        False,
    )


def test_nobody_without_a_name_stands_in_the_table():
    _, said = drawn(2, 60, 3)
    votes = [{unnamed(m): int(option) for m, option in enumerate(row)} for row in said]
    report, system = judged(KIND, votes, said[:, 0])
    assert report["by_annotator"] == []
    assert report["annotators"] is None
    assert not report["named"]
    assert report["humans"]["alpha"]["estimate"] == pytest.approx(
        annotators_alpha(said.tolist(), KIND)
    )
    assert "cannot be done here" in system["alternative_annotator_test"]["verdict"]
    assert any("perhaps of one person" in note for note in report["notes"])


def binary(seed, n, share, right):
    """Labels of people, and of a judge who errs."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < share).astype(int)
    return truth, np.where(rng.random(n) < right, truth, 1 - truth)


@pytest.mark.parametrize(("n", "share", "right"), [(20, 0.5, 0.95), (72, 0.3, 0.99)])
def test_intervals_hold_the_truth_where_hardly_a_label_is_wrong(n, share, right):
    """By percentiles alone about half of alpha's do, since resamples of no error have none."""
    rows = of_many_items(share, right)
    whole = _confusion_statistics(TWO)
    true = {name: float(whole[name](rows)) for name in ("alpha", "accuracy", "macro_f1", "kappa")}
    hits = {name: [] for name in (*true, "recall", "precision")}
    for seed in range(60):
        truth, judged = binary(seed, n, share, right)
        votes = [{"a": int(label)} for label in truth]
        report = evaluate_dimension(TWO, votes, {"j": Answers(judged)}, settings=FAST)
        found = report["systems"]["j"]
        for name, value in true.items():
            hits[name].append(found[name]["low"] - 1e-9 <= value <= found[name]["high"] + 1e-9)
        for name in ("recall", "precision"):
            one = found["options"][1][name]
            counted = rows[1].sum() if name == "recall" else rows[:, 1].sum()
            assert one["low"] < one["high"]
            hits[name].append(one["low"] <= rows[1, 1] / counted <= one["high"])
    assert {name: np.mean(found) >= 0.9 for name, found in hits.items()} == dict.fromkeys(
        hits, True
    )


def test_conversations_that_are_right_throughout_count_as_few_items():
    truth, _ = binary(0, 200, 0.5, 1)
    votes, talk = [{"a": int(x)} for x in truth], [str(k // 20) for k in range(200)]
    lows = []
    for clusters in (None, talk):
        found = evaluate_dimension(TWO, votes, {"a": Answers(truth)}, Groups(clusters), FAST)
        lows.append(found["systems"]["a"]["accuracy"]["low"])
    assert 0.97 < lows[0] < 0.99
    assert lows[1] < 0.75  # ten conversations


def test_what_a_judge_is_not_asked_is_no_miss():
    truth = np.ones(50, dtype=int)
    truth[:10] = 0
    judged = np.where(np.arange(50) < 30, truth, -1)
    votes = [{"a": int(x)} for x in truth]
    found = evaluate_dimension(TWO, votes, {"a": Answers(judged)}, settings=FAST)
    recall = found["systems"]["a"]["options"][1]["recall"]
    assert recall["estimate"] == recall["high"] == 1
    assert 0.8 < recall["low"] < 0.85  # of 20 items


def test_a_few_equal_labels_do_not_show_that_nothing_is_lost():
    """As in `verify`; two systems that say the same of 15 items may differ in three of 100."""
    truth, _ = binary(0, 15, 0.5, 1)
    many, _ = binary(0, 300, 0.5, 1)
    found = []
    for labels in (truth, many):
        votes, systems = (
            [{"a": int(x)} for x in labels],
            {"a": Answers(labels), "b": Answers(labels)},
        )
        report = evaluate_dimension(TWO, votes, systems, settings=FAST)
        found.append(report["systems"]["b"]["against_reference"])
    assert [one["verdict"] for one in found] == ["not decided", "not inferior"]
    assert found[0]["low"] < -0.05 < found[1]["low"] < 0


def test_baselines_are_not_sure_of_what_they_hardly_saw_either():
    truth, _ = binary(0, 20, 0.5, 1)
    found = score(truth.tolist(), [[label] for label in truth.tolist()], TWO, Bootstrap(20, 400))
    assert found.alpha.estimate == found.accuracy.estimate == found.accuracy.high == 1
    assert 0.3 < found.alpha.low < 0.8
    assert 0.75 < found.accuracy.low < 0.9
