"""Exports of annotation tools, made up in each tool's own format, as a table with a row an annotation."""

import csv
import json
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import krippendorff
import numpy as np
import pandas as pd
import pyreadstat
import pytest

from slm_judge import Rubric
from slm_judge.cli import main
from slm_judge.data.importers.long import Long, _missing
from slm_judge.data.importers.read import FORMATS, read_export, summary
from slm_judge.data.importers.roles import Options
from slm_judge.data.importing import import_annotations
from slm_judge.data.preannotate import export_predictions
from slm_judge.data.read import Annotations, read_annotations
from slm_judge.data.split import load_splits
from slm_judge.data.tables import read_table
from slm_judge.errors import DataError
from slm_judge.evaluation.evaluate import add_columns
from slm_judge.recipe import DataConfig
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
WORDS = ["late", "early", "broken", "twice", "empty", "wet"]
TEXTS = [f"The parcel came {word} today." for word in WORDS]

MOOD = Rubric.parse(
    {"name": "m", "instructions": "?", "fields": ["text"],
     "dimensions": [{"name": "mood", "type": "choice", "instructions": "Which mood?",
                     "options": ["joy", "anger"]}]}, "test",
)  # fmt: skip


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def whole(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def table(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


def said(read: Long, *columns):
    """What was said: item, annotator and some columns of each row."""
    return [tuple(row[name] for name in ("item_id", "annotator_id", *columns)) for row in read.rows]


def notes(read: Long) -> str:
    return " ".join(summary(read))


# --- tools ---


def task(number, *annotations, **data):
    results = [
        {"id": number * 10 + k, "completed_by": who, "was_cancelled": skipped, "ground_truth": False,
         "lead_time": 3.1, "created_at": "2024-05-01T10:00:00Z",
         "result": [{"id": "a", "from_name": name, "to_name": "text", "type": kind, "value": value}
                    for name, kind, value in answers]}
        for k, (who, skipped, answers) in enumerate(annotations)
    ]  # fmt: skip
    return {"id": number, "data": {"text": TEXTS[number], **data}, "annotations": results,
            "predictions": [], "project": 1, "cancelled_annotations": 0, "meta": {}}  # fmt: skip


def choice(*options):
    return ("mood", "choices", {"choices": list(options)})


def stars(n):
    return ("strength", "rating", {"rating": n})


def test_label_studio_json(tmp_path):
    ner = ("ner", "labels", {"start": 0, "end": 3, "text": "The", "labels": ["X"]})
    tasks = [
        task(0, ({"id": 1, "email": "ann@x.org"}, False, [choice("joy"), stars(4)]),
             (2, False, [choice("anger"), stars(1), ner]), source="web"),
        task(1, (2, True, [choice("joy")]), ({"id": 1, "email": "ann@x.org"}, False, [stars(2)])),
        task(2),
    ]  # fmt: skip
    read = read_export([whole(tmp_path / "project-1.json", tasks)])
    assert said(read, "mood", "strength", "text", "source") == [
        ("0", "ann@x.org", "joy", "4", TEXTS[0], "web"),
        ("0", "2", "anger", "1", TEXTS[0], "web"),
        ("1", "ann@x.org", None, "2", TEXTS[1], None),
    ]
    assert [d.kind for d in read.asked] == ["choice", "score"]
    for line in ("1 x skipped (cancelled) annotations", "1 x tasks without annotations",
                 "1 x marked spans or regions", "3 rows read: 3 annotations of 2 items by 2"):  # fmt: skip
        assert line in notes(read)


def test_what_was_typed_in_is_kept_but_no_question(tmp_path):
    tasks = [{**task(k % 6, (1, False, [choice(("joy", "anger")[k % 2]),
                                        ("why", "textarea", {"text": [f"since {k}"]})])),
              "id": k, "data": {"text": f"{TEXTS[k % 6]} {k}"}} for k in range(12)]  # fmt: skip
    read = read_export([whole(tmp_path / "t.json", tasks)])
    assert [d.name for d in read.asked] == ["mood"]
    assert said(read, "why")[0] == ("0", "1", "since 0")
    assert "why is no question with options (12 different answers)" in notes(read)


def test_label_studio_json_min_and_csv(tmp_path):
    rows = [
        {"text": TEXTS[k], "id": k, "mood": mood, "strength": [{"rating": k + 1}],
         "ner": [{"start": 0, "end": 2, "labels": ["X"]}], "annotator": 1 + k % 2,
         "annotation_id": k, "created_at": "2024", "updated_at": "2024", "lead_time": 1.5}
        for k, mood in enumerate(["joy", "anger", {"choices": ["joy", "anger"]}])
    ]  # fmt: skip
    as_json = read_export([whole(tmp_path / "min.json", rows)])
    cells = [{k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
             for row in rows]  # fmt: skip
    as_csv = read_export([table(tmp_path / "min.csv", cells)])
    for read in (as_json, as_csv):
        assert said(read, "mood_joy", "mood_anger", "strength") == [
            ("0", "1", "true", "false", "1"),
            ("1", "2", "false", "true", "2"),
            ("2", "1", "true", "true", "3"),
        ]
        assert "mood takes several answers: a yes or no for each, mood_anger, mood_joy" in notes(
            read
        )
        assert "3 x marked spans or regions" in notes(read)


def test_a_question_called_like_its_text(tmp_path):
    result = ("text", "choices", {"choices": ["joy"]})
    other = ("text", "choices", {"choices": ["anger"]})
    tasks = [task(0, (1, False, [result])), task(1, (1, False, [other]))]
    read = read_export([whole(tmp_path / "t.json", tasks)])
    (asked,) = read.asked
    assert read.texts == ["text_text"]
    assert [row["text_text"] for row in read.rows] == TEXTS[:2]
    assert set(asked.options) == {"joy", "anger"}


def test_a_question_holds_answers_alone(tmp_path):
    """What the task has under the question's name is nobody's answer, where one did not answer."""
    tasks = [task(k, (1, False, [choice("joy"), stars(k)]), (2, False, [choice("anger")]),
                  strength="pos", strength_text="web") for k in range(3)]  # fmt: skip
    tasks[0]["annotations"][1]["result"] = []
    read = read_export([whole(tmp_path / "t.json", tasks)])
    assert said(read, "mood", "strength", "strength_text_text", "strength_text") == [
        ("0", "1", "joy", "0", "pos", "web"),
        *((str(k), who, mood, level, "pos", "web") for k in (1, 2)
          for who, mood, level in (("1", "joy", str(k)), ("2", "anger", None))),
    ]  # fmt: skip
    assert "what the items have under strength is called strength_text_text" in notes(read)


def test_doccano(tmp_path):
    rows = [{"id": k, "text": text, "label": ["joy"] if k else [], "Comments": [], "topic": "a"}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    rows[1]["label"] = "anger"
    read = read_export([lines(tmp_path / "all.jsonl", rows)])
    assert said(read, "label")[:2] == [("1", "", "anger"), ("2", "", "joy")]
    assert "1 x items without a label" in notes(read)
    assert "by annotators without names" in notes(read)


def test_doccano_with_a_file_an_annotator(tmp_path):
    for who, label in (("ann", "joy"), ("ben", "anger")):
        rows = [{"id": k, "text": text, "label": [label], "Comments": []}
                for k, text in enumerate(TEXTS[:2])]  # fmt: skip
        lines(tmp_path / f"{who}.jsonl", rows)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for who in ("ann", "ben"):
            archive.write(tmp_path / f"{who}.jsonl", f"{who}.jsonl")
    expected = [
        ("0", "ann", "joy"),
        ("1", "ann", "joy"),
        ("0", "ben", "anger"),
        ("1", "ben", "anger"),
    ]
    assert said(read_export([str(tmp_path / "export.zip")]), "label") == expected
    both = [str(tmp_path / f"{who}.jsonl") for who in ("ann", "ben")]
    assert said(read_export(both), "label") == expected


def test_doccano_before_1_1_and_as_csv(tmp_path):
    old = [{"id": k, "text": text, "meta": {}, "annotation_approver": None,
            "annotations": [{"label": 1, "user": 7}, {"label": 2 - k, "user": 8}]}
           for k, text in enumerate(TEXTS[:2])]  # fmt: skip
    read = read_export([lines(tmp_path / "old.jsonl", old)])
    assert said(read, "label") == [
        ("0", "7", "1"),
        ("0", "8", "2"),
        ("1", "7", "1"),
        ("1", "8", "1"),
    ]
    cells = [{"id": k, "text": t, "label": "a#b" if k else "a", "Comments": ""}
             for k, t in enumerate(TEXTS[:3])]  # fmt: skip
    read = read_export([table(tmp_path / "new.csv", cells)])
    assert [d.name for d in read.asked] == ["label_b"]  # every item has a


def test_sequence_labels_are_refused_in_a_sentence(tmp_path):
    rows = [
        {"id": k, "text": t, "label": [[0, 3, "X"]], "Comments": []} for k, t in enumerate(TEXTS)
    ]
    with pytest.raises(DataError, match="no annotations; left out: 6 x marked spans"):
        read_export([lines(tmp_path / "ner.jsonl", rows)])


def prodigy_task(k, **rest):
    return {"text": TEXTS[k], "meta": {"source": "web"}, "_input_hash": 100 + k, "_task_hash": -k,
            "_session_id": "d-ann", "_annotator_id": "d-ann", "_view_id": "choice",
            "answer": "accept", **rest}  # fmt: skip


def test_prodigy_with_options(tmp_path):
    options = [{"id": "1", "text": "weak"}, {"id": "2", "text": "strong"}]
    rows = [
        prodigy_task(0, options=options, accept=["1"]),
        prodigy_task(1, options=options, accept=["2"]),
        prodigy_task(2, options=options, accept=["1"], answer="ignore"),
        prodigy_task(3, options=options, accept=[], answer="reject"),
        prodigy_task(4, options=options, accept=[]),
        prodigy_task(0, options=options, accept=["2"]),
    ]
    read = read_export([lines(tmp_path / "p.jsonl", rows)])
    assert said(read, "choice") == [("100", "d-ann", "1"), ("101", "d-ann", "2")]
    assert read.asked[0].options == {"1": "weak", "2": "strong"}
    for line in ('1 x tasks with the answer "ignore"', 'the answer "reject"',
                 "1 x tasks accepted with no option", "1 x later annotations of the same item"):  # fmt: skip
        assert line in notes(read)


def test_prodigy_with_several_options_and_with_one_label(tmp_path):
    options = [{"id": name, "text": name} for name in ("a", "b")]
    rows = [prodigy_task(k, options=options, accept=["a", "b"][:k], config={"choice_style": "multiple"})
            for k in range(3)]  # fmt: skip
    read = read_export([lines(tmp_path / "several.jsonl", rows)])
    assert said(read, "choice_a", "choice_b") == [
        ("100", "d-ann", "false", "false"), ("101", "d-ann", "true", "false"),
        ("102", "d-ann", "true", "true"),
    ]  # fmt: skip
    rows = [prodigy_task(k, label=label, answer=answer)
            for k, label, answer in ((0, "RUDE", "accept"), (0, "SPAM", "reject"),
                                     (1, "RUDE", "reject"), (1, "SPAM", "accept"))]  # fmt: skip
    read = read_export([lines(tmp_path / "binary.jsonl", rows)])
    assert said(read, "RUDE", "SPAM") == [
        ("100", "d-ann", "true", "false"), ("101", "d-ann", "false", "true"),
    ]  # fmt: skip
    assert "left out: nothing" in notes(read)


ARGILLA = [
    {"id": f"r{k}", "fields": {"text": TEXTS[k]}, "metadata": {"source": "web"},
     "suggestions": {"mood": {"value": "joy", "score": 0.9, "agent": "m"}}, "vectors": {},
     "responses": {"mood": [{"value": "joy", "user_id": "u1"}, {"value": mood, "user_id": "u2"}],
                   "tags": [{"value": ["a", "b"][: k + 1], "user_id": "u1"}],
                   "spans": [{"value": [{"start": 0, "end": 1, "label": "x"}], "user_id": "u1"}]},
     "status": "completed", "_server_id": "s"}
    for k, mood in enumerate(["joy", "anger"])
]  # fmt: skip


def test_argilla(tmp_path):
    empty = {**ARGILLA[0], "id": "r2", "responses": {}}
    read = read_export([whole(tmp_path / "records.json", [*ARGILLA, empty])])
    assert said(read, "mood", "tags_b", "source") == [
        ("r0", "u1", "joy", "false", "web"), ("r0", "u2", "joy", None, "web"),
        ("r1", "u1", "joy", "true", "web"), ("r1", "u2", "anger", None, "web"),
    ]  # fmt: skip
    assert "tags: a is no question with options (always true)" in notes(read)
    assert "1 x records without a response" in notes(read)
    assert "2 x rankings and marked spans" in notes(read)


def test_argilla_flattened_and_version_1(tmp_path):
    flat = [{"id": f"r{k}", "status": "completed", "_server_id": "s", "text": TEXTS[k],
             "mood.responses": ["joy", mood], "mood.responses.users": ["u1", "u2"],
             "mood.responses.status": ["submitted", "discarded" if k else "submitted"],
             "mood.suggestion": "joy", "mood.suggestion.score": None}
            for k, mood in enumerate(["anger", "anger"])]  # fmt: skip
    read = read_export([lines(tmp_path / "flat.jsonl", flat)])
    assert said(read, "mood") == [("r0", "u1", "joy"), ("r0", "u2", "anger"), ("r1", "u1", "joy")]
    assert "1 x discarded responses" in notes(read)
    first = [{"external_id": f"e{k}", "fields": {"text": TEXTS[k]}, "metadata": {},
              "responses": [{"user_id": "u1", "status": "submitted",
                             "values": {"mood": {"value": mood}}}]}
             for k, mood in enumerate(["anger", "joy"])]  # fmt: skip
    read = read_export([whole(tmp_path / "one.json", first)])
    assert said(read, "mood") == [("e0", "u1", "anger"), ("e1", "u1", "joy")]
    columns = [{"text": TEXTS[k], "mood": [{"user_id": "u1", "value": mood, "status": "submitted"}],
                "external_id": f"e{k}", "metadata": None}
               for k, mood in enumerate(["anger", "joy"])]  # fmt: skip
    read = read_export([lines(tmp_path / "hub.jsonl", columns)], Options(format="argilla"))
    assert said(read, "mood", "text")[0] == ("e0", "u1", "anger", TEXTS[0])


def test_potato_folder_of_version_1(tmp_path):
    for who, point in (("ann", 3), ("ben", 1)):
        rows = [{"id": "start.html", "displayed_text": "hello", "label_annotations": {"ok": {"Yes": "1"}},
                 "span_annotations": {}, "behavioral_data": {}}]  # fmt: skip
        rows += [{"id": f"i{k}", "displayed_text": TEXTS[k],
                  "label_annotations": {"mood": {["joy", "anger"][k]: "1"},
                                        "strength": {f"scale_{point}": str(point)}},
                  "span_annotations": {}, "behavioral_data": {"time": "9s"}} for k in range(2)]  # fmt: skip
        (tmp_path / "out" / who).mkdir(parents=True)
        lines(tmp_path / "out" / who / "annotated_instances.jsonl", rows)
    read = read_export([str(tmp_path / "out")])
    assert said(read, "mood", "strength", "text")[:3] == [
        ("i0", "ann", "joy", "3", TEXTS[0]), ("i1", "ann", "anger", "3", TEXTS[1]),
        ("i0", "ben", "joy", "1", TEXTS[0]),
    ]  # fmt: skip
    assert "2 x pages of the survey" in notes(read)
    assert "taken for the annotator's name" in notes(read)


def test_potato_tables(tmp_path):
    rows = [{"user": who, "instance_id": f"i{k}", "displayed_text": TEXTS[k],
             "mood:::joy": None if k else "joy", "mood:::anger": "anger" if k else None,
             "strength:::scale_2": 2, "strength:::scale_0": None}
            for who in ("ann", "ben") for k in range(2)]  # fmt: skip
    rows[0] |= {"strength:::scale_2": None, "strength:::scale_0": 0}
    (tmp_path / "a.tsv").write_text(pd.DataFrame(rows).to_csv(sep="\t", index=False))
    read = read_export([str(tmp_path / "a.tsv")])
    assert said(read, "mood", "strength")[:2] == [
        ("i0", "ann", "joy", "0"),
        ("i1", "ann", "anger", "2"),
    ]


def test_potato_version_2_has_its_texts_elsewhere(tmp_path):
    items = lines(
        tmp_path / "items.jsonl", [{"id": f"i{k}", "text": t} for k, t in enumerate(TEXTS)]
    )
    state = {"user_id": "ann", "instance_id_to_span_to_value": {},
             "instance_id_to_label_to_value": {
                 "i0": {"mood": {"labels": {"joy": True, "anger": False}}},
                 "i1": {"mood": {"anger": "true"}}, "i9": {"mood": {"joy": True}}}}  # fmt: skip
    file = whole(tmp_path / "user_state.json", state)
    with pytest.raises(DataError, match=r"no column holds texts; .* --items"):
        read_export([file])
    read = read_export([file], Options(items=items))
    assert said(read, "mood", "text") == [
        ("i0", "ann", "joy", TEXTS[0]),
        ("i1", "ann", "anger", TEXTS[1]),
    ]
    assert "1 x rows of items not in" in notes(read)
    rows = [{"instance_id": f"i{k}", "user_id": "ann", "labels": {"mood": {mood: True}}, "spans": {},
             "links": {}} for k, mood in enumerate(["joy", "anger"])]  # fmt: skip
    read = read_export([lines(tmp_path / "annotations.jsonl", rows)], Options(items=items))
    assert said(read, "mood") == [("i0", "ann", "joy"), ("i1", "ann", "anger")]
    rows = [{"instance_id": f"i{k}", "user_id": "ann", "mood.joy": k == 0 or "", "mood.anger": k == 1 or "",
             "strength.scale_1": k or "", "strength.scale_2": ""} for k in range(2)]  # fmt: skip
    read = read_export([table(tmp_path / "annotations.csv", rows)], Options(items=items))
    assert said(read, "mood") == [("i0", "ann", "joy"), ("i1", "ann", "anger")]


# --- surveys ---

MTURK = {"HITId": "", "HITTypeId": "T", "Title": "Mood", "Reward": "$0.10", "AssignmentId": "A",
         "WorkerId": "", "AssignmentStatus": "Approved", "WorkTimeInSeconds": 9}  # fmt: skip


def mturk(*rows):
    return [{**MTURK, "HITId": f"H{hit}", "WorkerId": who, "Input.text": TEXTS[hit], "Input.source": "w",
             **rest, "Approve": "x", "Reject": ""} for hit, who, rest in rows]  # fmt: skip


def test_mturk(tmp_path):
    rows = mturk(
        *((hit, who, {"Answer.mood.label": "joy" if hit else "anger",
                      "Answer.rude.on": str(hit == 1).lower(),
                      "Answer.q.yes": str(hit == 0).lower(), "Answer.q.no": str(hit != 0).lower(),
                      "Answer.comment": f"free words of {who} on {hit}"})
          for hit in range(3) for who in ("W1", "W2"))
    )  # fmt: skip
    rows[5] |= {"AssignmentStatus": "Rejected"}
    read = read_export([table(tmp_path / "batch.csv", rows)])
    assert said(read, "mood", "rude", "q")[:3] == [
        ("H0", "W1", "anger", "false", "true"), ("H0", "W2", "anger", "false", "true"),
        ("H1", "W1", "joy", "true", "false"),
    ]  # fmt: skip
    assert len(read.rows) == 5
    assert read.texts == ["text"]
    for line in ("1 x rejected assignments", "columns left out, Mechanical Turk's own",
                 "one question with one answer"):  # fmt: skip
        assert line in notes(read)
    assert not {"Reward", "Title"} & set(read.columns)
    asked = Options(texts=["Input.text"], answers=["Answer.mood.label", "q"])
    assert [d.name for d in read_export([str(tmp_path / "batch.csv")], asked).asked] == [
        "mood",
        "q",
    ]


def test_mturk_task_answers_and_several_items(tmp_path):
    answers = [{"mood": {"label": "joy"}, "kind": {"labels": ["a", "b"]}, "spam": {"on": True},
                "q": {"1": False, "2": True}},
               {"mood": {"label": "anger"}, "kind": {"labels": ["a"]}, "spam": {"on": False},
                "q": {"1": True, "2": False}}]  # fmt: skip
    rows = mturk(
        *((k, "W1", {"Answer.taskAnswers": json.dumps([a])}) for k, a in enumerate(answers))
    )
    read = read_export([table(tmp_path / "json.csv", rows)])
    assert said(read, "mood", "spam", "q", "kind_b") == [
        ("H0", "W1", "joy", "true", "2", "true"), ("H1", "W1", "anger", "false", "1", "false"),
    ]  # fmt: skip
    rows = [{**MTURK, "HITId": f"H{hit}", "WorkerId": "W1",
             **{f"Input.text{k}": TEXTS[2 * hit + k] for k in (0, 1)},
             **{f"Answer.mood{k}": ("joy", "anger")[(hit + k) % 2] for k in (0, 1)}}
            for hit in range(2)]  # fmt: skip
    read = read_export([table(tmp_path / "many.csv", rows)])
    assert said(read, "mood", "text") == [
        ("H0_0", "W1", "joy", TEXTS[0]), ("H0_1", "W1", "anger", TEXTS[1]),
        ("H1_0", "W1", "anger", TEXTS[2]), ("H1_1", "W1", "joy", TEXTS[3]),
    ]  # fmt: skip


def qualtrics(path, names, wordings, rows):
    meta = ["StartDate", "Status", "Finished", "ResponseId", "RecordedDate"]
    ids = [json.dumps({"ImportId": name}) for name in [*meta, *names]]
    full = [
        ["2024-01-01", "IP Address", "True", f"R_{k}", "2024-01-01", *row]
        for k, row in enumerate(rows)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*meta, *names], [*meta, *wordings], ids, *full])
    return str(path)


def test_qualtrics_with_an_item_a_row(tmp_path):
    rows = [[TEXTS[k % 3], f"p{k // 3}", ("joy", "anger")[k % 2], "-99" if k == 5 else str(1 + k % 3)]
            for k in range(6)]  # fmt: skip
    file = qualtrics(tmp_path / "q.csv", ["item", "PROLIFIC_PID", "Q1", "Q2"],
                     ["item", "PROLIFIC_PID", "Which mood?", "How strong?"], rows)  # fmt: skip
    read = read_export([file])
    assert said(read, "Q1", "Q2")[:2] == [("1", "p0", "joy", "1"), ("2", "p0", "anger", "2")]
    assert len({row["item_id"] for row in read.rows}) == 3
    assert [d.text for d in read.asked] == ["Which mood?", "How strong?"]
    assert "1 x -99 in Q2, read as no answer" in notes(read)
    assert "Qualtrics' own: StartDate, Status, Finished, RecordedDate" in notes(read)


def test_qualtrics_with_a_person_a_row(tmp_path):
    texts = TEXTS[:3]
    names = [f"{k}_{q}" for k in (1, 2, 3) for q in ("Q1", "Q2")]
    wordings = [f"Read: {text} - {q}" for text in texts for q in ("Which mood?", "How strong?")]
    rows = [["joy", "1", "anger", "2", "", ""], ["joy", "3", "joy", "1", "anger", "2"]]
    read = read_export([qualtrics(tmp_path / "loop.csv", names, wordings, rows)])
    assert said(read, "Q1", "Q2")[:3] == [
        ("1", "R_0", "joy", "1"), ("2", "R_0", "anger", "2"), ("1", "R_1", "joy", "3"),
    ]  # fmt: skip
    assert [row["text"] for row in read.rows[:2]] == [wordings[0], wordings[2]]
    assert "--items takes a table of the texts alone" in notes(read)
    names = ["Q5_1", "Q5_2", "Q5_3"]
    wordings = [f"How rude are these? - {text}" for text in texts]
    rows = [["very", "not at all", "very"], ["somewhat", "not at all", ""]]
    read = read_export([qualtrics(tmp_path / "matrix.csv", names, wordings, rows)])
    assert said(read, "Q5", "text")[:2] == [
        ("Q5_1", "R_0", "very", texts[0]), ("Q5_2", "R_0", "not at all", texts[1]),
    ]  # fmt: skip
    assert list(read.asked[0].options) == ["not at all", "somewhat", "very"]
    assert read.asked[0].ordered


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_qualtrics_as_tsv_in_utf_16(tmp_path, encoding):
    """What Qualtrics writes as TSV; other texts than ASCII come through."""
    rows = [[f"{TEXTS[k % 6]} \u00e9\u4f60 {k}", ("joy", "anger")[k % 2]] for k in range(30)]
    plain = qualtrics(tmp_path / "q.csv", ["item", "Q1"], ["item", "Which mood?"], rows)
    with (tmp_path / "q.csv").open(newline="") as file:
        cells = list(csv.reader(file))
    export = tmp_path / "q.tsv"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    with export.open("w", newline="", encoding=encoding) as file:
        file.write(mark)
        csv.writer(file, delimiter="\t").writerows(cells)
    read = read_export([str(export)])
    assert (said(read, "Q1", "item"), read.asked[0].text) == (
        said(read_export([plain]), "Q1", "item"), "Which mood?"
    )  # fmt: skip
    assert "read as UTF-16" in notes(read)
    found = []
    config = DataConfig(
        train=str(export), item_id="ResponseId", columns={"text": "item", "mood": "Q1"}
    )
    splits = load_splits(config, MOOD, 0, found)
    assert {item.state["text"] for part in splits.values() for item in part} == {r[0] for r in rows}
    assert any("read as UTF-16" in note for note in found)
    (tmp_path / "latin.csv").write_bytes("text,mood\ncaf\u00e9,joy\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 2 is not UTF-8; save it so"):
        read_table(str(tmp_path / "latin.csv"))


def test_google_forms(tmp_path):
    grid = [{"Timestamp": f"1/{k}/2024 10:00:00", "Email Address": f"p{k}@x.org",
             **{f"Which mood? [{text}]": ("joy", "anger")[(k + j) % 2] for j, text in enumerate(TEXTS[:3])}}
            for k in range(1, 3)]  # fmt: skip
    read = read_export([table(tmp_path / "grid.csv", grid)])
    assert said(read, "Which_mood", "text")[:2] == [
        (TEXTS[0], "p1@x.org", "anger", TEXTS[0]), (TEXTS[1], "p1@x.org", "joy", TEXTS[1]),
    ]  # fmt: skip
    plain = [{"Timestamp": "1/1/2024 10:00:00",
              **{text: ("joy", "anger")[(k + j) % 2] for j, text in enumerate(TEXTS[:4])}}
             for k in range(2)]  # fmt: skip
    read = read_export([table(tmp_path / "plain.csv", plain)])
    assert len(read.rows) == 8
    assert {row["text"] for row in read.rows} == set(TEXTS[:4])
    boxes = [{"Timestamp": "1/1/2024 10:00:00", "Your name": f"P{k % 2}", "Message": TEXTS[k // 2],
              "What is it?": ("rude, late", "late", "kind", "rude")[k % 4]} for k in range(6)]  # fmt: skip
    read = read_export([table(tmp_path / "boxes.csv", boxes)], Options(annotator="Your name"))
    assert said(read, "What_is_it_late", "Message")[0] == ("1", "P0", "true", TEXTS[0])
    assert [d.name for d in read.asked] == ["What_is_it_kind", "What_is_it_late", "What_is_it_rude"]


@pytest.mark.parametrize("suffix", ["dta", "sav"])
def test_value_labels_are_the_options(tmp_path, suffix):
    frame = pd.DataFrame({
        "id": [1, 1, 2, 2], "rater": ["a", "b", "a", "b"], "text": [TEXTS[0]] * 2 + [TEXTS[1]] * 2,
        "strength": [1.0, 3.0, 2.0, np.nan], "rude": [1.0, 2.0, 2.0, 1.0], "odd": [1.0, 2.0, 5.0, 1.0],
    })  # fmt: skip
    labels = {"strength": {1: "weak", 2: "medium", 3: "strong", 9: "no answer"},
              "rude": {1: "No", 2: "Yes"}, "odd": {1: "lowest", 5: "highest"}}  # fmt: skip
    file = str(tmp_path / f"t.{suffix}")
    options = {"variable_measure": {"strength": "ordinal"}} if suffix == "sav" else {}
    write = pyreadstat.write_sav if suffix == "sav" else pyreadstat.write_dta
    write(frame, file, variable_value_labels=labels, **options,
          column_labels=["", "", "", "How strong is it?", "", ""])  # fmt: skip
    read = read_export([file])
    assert said(read, "strength", "rude", "odd") == [
        ("1", "a", "weak", "false", "1"), ("1", "b", "strong", "true", "2"),
        ("2", "a", "medium", "true", "5"), ("2", "b", None, "false", "1"),
    ]  # fmt: skip
    strength, rude, odd = read.asked
    assert list(strength.options) == ["weak", "medium", "strong"]
    assert (strength.text, strength.ordered) == ("How strong is it?", suffix == "sav")
    assert (rude.kind, odd.kind) == ("noul", "score")
    assert odd.options == {"1": "lowest", "2": "", "3": "", "4": "", "5": "highest"}


def test_excel(tmp_path):
    rows = [{"item": k // 2, "coder": f"c{k % 2}", "Comment text": TEXTS[k // 2], "strength": 1 + k % 3,
             "date": pd.Timestamp("2024-01-01")} for k in range(6)]  # fmt: skip
    codes = [{"variable": "strength", "value": n, "label": text}
             for n, text in ((2, "medium"), (1, "weak"), (3, "strong"))]  # fmt: skip
    with pd.ExcelWriter(tmp_path / "t.xlsx") as writer:
        pd.DataFrame({"a": ["x"]}).to_excel(writer, sheet_name="Readme", index=False)
        pd.DataFrame(rows).to_excel(writer, sheet_name="Data", index=False)
        pd.DataFrame(codes).to_excel(writer, sheet_name="Codes", index=False)
    read = read_export([str(tmp_path / "t.xlsx")])
    assert said(read, "strength", "Comment_text")[:2] == [
        ("0", "c0", "weak", TEXTS[0]), ("0", "c1", "medium", TEXTS[0]),
    ]  # fmt: skip
    assert list(read.asked[0].options) == ["weak", "medium", "strong"]
    assert "sheet Readme is left out" in notes(read)
    assert "sheet Codes is read as value labels" in notes(read)
    (tmp_path / "broken.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    with pytest.raises(DataError, match="cannot be read as Excel"):
        read_export([str(tmp_path / "broken.xlsx")])


def test_json_of_many_writers(tmp_path):
    rows = [{"id": k, "text": f"{text}\u2028More.", "mood": ("joy", "anger")[k % 2]}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    as_lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = tmp_path / "t.json"
    path.write_text("\n".join(as_lines))
    read = read_export([str(path)])
    assert said(read, "text")[0][2] == rows[0]["text"]
    assert read.rows[1][" line"] == 2
    path.write_text("\n".join([*as_lines[:5], '{"id": broken}', as_lines[5]]))
    with pytest.raises(DataError, match="line 6: Expecting value at character 8"):
        read_export([str(path)])
    path.write_text(json.dumps(rows[:2])[:-1] + ', {"id": "z", "mood": 1, "mood": 2}]')
    with pytest.raises(DataError, match=r"the key 'mood' 2 times: \{'id': 'z', 'mood': 2\}"):
        read_export([str(path)])
    for orient in ("columns", "split", "table", "values"):
        pd.DataFrame(rows).to_json(path, orient=orient)
        with pytest.raises(DataError, match='orient="records", lines=True'):
            read_export([str(path)])
    path.write_text(json.dumps([{**row, "text": row["text"] + "\ud83d"} for row in rows]))
    assert "6 texts or keys hold half an emoji" in notes(read_export([str(path)]))


@pytest.mark.parametrize("header", [("mood", "mood "), ("mood", "Mood", "Mood"), ("", "")])
def test_excel_refuses_the_headers_that_a_csv_refuses(tmp_path, header):
    cells = [
        ("text", *header),
        *((text, "joy", "anger", "joy")[: 1 + len(header)] for text in TEXTS),
    ]
    pd.DataFrame(cells).to_excel(tmp_path / "t.xlsx", index=False, header=False)
    with pytest.raises(DataError, match=r"t\.xlsx, sheet Sheet1: expected a header line with dist"):
        read_export([str(tmp_path / "t.xlsx")])


def test_columns_without_a_header_and_cells_without_a_value_are_said(tmp_path):
    rows = [{"id": k, "text": text, "": ("joy", "anger")[k % 2]} for k, text in enumerate(TEXTS)]
    with pd.ExcelWriter(tmp_path / "t.xlsx") as writer:
        pd.DataFrame(rows).to_excel(writer, sheet_name="Data", index=False)
        writer.sheets["Data"]["C2"], writer.sheets["Data"]["C3"] = "=A1", "#N/A"
        pd.DataFrame([["title"], ["a", "b"]]).to_excel(writer, sheet_name="Else", header=False)
    read = read_export([str(tmp_path / "t.xlsx")])
    assert said(read, "column")[0] == ("2", "", "joy")
    assert "the question '' is called column" in notes(read)
    assert "blank: 1 x errors, as #N/A, 1 x formulas that were not computed" in notes(read)
    index = pd.DataFrame({"text": TEXTS, "mood": ["joy", "anger"] * 3, "a b ": 1})
    index.to_csv(tmp_path / "t.csv")
    read = read_export([str(tmp_path / "t.csv")])
    assert "kept under other names: '' as column" in notes(read)


# --- tables of any shape ---


@pytest.mark.parametrize(
    ("names", "annotators"),
    [
        (("mood_ann1", "mood_ann2"), ("ann1", "ann2")),
        (("Rater 1 mood", "Rater 2 mood"), ("Rater 1", "Rater 2")),
        (("annotator1.mood", "annotator2.mood"), ("annotator1", "annotator2")),
        (("mood_coder_A", "mood_coder_B"), ("coder_A", "coder_B")),
    ],
)
def test_a_column_an_annotator(tmp_path, names, annotators):
    rows = [{"id": k, "text": text, names[0]: "joy", names[1]: ("anger", "joy", "")[k % 3],
             "gold": "joy"} for k, text in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "mood")[:3] == [
        ("0", annotators[0], "joy"), ("0", annotators[1], "anger"), ("1", annotators[0], "joy"),
    ]  # fmt: skip
    assert len(read.rows) == 10  # nobody said nothing
    assert "a column an annotator: 2 annotators" in notes(read)
    assert read.further == ["gold"]


def test_remarks_of_annotators_are_no_texts(tmp_path):
    rows = [{"text": text, **{f"rater{a}_{name}": value for a in (1, 2) for name, value in (
        ("mood", ("joy", "anger")[(k + a) % 2]), ("comment", f"I think that it is {WORDS[k]}, said {a}"))}}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert (read.texts, [d.name for d in read.asked], read.further) == (
        ["text"],
        ["mood"],
        ["comment"],
    )
    assert len({row["item_id"] for row in read.rows}) == 6


def test_annotators_named_in_columns_beside(tmp_path):
    rows = [{"text": text, "annotator_1": "ann", "label_1": "joy", "annotator_2": ("ben", "cem")[k % 2],
             "label_2": ("joy", "anger")[k % 2]} for k, text in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "label")[:4] == [
        ("1", "ann", "joy"), ("1", "ben", "joy"), ("2", "ann", "joy"), ("2", "cem", "anger"),
    ]  # fmt: skip
    pairs = [{"id": k, "prompt": text, "A1": f"{text} Yes.", "A2": f"{text} No.", "better": "12"[k % 2]}
             for k, text in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "pairs.csv", pairs)])
    assert (read.texts, [d.name for d in read.asked]) == (["prompt", "A1", "A2"], ["better"])


def test_columns_that_only_the_user_can_tell(tmp_path):
    rows = [{"id": k, "text": text, "valence_anna": 1 + k % 3, "valence_ben": 2, "arousal_anna": 1,
             "arousal_ben": 1 + k % 2} for k, text in enumerate(TEXTS)]  # fmt: skip
    file = table(tmp_path / "t.csv", rows)
    assert [d.name for d in read_export([file]).asked] == ["valence_anna", "arousal_ben"]
    read = read_export([file], Options(columns="{question}_{annotator}"))
    assert said(read, "valence", "arousal")[:2] == [("0", "anna", "1", "1"), ("0", "ben", "2", "1")]
    with pytest.raises(DataError, match="fewer than two annotators"):
        read_export([file], Options(columns="{annotator}:{question}"))


def test_boxes_to_tick(tmp_path):
    rows = [{"id": k, "text": text, "level.-1": int(k % 3 == 0), "level.0": int(k % 3 == 1),
             "level.1": int(k % 3 == 2), "kind_rude": k % 2, "kind_late": 1, "kind_kind": int(k == 1)}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "level", "kind_rude", "kind_kind")[:2] == [
        ("0", "", "-1", "false", "false"), ("1", "", "0", "true", "true"),
    ]  # fmt: skip
    level = read.asked[0]
    assert (level.kind, list(level.options)) == ("score", ["-1", "0", "1"])
    assert any("What does -1 mean" in doubt for doubt in level.doubts)
    assert "kind: late is no question with options (always true)" in notes(read)


def test_boxes_of_annotators(tmp_path):
    rows = [{"example_id": k, "text": text,
             **{f"Annotator{a}_{name}": "" if a == 3 and k else int((k + a) % 2 == on)
                for a in (1, 2, 3) for on, name in enumerate(("is_abuse.0", "is_abuse.-1"))},
             **{f"Annotator{a}_sexist": "" if a == 3 and k else int(k == a) for a in (1, 2, 3)}}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert len(read.rows) == 13
    assert said(read, "is_abuse", "sexist")[:4] == [
        ("0", "Annotator1", "-1", "false"), ("0", "Annotator2", "0", "false"),
        ("0", "Annotator3", "-1", "false"), ("1", "Annotator1", "0", "true"),
    ]  # fmt: skip


def test_shares_are_votes(tmp_path):
    shares = [(0.67, 0.33, 0), (1, 0, 0), (0, 0.33, 0.67), (0.33, 0.33, 0.33)]
    rows = [{"text": TEXTS[k], **dict(zip(("joy", "anger", "fear"), row, strict=True))}
            for k, row in enumerate(shares)]  # fmt: skip
    file = table(tmp_path / "t.csv", rows)
    read = read_export([file])
    assert said(read, "label")[:4] == [
        ("1", "", "joy"),
        ("1", "", "joy"),
        ("1", "", "anger"),
        ("2", "", "joy"),
    ]
    assert len(read.rows) == 12
    assert "the votes of 3 (the fewest that make all of them" in notes(read)
    assert len(read_export([file], Options(n_annotators=6)).rows) == 24
    odd = [{"text": t, "p.a": 0.137 + k / 7.3, "p.b": 0.863 - k / 7.3} for k, t in enumerate(TEXTS)]
    with pytest.raises(DataError, match="no number of annotators up to 50 makes them"):
        read_export([table(tmp_path / "odd.csv", odd)])
    counts = [
        {"text": t, "count": 3, "hate": k % 3, "none": 3 - k % 3} for k, t in enumerate(TEXTS)
    ]
    assert len(read_export([table(tmp_path / "counts.csv", counts)]).rows) == 18


def test_lists_with_an_entry_an_annotator(tmp_path):
    rows = [{"id": k, "text": text, "labels": ["joy", ("joy", "anger")[k % 2]], "annotators": ["a", f"b{k % 3}"],
             "soft_label": {"joy": 0.5, "anger": 0.5}, "hard_label": "joy"}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    expected = [("0", "a", "joy"), ("0", "b0", "joy"), ("1", "a", "joy"), ("1", "b1", "anger")]
    read = read_export([lines(tmp_path / "t.jsonl", rows)])
    assert said(read, "labels")[:4] == expected
    assert [d.name for d in read.asked] == ["labels"]
    written = {str(row.pop("id")): row | {"labels": ",".join(row["labels"]), "annotators": ",".join(row["annotators"])}
               for row in rows}  # fmt: skip
    assert said(read_export([whole(tmp_path / "t.json", written)]), "labels")[:4] == expected
    shares = [
        {"id": k, "text": t, "soft": {"joy": 1 - k / 5, "anger": k / 5}}
        for k, t in enumerate(TEXTS)
    ]
    read = read_export([lines(tmp_path / "s.jsonl", shares)])
    assert said(read, "soft")[5:7] == [("1", "", "joy"), ("1", "", "joy")]
    assert len(read.rows) == 30


def test_a_ragged_list_is_left_out_alone(tmp_path):
    rows = [{"id": k, "text": f"Text number {k} for you", "labels": ["joy", ("joy", "anger")[k % 2]],
             "annotators": ["a", "b"]} for k in range(12)]  # fmt: skip
    rows[5]["labels"] = ["joy"]
    read = read_export([lines(tmp_path / "t.jsonl", rows)])
    assert len(read.rows) == 22
    assert [d.name for d in read.asked] == ["labels"]
    assert "1 x rows in which the lists labels, annotators differ in length" in notes(read)


def test_an_id_that_names_rows_is_not_the_item(tmp_path):
    rows = [{"id": k, "text": TEXTS[k // 2], "rater": f"r{k % 2}", "mood": ("joy", "anger")[k % 2],
             "topic": ("a", "b")[k // 2 % 2]} for k in range(12)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert len({row["item_id"] for row in read.rows}) == 6
    assert "the same texts are the same item" in notes(read)
    assert "topic: the same for all annotators of an item" in notes(read)
    assert [d.name for d in read.asked] == ["mood"]
    assert [
        d.name for d in read_export([str(tmp_path / "t.csv")], Options(answers=["topic"])).asked
    ] == ["topic"]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["a;b", "a", "b;c", "c"], ["q_a", "q_b", "q_c"]),
        (["a, b", "a", "b", "b"], ["q_a", "q_b"]),
        (["Yes, clearly", "No, never", "Yes, clearly", "No, never"], ["q"]),
        (["1,2", "1", "2,3", "2", "3"], ["q_1", "q_2", "q_3"]),
    ],
)
def test_several_answers_in_a_cell(tmp_path, cells, names):
    rows = [{"id": k, "text": TEXTS[k], "q": cell} for k, cell in enumerate(cells)]
    assert [d.name for d in read_export([table(tmp_path / "t.csv", rows)]).asked] == names


def test_names_that_a_rubric_cannot_take(tmp_path):
    rows = [{"id": k, "Text of it": text, "outcome": k % 3, "Wie stark?": k % 4, "2nd": "ab"[k % 2],
             "item_id_confidence": "xy"[k % 2]} for k, text in enumerate(TEXTS)]  # fmt: skip
    import_annotations(
        [table(tmp_path / "t.csv", rows)], tmp_path / "o.csv", Options(), tmp_path / "o.yaml"
    )
    rubric = Rubric.from_file(tmp_path / "o.yaml")
    assert rubric.fields == ["Text_of_it"]
    assert [d.name for d in rubric.dimensions] == [
        "outcome_label", "Wie_stark", "q_2nd", "item_id_confidence_label",
    ]  # fmt: skip


# --- what is written ---


def test_the_draft_is_valid_and_asks(tmp_path):
    rows = [{"id": k, "text": text, "a": ["no: ", "#1", "true", "it's \"q\""][k % 4], "b": -(k % 3),
             "c": ["often", "never", "always"][k % 3], "d": k % 2} for k, text in enumerate(TEXTS)]  # fmt: skip
    file = table(tmp_path / "my data.csv", rows)
    said = import_annotations([file], tmp_path / "out.csv", Options(), tmp_path / "draft.yaml")
    rubric = Rubric.from_file(tmp_path / "draft.yaml")
    assert [(d.name, d.type) for d in rubric.dimensions] == [
        ("a", "choice"), ("b", "score"), ("c", "choice"), ("d", "noul"),
    ]  # fmt: skip
    assert set(rubric.dimensions[0].values) == {"no:", "#1", "true", 'it\'s "q"'}
    assert rubric.dimensions[2].values == ["never", "often", "always"]
    assert rubric.dimensions[2].level_of_measurement == "ordinal"
    text = (tmp_path / "draft.yaml").read_text()
    for question in ("What does -2 mean", "never < often < always", "Does 1 or yes mean true"):
        assert question in " ".join(text.replace("#", " ").split())
    assert "my data.csv: read as a table of no known tool" in said[0]
    assert read_table(str(tmp_path / "out.csv")).columns == [
        "item_id",
        "annotator_id",
        "text",
        *"abcd",
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".tsv", ".csv.gz"])
def test_other_outputs(tmp_path, suffix):
    rows = [
        {"id": k, "text": text, "rater": "r", "mood": "ab"[k % 2]} for k, text in enumerate(TEXTS)
    ]
    output = tmp_path / f"o{suffix}"
    import_annotations([table(tmp_path / "t.csv", rows)], output, Options())
    written = read_table(str(output)).rows
    assert [written[0][name] for name in ("item_id", "annotator_id", "mood")] == ["0", "r", "a"]


def test_nothing_is_written_where_anything_is_wrong(tmp_path):
    given = table(tmp_path / "t.csv", [{"text": t, "mood": ("joy", "anger")[k % 2]}
                                       for k, t in enumerate(TEXTS)])  # fmt: skip
    good, bad = tmp_path / "o.csv", tmp_path / "t.csv" / "o.csv"
    for output, rubric in ((bad, tmp_path / "r.yaml"), (good, bad.with_name("r.yaml"))):
        with pytest.raises(DataError, match=r"t\.csv is no folder"):
            import_annotations([given], output, Options(), rubric)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_the_command(tmp_path, monkeypatch, capsys):
    rows = [
        {"id": k, "text": text, "rater": "r", "mood": "ab"[k % 2]} for k, text in enumerate(TEXTS)
    ]
    file = table(tmp_path / "t.csv", rows)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["slm-judge", "import", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        found = capsys.readouterr()
        return code, " ".join((found.out + found.err).split())

    output = tmp_path / "long.csv"
    code, out = run(file, "--output", output, "--rubric", tmp_path / "d.yaml")
    assert (code, "6 rows read: 6 annotations of 6 items by 1 annotators" in out) == (0, True)
    before = output.read_bytes()
    code, out = run(file, "--output", output)
    assert (code, "exists. Name another file, or replace it with --overwrite" in out) == (2, True)
    assert run(file, "--output", output, "--overwrite", "--label", "mood")[0] == 0
    assert output.read_bytes() == before
    missing = tmp_path / "none.csv"
    for arguments, complaint in (
        ((file, "--output", missing, "--format", "excel"), "--format is one of label-studio"),
        ((file, "--output", missing, "--format", "prodigy"), "no annotations; left out"),
        ((file, "--output", missing, "--text", "body"), "lacks the columns body"),
        ((tmp_path / "no.csv", "--output", missing), "There is no file"),
        ((file, "--output", file), "is export 1 and the output; name another file"),
        ((file, "--output", tmp_path / "o.xlsx"), "the output is .csv"),
        ((file, "--output", missing, "--rubric", tmp_path / "r.txt"), "The rubric is a YAML file"),
    ):
        code, out = run(*arguments)
        assert (code, complaint in out) == (2, True), out
        assert not missing.exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", "[1, 2]", "expected a list of objects"),
        ("a.json", "{", "cannot be read as json"),
        ("a.json", '[{"text": "a", "text": "b"}]', "an object has the key 'text' 2 times"),
        ("a.json", "[]", "has no rows"),
        (
            "a.json",
            '[{"id": 1, "data": {"text": "a b c"}, "annotations": [3]}]',
            "no export of Label",
        ),
        ("a.csv", "a,b\n1,2\n", "no column holds texts"),
        ("a.csv", "text,x\nthe first text,1\nthe next text,1\n", "no column holds answers"),
        ("a.dta", "no stata", "cannot be read as dta"),
        ("a.zip", "no zip", "cannot be read as zip"),
        ("a.xls", "old", "save it as .xlsx"),
        ("a.pdf", "?", "is of no kind that can be imported"),
    ],
)
def test_bad_files_are_a_sentence(tmp_path, name, content, complaint):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint):
        read_export([str(tmp_path / name)])


# --- as spreadsheets, R, SPSS and archives write it ---

PEOPLE = ("ann", "bob", "cy")


def answers(values, **more):
    """Twelve items with three annotators each, and one value after the other as the answers."""
    return [{"id": k, "annotator": who, "text": f"The parcel came {k} times.",
             "q": values[(k + k // 4 + j) % len(values)], **more}
            for k in range(12) for j, who in enumerate(PEOPLE)]  # fmt: skip


def asked_of(read: Long):
    return {d.name: (d.kind, list(d.options)) for d in read.asked}


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (['["joy", "fear"]', "[]", '["fear"]', '["joy"]'], ["q_fear", "q_joy"]),
        (["['joy', \"it's fear\"]", "['joy']", "[]"], ["q_it_s_fear", "q_joy"]),
        (["['joy' 'fear']", "['joy']", "['fear']"], ["q_fear", "q_joy"]),
        (["['joy']", "['fear']"], ["q"]),
        (["[joy]", "[fear]"], ["q"]),
    ],
)
def test_lists_in_cells_of_csv(tmp_path, cells, names):
    read = read_export([table(tmp_path / "t.csv", answers(cells))])
    assert [d.name for d in read.asked] == names
    if names != ["q"]:
        assert "q: lists that are written as texts are read as lists" in notes(read)
        assert {row["q_joy"] for row in read.rows} == {"true", "false"}
    assert not any("true" in row["text"] for row in read.rows)


def test_lists_of_annotators_in_cells_of_csv(tmp_path):
    rows = [{"id": k, "text": t, "labels": f"['joy', '{('joy', 'anger')[k % 2]}']", "annotators": "['a', 'b']"}
            for k, t in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "labels")[2:4] == [("1", "a", "joy"), ("1", "b", "anger")]


def test_argilla_as_csv(tmp_path):
    rows = [{"id": k, "text": t, "q.responses": f"['{('joy', 'anger')[k % 2]}']",
             "q.responses.users": "['u']", "q.responses.status": "['submitted']"}
            for k, t in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "q")[:2] == [("0", "u", "joy"), ("1", "u", "anger")]
    with pytest.raises(DataError, match=r"q\.responses holds 'joy', no list"):
        read_export([table(tmp_path / "t.csv", [{**row, "q.responses": "joy"} for row in rows])])


@pytest.mark.parametrize("spelling", ["NA", "nan", "<NA>", "#N/A"])
def test_what_r_writes_for_no_answer_is_none(tmp_path, spelling):
    read = read_export([table(tmp_path / "t.csv", answers(["TRUE", "FALSE", spelling]))])
    assert asked_of(read) == {"q": ("noul", [])}
    assert f"12 x {spelling} in q, read as no answer, 12 x annotations without" in notes(read)
    assert f"{spelling} was read as no answer. Was it one?" in read.asked[0].doubts
    wide = [{"id": k, "text": t, "q_coder1": "joy", "q_coder2": ("anger", spelling)[k % 2]}
            for k, t in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "w.csv", wide)])
    assert (len(read.rows), set(read.asked[0].options)) == (9, {"joy", "anger"})
    sliders = read_export(
        [table(tmp_path / "s.csv", answers([*np.arange(15) * 6.25 + 0.1, spelling]))]
    )
    assert sliders.asked[0].range == (0, 100)


def test_na_is_no_annotator_and_rejects_nobody(tmp_path):
    rows = answers(["joy", "anger"])
    for row in rows:
        row["annotator"] = "ann" if row["annotator"] == "ann" else "NA"
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert len(read.rows) == 36
    assert {row["annotator_id"] for row in read.rows} == {"ann", ""}
    assert "24 x NA in annotator, read as nobody" in notes(read)
    batch = mturk(*((k, who, {"Answer.mood": who}) for k in range(6) for who in ("W1", "W2")))
    read = read_export([table(tmp_path / "b.csv", [{**row, "Reject": "NA"} for row in batch])])
    assert len(read.rows) == 12


def test_blank_rows_of_a_table_are_left_out_everywhere(tmp_path):
    file = table(tmp_path / "t.csv", answers(["joy", "anger"]))
    Path(file).write_text(Path(file).read_text() + ",,,\n, ,,\n")
    read = read_export([file])
    assert {row["item_id"] for row in read.rows} == {str(k) for k in range(12)}
    assert "2 blank rows are left out, the first is line 38." in notes(read)
    rubric = Rubric.parse({"name": "m", "instructions": "?", "fields": ["text"], "dimensions": [
        {"name": "q", "type": "choice", "instructions": "?", "options": ["joy", "anger"]}]}, "test")  # fmt: skip
    assert len(read_annotations(file, rubric, "id", "annotator").items) == 12


@pytest.mark.parametrize("called", ["annotator ", "Kodierer", "Annotateur", "name", "codeur_id"])
def test_annotators_called_otherwise(tmp_path, called):
    rows = [{" id": row["id"], "text": row["text"], called: row["annotator"], "q ": row["q"]}
            for row in answers(["joy", "anger"])]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "q")[:2] == [("0", "ann", "joy"), ("0", "bob", "anger")]
    assert "read without the spaces around their names: ' id'" in notes(read)
    assert ("name names the annotator" in notes(read)) == (called == "name")
    assert (
        said(read_export([str(tmp_path / "t.csv")], Options(annotator=called)), "q")[1][1] == "bob"
    )


def test_a_column_that_may_name_annotators_is_no_question(tmp_path):
    rows = [{"id": row["id"], "text": row["text"], "team": row["annotator"], "q": row["q"]}
            for row in answers(["joy", "anger"])]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert (list(asked_of(read)), read.further) == (["q"], ["team"])
    assert "team has each value at most once an item" in notes(read)
    assert "--annotator 'team' takes it" in notes(read)
    asked = read_export([str(tmp_path / "t.csv")], Options(answers=["team"]))
    assert list(asked_of(asked)) == ["team"]


def test_a_column_a_person(tmp_path):
    rows = [{"id": k, "text": t, "source": "ab"[k % 2], "Anna": "joy", "Ben": ("joy", "anger")[k % 2],
             "Chris M": ("anger", "joy")[k % 2]} for k, t in enumerate(TEXTS)]  # fmt: skip
    file = table(tmp_path / "t.csv", rows)
    for item in (None, "id"):
        read = read_export([file], Options(columns="{annotator}", item=item))
        assert said(read, "label")[:3] == [
            ("0", "Anna", "joy"), ("0", "Ben", "joy"), ("0", "Chris M", "anger"),
        ]  # fmt: skip
    for row in rows:
        row["Anna"] = row["Ben"]
    rows[0]["Anna"] = "anger"
    hint = notes(read_export([table(tmp_path / "t.csv", rows)]))
    assert "Anna, Ben, Chris M hold the same answers" in hint
    assert "--columns '{annotator}' reads them so" in hint
    people = [{"id": k, "text": t, "rater_anna": "joy", "rater_ben": ("joy", "anger")[k % 2],
               "rater_id": k} for k, t in enumerate(TEXTS)]  # fmt: skip
    read = read_export([table(tmp_path / "p.csv", people)])
    assert said(read, "label")[2:4] == [("1", "rater_anna", "joy"), ("1", "rater_ben", "anger")]
    for row in people:
        row["rater_ben"] = ("sure", "unsure")[row["id"] % 2]  # of what rater_anna said
    assert list(asked_of(read_export([table(tmp_path / "p.csv", people)]))) == ["rater_ben"]
    keys = [{"id": k, "text": t, "labels": {"ann": ("joy", "anger")[k % 2], "bob": ("anger", "joy")[k % 2]}}
            for k, t in enumerate(TEXTS)]  # fmt: skip
    read = read_export([lines(tmp_path / "k.jsonl", keys)])
    assert "--columns 'labels.{annotator}' reads them so" in notes(read)
    read = read_export([str(tmp_path / "k.jsonl")], Options(columns="labels.{annotator}"))
    assert said(read, "label")[:2] == [("0", "ann", "joy"), ("0", "bob", "anger")]


@pytest.mark.parametrize(
    "values", [["1", "1,5", "2", "2,5", "3"], ["1,5", "2,0"], ["4,5", "5", "4"]]
)
def test_decimal_commas(tmp_path, values):
    frame = pd.DataFrame(answers(values))
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";")
    read = read_export([str(tmp_path / "t.csv")])
    assert asked_of(read)["q"][0] == "score"
    assert "q: commas are read as decimal commas" in notes(read)
    assert {float(row["q"]) for row in read.rows} == {float(v.replace(",", ".")) for v in values}
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"A decimal comma\? Write a point"):
        read_export([str(tmp_path / "t.csv")])


def test_doccano_keeps_what_it_has_and_is_no_list_of_people(tmp_path):
    rows = [{"id": k, "text": t, "label": [("joy", "anger")[k % 2]], "author": f"u{k}",
             "Comments": ["unsure"], "entities": [{"id": 1}]} for k, t in enumerate(TEXTS)]  # fmt: skip
    read = read_export([lines(tmp_path / "t.jsonl", rows)])
    assert said(read, "author", "Comments")[0] == ("0", "", "u0", "unsure")
    assert "6 x marked spans" in notes(read)
    for people in ("annotator_ids", "workers"):
        lists = [{"id": k, "text": t, "labels": ["joy", ("joy", "anger")[k % 2]], people: ["a", "b"]}
                 for k, t in enumerate(TEXTS)]  # fmt: skip
        read = read_export([lines(tmp_path / "l.jsonl", lists)])
        assert said(read, "labels")[2:4] == [("1", "a", "joy"), ("1", "b", "anger")]
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for who in ("ann", "ben"):
            cells = [{"id": k, "text": t, "label": ("joy", "joy#anger")[k % 2], "Comments": ""}
                     for k, t in enumerate(TEXTS)]  # fmt: skip
            archive.write(table(tmp_path / f"{who}.csv", cells), f"{who}.csv")
    assert list(asked_of(read_export([str(tmp_path / "p.zip")]))) == ["label_anger"]


def test_labelled_and_declared_missing_values_are_no_answers(tmp_path):
    frame = pd.DataFrame({"id": range(6), "rater": list("ababab"), "text": TEXTS,
                          "q": [1.0, 2, 3, 9, -99, 77], "tone": [1.0, 2, 1, 2, 8, 8]})  # fmt: skip
    labels = {"q": {1: "low", 2: "mid", 3: "high", 9: "weiß nicht", -99: "k.A.", 77: "other"}}
    file = str(tmp_path / "t.sav")
    pyreadstat.write_sav(frame, file, variable_value_labels=labels, missing_ranges={"tone": [8]})
    read = read_export([file])
    assert asked_of(read) == {"q": ("choice", ["low", "mid", "high", "other"]),
                              "tone": ("score", ["1", "2"])}  # fmt: skip
    assert "9 (weiß nicht) was read as no answer, 1 times. Was it one?" in read.asked[0].doubts
    for line in ("1 x 9 (weiß nicht) in q", "1 x -99 (k.A.) in q",
                 "2 x user-defined missing values of tone, read as no answer"):  # fmt: skip
        assert line in notes(read)
    frame["q"] = [1, 2, 3, 9, 1, 2]  # of which only the ends have labels
    pyreadstat.write_sav(frame, file, variable_value_labels={"q": {1: "low", 9: "refused"}})
    assert asked_of(read_export([file]))["q"] == ("score", ["1", "2", "3"])
    frame["q"] = [1, 2, 3, "a", 1, 2]
    pyreadstat.write_dta(frame, str(tmp_path / "t.dta"), missing_user_values={"q": ["a"]},
                         variable_value_labels={"q": {1: "low", 2: "mid", 3: "high", "a": "refused"}})  # fmt: skip
    read = read_export([str(tmp_path / "t.dta")])
    assert asked_of(read)["q"] == ("choice", ["low", "mid", "high"])
    assert "1 x user-defined missing values of q" in notes(read)


def test_metadata_in_objects_is_no_question(tmp_path):
    rows = [{**row, "meta": {"author": f"u{row['id'] % 3}", "likes": row["id"] % 4}, "info": {"place": "xyz"[row["id"] % 3]}}
            for row in answers(["joy", "anger"])]  # fmt: skip
    read = read_export([lines(tmp_path / "t.jsonl", rows)])
    assert list(asked_of(read)) == ["q"]
    assert "info.place: the same for all annotators of an item" in notes(read)


def test_hidden_files_are_none_of_an_export(tmp_path):
    for name in ("x/ann.csv", "x/.ipynb_checkpoints/ann.csv", "x/__MACOSX/._ann.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table(tmp_path / name, answers(["joy", "anger"]))
    (tmp_path / "x/__MACOSX/._ann.csv").write_bytes(b"\0\5\26\7")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in (tmp_path / "x").rglob("*.csv"):
            archive.write(file, file.relative_to(tmp_path))
    for export in ("x", "x.zip"):
        read = read_export([str(tmp_path / export)])
        assert len(read.rows) == 36
        assert "2 hidden files are left out" in notes(read)


def test_a_file_of_a_table_an_annotator(tmp_path):
    files = [table(tmp_path / f"{who}.csv", [{"id": k, "text": t, "q": ("joy", "anger")[(k + j) % 2]}
             for k, t in enumerate(TEXTS)]) for j, who in enumerate(("anna", "ben"))]  # fmt: skip
    read = read_export(files)
    assert said(read, "q")[5:7] == [("5", "anna", "anger"), ("0", "ben", "anger")]
    assert "each file is taken for what one annotator said" in notes(read)
    other = [
        {"id": k, "text": f"{t} Again.", "q": ("joy", "anger")[k % 2]}
        for k, t in enumerate(TEXTS, 6)
    ]
    read = read_export([files[0], table(tmp_path / "more.csv", other)])
    assert "by annotators without names" in notes(read)


def test_rows_that_answer_other_questions_are_taken_together(tmp_path):
    rows = [part for row in answers(["joy", "anger"])
            for part in ({**row, "topic": ""}, {**row, "q": "", "topic": "xyz"[len(row["annotator"]) % 3]})]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "q", "topic")[:2] == [("0", "ann", "joy", "x"), ("0", "bob", "anger", "x")]
    assert "36 later rows answer what the same annotator's first row" in notes(read)
    assert "later annotations" not in notes(read)
    long = [{**row, "question": name, "q": value} for row in answers(["joy", "anger"])
            for name, value in (("mood", row["q"]), ("topic", "xyz"[row["id"] % 3]))]  # fmt: skip
    with pytest.raises(DataError, match=r"question holds mood, topic, each once .*pandas: pivot"):
        read_export([table(tmp_path / "t.csv", long)])
    twice = [*answers(["joy", "anger"]), *answers(["anger", "joy"])[:9]]
    assert "9 x later annotations" in notes(read_export([table(tmp_path / "t.csv", twice)]))
    again = [{**row, "round": n} for row in answers(["joy", "anger"]) for n in (1, 2)]
    assert "36 x later annotations" in notes(read_export([table(tmp_path / "t.csv", again)]))


def test_broken_books_and_archives_are_a_sentence(tmp_path):
    pd.DataFrame(answers(["joy", "anger"])).to_excel(tmp_path / "t.xlsx", index=False)
    for part, old, new in (("xl/worksheets/sheet1.xml", b"</sheetData>", b""),
                           ("xl/styles.xml", b"<fill>", b"<full>")):  # fmt: skip
        with (
            zipfile.ZipFile(tmp_path / "t.xlsx") as book,
            zipfile.ZipFile(tmp_path / "b.xlsx", "w") as broken,
        ):
            for name in book.namelist():
                data = book.read(name)
                broken.writestr(name, data.replace(old, new) if name == part else data)
        with pytest.raises(
            DataError, match=r"as Excel: .* Open it in Excel or LibreOffice, and save"
        ):
            read_export([str(tmp_path / "b.xlsx")])
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(table(tmp_path / "t.csv", answers(["joy", "anger"])), "t.csv")
    data = bytearray((tmp_path / "t.zip").read_bytes())
    data[40:60] = b"\xff" * 20
    (tmp_path / "t.zip").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as zip"):
        read_export([str(tmp_path / "t.zip")])
    merged = [("Study 7", "", ""), ("id", "text", "q")]
    pd.DataFrame(merged).to_excel(tmp_path / "m.xlsx", index=False, header=False)
    with pytest.raises(DataError, match="take out titles above the names, and merged cells"):
        read_export([str(tmp_path / "m.xlsx")])
    (tmp_path / "q.csv").write_text('id;text;q\n1;"So" it is;joy\n2;"No" way;anger\n')
    with pytest.raises(DataError, match="cannot be read as csv: line 2: ';' expected after"):
        read_export([str(tmp_path / "q.csv")])


def test_blank_boxes_beside_others_are_no_answers(tmp_path):
    rows = [{"id": k, "text": t, "kind_a": ("0", "1", "")[k % 3], "kind_b": ("1", "", "0")[k % 3],
             "kind_c": k % 2} for k, t in enumerate(TEXTS)]  # fmt: skip
    rows[0] |= dict.fromkeys(("kind_a", "kind_b", "kind_c"), "")
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert said(read, "kind_a", "kind_b", "kind_c")[0] == ("1", "", "true", None, "true")
    assert "a question each, since some say no: 4 blank cells beside others are no answer" in notes(
        read
    )


def test_what_is_no_yes_or_no_is_a_choice(tmp_path):
    for values in (["F", "N"], ["T", "Y"]):
        read = read_export([table(tmp_path / "t.csv", answers(values))])
        assert asked_of(read) == {"q": ("choice", values)}
    assert asked_of(read_export([table(tmp_path / "t.csv", answers(["Y", "N"]))]))["q"][0] == "noul"


def test_texts_elsewhere_that_contradict_are_refused(tmp_path):
    labels = [{k: v for k, v in row.items() if k != "text"} for row in answers(["joy", "anger"])]
    texts = [{"id": k, "text": f"The parcel came {k} times."} for k in [*range(12), 3]]
    files = [table(tmp_path / "l.csv", labels)], Options(items=table(tmp_path / "i.csv", texts))
    assert len(read_export(*files).rows) == 36
    texts[-1]["text"] = "Quite another text."
    table(tmp_path / "i.csv", texts)
    with pytest.raises(DataError, match=r"i\.csv has different texts of the items 3\."):
        read_export(*files)


def test_votes_without_their_number(tmp_path):
    rows = [
        {"id": k, "text": t, "votes_joy": k % 4, "votes_anger": (k + 1) % 3}
        for k, t in enumerate(TEXTS)
    ]
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert asked_of(read) == {"votes": ("choice", ["anger", "joy"])}
    assert len(read.rows) == sum(row["votes_joy"] + row["votes_anger"] for row in rows)
    assert "no column has the number of annotators: the sum of their votes" in notes(read)


# --- recipes and reports ---


def test_a_recipe_reads_an_export(tmp_path):
    tasks = [
        {**task(k % 6, *((who, False, [choice(("joy", "anger")[(k + who) % 2])]) for who in (1, 2))),
         "id": k, "data": {"text": f"{TEXTS[k % 6]} Case {k}."}} for k in range(30)
    ]  # fmt: skip
    file = whole(tmp_path / "project.json", tasks)
    found = []
    splits = load_splits(DataConfig(train=file), MOOD, 0, found)
    items = [item for part in splits.values() for item in part]
    assert len(items) == 30
    assert all(set(item.votes["mood"]) == {"1", "2"} for item in items)
    assert any("read as Label Studio" in note for note in found)
    known = read_annotations(file, MOOD)
    assert len(known.items) == 30
    assert {name for item in known.items for name in item.votes["mood"]} == {"1", "2"}


def test_a_table_that_is_read_as_it_is_stays_so(tmp_path):
    """Columns that a recipe names are there: nothing is guessed."""
    rows = [{"instance_id": k, "user_id": "u", "text": f"{TEXTS[k % 6]} {k}", "mood": ("joy", "anger")[k % 2]}
            for k in range(30)]  # fmt: skip
    found = []
    config = DataConfig(
        train=table(tmp_path / "t.csv", rows), item_id="instance_id", annotator="user_id"
    )
    assert sum(map(len, load_splits(config, MOOD, 0, found).values())) == 30
    assert not any("read as" in note for note in found)


def test_what_a_tool_says_never_counts_is_left_out_whoever_names_the_columns(tmp_path):
    """A recipe that names MTurk's own columns trains on no rejected assignment."""
    rows = mturk(*((k % 6, "W1", {"Answer.mood.label": ("joy", "anger")[k % 2], "Input.n": k})
                   for k in range(30)))  # fmt: skip
    for k, row in enumerate(rows):
        row |= {"HITId": f"H{k}", "Input.text": f"{TEXTS[k % 6]} {k}"}
    rows[3] |= {"AssignmentStatus": "Rejected"}
    rows[4] |= {"Reject": "careless"}
    found = []
    config = DataConfig(
        train=table(tmp_path / "batch.csv", rows), item_id="HITId", annotator="WorkerId",
        columns={"text": "Input.text", "mood": "Answer.mood.label"},
    )  # fmt: skip
    splits = load_splits(config, MOOD, 0, found)
    kept = {item.item_id for part in splits.values() for item in part}
    assert kept == {f"H{k}" for k in range(30)} - {"H3", "H4"}
    assert any("2 rows are rejected assignments: left out" in note for note in found)
    assert len(read_export([config.train]).rows) == 28
    for row in rows:
        row["AssignmentStatus"] = "Rejected"
    table(tmp_path / "batch.csv", rows)
    with pytest.raises(DataError, match="30 rows are rejected assignments"):
        load_splits(config, MOOD, 0)


def test_groups_of_an_export(tmp_path):
    tasks = [{**task(k % 6, (1, False, [choice(("joy", "anger")[k % 2])])), "id": k,
              "data": {"text": f"{TEXTS[k % 6]} {k}", "source": "ab"[k % 2]}} for k in range(30)]  # fmt: skip
    file = whole(tmp_path / "project.json", tasks)
    items = read_annotations(file, MOOD, further=["source"])
    assert items.columns["source"][:3] == ["a", "b", "a"]
    known, recipe = (
        Annotations(items.items),
        SimpleNamespace(data=DataConfig(train=file, item_id="id")),
    )
    add_columns(known, recipe, MOOD, ["source"])
    assert known.columns == items.columns


def test_a_recipe_knows_its_questions(tmp_path):
    """Annotators with names of their own: the rubric says which part of a column is the question."""
    rows = [{"item_id": f"i{k}", "text": f"{TEXTS[k % 6]} {k}", "mood_anna": ("joy", "anger")[k % 2],
             "mood_ben": ("joy", "anger")[k % 3 % 2]} for k in range(30)]  # fmt: skip
    notes = []
    splits = load_splits(DataConfig(train=table(tmp_path / "t.csv", rows)), MOOD, 0, notes)
    items = [item for part in splits.values() for item in part]
    assert len(items) == 30
    assert all(set(item.votes["mood"]) == {"anna", "ben"} for item in items)
    assert any("2 annotators (anna, ben), 1 columns each (mood)" in note for note in notes)


# --- the way back ---


def judged(tmp_path):
    rows = [{"item_id": f"i{k}", "text": f"{text} <&\"", "mood": ("joy", "anger", "")[k % 3],
             "mood_confidence": ("0.91", "0.62", "")[k % 3], "outcome": "annotated"}
            for k, text in enumerate(TEXTS)]  # fmt: skip
    return table(tmp_path / "annotated.csv", rows)


def test_predictions_go_to_label_studio_and_come_back(tmp_path):
    output = tmp_path / "tasks.json"
    said = export_predictions(judged(tmp_path), MOOD, "label-studio", output)
    assert said[1] == "left out: 2 rows without a text or a label."
    tasks = json.loads(output.read_text())
    assert len(tasks) == 4
    assert tasks[1]["predictions"] == [{
        "model_version": "m", "score": 0.62,
        "result": [{"from_name": "mood", "to_name": "text", "type": "choices",
                    "value": {"choices": ["anger"]}}],
    }]  # fmt: skip
    interface = ElementTree.parse(output.with_suffix(".xml")).getroot()
    assert [node.get("value") for node in interface.iter("Choice")] == ["joy", "anger"]
    # What people make of it: they accept the predictions.
    done = [{**task, "id": k, "annotations": [{"completed_by": 1, "result": task["predictions"][0]["result"]}]}
            for k, task in enumerate(tasks)]  # fmt: skip
    read = read_export([whole(tmp_path / "done.json", done)])
    assert [(row["item_id"], row["mood"], row["text"]) for row in read.rows] == [
        (task["data"]["item_id"], task["predictions"][0]["result"][0]["value"]["choices"][0],
         task["data"]["text"]) for task in tasks
    ]  # fmt: skip


def test_predictions_go_to_argilla(tmp_path):
    output = tmp_path / "records.json"
    export_predictions(judged(tmp_path), MOOD, "argilla", output)
    record = json.loads(output.read_text())[0]
    assert record["suggestions"] == {"mood": {"value": "joy", "score": 0.91, "agent": "m"}}
    assert (record["id"], record["fields"]) == ("i0", {"text": f'{TEXTS[0]} <&"'})


def test_predictions_that_cannot_go(tmp_path):
    for tool, name, rubric, complaint in (
        ("brat", "o.json", MOOD, "--to is label-studio or argilla"),
        ("argilla", "o.csv", MOOD, "--output is a .json file"),
        (
            "argilla",
            "o.json",
            MOOD.model_copy(update={"fields": ["body"]}),
            "lacks the columns body",
        ),
    ):
        with pytest.raises(DataError, match=complaint):
            export_predictions(judged(tmp_path), rubric, tool, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_the_page_names_every_format():
    page = (ROOT / "docs/import.md").read_text()
    for name, known in FORMATS.items():
        assert f"`{name}`" in page
        assert known.title in page or name == "table"


# --- real data ---


def test_convabuse_as_published(tmp_path):
    source = SHARED / "data/convabuse_raw.csv"
    if not source.exists():
        pytest.skip("the annotations are not beside this checkout")
    said = import_annotations([str(source)], tmp_path / "c.csv", Options(), tmp_path / "c.yaml")
    assert "9,902 rows read: 9,569 annotations of 3,210 items by 8 annotators." in said
    assert "left out: 333 x later annotations of the same item by the same annotator" in said[2]
    rubric = Rubric.from_file(tmp_path / "c.yaml")
    severity = rubric.dimension("is_abuse")
    assert (severity.type, severity.values) == ("score", [-3, -2, -1, 0, 1])
    table_ = pd.read_csv(tmp_path / "c.csv", dtype=str)
    for name, level, alpha in (
        ("is_abuse", "nominal", 0.438), ("is_abuse", "ordinal", 0.657), ("is_abuse", "interval", 0.730),
        ("type_sex_harassment", "nominal", 0.661), ("type_sexist", "nominal", 0.640),
        ("type_intellectual", "nominal", 0.324), ("type_homophobic", "nominal", 0.512),
        ("type_racist", "nominal", 0.666), ("target_system", "nominal", 0.637),
        ("direction_explicit", "nominal", 0.714),
    ):  # fmt: skip
        values = table_[name].map(
            lambda text: (
                {"true": 1.0, "false": 0.0}.get(text) if text in ("true", "false") else float(text)
            )
        )
        units = table_.assign(v=values).pivot(index="annotator_id", columns="item_id", values="v")
        found = krippendorff.alpha(units.to_numpy(), level_of_measurement=level)
        assert round(found, 3) == pytest.approx(alpha, abs=0.0011), name


@pytest.mark.parametrize(
    ("labels", "gone"),
    [
        ({"1": "trifft nicht zu", "2": "eher nicht", "3": "trifft zu"}, []),
        ({"1": "Missing context", "2": "Not appropriate", "3": "fine"}, []),
        ({"1": "comply", "2": "refused", "3": "partly"}, []),  # between the others: an answer
        ({"1": "bad", "2": "good", "9": "refused", "0": "n/a", "8": "Don't know"}, ["9", "0", "8"]),
        ({"9": "keine Angabe"}, ["9"]),
    ],
)
def test_codes_of_no_answer_lie_beyond_the_answers(labels, gone):
    assert _missing(labels, Counter([*labels, "1", "2"])) == gone


def test_questions_that_raters_are_asked_are_no_raters(tmp_path):
    rows = [{"id": k, "text": f"The parcel came {k} times.", "annotator_id": who,
             "rater_valence": 1 + (k + j) % 5, "rater_arousal": 1 + (2 * k + j) % 5}
            for k in range(20) for j, who in enumerate(PEOPLE)]  # fmt: skip
    read = read_export([table(tmp_path / "t.csv", rows)])
    assert {*asked_of(read)} == {"rater_valence", "rater_arousal"}
    assert len(read.rows) == 20 * len(PEOPLE)


def test_an_answer_that_was_revised_fills_nothing(tmp_path):
    rows = answers(["none", "hate"], target=None)
    rows = [row | {"target": "women" if k % 2 else "men"} if row["q"] == "hate" else row
            for k, row in enumerate(rows)]  # fmt: skip
    first = next(row for row in rows if row["q"] == "none")
    read = read_export(
        [table(tmp_path / "t.csv", [*rows, first | {"q": "hate", "target": "women"}])]
    )
    (kept,) = (row for row in read.rows if row["item_id"] == str(first["id"])
               and row["annotator_id"] == first["annotator"])  # fmt: skip
    assert (kept["q"], kept["target"]) == ("none", "")
    assert "taken together" not in notes(read)


def test_a_text_in_two_files_makes_no_annotators_of_them(tmp_path):
    rows = [{"text": f"The parcel came {k} times.", "label": "ab"[k % 2]} for k in range(40)]
    files = [table(tmp_path / "train.csv", rows[:30]), table(tmp_path / "test.csv", rows[29:])]
    assert "names the annotator" not in notes(read_export(files))


def test_codes_with_commas_are_several_answers_where_they_stand_alone_too(tmp_path):
    read = read_export([table(tmp_path / "t.csv", answers(["1", "2", "1,2", "1,3", "2"]))])
    assert {*asked_of(read)} == {"q_1", "q_2", "q_3"}
