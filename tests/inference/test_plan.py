"""`slm-judge plan`: what it says of a study is what studies of known truth show, made otherwise."""

import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    annotators_alpha,
    judge_alpha,
    judge_coincidences,
)
from slm_judge.agreement.alt_test import alt_test
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.power import (
    World,
    correlation_within,
    items_for_width,
    items_to_compare,
    simulate,
)
from slm_judge.cli import main
from slm_judge.data.item import votes_of
from slm_judge.data.read import read_annotations
from slm_judge.errors import DataError
from slm_judge.evaluation.plan import Expected, a_dimension, plan, plan_table, worlds
from slm_judge.rubric import Rubric
from tests.conftest import ROOT


def world(shares=(0.5, 0.5), alpha=0.6, judge=None, annotators=3, pool=3, kind="choice"):
    (dimension,) = a_dimension(kind, len(shares)).dimensions
    judge = alpha if judge is None else judge
    return World(dimension, shares, alpha, judge, annotators, pool, 0.15, 0.05, 3000)


@lru_cache
def shown(*arguments, n=300):
    return simulate(world(*arguments), n)


@pytest.mark.parametrize(("kind", "shares"), [("choice", (0.7, 0.2, 0.1)), ("score", (0.1, 0.3, 0.4, 0.2))])  # fmt: skip
def test_the_simulated_annotators_agree_as_asked(kind, shares):
    """Whatever the level of measurement."""
    expected = world(shares, alpha=0.5, judge=0.6, annotators=2, pool=5, kind=kind)
    ratings, labels = expected.draw(20_000, np.random.default_rng(0))
    votes = [row[row >= 0].tolist() for row in ratings]
    assert {len(row) for row in votes} == {2}
    assert np.mean(ratings >= 0, axis=0) == pytest.approx([0.4] * 5, abs=0.02)
    assert annotators_alpha(votes, expected.dimension) == pytest.approx(0.5, abs=0.02)
    assert judge_alpha(labels.tolist(), votes, expected.dimension) == pytest.approx(0.6, abs=0.02)
    assert np.bincount(labels) / 20_000 == pytest.approx(shares, abs=0.02)
    changed = expected.anew(labels, 0.25, np.random.default_rng(1))  # loses 0.6 x 0.25
    assert judge_alpha(changed.tolist(), votes, expected.dimension) == pytest.approx(0.45, abs=0.02)


def symmetric(rng, n, right, people=3):
    """Two even options, and errors that are told apart from the world's by being wrong: alpha is
    (2 right - 1) squared."""
    truth = rng.integers(0, 2, n)
    return truth, np.where(rng.random((people, n)) < right, truth, 1 - truth).T


def test_the_width_is_how_far_alpha_varies_between_studies():
    right = (1 + np.sqrt(0.6)) / 2
    dimension, found = world().dimension, []
    for seed in range(120):
        _, said = symmetric(np.random.default_rng(seed), 300, right)
        found.append(annotators_alpha(said.tolist(), dimension))
    assert np.mean(found) == pytest.approx(0.6, abs=0.01)
    power = shown()
    assert power.among == pytest.approx(2 * 1.96 * np.std(found), rel=0.15)


def conversations(seed, groups, size=10):
    """A judge that is better in some conversations than in others, and three annotators."""
    rng, own = np.random.default_rng(seed), np.repeat(np.arange(groups), size)
    skill = 1 / (1 + np.exp(-rng.normal(1.5, 1, groups)))
    truth = rng.integers(0, 2, len(own))
    judged = np.where(rng.random(len(own)) < skill[own], truth, 1 - truth)
    said = np.where(rng.random((len(own), 3)) < 0.85, truth[:, None], 1 - truth[:, None])
    return judge_coincidences(judged.tolist(), said.tolist(), 2), own


def test_the_width_is_that_of_the_bootstrap_of_conversations():
    """Planned by alpha and correlation alone, of conversations that are made in another way."""
    parts, own = conversations(0, 3000)
    alpha = float(alpha_of_coincidences(parts.sum(axis=0), [0, 1], "nominal"))
    alike, size = correlation_within(parts, own, world().dimension)
    assert (size, alike) == (10, pytest.approx(0.1, abs=0.03))
    assert correlation_within(parts, np.arange(len(own)), world().dimension)[1] == 1
    planned = replace(world(alpha=0.49, judge=alpha), group_size=10, correlation=alike)
    wide = []
    for seed in range(1, 31):
        parts, own = conversations(seed, 30)
        bootstrap = Bootstrap(300, 400, seed, own.tolist())  # as `evaluate` with --cluster
        one = bootstrap.interval(parts, lambda sums: alpha_of_coincidences(sums, [0, 1], "nominal"))
        wide.append(one.high - one.low)
    power, alone = simulate(planned, 300), simulate(replace(planned, group_size=1), 300)
    assert power.judge == pytest.approx(np.mean(wide), rel=0.08)
    assert power.judge > 1.3 * alone.judge
    # Estimates of the corpus too: the design effect is 1.9.
    assert power.people == pytest.approx(np.sqrt(1 + 9 * alike) * alone.people, rel=0.08)


def test_as_many_items_as_are_said_give_the_width():
    needed, of_judge = items_for_width(world(), 0.12)
    assert np.isnan(items_for_width(world(annotators=1, pool=1), 0.12)[0])
    assert needed < 600
    many = replace(world(), group_size=20, correlation=0.1)
    assert items_for_width(many, 0.12)[0] == pytest.approx(2.9 * needed, rel=0.15)
    wide, right = [], (1 + np.sqrt(0.6)) / 2
    for seed in range(12):
        rng = np.random.default_rng(seed)
        _, said = symmetric(rng, int(of_judge), right, 4)
        votes, judged = said[:, :3].tolist(), said[:, 3].tolist()
        parts = judge_coincidences(judged, votes, 2)
        one = Bootstrap(len(votes), 500).interval(
            parts, lambda sums: alpha_of_coincidences(sums, [0, 1], "nominal")
        )
        wide.append(one.high - one.low)
    assert np.mean(wide) == pytest.approx(0.12, rel=0.1)


def test_the_alternative_annotator_test_is_passed_as_often_as_is_said():
    right = (1 + np.sqrt(0.3)) / 2
    passed = []
    for seed in range(40):
        _, said = symmetric(np.random.default_rng(seed), 60, right, 4)
        test = alt_test(said[:, 3].tolist(), said[:, :3], list("abc"), np.arange(2.0), 0.15)
        passed.append(test.passed)
    power = shown((0.5, 0.5), 0.3, n=60)
    assert power.testable == 1
    assert 0.2 < power.shown < 0.8
    assert power.shown == pytest.approx(np.mean(passed), abs=0.2)
    # A judge by chance is hardly ever said to be as good, one that knows the truth is.
    assert shown((0.5, 0.5), 0.3, 0.0, n=60).shown <= 0.05
    assert shown((0.5, 0.5), 0.3, np.sqrt(0.3), n=60).shown >= 0.95


def test_with_too_few_shared_items_it_cannot_be_done_and_the_items_are_said():
    few = world(annotators=2, pool=20)
    assert items_to_compare(few) == 300
    assert items_to_compare(world(annotators=1, pool=20)) is None
    (one,) = plan([(few, [])], 100)
    assert one.power.testable == 0
    note = one.notes[0]
    assert "about 10 items, and 30 are needed; that takes about 300 items" in note
    lines = "\n".join(line for line, _ in plan_table([one], 0.1).lines(80))
    assert re.search(r"may replace an annotator, at epsilon = 0.15 +–", lines)
    (alone,) = plan([(world(annotators=1, pool=1), [])], 100)
    assert "need items that two people annotated" in alone.notes[0]
    assert np.isnan(alone.power.among)
    # With as many items as are said, about half of the annotators have 30.
    ratings, labels = few.draw(300, np.random.default_rng(0))
    names = [str(k) for k in range(20)]
    assert alt_test(labels.tolist(), ratings, names, np.arange(2.0)).comparisons


def test_what_verify_shows_is_what_it_shows_of_artefacts():
    """As in docs/evaluation.md, by `benchmarks.guarantees`: of a rare option little is decided."""
    even, rare = shown(), shown((0.9, 0.1), 0.6, None, 1, 1, n=100)
    assert even.verified[0] == 1
    assert rare.verified[0] == 0
    assert even.verified[0] > even.verified[1] > 0.1
    assert even.verified[2] > 0.3
    many = shown((0.5, 0.5), 0.6, None, 1, 1, n=2500)
    assert many.verified == [1, 1, 1]
    # No file can lose 0.1 of 0.06.
    assert np.isnan(shown((0.5, 0.5), 0.6, 0.06).verified[2])


def test_the_widths_of_estimates_are_those_of_the_formula():
    """PPI++: with three people's mean y and a judge f, Var(y - t f) / n + t^2 Var(f) / N."""
    power = shown()
    s2 = 0.6  # alpha; corr of two annotators
    var_y, var_f, cov = 0.25 * (1 / 3 + 2 / 3 * s2), 0.25, 0.25 * s2
    trust = cov / var_f * 3000 / 3300
    variance = (var_y - 2 * trust * cov + trust**2 * var_f) / 300 + trust**2 * var_f / 3300
    z = 2 * stats.t.ppf(0.975, 299)
    assert power.people == pytest.approx(z * np.sqrt(var_y / 300), rel=0.03)
    assert power.powered == pytest.approx(z * np.sqrt(variance), rel=0.06)


def test_of_real_annotations_the_widths_are_about_as_planned():
    """POPQUORN, planned by its alpha and frequencies alone; its annotators differ in skill."""
    path = ROOT.parent / "shared/data/popquorn_offensiveness.csv"
    if not path.exists():
        pytest.skip("the POPQUORN annotations are not beside this checkout")
    rubric = Rubric.from_file(ROOT / "rubrics/offensiveness.yaml")
    (asked,) = rubric.dimensions
    items = read_annotations(str(path), rubric, annotator="annotator_id").items
    ((given, _),) = worlds(rubric, Expected(), items)
    power, found = simulate(given, 225), []
    assert (power.testable, items_to_compare(given)) == (0, 874)
    votes, rng = votes_of(items, asked.name), np.random.default_rng(0)
    for _ in range(10):
        rows = [votes[k] for k in rng.choice(len(votes), 225, replace=False)]
        others = [row[1:] for row in rows]  # the first annotator as the judge
        judged = judge_coincidences([row[0] for row in rows], others, len(asked.options))
        for parts in (annotator_coincidences(rows, len(asked.options)), judged):
            one = Bootstrap(225, 400).interval(
                parts, lambda sums: alpha_of_coincidences(sums, asked.values, "ordinal")
            )
            found.append(one.high - one.low)
    among, of_judge = np.mean(np.reshape(found, (-1, 2)), axis=0)
    assert power.among == pytest.approx(among, rel=0.25)
    assert power.judge == pytest.approx(of_judge, rel=0.15)


# --- what is expected ---


def expected(rubric, **given):
    (found,) = worlds(rubric, Expected(**given))
    return found[0]


def test_what_is_expected_is_checked_and_completed():
    noul, score = a_dimension("noul", 2), a_dimension("score", 4)
    assert expected(noul, alpha=0.5, prevalence=[0.1]).prevalence == (0.9, 0.1)
    whole = expected(score, alpha=0.49, accuracy=0.25 + 0.75 * 0.6)
    assert whole.judge == pytest.approx(0.6)  # by chance 0.25, beyond it 0.6
    assert (whole.annotators, whole.pool, whole.judge == whole.alpha) == (3, 3, False)
    for rubric, given, complaint in [
        (noul, {}, "a plan needs the alpha"),
        (noul, {"alpha": -0.1}, "a plan needs the alpha"),
        (noul, {"alpha": 0.5, "pool": 2}, "an item has 3 annotators, but there are only 2"),
        (noul, {"alpha": 0.5, "accuracy": 0.9}, "nobody meets more than 0.85"),
        (noul, {"alpha": 0.5, "accuracy": 0.4}, "chance meets 0.50"),
        (score, {"alpha": 0.5, "prevalence": [0.1]}, "has 4 options, so --prevalence is 4 shares"),
        (noul, {"alpha": 0.5, "prevalence": [1.0, 0.0]}, "at least two of them above 0"),
    ]:
        with pytest.raises(DataError, match=re.escape(complaint)):
            expected(rubric, **given)
    with pytest.raises(DataError, match=r"--group-correlation is from 0 to 1; it is 1\.1"):
        expected(noul, alpha=0.5, correlation=1.1)
    assert expected(noul, alpha=0.5, group_size=5).correlation == 0.1
    with pytest.raises(DataError, match="5 items in groups of 5: two are needed"):
        plan([(expected(noul, alpha=0.5, group_size=5), [])], 5)
    with pytest.raises(DataError, match="from 2 to 100000"):
        plan([(whole, [])], 1)
    with pytest.raises(DataError, match=r"needs \d+ items"):
        plan([(whole, [])], None, width=0.001)
    (found,) = plan([(whole, [])], None, width=0.4)
    assert found.items == found.needed[0] < 100


def test_a_pilot_says_what_to_expect(tmp_path, monkeypatch, capsys):
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "r.yaml").write_text(
        "{name: r, instructions: i, fields: [text], dimensions: "
        "[{name: d, type: choice, instructions: q, options: [a, b]}]}"
    )
    truth = rng.random(80) < 0.3
    for item, real in enumerate(truth):
        for who in rng.choice(list("uvwxyz"), 2, replace=False):
            rows.append((item, who, "ab"[int(real ^ (rng.random() < 0.1))]))
    frame = pd.DataFrame(rows, columns=["item_id", "who", "d"])
    frame.to_csv(tmp_path / "pilot.csv", index=False)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["slm-judge", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, " ".join(out.split()), " ".join(err.split())

    pilot = tmp_path / "pilot.csv", "--rubric", tmp_path / "r.yaml", "--annotator", "who"
    code, out, _ = run(*pilot, "--items", 60)
    votes = [["ab".index(d) for d in one.d] for _, one in frame.groupby("item_id")]
    alpha = annotators_alpha(votes, world().dimension)
    assert code == 0
    assert f"d: 60 items, 2 of 6 annotators each, alpha {alpha:.2f}" in out
    assert f"d: the pilot's alpha is {alpha:.3f} [" in out
    assert "of 80 items with several annotations" in out
    assert "see also --alpha 0." in out
    code, out, _ = run(*pilot, "--items", 60, "--group-size", 6)
    assert "d: 60 items in groups of 6 (correlation 0.10), 2 of 6" in out
    for size, shown in ((2, r"groups of about 2; within them they correlate by 0\.\d\d \("),
                        (8, r"groups of about 8; 10 with several items to compare are too few")):  # fmt: skip
        frame.assign(talk=frame.item_id // size).to_csv(tmp_path / "pilot.csv", index=False)
        code, out, _ = run(*pilot, "--items", 60, "--group", "talk")
        assert re.search(shown, out)
        assert f"60 items in groups of {size} (correlation 0." in out
    frame.groupby("item_id").head(1).to_csv(tmp_path / "pilot.csv", index=False)
    code, _, err = run(*pilot)
    assert (code, "d: a plan needs the alpha" in err) == (2, True)
    frame.assign(d="a").to_csv(tmp_path / "pilot.csv", index=False)
    code, _, err = run(*pilot)
    assert (code, "annotations of d are all of one option" in err) == (2, True)
    code, _, err = run(tmp_path / "pilot.csv")
    assert (code, "A pilot needs --rubric" in err) == (2, True)
    code, _, err = run("--prevalence", "0.5;0.5")
    assert (code, "--prevalence is numbers with commas" in err) == (2, True)
    code, _, err = run("--type", "scores", "--alpha", 0.5)
    assert (code, "Nothing can be planned for this question" in err) == (2, True)


def test_a_rarer_option_needs_more_items():
    """Studies that never meet the option have no width, and do not make it easy."""
    needed = []
    for share in (0.05, 0.002):
        needed.append(items_for_width(world((1 - share, share)), 0.1)[1])
    assert needed == sorted(needed)


def test_an_option_off_the_scale_is_planned_by_itself():
    """It has no distance to the levels; whether the question applies is another dimension."""
    score = {"name": "heat", "type": "score", "instructions": "i", "options": [1, 2, 3],
             "level_of_measurement": "interval", "not_applicable": ["cannot tell"]}  # fmt: skip
    rubric = {"name": "r", "instructions": "i", "fields": ["text"], "dimensions": [score]}
    found = worlds(Rubric.model_validate(rubric), Expected(3, 3, 0.6))
    assert [one.dimension.name for one, _ in found] == ["heat", "heat_applicable"]
    assert [len(one.prevalence) for one, _ in found] == [3, 2]
