"""Labels as people write them: one rule for whatever reads them, and a line that says so."""

import json

import pandas as pd
import pytest

from slm_judge import Rubric
from slm_judge.cli import main
from slm_judge.data.importers.roles import Options
from slm_judge.data.importing import draft_rubric, import_annotations
from slm_judge.data.predictions import read_predictions
from slm_judge.data.read import Findings, read_annotations
from slm_judge.data.split import load_splits
from slm_judge.errors import DataError, RubricError
from slm_judge.evaluation.baselines import labels_of
from slm_judge.evaluation.estimate import Drawing, Known
from slm_judge.evaluation.openai import read_answer
from slm_judge.recipe import DataConfig

TENS = list(range(5, 100, 10))
RUBRIC = Rubric.parse(
    {
        "name": "r", "instructions": "?", "fields": ["text"],
        "dimensions": [
            {"name": "agree", "type": "score", "instructions": "?",
             "options": {1: "not at all", 1.5: "", 2: "somewhat", 2.5: "", 3: "fully"}},
            {"name": "heat", "type": "score", "instructions": "?", "options": TENS,
             "range": [0, 100]},
            {"name": "rude", "type": "noul", "instructions": "?"},
            {"name": "polite", "type": "choice", "instructions": "?", "options": ["yes", "no"]},
        ],
    },
    "test",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "raw", "key"),
    [
        ("agree", "1.50", "1.5"), ("agree", 3.0, "3"), ("agree", "3.0", "3"), ("agree", " 2 ", "2"),
        ("agree", "Not at  all", "1"), ("agree", "2 - somewhat", "2"), ("agree", "3 (Fully)", "3"),
        ("agree", "2: SOMEWHAT", "2"), ("agree", "1 = not at all", "1"), ("agree", "3. fully", "3"),
        ("agree", "3 - somewhat", None), ("agree", "2.2", None), ("agree", "1,5", None),
        ("agree", "\u0663", "3"), ("agree", "", None),
        ("heat", "0", "5"), ("heat", 9.99, "5"), ("heat", 10, "15"), ("heat", "50", "55"),
        ("heat", "100", "95"), ("heat", "95.0", "95"), ("heat", 101, None), ("heat", -1, None),
        ("heat", float("nan"), None), ("heat", "hot", None),
        ("polite", "TRUE", "yes"), ("polite", 0, "no"), ("polite", "N", "no"), ("polite", 2, None),
        ("rude", "1.0", "true"), ("rude", "No ", "false"),
    ],
)  # fmt: skip
def test_a_label_is_what_it_plainly_means(name, raw, key):
    dimension = RUBRIC.dimension(name)
    found = dimension.index(raw)
    assert (None if found is None else dimension.key(found)) == key


def test_a_description_that_is_also_a_key_is_the_key():
    raw = {"name": "d", "type": "score", "instructions": "?", "options": {1: "2", 2: "1", 3: "x"}}
    swapped = Rubric.parse(RUBRIC.model_dump() | {"dimensions": [raw]}, "test").dimensions[0]
    assert [swapped.index(label) for label in ("1", "2", "x", "1 (2)")] == [0, 1, 2, 0]
    alike = raw | {"options": {1: "so", 2: "So", 3: ""}}
    alike = Rubric.parse(RUBRIC.model_dump() | {"dimensions": [alike]}, "test").dimensions[0]
    assert [alike.index(label) for label in ("so", "1 so", "2 so")] == [None, 0, 1]


def test_a_slider_is_told_and_kept():
    assert "heat: reads numbers from 0 to 100 as the nearest level, of two the higher" in " ".join(
        RUBRIC.warnings()
    )
    assert Rubric.from_json(RUBRIC.to_json()) == RUBRIC
    assert "range" not in json.loads(RUBRIC.to_json())["dimensions"][0]
    one = {"name": "d", "type": "score", "instructions": "?", "options": TENS, "range": [0, 10]}
    with pytest.raises(RubricError, match="at least two levels in its range"):
        Rubric.parse(RUBRIC.model_dump() | {"dimensions": [one]}, "test")


ROWS = [{"item_id": f"i{k}", "text": f"text {k}", "agree": ("Fully", "2.0", "1")[k % 3],
         "heat": 3 * k, "rude": ("Yes", "0")[k % 2], "polite": ("FALSE", "yes")[k % 2]}
        for k in range(30)]  # fmt: skip
SAID = (
    "agree: read 'Fully' as 3 (10 times), '2.0' as 2 (10 times).",
    "heat: read numbers from 0 to 100 as the nearest level, of two the higher (27 times).",
    "rude: read 'Yes' as true (15 times), '0' as false (15 times).",
    "polite: read 'FALSE' as no (15 times).",
)


def test_every_reader_reads_alike_and_says_it(tmp_path):
    file = str(tmp_path / "t.csv")
    pd.DataFrame(ROWS).to_csv(file, index=False)
    notes: dict[str, list[str]] = {name: [] for name in ("recipe", "baselines")}
    splits = load_splits(DataConfig(train=file), RUBRIC, 0, notes["recipe"])
    votes = {item.item_id: item.votes for part in splits.values() for item in part}
    items = next(iter(splits.values()))
    known = read_annotations(file, RUBRIC)
    notes["evaluate"] = known.notes
    ids = [item.item_id for item in known.items]
    system = read_predictions(file, RUBRIC, ids)
    notes["predictions"] = system.notes
    labels_of(file, RUBRIC, known.items, notes["baselines"])
    corpus = Known.read(file, file, RUBRIC, Drawing())
    judged = {d.name: corpus.labels("", d) for d in RUBRIC.dimensions}
    notes["estimate"] = corpus.notes
    for k, item in enumerate(known.items):
        for d in RUBRIC.dimensions:
            found = {item.votes[d.name][""], votes[item.item_id][d.name][""],
                     int(system.answers[d.name].labels[k]), judged[d.name][item.item_id]}  # fmt: skip
            assert found == {d.index(ROWS[k][d.name])}
    assert items
    for where, said in notes.items():
        for line in SAID:
            assert line in " ".join(said), where
    answer = read_answer(RUBRIC, json.dumps(ROWS[4], default=str))
    assert answer == {d.name: d.index(ROWS[4][d.name]) for d in RUBRIC.dimensions}


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("2.2", r"with `range: \[1, 3\]` in the rubric it would be read as the nearest level"),
        ("1,5", "a decimal comma"),
        ("4", "the rubric has 1, 1.5, 2, 2.5, 3"),
    ],
)
def test_what_is_not_plain_is_refused_with_a_reason(tmp_path, label, why):
    rows = [*ROWS[:-1], ROWS[-1] | {"agree": label}]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=rf"t\.csv, line 31: '{label}' .*{why}"):
        load_splits(DataConfig(train=str(tmp_path / "t.csv")), RUBRIC, 0)


def test_two_options_that_differ_in_case_alone():
    both = {"name": "d", "type": "choice", "instructions": "?", "options": ["US", "us", "uk"]}
    choice = Rubric.parse(RUBRIC.model_dump() | {"dimensions": [both]}, "test").dimensions[0]
    findings = Findings()
    assert [findings.read(choice, raw) for raw in ("US", "us", "Us", "UK")] == [0, 1, None, 2]
    assert choice.why_not("Us") == "it may be US or us, which differ in nothing else"
    assert findings.said("t") == ["t: d: read 'UK' as uk (1 times)."]


# --- drafts ---


TEXTS = [f"The parcel number {k} came late and its box was open." for k in range(30)]


def drafted(tmp_path, rows, **options):
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    text, said = draft_rubric([str(tmp_path / "t.csv")], Options(**options), tmp_path / "d.yaml")
    assert text == (tmp_path / "d.yaml").read_text()
    questions = " ".join(text.replace("#", " ").split())
    return Rubric.from_file(tmp_path / "d.yaml"), questions, " ".join(said)


def test_a_draft_reads_numbers_and_spellings_as_labels_are_read(tmp_path):
    rows = [{"id": k, "text": TEXTS[k // 2], "rater": "ab"[k % 2],
             "mood": ["Joy", "joy ", "anger", "joy"][k % 4], "half": (k % 4) / 2 + 1,
             "slider": (37 * k) % 101, "mean": 1 + (k * 0.37) % 4, "sure": ["Yes", "no", "TRUE", 0, 1.0][k % 5],
             "level": ["1", "2", "N/A", "4"][k % 4]} for k in range(60)]  # fmt: skip
    rubric, questions, said = drafted(tmp_path, rows)
    kinds = {d.name: (d.type, len(d.options), getattr(d, "range", None)) for d in rubric.dimensions}
    assert kinds == {
        "mood": ("choice", 2, None), "half": ("score", 4, None), "slider": ("score", 10, (0, 100)),
        "mean": ("score", 5, (1, 5)), "sure": ("noul", 2, None), "level": ("score", 4, None),
    }  # fmt: skip
    assert rubric.dimension("mood").values == ["anger", "joy"]
    assert "Read 'Joy' as joy (15 times). Are they the same?" in questions
    assert "Guessed: a slider from 0 to 100, 60 different numbers" in questions
    assert "Nobody chose 3" in questions
    for line in ("mood: read 'Joy' as joy (15 times)", "15 x N/A in level, read as no answer",
                 "'Yes' as true (12 times)", "'1.0' as true (12 times)"):  # fmt: skip
        assert line in said
    import_annotations([str(tmp_path / "t.csv")], tmp_path / "o.csv", Options())
    items = read_annotations(str(tmp_path / "o.csv"), rubric, annotator="annotator_id").items
    assert sum(len(item.votes["slider"]) for item in items) == 60
    assert {option for item in items for option in item.votes["sure"].values()} == {0, 1}


SHAPES = {
    "wide": [{"id": k, "text": TEXTS[k], "mood": ("joy", "anger")[k % 2]} for k in range(30)],
    "onehot": [{"id": k, "text": TEXTS[k], "mood.joy": k % 2, "mood.anger": 1 - k % 2}
               for k in range(30)],
    "annotators": [{"id": k, "text": TEXTS[k], "mood_ann1": ("joy", "anger")[k % 2],
                    "mood_ann2": ("joy", "anger")[k % 3 % 2]} for k in range(30)],
    "shares": [{"id": k, "text": TEXTS[k], "mood.joy": k % 3 / 2, "mood.anger": 1 - k % 3 / 2}
               for k in range(30)],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_of_any_shape(tmp_path, shape):
    rubric, questions, _ = drafted(tmp_path, SHAPES[shape])
    assert rubric.fields == ["text"]
    assert [(d.name, d.type, set(d.values)) for d in rubric.dimensions] == [
        ("mood", "choice", {"joy", "anger"})
    ]
    assert "? What were the annotators told about the task as a whole?" in questions


def test_the_draft_that_import_writes_is_the_same(tmp_path):
    drafted(tmp_path, SHAPES["wide"])
    import_annotations(
        [str(tmp_path / "t.csv")], tmp_path / "d.csv", Options(), tmp_path / "again.yaml"
    )
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "d.yaml").read_text()
    with pytest.raises(
        DataError, match=r"exists\. Name another file, or replace it with --overwrite"
    ):
        draft_rubric([str(tmp_path / "t.csv")], Options(), tmp_path / "d.yaml")
    with pytest.raises(DataError, match="There is no file"):
        draft_rubric([str(tmp_path / "none.csv")], Options())


def test_the_draft_on_a_screen_is_a_rubric(tmp_path, monkeypatch, capsys):
    pd.DataFrame(SHAPES["wide"]).to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr("sys.argv", ["slm-judge", "rubric", "draft", str(tmp_path / "t.csv")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    shown = capsys.readouterr()
    (tmp_path / "shown.yaml").write_text(shown.out)
    assert Rubric.from_file(tmp_path / "shown.yaml").name == "t"
    assert "30 rows read" in shown.err
