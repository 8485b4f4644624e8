"""Options that say that none applies, and questions that are only asked after other answers."""

import hashlib
import json

import numpy as np
import pytest
import torch
from slm_judge.training.loss import SlotLoss
from slm_judge.training.targets import Targets

from slm_judge import Rubric
from slm_judge.agreement.aggregate import aggregate
from slm_judge.agreement.alpha import annotators_alpha, judge_alpha
from slm_judge.agreement.parts import parts
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.preview import preview
from slm_judge.data.item import Item
from slm_judge.data.predictions import Answers, read_predictions, write_predictions
from slm_judge.data.read import read_annotations
from slm_judge.errors import RubricError
from slm_judge.evaluation.baselines import _asked
from slm_judge.evaluation.dimension import Settings
from slm_judge.evaluation.evaluate import evaluate, of_files
from tests.conftest import ROOT, annotation_from_logits

SEVERITY = {"name": "severity", "type": "score", "instructions": "How bad?",
            "options": {-2: "very", -1: "mild", 1: "not at all"},
            "not_applicable": {0: "ambiguous"}}  # fmt: skip
TARGET = {"name": "target", "type": "choice", "instructions": "Who?", "options": ["bot", "other"],
          "ask_if": {"severity": [-2, -1]}}  # fmt: skip


def rubric(*dimensions):
    raw = {"name": "r", "instructions": "Read.", "fields": ["text"]}
    return Rubric.parse(raw | {"dimensions": list(dimensions) or [SEVERITY, TARGET]}, "test")


@pytest.mark.parametrize(
    ("name", "digest"), [("support-messages", "0a8dfa3c5d50bdf5"), ("abuse", "817b68c08449b12c")]
)
def test_rubrics_without_such_options_are_the_same_bytes(name, digest):
    """Those of the version before: resumed runs compare the JSON, exported judges the prompt."""
    read = Rubric.from_file(ROOT / "rubrics" / f"{name}.yaml")
    assert hashlib.sha256((read.to_json() + preview(read)).encode()).hexdigest()[:16] == digest


def test_an_option_off_the_scale_is_the_last_however_it_is_written():
    read = rubric().dimensions[0]
    assert (read.values, read.n_levels) == ([-2, -1, 1, 0], 3)
    flagged = [-2, {"value": 0, "description": "ambiguous", "not_applicable": True}, -1, 1]
    other = rubric(SEVERITY | {"options": flagged, "not_applicable": []}).dimensions[0]
    assert other.values == read.values
    assert not other.reordered
    assert Rubric.from_json(rubric().to_json()) == rubric()
    unsure = {"name": "d", "type": "noul", "instructions": "?", "not_applicable": "cannot tell"}
    assert rubric(unsure).dimensions[0].values == [False, True, "cannot tell"]
    assert "not applicable: 0" in rubric().overview()[0]
    assert "asked if severity is -2 or -1" in rubric().overview()[1]


def test_stock_engines_compute_no_expected_level_of_it():
    assert rubric().questions()["severity"]["type"] == "choice"
    assert "D: 0: ambiguous" in preview(rubric())
    without = {key: value for key, value in SEVERITY.items() if key != "not_applicable"}
    assert rubric(without).questions()["severity"]["type"] == "score"
    assert preview(rubric(without)) in preview(rubric(SEVERITY)).replace("\nD: 0: ambiguous", "")


@pytest.mark.parametrize(
    ("dimensions", "complaint"),
    [
        ([SEVERITY | {"options": [1]}], "needs at least two options that apply, got 1"),
        ([SEVERITY | {"not_applicable": {1: "again"}}], "options listed twice: 1"),
        ([TARGET, SEVERITY], "ask_if names 'severity', which is no dimension before it"),
        ([SEVERITY, TARGET | {"ask_if": {"severity": [7]}}], "which are -2, -1, 1, 0; got [7]"),
        ([SEVERITY, TARGET | {"ask_if": {"severity": []}}], "got none"),
        ([SEVERITY, TARGET | {"name": "severity_applicable"}], "distinct names"),
    ],
)
def test_bad_conditions_say_what_is_wrong(dimensions, complaint):
    with pytest.raises(RubricError) as error:
        rubric(*dimensions)
    assert complaint in str(error.value)


def test_a_chain_of_questions():
    third = {"name": "why", "type": "noul", "instructions": "?", "ask_if": {"target": "bot"}}
    chain = rubric(SEVERITY, TARGET, third)
    assert chain.asked({"severity": 0, "target": 0})["why"]
    assert not chain.asked({"severity": 0, "target": 1})["why"]
    assert not chain.asked({"severity": 3, "target": 0})["why"]  # its own parent is not asked
    assert all(chain.asked({}).values())


def test_the_aggregate_of_labels_that_apply_or_not():
    severity = rubric().dimensions[0]
    votes = [[3, 3, 0], [3, 0, 0, 2], [3, 2], [3], [], [0, 1, 2]]
    assert aggregate(votes, severity).tolist() == [3, 0, 2, 3, -1, 1]


def test_distances_are_of_the_scale_alone():
    severity = rubric().dimensions[0]
    votes = [[0, 0], [1, 2], [3, 2, 2], [3, 3], [2, 2], [0, 1], [1, 1]]
    scale, applies = parts(severity)
    assert annotators_alpha(scale.votes_of(votes), scale.dimension) == annotators_alpha(
        [[0, 0], [1, 2], [2, 2], [], [2, 2], [0, 1], [1, 1]], scale.dimension
    )
    assert (applies.dimension.name, applies.dimension.type) == ("severity_applicable", "noul")
    assert applies.votes_of(votes)[2] == [0, 1, 1]
    judged = [0, 3, 2, 3, 2, 1, 1]
    assert scale.labels(judged).tolist() == [0, -1, 2, -1, 2, 1, 1]
    assert judge_alpha(scale.labels(judged), scale.votes_of(votes), scale.dimension) == judge_alpha(
        [0, 2, 2, 1, 1], [[0, 0], [2, 2], [2, 2], [0, 1], [1, 1]], scale.dimension
    )
    shares = scale.shares(np.array([[0.1, 0.3, 0.1, 0.5], [0, 0, 0, 1.0]]))
    assert shares.tolist() == [pytest.approx([0.2, 0.6, 0.2]), [0, 0, 0]]


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(item, annotator, severity, target=None):
    return {"item_id": item, "text": f"Text {item}.", "annotator_id": annotator,
            "severity": severity, "target": target}  # fmt: skip


def test_labels_count_where_the_question_was_asked(tmp_path):
    rows = [
        row("a", "x", -1, "bot"), row("a", "y", 1, "other"),  # y was not asked
        row("b", "x", 0, "bot"),  # ambiguous: not asked
        row("c", "x", -2, None), row("c", "z", None, "bot"),  # z said nothing: as the others
        row("d", "x", 1, None), row("d", "z", None, "bot"),
    ]  # fmt: skip
    found = read_annotations(table(tmp_path / "t.jsonl", rows), rubric(), annotator="annotator_id")
    targets = {item.item_id: item.votes.get("target") for item in found.items}
    assert targets == {"a": {"x": 0}, "b": None, "c": {"z": 0}, "d": None}
    assert any("3 labels of target do not count: by `ask_if`" in note for note in found.notes)


def test_the_judge_leaves_empty_what_its_own_answer_makes_not_apply(tmp_path):
    def say(*logits):
        return annotation_from_logits(rubric(), logits, lambda _: Calibration())

    asked, off = say([5.0, 0, 0, 0], [0, 2.0]), say([0.0, 0, 0, 5], [0, 2.0])
    assert asked.labels == {"severity": -2, "target": "other"}
    assert off.labels == {"severity": 0, "target": None}
    assert off.confidence["target"] is None
    assert off.probabilities["target"]["other"] == pytest.approx(0.88, abs=0.01)
    # In files, ours and others'.
    items = [Item(name, {"text": name}, {}, name) for name in "ab"]
    shares = {"severity": np.full((2, 4), 0.25), "target": np.full((2, 2), 0.5)}
    labels = {"severity": np.array([0, 3]), "target": np.array([1, -1])}
    answers = {name: Answers(labels[name], shares[name]) for name in labels}
    write_predictions(tmp_path / "p.jsonl", items, rubric(), answers)
    read = read_predictions(str(tmp_path / "p.jsonl"), rubric(), ["a", "b"])
    assert {name: one.labels.tolist() for name, one in read.answers.items()} == {
        "severity": [0, 3], "target": [1, -1],
    }  # fmt: skip
    theirs = table(tmp_path / "q.jsonl", [
        {"item_id": "a", "severity": "-1", "target": "bot"},
        {"item_id": "b", "severity": "1", "target": "bot"},
    ])  # fmt: skip
    read = read_predictions(theirs, rubric(), ["a", "b"])
    assert read.answers["target"].labels.tolist() == [0, -1]


def test_yardsticks_are_asked_by_the_same_rule(support):
    given = {"severity": [0, 2, None], "target": [1, 1, 1]}
    assert _asked(rubric(), given)["target"] == [1, -1, 1]
    assert _asked(support, given) is given


def test_the_report_has_the_scale_and_whether_it_applies(tmp_path):
    rng, humans, system = np.random.default_rng(0), [], []
    for n in range(90):
        truth = int(rng.choice([-2, -1, 1, 0], p=[0.3, 0.3, 0.3, 0.1]))
        said = [truth if rng.random() < 0.8 else int(rng.choice([-2, -1, 1, 0])) for _ in range(3)]
        humans += [row(str(n), who, s, "bot" if rng.random() < 0.7 else "other")
                   for who, s in zip("xyz", said, strict=True)]  # fmt: skip
        own = truth if rng.random() < 0.8 else 0
        system.append({"item_id": str(n), "severity": own, "target": "bot" if n % 3 else "other"})
    files = table(tmp_path / "h.jsonl", humans), table(tmp_path / "s.jsonl", system)
    evaluation = of_files(
        {"judge": files[1]}, files[0], rubric(), annotator="annotator_id",
        settings=Settings(resamples=50),
    )  # fmt: skip
    report = evaluate(evaluation)["dimensions"]
    assert list(report) == ["severity", "severity_applicable", "target"]
    assert report["severity"]["options"] == [-2, -1, 1]
    off = sum(one["severity"] == 0 for one in system)
    assert report["severity"]["items"] <= 90 - off
    assert any("a system gave no label" in note for note in report["severity"]["notes"])
    assert report["severity_applicable"]["items"] == 90
    votes = [[h["severity"] for h in humans if h["item_id"] == s["item_id"]] for s in system]
    judged = [int(s["severity"] != 0) for s in system]
    applies = parts(rubric().dimensions[0])[1].dimension
    expected = judge_alpha(judged, [[int(v != 0) for v in v3] for v3 in votes], applies)
    found = report["severity_applicable"]["systems"]["judge"]["alpha"]["estimate"]
    assert found == pytest.approx(expected)
    asked = [s["item_id"] for s, v3 in zip(system, votes, strict=True)
             if s["severity"] < 0 and min(v3) < 0]  # fmt: skip
    assert report["target"]["items"] == len(asked)
    assert report["target"]["ratings"] == sum(
        h["severity"] < 0 for h in humans if h["item_id"] in asked
    )


def test_the_ordinal_loss_is_of_those_to_whom_the_question_applies():
    one = rubric(SEVERITY)
    items = [Item("a", {}, {"severity": {"x": 0, "y": 1, "z": 3, "w": 3}}, "a"),
             Item("b", {}, {"severity": {"x": 3}}, "b")]  # fmt: skip
    targets = torch.tensor(Targets(items, one, "soft").fixed)
    logits = torch.randn(2, 1, 9, generator=torch.Generator().manual_seed(0))
    ids, positions = [5, 6, 7, 8], torch.arange(4)[None]
    plain = SlotLoss(one, ids)(logits, targets, positions)
    ordinal = SlotLoss(one, ids, ordinal_weight=1.0)(logits, targets, positions) - plain
    shares = logits[0, 0, 5:8].softmax(-1)
    wanted = torch.tensor([0.5, 0.5, 0.0])
    rps = (shares - wanted).cumsum(-1)[:-1].square().mean()
    assert ordinal.item() == pytest.approx(0.5 * rps.item(), rel=1e-4)  # half of them answered
