import datetime
from decimal import Decimal

import numpy as np
import pytest

from slm_judge import Rubric
from slm_judge.errors import RubricError
from tests.conftest import ROOT


def rubric(**changes):
    raw = {
        "name": "r",
        "instructions": "Rate the text.",
        "fields": ["text"],
        "dimensions": [
            {"name": "clarity", "type": "score", "instructions": "?", "options": [1, 2, 3]}
        ],
    }
    return Rubric.parse(raw | changes, "test")


def dimension(**changes):
    return {"name": "d", "type": "choice", "instructions": "?", "options": ["a", "b"]} | changes


@pytest.mark.parametrize("path", sorted((ROOT / "rubrics").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_rubrics_survive_json(path):
    read = Rubric.from_file(path)
    assert Rubric.from_json(read.to_json()) == read


def test_shipped_rubrics_ask_what_the_papers_asked():
    assert len(Rubric.from_file(ROOT / "rubrics/emotion.yaml").dimensions[0].options) == 28
    quality = Rubric.from_file(ROOT / "rubrics/answer-quality.yaml")
    assert [d.name for d in quality.dimensions] == [
        "conciseness", "interpretability", "completeness", "clarity", "accuracy", "relevance",
    ]  # fmt: skip
    assert all(d.values == [-2, -1, 0, 1, 2] for d in quality.dimensions)
    assert quality.fields == ["context", "question", "answer"]


def test_level_of_measurement_follows_the_type_and_can_be_overridden(support):
    assert [d.level_of_measurement for d in support.dimensions] == ["ordinal", "nominal", "nominal"]
    changed = rubric(
        dimensions=[dimension(type="score", options=[1, 2], level_of_measurement="interval")]
    )
    assert changed.dimensions[0].level_of_measurement == "interval"


def test_questions_are_system_one_questions(support):
    assert support.questions()["urgency"]["criteria"][0] == "1: can wait, no date is named"
    assert list(support.questions()["refund"]["criteria"]) == ["false", "true"]
    assert rubric(dimensions=[dimension()]).questions() == {
        "d": {"type": "choice", "instructions": "?", "criteria": {"a": None, "b": None}}
    }


@pytest.mark.parametrize(
    ("raw", "index"), [("2", 1), ("2.0", 1), (2, 1), (2.0, 1), ("5", None), ("two", None)]
)
def test_score_labels(raw, index):
    assert rubric().dimensions[0].index(raw) == index


@pytest.mark.parametrize(
    ("raw", "index"), [(True, 1), ("False", 0), ("1", 1), (0, 0), ("yes", 1), ("maybe", None)]
)
def test_noul_labels(raw, index):
    noul = rubric(dimensions=[{"name": "d", "type": "noul", "instructions": "?"}]).dimensions[0]
    assert noul.index(raw) == index


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"field": ["text"]}, "field: Extra inputs are not permitted"),
        ({"fields": []}, "fields: List should have at least 1 item"),
        ({"fields": ["a b"]}, "'a b' must be letters"),
        ({"name": "../x"}, "'../x' must be letters"),
        ({"instructions": " "}, "there is no text in it"),
        ({"dimensions": [dimension(options={"a": 0, "b": "?"})]}, "should be a valid string"),
        ({"dimensions": [dimension(options=["1", "1e400"], level_of_measurement="interval")]},
         "the options are numbers, got ['1e400']"),
        ({"dimensions": [dimension(name="text")]}, "distinct names"),
        ({"dimensions": [dimension(options=["a"])]}, "at least two options"),
        ({"dimensions": [dimension(options=["a", "a"])]}, "listed twice: a"),
        ({"dimensions": [dimension(options=[True, "b"])]}, "quote it in the YAML"),
        ({"dimensions": [dimension(type="score", options=["a", "b"])]}, "are numbers"),
        ({"dimensions": [dimension(type="score", options=[1, float("nan")])]}, "are numbers"),
        ({"dimensions": [dimension(type="score", options=[1, 10**400])]}, "are numbers"),
        ({"dimensions": [dimension(level_of_measurement="interval")]},
         "d: at the interval level the options are numbers, got ['a', 'b']"),
        ({"dimensions": [{"name": "d", "type": "noul", "instructions": "?",
                          "level_of_measurement": "ratio"}]}, "d: at the ratio level"),
        ({"dimensions": [dimension(type="noul", options=["yes", True])]}, "true and false"),
        ({"dimensions": [dimension(type="noul")]}, "true and false"),
        ({"dimensions": [dimension(type="rank")]}, "'score', 'choice', 'noul'"),
    ],
)  # fmt: skip
def test_bad_rubrics_say_what_is_wrong(changes, complaint):
    with pytest.raises(RubricError, match="not a valid rubric") as error:
        rubric(**changes)
    assert complaint in str(error.value)


def test_every_problem_is_listed_at_once():
    with pytest.raises(RubricError) as error:
        rubric(fields=[], instructions="", extra=1)
    assert all(word in str(error.value) for word in ("fields", "instructions", "extra"))


def test_scores_beyond_llama_server_are_warned_about():
    wide = rubric(dimensions=[dimension(type="score", options=list(range(11)))])
    assert "at most 10" in wide.warnings()[0]
    assert rubric().warnings() == []


CHOICE = dimension(options=["joy", "Joy", "no  pain", "anger", "caf\u00e9", "-2", "1.0", "007"])


@pytest.mark.parametrize(
    ("raw", "meaning"),
    [
        ("joy", (0, True)), ("Joy", (1, True)),
        ("JOY", None), (" joy ", None),  # either of two
        ("no  pain", (2, True)), ("No pain ", (2, False)), ("no\tpain", (2, False)),
        ("ANGER", (3, False)), ("angry", None),
        ("cafe\u0301", (4, False)), ("CAF\u00c9", (4, False)),
        (-2, (5, True)), ("\u22122", (5, False)), ("-2.0", (5, False)), (Decimal("-2.00"), (5, False)),
        ("1.0", (6, True)), (1, (6, False)), ("+1", (6, False)), (np.float32(1), (6, False)),
        ("007", (7, True)), (7, (7, False)),
        (float("nan"), None), (np.float64("nan"), None), (None, None), ("", None),
        (b"joy", None), (["joy"], None), ({"joy": 1}, None), (datetime.date(2020, 1, 1), None),
    ],
)  # fmt: skip
def test_a_label_is_read_as_what_it_plainly_means(raw, meaning):
    choice = rubric(dimensions=[CHOICE]).dimensions[0]
    assert choice.read(raw) == meaning
    assert choice.index(raw) == (meaning and meaning[0])


@pytest.mark.parametrize(
    ("raw", "meaning"),
    [
        (True, (1, True)), (np.True_, (1, True)), ("true", (1, True)), ("False", (0, False)),
        ("YES", (1, False)), ("n", (0, False)), ("T", (1, False)), (0.0, (0, False)),
        (np.int64(1), (1, False)), ("1.0", (1, False)), (2, None), ("on", None),
    ],
)  # fmt: skip
def test_true_and_false_are_written_in_many_ways(raw, meaning):
    noul = rubric(dimensions=[{"name": "d", "type": "noul", "instructions": "?"}]).dimensions[0]
    assert noul.read(raw) == meaning


def test_a_copy_with_other_options_reads_its_own():
    asked = rubric().dimensions[0]
    assert asked.index(3) == 2
    assert (asked.reversed().index(3), asked.index(3)) == (0, 2)
    assert rubric().model_copy() == rubric(dimensions=[asked])


def test_levels_are_put_in_order():
    given = dimension(type="score", options={3: "good", 1: "bad", 2: ""})
    read = rubric(dimensions=[given])
    assert read.dimensions[0].values == [1, 2, 3]
    assert read.dimensions[0].options[2].description == "good"
    assert read.warnings() == ["d: its levels were put in order, from 1 to 3"]
    assert Rubric.from_json(read.to_json()).warnings() == []


def written(tmp_path, text, fields="[text]"):
    path = tmp_path / "rubric.yaml"
    path.write_text(f"name: r\ninstructions: Judge.\nfields: {fields}\ndimensions:\n{text}")
    return path


def options(tmp_path, kind, listed):
    text = f"  - {{name: d, type: {kind}, instructions: '?', options: {listed}}}\n"
    return Rubric.from_file(written(tmp_path, text)).dimensions[0].values


def test_options_stay_what_was_typed(tmp_path):
    typed = "[007, 12:30, 2020-01-01, 0x1F, 0o7, 1_000, yes, No, on]"
    assert options(tmp_path, "choice", typed) == typed[1:-1].split(", ")
    assert options(tmp_path, "score", "[-1, 2e-3, .5, 1.5, +2]") == [-1, 0.002, 0.5, 1.5, 2]
    pairs = ("[yes, no]", "[No, YES]", "{n: '', y: sure}", "[true, FALSE]", "[0, 1]", "[Off, on]")
    for pair in pairs:
        assert options(tmp_path, "noul", pair) == [False, True]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("  - name: d\n    type: noul\n    name: e\n", "key 'name' of line 5 .*\\n.* line 7,"),
        ("  - {name: d, options: {1: a, 2: b, 1.0: c}}\n", "key '1.0' of line 5"),
        ("  - <<: {name: d}\n    name: d\n    name: d\n", "key 'name' of line 6"),
        ("  - " + "[" * 5000, "nested too deeply"),
        ("  - " + "9" * 5000, "not valid YAML"),
        ("  - !!bool perhaps", "not valid YAML"),
        ("  - !!timestamp soon", "not valid YAML"),
    ],
)
def test_a_file_that_says_two_things_or_too_much_is_refused(tmp_path, text, complaint):
    with pytest.raises(RubricError, match=complaint):
        Rubric.from_file(written(tmp_path, text))


def test_a_merge_key_is_no_repetition(tmp_path):
    text = (
        "  - &a {name: a, type: choice, instructions: '?', options: [x, y]}\n"
        "  - {<<: *a, name: b}\n"
    )
    assert [d.name for d in Rubric.from_file(written(tmp_path, text)).dimensions] == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["outcome", "item_id", "mood_confidence", "mood_probabilities", "review_probability"]
)
def test_names_of_columns_that_we_write(tmp_path, name):
    """Refused where a rubric is written, not where a judge was made of it already."""
    noul = "type: noul, instructions: '?'"
    text = f"  - {{name: mood, {noul}}}\n  - {{name: {name}, {noul}}}\n"
    with pytest.raises(RubricError, match=f"no dimension can be called {name}"):
        Rubric.from_file(written(tmp_path, text))
    made = rubric(dimensions=[dimension(name="mood"), dimension(name=name)])
    assert Rubric.from_json(made.to_json()).dimensions[1].name == name
    as_field = Rubric.from_file(written(tmp_path, f"  - {{name: mood, {noul}}}\n", f"[{name}]"))
    assert f"field {name}: annotation writes a column of this name" in as_field.warnings()[0]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("y_dupkey", "'2' of line 10"), ("t_outcome_r", "called outcome"), ("interval_words", "mood")],
)
def test_shared_cases(name, complaint):
    path = ROOT.parent / "shared" / "cases" / f"{name}.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with pytest.raises(RubricError, match=complaint):
        Rubric.from_file(path)
