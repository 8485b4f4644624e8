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
        ({"dimensions": [dimension(name="text")]}, "distinct names"),
        ({"dimensions": [dimension(options=["a"])]}, "at least two options"),
        ({"dimensions": [dimension(options=["a", "a"])]}, "listed twice: a"),
        ({"dimensions": [dimension(options=[True, "b"])]}, "quote it in the YAML"),
        ({"dimensions": [dimension(type="score", options=[2, 1])]}, "lowest to highest"),
        ({"dimensions": [dimension(type="score", options=["a", "b"])]}, "are numbers"),
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
