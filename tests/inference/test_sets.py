"""Dimensions of the type `multi`: several options, or none, of one question."""

import json
from dataclasses import replace

import numpy as np
import pytest
from slm_judge.model_card.page import table as report_table
from slm_judge.model_card.page import write
from slm_judge.training.calibration import fit_thresholds

from slm_judge import Rubric
from slm_judge.agreement.alpha import annotators_alpha
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.parts import parts
from slm_judge.agreement.sets import annotator_pairs, judge_pairs, set_distances
from slm_judge.artefact.calibration import Calibration, as_json, read_calibrations
from slm_judge.artefact.preview import preview
from slm_judge.data.importers.roles import Options
from slm_judge.data.importing import import_annotations
from slm_judge.data.item import Item
from slm_judge.data.preannotate import export_predictions
from slm_judge.data.predictions import read_predictions
from slm_judge.data.read import read_annotations
from slm_judge.data.sets import chosen_by_annotators
from slm_judge.errors import DataError, RubricError
from slm_judge.evaluation.baselines import ANNOTATOR, _set_table
from slm_judge.evaluation.dimension import Settings
from slm_judge.evaluation.evaluate import evaluate, of_files
from slm_judge.evaluation.sets import evaluate_set, set_figures
from tests.conftest import ROOT, annotation_from_logits

ABUSIVE = {"name": "abusive", "type": "noul", "instructions": "Is it?"}
KIND = {"name": "kind", "type": "multi", "instructions": "Which?", "ask_if": {"abusive": True},
        "options": {"sexist": "of a sex", "racist": "", "sex harassment": ""}}  # fmt: skip
MEMBERS = ["kind_sexist", "kind_racist", "kind_sex_harassment"]


def rubric(**changes):
    raw = {"name": "r", "instructions": "Read.", "fields": ["text"]}
    return Rubric.parse(raw | {"dimensions": [ABUSIVE, KIND | changes]}, "test")


def test_engines_are_asked_a_question_an_option():
    read = rubric()
    assert [d.name for d in read.dimensions] == ["abusive", *MEMBERS]
    assert [d.name for d in read.as_written] == ["abusive", "kind"]
    assert read.questions()["kind_sexist"] == {
        "type": "noul", "instructions": "Which? Does this apply? sexist: of a sex",
        "criteria": {"false": None, "true": None},
    }  # fmt: skip
    assert preview(read).endswith("\n".join(f"{n}:<|mark|>" for n in ["abusive", *MEMBERS]))
    assert Rubric.from_json(read.to_json()) == read
    assert rubric(options=["种族", "性别", "a b", "a-b"]).sets[0].members == [
        "kind_1", "kind_2", "kind_3", "kind_4",
    ]  # fmt: skip


def test_a_question_can_depend_on_an_option_of_a_set():
    later = {"name": "why", "type": "noul", "instructions": "?"}
    raw = {"name": "r", "instructions": "Read.", "fields": ["text"]}
    read = Rubric.parse(
        raw | {"dimensions": [ABUSIVE, KIND, later | {"ask_if": {"kind_sexist": True}}]}, "test"
    )
    assert read.asked({"abusive": 1, "kind_sexist": 1})["why"]
    assert not read.asked({"abusive": 0, "kind_sexist": 1})["why"]
    with pytest.raises(RubricError, match="name an option's question: kind_sexist, kind_racist"):
        Rubric.parse(raw | {"dimensions": [ABUSIVE, KIND, later | {"ask_if": {"kind": "x"}}]}, "t")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"not_applicable": "none"}, "a multi has no not_applicable"),
        ({"options": ["a|b", "c"]}, "hold the separator '|'"),
        ({"level_of_measurement": "ordinal"}, "Input should be 'nominal'"),
        ({"name": "text"}, "distinct names"),
    ],
)
def test_bad_sets_say_what_is_wrong(changes, complaint):
    with pytest.raises(RubricError) as error:
        rubric(**changes)
    assert complaint in str(error.value)


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


FORMS = {
    "a list": {"kind": ["racist", "sexist"]},
    "a JSON list": {"kind": '["sexist", "racist"]'},
    "a text": {"kind": "Sexist | racist"},
    "columns": dict(zip(MEMBERS, [True, "yes", 0], strict=True)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_set_is_read_alike(tmp_path, form):
    blank = dict.fromkeys(FORMS[form], None)
    rows = [
        {"item_id": "a", "text": "A", "abusive": True, **FORMS[form]},
        {"item_id": "b", "text": "B", "abusive": True, **blank},
        {"item_id": "c", "text": "C", "abusive": False, **FORMS[form]},
    ]
    path = table(tmp_path / "t.jsonl", rows)
    found = read_annotations(path, rubric())
    votes = {i.item_id: [i.votes.get(m, {}).get("") for m in MEMBERS] for i in found.items}
    assert votes == {"a": [1, 1, 0], "b": [None] * 3, "c": [None] * 3}
    assert any("'Sexist ' as sexist" in note for note in found.notes) == (form == "a text")
    said = read_predictions(path, rubric(), ["a", "c"]).answers
    assert [said[m].labels.tolist() for m in MEMBERS] == [[1, -1], [1, -1], [0, -1]]


def test_the_empty_set_and_what_no_set_is(tmp_path):
    rows = [{"item_id": str(n), "text": str(n), "abusive": True, "kind": kind}
            for n, kind in enumerate([[], "[]", "sexist; racist", {"a": 1}, ["ageist"]])]  # fmt: skip
    path = table(tmp_path / "t.jsonl", rows)
    found = read_annotations(path, rubric())
    assert [i.votes.get("kind_sexist", {}).get("") for i in found.items] == [0, 0, None, None, None]
    assert any("left out 3 x labels of kind outside the rubric" in note for note in found.notes)
    again = read_annotations(path, rubric(separator=";"))
    assert again.items[2].votes["kind_racist"] == {"": 1}
    with pytest.raises(DataError, match="lacks the columns kind;"):
        read_predictions(
            table(tmp_path / "p.jsonl", [{"item_id": "0", "abusive": 1}]), rubric(), "0"
        )


def test_a_set_and_its_options_that_contradict_each_other_count_neither(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "item_id,text,abusive,kind,kind_sexist\na,t,yes,sexist,false\nb,u,yes,sexist,Yes\n"
        "c,v,yes,sexist,\nd,w,yes,,true\n"
    )
    found = read_annotations(str(path), rubric())
    votes = [item.votes.get("kind_sexist") for item in found.items]
    assert votes == [None, {"": 1}, {"": 1}, {"": 1}]
    assert (
        "left out 1 x labels of kind that the columns of its options contradict, e.g. "
        "t.csv, line 2: 'sexist' and kind_sexist 'false'" in " ".join(found.notes)
    )


def test_a_judge_answers_with_a_set():
    how = {"kind_racist": Calibration(temperature=2.0, threshold=0.2)}

    def say(*yes):
        logits = [[0.0, z] for z in yes]
        return annotation_from_logits(rubric(), logits, lambda d: how.get(d.name, Calibration()))

    one = say(3, 1.0, -2.0, -1.0)
    assert one.labels == {"abusive": True, "kind": ["sexist", "racist"]}
    sure = one.probabilities["kind"]
    assert sure["racist"] == pytest.approx(1 / (1 + np.exp(1)))  # 0.27, above its threshold
    assert one.confidence["kind"] == pytest.approx(
        sure["sexist"] * sure["racist"] * (1 - sure["sex harassment"])
    )
    assert say(3, -1, -3, -1).labels["kind"] == []  # 0.18
    assert say(-3, 1, 1, 1).labels["kind"] is None


def test_thresholds_are_exported_and_checked():
    read, how = rubric(), {"kind_racist": Calibration(threshold=0.2)}
    assert read_calibrations(as_json(how), read, "x") == how
    assert "threshold" not in as_json({"abusive": Calibration()})  # as files were before
    z, shifted = [1.0, 2.0], Calibration(temperature=2.0, shift=(0.3, -0.4), threshold=0.7)
    p = 1 / (1 + np.exp(-((2 - 1) / 2 + 0.7)))
    lean = shifted.leanings(z)
    assert (lean[1] > lean[0]) == (p > 0.7)
    assert (lean[1] - lean[0]) / 2 == pytest.approx(np.log(p / (1 - p)) - np.log(0.7 / 0.3))


def test_thresholds_make_the_best_f1_and_rare_options_take_over_the_others():
    rng, read = np.random.default_rng(0), rubric()
    items, logits = [], [np.zeros((400, 2)) for _ in range(4)]
    for n in range(400):
        votes = {"abusive": {"": 1}}
        for k, (name, rate) in enumerate(zip(MEMBERS, (0.3, 0.3, 0.004), strict=True), start=1):
            true = rng.random() < rate
            votes[name] = {"": int(true)}
            # Calibrated, but never sure: at 0.5 hardly anything would be chosen.
            logits[k][n, 1] = rng.normal(-0.5 if true else -1.5, 0.5)
        items.append(Item(str(n), {"text": str(n)}, votes, str(n)))
    plain = {d.name: Calibration() for d in read.dimensions}
    found = fit_thresholds(read, items, logits, plain)
    assert found["abusive"].threshold is None

    def f1(name, k, threshold):
        yes = 1 / (1 + np.exp(-logits[k][:, 1])) > threshold
        true = np.array([item.votes[name][""] for item in items]) > 0
        return 2 * (yes & true).sum() / (yes.sum() + true.sum())

    for k in (1, 2):
        name = MEMBERS[k - 1]
        grid = [f1(name, k, t) for t in np.linspace(0.05, 0.95, 19)]
        assert f1(name, k, found[name].threshold) > max(0.95 * max(grid), f1(name, k, 0.5) + 0.2)
    assert 0.2 < found["kind_sex_harassment"].threshold < 0.45  # of one or two annotations


PUBLISHED = [  # MASI of the types of pairs in Passonneau (2006), section 3
    ({0, 1}, {0, 1}, 0.0), ({0, 1}, {0}, 1 - 1 / 2 * 2 / 3), ({0, 1}, {1, 2}, 1 - 1 / 3 * 1 / 3),
    ({0}, {1}, 1.0), (set(), {0}, 1.0), (set(), set(), 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "distance"), PUBLISHED)
def test_masi(one, other, distance):
    found = set_distances([frozenset(one), frozenset(other)], "masi")
    assert found[0, 1] == found[1, 0] == pytest.approx(distance)


def votes_of(n=60, k=4, m=3, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        truth = rng.random(k) < 0.4
        rows = [truth ^ (rng.random(k) < 0.15) for _ in range(m)]
        found.append([frozenset(np.flatnonzero(row).tolist()) or frozenset([0]) for row in rows])
    return found


@pytest.mark.parametrize("distance", ["masi", "jaccard"])
def test_alpha_is_that_of_nltk(distance):
    metrics = pytest.importorskip("nltk.metrics", reason="nltk is the reference")
    agreement = pytest.importorskip("nltk.metrics.agreement", reason="nltk is the reference")
    votes = votes_of()
    data = [(str(a), str(i), s) for i, row in enumerate(votes) for a, s in enumerate(row)]
    task = agreement.AnnotationTask(data, getattr(metrics, f"{distance}_distance"))
    pairs = annotator_pairs(votes, 4, distance)
    assert pairs.alpha(pairs.per_item.sum(axis=0)) == pytest.approx(task.alpha())
    # A judge's pairs with each annotator are items of two ratings.
    judged = [row[0] for row in votes]
    data = [(who, f"{i}/{a}", s) for i, row in enumerate(votes) for a, other in enumerate(row[1:])
            for who, s in (("judge", judged[i]), ("human", other))]  # fmt: skip
    task = agreement.AnnotationTask(data, getattr(metrics, f"{distance}_distance"))
    pairs = judge_pairs([*judged, None], [*(row[1:] for row in votes), [frozenset()]], 4, distance)
    assert pairs.alpha(pairs.per_item.sum(axis=0)) == pytest.approx(task.alpha())


def moved(pairs_of, said, sets):
    """What totals gain if one set is another, computed by saying it: mean over items and sets."""
    before, found = pairs_of(said), []
    for item, row in enumerate(said):
        for place, own in enumerate(row):
            for other in sets - {own}:
                changed = [list(one) for one in said]
                changed[item][place] = other
                pairs = pairs_of(changed)
                found.append(pairs.per_item.sum(axis=0) / len(row) / (len(sets) - 1))
    return sum(found) - len(said) * before.per_item.sum(axis=0)


def test_errors_that_were_not_seen_are_those_of_sets_said_otherwise():
    """Items without pairs come first, in which each set occurs, so that totals have one order."""
    rng, sets = np.random.default_rng(3), [frozenset(s) for s in ((), (0,), (1, 2), (0, 3))]
    votes = [[sets[k] for k in rng.integers(0, 4, m)] for m in (2, 3, 1, 2, 3)]
    judged = [[sets[k]] for k in rng.integers(0, 4, len(votes))]

    def of_judge(said):
        return judge_pairs([None, *(row[0] for row in said)], [sets, *votes], 4, "masi")

    def of_annotators(said):
        return annotator_pairs([*([one] for one in sets), *said], 4, "masi")

    assert of_judge(judged).change == pytest.approx(moved(of_judge, judged, {*sets}))
    several = [row for row in votes if len(row) > 1]
    assert of_annotators(several).change == pytest.approx(moved(of_annotators, several, {*sets}))


def test_an_interval_of_sets_without_an_error_has_a_width():
    votes = [[frozenset([i % 3])] * 2 for i in range(30)]
    judged = [row[0] for row in votes]
    for pairs in (judge_pairs(judged, votes, 3, "masi"), annotator_pairs(votes, 3, "masi")):
        found, _ = set_figures(pairs, Bootstrap(30, 400, 0))
        for name in ("alpha", "subset_accuracy", "micro_f1", "macro_f1"):
            assert (found[name]["estimate"], found[name]["high"]) == (1, 1)
            assert 0.7 < found[name]["low"] < 0.97, name
    of_one = [
        judge_pairs(judged[k : k + 1] * 30, votes[k : k + 1] * 30, 3, "masi") for k in (0, 1, 2)
    ]
    first, *others = [set_figures(pairs, Bootstrap(30, 400, 0))[0] for pairs in of_one]
    assert first["subset_accuracy"]["low"] < 0.97
    assert others == [first, first]  # whichever set it is


def test_f1_and_equal_sets_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    votes = votes_of(k=5, m=2)
    matrix = np.zeros((2, len(votes), 5), dtype=int)
    for n, row in enumerate(votes):
        for who, chosen in enumerate(row):
            matrix[who, n, list(chosen)] = 1
    pairs = judge_pairs([row[0] for row in votes], [row[1:] for row in votes], 5, "masi")
    found = pairs.statistics(np.stack([pairs.per_item.sum(axis=0)] * 2))  # any leading axes
    for name, value in {
        "subset_accuracy": accuracy_score(matrix[1], matrix[0]),
        "micro_f1": f1_score(matrix[1], matrix[0], average="micro"),
        "macro_f1": f1_score(matrix[1], matrix[0], average="macro"),
    }.items():
        assert found[name].tolist() == pytest.approx([value, value]), name
    both = annotator_pairs(votes, 5, "masi")
    again = both.statistics(both.per_item.sum(axis=0))
    assert {n: float(v) for n, v in again.items()} == pytest.approx(
        {name: float(value[0]) for name, value in found.items()}
    )
    same = annotator_pairs([[frozenset([1])] * 2] * 3, 5, "masi")
    assert same.alpha(same.per_item.sum(axis=0)) == 1
    none = annotator_pairs([[frozenset([1])], []], 5, "masi")
    assert np.isnan(none.alpha(none.per_item.sum(axis=0)))


def test_a_report_of_sets(tmp_path):
    rng, humans, system = np.random.default_rng(0), [], []
    keys = [option.value for option in rubric().sets[0].options]
    for n in range(60):
        truth = rng.random(3) < 0.4
        for who in "xy":
            said = [key for key, t in zip(keys, truth ^ (rng.random(3) < 0.1), strict=True) if t]
            humans.append({"item_id": str(n), "text": f"T {n}", "who": who, "abusive": True,
                           "kind": said})  # fmt: skip
        own = [key for key, t in zip(keys, truth ^ (rng.random(3) < 0.1), strict=True) if t]
        system.append({"item_id": str(n), "text": f"T {n}", "abusive": n > 4, "kind": own,
                       "kind_confidence": 0.5})  # fmt: skip
    files = table(tmp_path / "h.jsonl", humans), table(tmp_path / "s.jsonl", system)
    evaluation = of_files({"judge": files[1]}, files[0], rubric(), annotator="who",
                          settings=Settings(resamples=50))  # fmt: skip
    report = evaluate(evaluation)
    one = report["sets"]["kind"]
    assert one["items"] == 55
    assert "5 annotated items are left out" in one["notes"][0]
    sets = [[frozenset(map(keys.index, h["kind"])) for h in humans[2 * n : 2 * n + 2]]
            for n in range(5, 60)]  # fmt: skip
    pairs = annotator_pairs(sets, 3, "masi")
    expected = {k: float(v) for k, v in pairs.statistics(pairs.per_item.sum(axis=0)).items()}
    assert {k: one["humans"][k]["estimate"] for k in expected} == pytest.approx(expected, abs=1e-5)
    judged = judge_pairs(
        [frozenset(map(keys.index, s["kind"])) for s in system[5:]], sets, 3, "masi"
    )
    alpha = one["systems"]["judge"]["alpha"]
    assert alpha["estimate"] == pytest.approx(
        float(judged.alpha(judged.per_item.sum(axis=0))), abs=1e-5
    )
    assert alpha["low"] < alpha["estimate"] < alpha["high"]
    # No set that is always said, of those that somebody chose, does better than the one that is shown.
    for said in {chosen for row in sets for chosen in row}:
        of = judge_pairs([said] * len(sets), sets, 3, "masi")
        for name, value in of.statistics(of.per_item.sum(axis=0)).items():
            assert not value > one["constant"][name]["estimate"] + 1e-9
    assert "always one set, at best" in str(report_table(report).__dict__)
    minus = one["constant"]["minus_annotators"]["estimate"]
    assert minus == pytest.approx(
        one["constant"]["alpha"]["estimate"] - one["humans"]["alpha"]["estimate"]
    )
    page = write(report, tmp_path / "report").read_text()
    assert page.count("always one set, at best") == 1
    assert all(f'<h2 id="s-1">{name}' in page for name in ["kind"])
    assert "kind_racist</h2>" not in page
    assert "sets (masi" in str(report_table(report).__dict__)
    new = replace(evaluation, settings=Settings(resamples=50, new_annotators=True))
    notes = evaluate_set(rubric().sets[0], new.annotations.items, new.systems, new.settings)[
        "notes"
    ]
    assert "of its options alone speak about new annotators too" in notes[1]
    # The same set-level figures for yardsticks.
    labels = {m: evaluation.systems["judge"][m].labels.tolist() for m in MEMBERS}
    rows = _set_table(rubric().sets[0], evaluation.annotations.items, {"judge": labels},
                      Bootstrap(60, 50))  # fmt: skip
    assert rows["judge"].alpha.estimate == pytest.approx(alpha["estimate"], abs=1e-5)
    half = [Item(i.item_id, i.state, {m: dict([*v.items()][: 1 + (n < 30)]) for m, v in
                 i.votes.items()}, i.group) for n, i in enumerate(evaluation.annotations.items)]  # fmt: skip
    rows = _set_table(rubric().sets[0], half, {"judge": labels}, Bootstrap(60, 50))
    where = ", the 30 items with several annotations"
    assert [*rows] == ["judge", f"{ANNOTATOR}{where}", f"judge{where}"]
    # And back to the tools.
    export_predictions(files[1], rubric(), "label-studio", tmp_path / "tasks.json")
    task = json.loads((tmp_path / "tasks.json").read_text())[5]
    choices = {r["from_name"]: r["value"]["choices"] for r in task["predictions"][0]["result"]}
    assert choices.get("kind", []) == system[5]["kind"]
    assert 'name="kind" toName="text" choice="multiple"' in (tmp_path / "tasks.xml").read_text()


def test_convabuse_as_a_codebook_has_it(tmp_path):
    """The levels without "ambiguous", and what was only asked where there was abuse."""
    source = ROOT.parent / "shared/data/convabuse_raw.csv"
    if not source.exists():
        pytest.skip("the annotations are not beside this checkout")
    import_annotations([str(source)], tmp_path / "c.csv", Options())
    asked = {"ask_if": {"is_abuse": [-1, -2, -3]}, "instructions": "?", "type": "multi"}
    read = Rubric.parse(
        {
            "name": "r", "instructions": "Read.", "fields": ["prev_agent", "prev_user", "user"],
            "dimensions": [
                {"name": "is_abuse", "type": "score", "instructions": "?",
                 "options": [-3, -2, -1, 1], "not_applicable": {0: "ambiguous"}},
                {"name": "type", **asked, "options": [
                    "ableism", "homophobic", "intellectual", "racist", "sexist",
                    "sex_harassment", "transphobic"]},
                {"name": "target", **asked, "options": ["generalised", "individual", "system"]},
            ],
        },
        "test",
    )  # fmt: skip
    found = read_annotations(str(tmp_path / "c.csv"), read, annotator="annotator_id")
    votes = [item.votes for item in found.items]
    assert sum(len(v.get("type_sexist", {})) for v in votes) == 1531  # 220 + 693 + 618
    assert sum("8038 labels of type do not count" in note for note in found.notes) == 1
    said = [[*v.get("is_abuse", {}).values()] for v in votes]
    for part, alpha in zip(parts(read.dimension("is_abuse")), (0.746, 0.109), strict=True):
        found_alpha = annotators_alpha(part.votes_of(said), part.dimension)
        assert found_alpha == pytest.approx(alpha, abs=0.001)
    of_types = chosen_by_annotators(read.sets[0], found.items)
    assert max(map(len, (one for row in of_types for one in row))) > 1
    pairs = annotator_pairs(of_types, 7, "masi")
    assert float(pairs.alpha(pairs.per_item.sum(axis=0))) == pytest.approx(0.725, abs=0.001)
