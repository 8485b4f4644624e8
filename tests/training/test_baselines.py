import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from slm_judge.agreement.aggregate import majority_shares
from slm_judge.agreement.alpha import annotators_alpha, judge_alpha
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.scores import pair_accuracy
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import parse_predictions
from slm_judge.errors import DataError
from slm_judge.evaluation.baselines import (
    AGGREGATE,
    ANNOTATOR,
    baselines,
    fit_systems,
    score,
    score_annotators,
)


@pytest.fixture(scope="module")
def test_items(run):
    return load_split(run.data, "test")


@pytest.fixture(scope="module")
def majority_file(run, test_items, tmp_path_factory):
    """What a system would say that knows the annotators' votes."""
    rubric = Contract.load(run.adapter).rubric
    table = {"item_id": [item.item_id for item in test_items]}
    for dimension in rubric.dimensions:
        votes = votes_of(test_items, dimension.name)
        best = [np.argmax(majority_shares(row, len(dimension.options))) for row in votes]
        table[dimension.name] = [dimension.key(option) for option in best]
    path = tmp_path_factory.mktemp("predictions") / "oracle.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def test_the_yardsticks_of_a_run(run, majority_file, capsys):
    results = baselines(run.recipe(), {"oracle": str(majority_file)}, n_resamples=200)
    topic = results["topic"]
    assert list(topic)[:2] == [ANNOTATOR, AGGREGATE]
    assert {"oracle", "majority label", "TF-IDF + logistic regression"} <= set(topic)
    assert topic["oracle"].alpha.estimate > topic[AGGREGATE].alpha.estimate
    assert topic[AGGREGATE].alpha.estimate > topic[ANNOTATOR].alpha.estimate
    assert topic["TF-IDF + logistic regression"].alpha.low > topic["majority label"].alpha.high
    for scores in topic.values():
        assert scores.accuracy.low <= scores.accuracy.estimate <= scores.accuracy.high
    saved = json.loads((run.report / "baselines.json").read_text())
    assert saved["topic"]["oracle"]["alpha"]["estimate"] == topic["oracle"].alpha.estimate
    assert "95 % bootstrap intervals" in capsys.readouterr().out


def test_the_judge_is_scored_where_the_run_is_verified(run, test_items):
    from slm_judge.export.verify import verify

    report = verify(run)
    results = baselines(run.recipe(), n_resamples=50)
    scores = results["topic"]["judge (Q4_K_M)"]
    assert scores.alpha.estimate == pytest.approx(
        report["dimensions"]["topic"]["artefacts"]["Q4_K_M"]["alpha"]
    )


def test_scores_are_those_of_their_definitions(run, test_items):
    rubric = Contract.load(run.adapter).rubric
    dimension = rubric.dimension("urgency")
    votes = votes_of(test_items, "urgency")
    labels = [row[0] for row in votes[1:]] + [0]
    bootstrap = Bootstrap(len(votes), 50)
    found = score(labels, votes, dimension, bootstrap)
    assert found.alpha.estimate == pytest.approx(judge_alpha(labels, votes, dimension))
    assert found.accuracy.estimate == pytest.approx(pair_accuracy(labels, votes))
    pairs = [(vote, label) for label, row in zip(labels, votes, strict=True) for vote in row]
    expected = f1_score(*zip(*pairs, strict=True), average="macro")
    assert found.macro_f1.estimate == pytest.approx(expected)
    humans = score_annotators(votes, dimension, bootstrap)
    assert humans.alpha.estimate == pytest.approx(annotators_alpha(votes, dimension))


def test_systems_are_fitted_on_training_items_alone(run, test_items):
    rubric = Contract.load(run.adapter).rubric
    train = load_split(run.data, "train")
    first, notes = fit_systems(train, test_items, rubric)
    assert notes == []
    blind = [item.__class__(item.item_id, item.state, {}, item.group) for item in test_items]
    assert fit_systems(train, blind, rubric) == (first, [])
    assert set(first["majority label"]["topic"]) == {first["majority label"]["topic"][0]}


def test_what_cannot_be_fitted_is_left_out_with_a_reason(run, test_items):
    rubric = Contract.load(run.adapter).rubric
    train = [
        Item(i.item_id, i.state, {**i.votes, "topic": {"a": 2}, "refund": {}}, i.group)
        for i in load_split(run.data, "train")
    ]
    found, notes = fit_systems(train, test_items, rubric)
    assert set(found["majority label"]) == {"urgency", "topic"}
    assert set(found["TF-IDF + logistic regression"]) == {"urgency"}
    assert any("regression is left out" in n and "one label alone of topic" in n for n in notes)
    assert any("majority label is left out" in n and "no label of refund" in n for n in notes)


@pytest.mark.parametrize(
    "texts", [["hello"], ["abc", "xyz"], ["👍", "👎", "👍"], ["a", "b"], ["good", "bad", "good so"]]
)
def test_a_few_short_texts_are_enough(support, texts):
    kinds = range(len(texts))
    items = [Item(f"{k}", {"text": texts[k]}, {"topic": {"a": k}}, f"{k}") for k in kinds]
    rubric = support.model_copy(update={"dimensions": [support.dimension("topic")]})
    found, notes = fit_systems(items, items, rubric)
    assert len(notes) == (2 if len(texts) == 1 else 0)  # regression needs two labels
    assert all(set(labels["topic"]) <= set(kinds) for labels in found.values() if labels)
    scores = score(found["majority label"]["topic"], [[k] for k in kinds],
                   rubric.dimensions[0], Bootstrap(len(texts), 100))  # fmt: skip
    accuracy = scores.accuracy
    if len(texts) == 1:  # of one item nobody can say how much chance does
        assert np.isnan(accuracy.low)
    else:
        assert accuracy.low <= accuracy.estimate <= accuracy.high


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.iloc[1:], "lacks 1 of 58 items"),
        (lambda t: t.drop(columns="topic"), "lacks the columns topic"),
        (lambda t: t.assign(topic="weather"), "has no label of the rubric"),
    ],
)
def test_predictions_that_do_not_fit(run, majority_file, tmp_path, change, complaint):
    change(pd.read_csv(majority_file)).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(DataError, match=complaint):
        baselines(run.recipe(), {"p": str(tmp_path / "p.csv")})


def test_predictions_on_the_command_line():
    assert parse_predictions(["gpt=a/b.csv", "c/d.csv"]) == {"gpt": "a/b.csv", "d": "c/d.csv"}
    with pytest.raises(DataError, match="name=file"):
        parse_predictions(["=x.csv"])
    with pytest.raises(DataError, match=r"a/p.csv and b/p.csv are both called p"):
        parse_predictions(["a/p.csv", "b/p.csv"])
