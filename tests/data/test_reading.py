"""One way in: what people's files hold becomes items by one rule, and comes back as it came."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm_judge import Rubric
from slm_judge.annotate.job import notes_on
from slm_judge.annotate.rows import AnnotateOptions, PieceAnnotator
from slm_judge.data.importers.read import read_export
from slm_judge.data.importers.roles import Options
from slm_judge.data.item import is_named
from slm_judge.data.predictions import read_predictions
from slm_judge.data.read import read_annotations
from slm_judge.data.split import load_splits
from slm_judge.data.tables import (
    RAW,
    Overview,
    TableStream,
    delimiter,
    file_format,
    read_table,
    typed,
)
from slm_judge.data.text import item_state, read_name, read_text
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError
from slm_judge.recipe import DataConfig
from tests.conftest import ROOT

CASES = ROOT.parent / "shared/cases"
MOOD = Rubric.parse(
    {
        "name": "mood",
        "instructions": "?",
        "fields": ["text"],
        "dimensions": [
            {"name": "mood", "type": "choice", "instructions": "?",
             "options": ["joy", "anger", "sadness", "neutral"]},
            {"name": "strength", "type": "score", "instructions": "?", "options": [1, 2, 3]},
        ],
    },
    "test",
)  # fmt: skip


@pytest.fixture
def cases():
    if not CASES.exists():
        pytest.skip("the cases are not beside this checkout")
    return CASES


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- tables ---


def test_keys_that_appear_late_are_read(tmp_path):
    rows = [{"item_id": k, "text": f"t{k}"} | ({"mood": "joy"} if k >= 11000 else {})
            for k in range(12000)]  # fmt: skip
    location = lines(tmp_path / "t.jsonl", rows)
    assert TableStream(location).overview().columns == ["item_id", "text", "mood"]
    items = read_annotations(location, MOOD).items
    assert sum(bool(item.votes) for item in items) == 1000


def carried(rows, tmp_path, name):
    """Rows of JSON through pieces, with a column of the judge's, into a file."""
    stream = TableStream(lines(tmp_path / "in.jsonl", rows))
    overview = stream.overview()
    pieces = [
        piece.table.append_column("mood", pa.array(["joy"] * piece.table.num_rows))
        for piece in stream.pieces(2)
    ]
    assert write_tables(iter(pieces), tmp_path / name, overview) == len(rows)
    return tmp_path / name


ODD = [
    {"text": "a", "n": 42, "m": {}},
    {"m": {"score": 0.5, "deep": [[1], {"k": None}]}, "text": "b", "n": None},
    {"text": "c", "n": 2**70},
    {"text": "half an emoji \ud83d", "n": 1.5, "late": "2024-01-01"},
]


def test_rows_of_json_come_back_as_they_came(tmp_path):
    out = carried(ODD, tmp_path, "out.jsonl").read_text().splitlines()
    given = (tmp_path / "in.jsonl").read_text().splitlines()
    assert [line.rpartition(", ")[0] + "}" for line in out] == given  # the same text, key by key
    assert all(json.loads(line)["mood"] == "joy" for line in out)


def test_rows_of_json_as_csv_and_as_parquet(tmp_path):
    table = pd.read_csv(carried(ODD, tmp_path, "o.csv"), dtype=str, keep_default_na=False)
    assert list(table.columns) == ["text", "n", "m", "late", "mood"]
    assert list(table.n) == ["42", "", str(2**70), "1.5"]
    assert json.loads(table.m[1]) == ODD[1]["m"]
    table = pq.read_table(carried(ODD, tmp_path, "o.parquet")).to_pydict()
    assert table["n"] == ["42", None, str(2**70), "1.5"]  # no one type: its JSON
    assert json.loads(table["m"][1]) == ODD[1]["m"]
    whole = [{"text": "a", "n": 42}, {"text": "b"}]
    assert pq.read_table(carried(whole, tmp_path, "w.parquet"))["n"].to_pylist() == [42, None]


def test_a_sparse_row_costs_what_it_holds(tmp_path):
    rows = [
        {"text": "t", **{f"k{(500 * r + i) % 20000}": 1 for i in range(50)}} for r in range(200)
    ]
    out = carried(rows, tmp_path, "out.jsonl")
    assert out.stat().st_size < 1.1 * (tmp_path / "in.jsonl").stat().st_size


def test_pieces_of_a_folder_have_the_same_columns(tmp_path):
    stream = TableStream(lines(tmp_path / "t.jsonl", [{"a": 1}, {"a": 2.5}, {"b": "x"}]))
    overview = stream.overview()
    schemas = {str(typed(piece.table, overview).schema) for piece in stream.pieces(1)}
    assert len(schemas) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2"),
        (b"[1]\n", "line 1: expected an object"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "line 1"),
        (b'{"a": "b"}\n{"a": "\xff"}\n', "line 2 is not UTF-8"),
    ],
)
def test_broken_json_lines_name_the_line(tmp_path, content, complaint):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        TableStream(str(tmp_path / "t.jsonl")).overview()


def test_a_file_cut_short_is_a_sentence(tmp_path):
    content = gzip.compress(b"text\n" + b"".join(b"row %d\n" % k for k in range(9999)))
    (tmp_path / "t.csv.gz").write_bytes(content[:-500])
    with pytest.raises(DataError, match="cannot be read as csv"):
        TableStream(str(tmp_path / "t.csv.gz")).overview()


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_delimiters_are_recognised_and_said(tmp_path, mark):
    rows = [mark.join(cells) for cells in (["id", "text"], ["1", "a, b"], ["2", "c"])]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    table = read_table(str(tmp_path / "t.csv"))
    assert table.rows == [{"id": "1", "text": "a, b"}, {"id": "2", "text": "c"}]
    assert "its fields are parted by" in table.notes[0]


def test_commas_stay_commas(tmp_path):
    (tmp_path / "t.csv").write_text('text\n"a; b"\nc; d\n')
    table = read_table(str(tmp_path / "t.csv"))
    assert [row["text"] for row in table.rows] == ["a; b", "c; d"]
    assert not table.notes


def test_a_row_without_text_is_no_header(tmp_path):
    (tmp_path / "t.csv").write_text('text\na\n""\nb\n')
    assert [row["text"] for row in read_table(str(tmp_path / "t.csv")).rows] == ["a", "", "b"]


def test_a_stray_quote_is_refused_where_other_readers_change_the_text(tmp_path, cases):
    quote = cases / "quote.csv"
    assert pd.read_csv(quote).text[0] != 'He said "hello" to me'  # and says nothing
    with pytest.raises(DataError, match=r"quote\.csv cannot be read as csv: line 2"):
        read_table(str(quote))


def test_a_lone_carriage_return_comes_back(tmp_path):
    table = pa.table({"text": ["a\rb", "c\nd", 'e "f", g', ""], "n": ["1", "2", "3", "4"]})
    write_tables(iter([table]), tmp_path / "t.csv", Overview(["text", "n"]))
    assert [row["text"] for row in read_table(str(tmp_path / "t.csv")).rows] == table[
        "text"
    ].to_pylist()


def test_an_empty_file_still_has_its_header(tmp_path):
    table = pa.table({"text": pa.array([], pa.string())})
    write_tables(iter([table, table]), tmp_path / "t.csv", Overview(["text"]))
    assert (tmp_path / "t.csv").read_text() == "text\n"


# --- texts, names, labels ---


@pytest.mark.parametrize(
    ("value", "text", "problem"),
    [
        ("a", "a", ""),
        (42, "42", ""),
        (True, "true", ""),
        (None, "", "missing field: {}"),
        (float("nan"), "", "missing field: {}"),
        (" \n", "", "empty field: {}"),
        (b"a", "", "no text in field: {} holds a bytes"),
        (["a"], "", "no text in field: {} holds a list"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
         "user: hi\nassistant: hello", ""),
    ],
)  # fmt: skip
def test_texts(value, text, problem):
    assert read_text(value) == (text, problem)


@pytest.mark.parametrize("value", [float("nan"), ["a"], b"a", {"a": 1}, None, ""])
def test_the_api_refuses_what_is_no_text(value):
    with pytest.raises(DataError, match="Row 7"):
        item_state(MOOD, {"text": value}, "Row 7")


def test_ids_have_one_form():
    given = ["1", " 1 ", 1, 1.0, np.float64(1), 2**70, "007", None, float("nan"), " "]
    assert [read_name(value) for value in given] == ["1"] * 5 + [str(2**70), "007", "", "", ""]


@pytest.mark.parametrize("value", [["m0"], {"$oid": "m0"}, b"m0"])
def test_what_is_no_name_is_refused_where_it_stands(tmp_path, value):
    """Never a Python repr: an id, an annotator or a label is one plain value."""
    rows = [{"item_id": k, "who": "a", "text": f"text {k} of", "mood": "joy", "strength": 1}
            for k in range(9)]  # fmt: skip
    for column in ("item_id", "who", "mood"):
        odd, location = [*rows, {**rows[0], column: value}], str(tmp_path / f"{column}.parquet")
        odd = [{**row, column: odd[-1][column]} for row in odd]  # which Parquet wants alike
        pq.write_table(pa.Table.from_pylist(odd), location)
        if column == "mood":
            assert f"mood.parquet, row 1: {value!r}" in " ".join(
                read_annotations(location, MOOD).notes
            )
        else:
            with pytest.raises(DataError, match=rf"{column}\.parquet, row 1: {column}: .*m0"):
                read_annotations(location, MOOD, annotator="who")
        if isinstance(value, bytes):
            with pytest.raises(DataError, match=f"the columns {column} hold bytes"):
                read_export([location])
    with pytest.raises(DataError, match=r"item_id\.parquet, row 1: item_id"):
        read_predictions(str(tmp_path / "item_id.parquet"), MOOD, ["0"])
    wrong = lines(tmp_path / "t.jsonl", [rows[0], {**rows[1], "item_id": ["m0"]}])
    with pytest.raises(DataError, match="line 2: item_id holds"):
        read_export([wrong], Options(item="item_id"))


def long(tmp_path, rows, columns="item_id,who,text,mood,strength"):
    (tmp_path / "h.csv").write_text("\n".join([columns, *rows]) + "\n")
    return str(tmp_path / "h.csv")


def test_labels_are_what_they_plainly_mean_and_it_is_said(tmp_path):
    location = long(tmp_path, ["a,x,t,Joy,1.0", "b,x,t, anger ,2", "c,x,t,rage,3"])
    found = read_annotations(location, MOOD, annotator="who")
    assert [item.votes.get("mood") for item in found.items] == [{"x": 0}, {"x": 1}, None]
    notes = " ".join(found.notes)
    assert "mood: read 'Joy' as joy (1 times)" in notes
    assert "strength: read '1.0' as 1 (1 times)" in notes
    assert "left out 1 x labels of mood outside the rubric, e.g. h.csv, line 4: 'rage'" in notes


def test_the_first_label_of_an_annotator_counts_and_it_is_said(tmp_path):
    location = long(tmp_path, ["a,x,t,joy,1", "a,x,t,anger,1", "b,x,t,joy,1"])
    found = read_annotations(location, MOOD, annotator="who")
    assert found.items[0].votes == {"mood": {"x": 0}, "strength": {"x": 0}}
    notes = " ".join(found.notes)
    assert "the same item and annotator twice with different labels (the first one counts)" in notes
    assert "1 labels repeat what the same annotator said" in notes
    with pytest.raises(DataError, match="the same item and annotator twice"):
        load_splits(DataConfig(train=location, annotator="who"), MOOD, 0)


def test_nobody_becomes_somebody(tmp_path):
    location = long(tmp_path, ["a,x,t,joy,1", "a,,t,anger,1", "a,,t,joy,1", "b,x,u,joy,2"])
    votes = read_annotations(location, MOOD, annotator="who").items[0].votes["mood"]
    assert len(votes) == 3
    assert [name for name in votes if is_named(name)] == ["x"]
    found = read_annotations(location, MOOD)
    assert not any(is_named(name) for item in found.items for name in item.votes["mood"])
    location = long(tmp_path, ["a,x,t,joy,1", "a,y,t,anger,1", "b,x,u,joy,2"])
    assert "--annotator who" in " ".join(read_annotations(location, MOOD).notes)


def test_columns_are_of_items_or_of_annotators(tmp_path):
    """`source` is of the items, `gender` of the annotators, `hour` of neither."""
    columns = "item_id,who,text,mood,source,gender,hour"
    rows = ["a,x,t,joy,news,w,1", "a,y,t,anger,,m,2", "b,x,u,joy,blog,w,3", "b,z,u,joy,blog,,3"]
    location, asked = long(tmp_path, rows, columns), ["source", "gender", "hour"]
    found = read_annotations(location, MOOD, annotator="who", further=asked)
    assert found.columns == {"source": ["news", "blog"]}
    assert found.of_annotators == {"gender": {"x": "w", "y": "m"}}
    (note,) = (n for n in found.notes if "not probed" in n)
    assert "hour differs between rows of one item" in note
    assert found.select([1]).of_annotators == found.of_annotators
    nameless = read_annotations(location, MOOD, further=asked)
    assert set(nameless.columns) == {"source"}
    assert sum("nobody named (--annotator): not probed" in note for note in nameless.notes) == 2


def test_a_column_of_annotators_with_items_of_their_own(tmp_path):
    columns = "item_id,who,text,mood,gender,topic"
    rows = ["a,x,t,joy,w,1", "b,x,u,joy,w,2", "c,y,v,joy,m,1", "d,y,w,joy,m,2"]
    found = read_annotations(
        long(tmp_path, rows, columns), MOOD, annotator="who", further=["gender", "topic"]
    )
    assert found.of_annotators == {"gender": {"x": "w", "y": "m"}}
    assert found.columns == {"topic": ["1", "2", "1", "2"]}


def test_groups_of_items_are_read_and_what_differs_is_said(tmp_path):
    columns = "item_id,who,text,mood,author"
    rows = ["a,x,t,joy,ann", "a,y,t,joy,bob", "b,x,u,joy,ann", "c,x,v,joy,"]
    found = read_annotations(long(tmp_path, rows, columns), MOOD, annotator="who", group="author")
    assert [item.group for item in found.items] == ["ann", "ann", "c"]
    assert any("1 rows name another author than their item's first row" in n for n in found.notes)


def test_missing_groups_are_counted_and_no_group_called_na(tmp_path):
    rows = ["a,x,t,joy,ann", "b,x,u,joy,NA", "c,x,v,joy,NA", "d,x,w,anger,"]
    columns = "item_id,who,text,mood,author"
    found = read_annotations(long(tmp_path, rows, columns), MOOD, annotator="who", group="author")
    assert [item.group for item in found.items] == ["ann", "b", "c", "d"]
    notes = " ".join(found.notes)
    assert "author: read 'NA' as a group of one item (2 times), nothing as a group of one" in notes
    assert "'NA' (2 cells) stands for a missing name." in notes


def test_initials_that_mean_nobody_are_told_how_to_be_kept(tmp_path):
    rows = [f"{k},{who},t{k},joy,1" for k in range(3) for who in ("NA", "nadia", "A")]
    found = read_annotations(long(tmp_path, rows), MOOD, annotator="who")
    assert {*found.items[0].votes["mood"]} == {"", "nadia", "A"}
    assert any("or somebody's initials, write it otherwise, e.g. NA_1." in n for n in found.notes)


@pytest.mark.parametrize(
    "nobody", ["", "None", "none", "nan", "NULL", "null", "<NA>", "NA", "N/A", "n/a", "#N/A"]
)
def test_a_missing_annotator_is_no_person_called_none(tmp_path, nobody):
    rows = [
        f"{k},{who},t{k},{mood},1"
        for k in range(6)
        for who, mood in ((nobody, "joy"), (nobody, "anger"))
    ]
    found = read_annotations(long(tmp_path, rows), MOOD, annotator="who")
    votes = [item.votes["mood"] for item in found.items]
    assert all(sorted(row.values()) == [0, 1] for row in votes)  # two annotations, not one person's
    assert not any(is_named(name) for row in votes for name in row)
    said = repr(nobody) if nobody else "nothing"
    assert any(f"who: read {said} as somebody unnamed (12 times)" in note for note in found.notes)


def test_columns_that_look_like_annotators_are_named_but_never_taken(tmp_path):
    def notes(table):
        table.to_csv(tmp_path / "t.csv", index=False)
        found = read_annotations(str(tmp_path / "t.csv"), MOOD)
        assert not any(is_named(name) for item in found.items for name in item.votes["mood"])
        return " ".join(found.notes)

    n = 24
    table = pd.DataFrame({
        "item_id": np.repeat(range(n // 2), 2), "text": "t", "mood": "joy", "strength": 1,
        "person": ["ann", "bob"] * (n // 2), "topic": np.repeat(range(n // 2), 2) % 3,
        "seconds": np.arange(n) + 0.5, "batch": "one",
    })  # fmt: skip
    assert " person may name them: --annotator person." in notes(table)
    assert "may name" not in notes(table.drop(columns="person"))
    wide = table.iloc[::2].assign(source="x", annotator_id=["ann", "bob"] * (n // 4))
    assert " annotator_id may name them" in notes(wide)
    assert "may name" not in notes(wide.drop(columns="annotator_id"))
    # In training too, where rows of one item are an error without it.
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"person may name who annotated: data.annotator"):
        load_splits(DataConfig(train=str(tmp_path / "t.csv")), MOOD, 0)


def test_predictions_are_matched_however_ids_are_written(tmp_path):
    pd.DataFrame({"item_id": [1.0, 2.0], "mood": "joy", "strength": 1}).to_csv(
        tmp_path / "p.csv", index=False
    )
    found = read_predictions(str(tmp_path / "p.csv"), MOOD, ["2", "1", "3"])
    assert found.rows == [0, 1]
    assert any("1.0 is read as 1" in n or "2.0 is read as 2" in n for n in found.notes)
    lines(tmp_path / "p.jsonl", [{"item_id": 1.0, "mood": "joy", "strength": 1}])
    assert read_predictions(str(tmp_path / "p.jsonl"), MOOD, ["1"]).rows == [0]


def test_a_system_says_one_thing_about_an_item(tmp_path):
    row = {"item_id": "a", "mood": "joy", "strength": 1}
    same = lines(tmp_path / "s.jsonl", [row, row])
    assert "1 rows repeat an item" in " ".join(read_predictions(same, MOOD, ["a"]).notes)
    differ = lines(tmp_path / "d.jsonl", [row, row | {"mood": "anger"}])
    with pytest.raises(DataError, match=r"d\.jsonl, line 2: item_id a stands there twice"):
        read_predictions(differ, MOOD, ["a"])


def test_what_a_system_repeats_is_compared_as_it_is_read(tmp_path):
    row = {"item_id": "a", "mood": "joy", "strength": 1, "mood_probabilities": [0.7, 0.1, 0.1, 0.1]}
    same = {**row, "mood": "JOY ", "strength": "1.0", "mood_probabilities": "[0.7, 0.1, 0.1, 0.1]"}
    blank = [{**row, "item_id": " ", "mood": mood} for mood in ("joy", "anger")]
    location = lines(tmp_path / "p.jsonl", [row, same, *blank])
    notes = " ".join(read_predictions(location, MOOD, ["a"]).notes)
    assert "1 rows repeat an item: counted once" in notes
    assert "left out 2 x rows without an item, e.g. p.jsonl, line 3" in notes
    other = lines(tmp_path / "o.jsonl", [row, {**row, "mood_probabilities": [0.6, 0.2, 0.1, 0.1]}])
    with pytest.raises(DataError, match="line 2: item_id a stands there twice with different"):
        read_predictions(other, MOOD, ["a"])
    unreadable = lines(tmp_path / "u.jsonl", [{**row, "mood": ["joy"]}])
    with pytest.raises(DataError, match=r"no label of the rubric .* u.jsonl, line 1: \['joy'\]"):
        read_predictions(unreadable, MOOD, ["a"])


@pytest.mark.parametrize("shares", [[7, 1, 1, 1], [0.5, 0.5], [-0.5, 0.5, 0.5, 0.5], "joy", None])
def test_probabilities_are_probabilities(tmp_path, shares):
    row = {"item_id": "a", "mood": "joy", "strength": 1, "mood_probabilities": [0.4, 0.3, 0.2, 0.1]}
    wrong = row | {"item_id": "b", "mood_probabilities": shares}
    location = lines(tmp_path / "p.jsonl", [row, wrong])
    with pytest.raises(DataError, match="line 2: mood_probabilities must be a list of 4"):
        read_predictions(location, MOOD, ["a", "b"])


# --- the cases ---


@pytest.mark.parametrize(
    ("name", "config", "complaint"),
    [
        ("mixed_jsonl.jsonl", {"annotator": "annotator_id"},
         "labels of strength outside the rubric\n      mixed_jsonl.jsonl, line 4: 'N/A'"),
        ("p_binary.parquet", {}, "holds a bytes"),
        ("multi.csv", {}, "`type: multi`"),
        ("ls_min.json", {}, "slm-judge import"),
    ],
)  # fmt: skip
def test_cases_that_are_refused_say_how_to_go_on(cases, name, config, complaint):
    with pytest.raises(DataError) as error:
        load_splits(DataConfig(train=str(cases / name), **config), MOOD, 0)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "n_items", "note"),
    [
        ("firstrow.jsonl", {"annotator": "annotator_id"}, 30, ""),
        ("noid.csv", {"item_id": None, "test": "noid_test.csv"}, 55, ""),
        ("semi.csv", {}, 40, "parted by semicolons"),
        ("qualtrics.csv", {"item_id": "ResponseId",
                           "columns": {"text": "item", "mood": "Q1", "strength": "Q2"}}, 30,
         "headers of Qualtrics, left out"),
        ("doccano2.jsonl", {"item_id": "id", "columns": {"mood": "label"}}, 30, "read as doccano"),
        ("prodigy.jsonl", {"item_id": "_input_hash", "annotator": "_annotator_id",
                           "columns": {"mood": "accept"}}, 25, "read as Prodigy"),
        ("wide.csv", {}, 20, "a column an annotator: 2 annotators"),
    ],
)  # fmt: skip
def test_cases_that_are_read(cases, name, config, n_items, note):
    given = {k: str(cases / v) if k == "test" else v for k, v in config.items()}
    notes = []
    rubric = MOOD if len(config.get("columns", "...")) != 1 else MOOD.model_copy(
        update={"dimensions": MOOD.dimensions[:1]})  # fmt: skip
    splits = load_splits(DataConfig(train=str(cases / name), **given), rubric, 0, notes)
    assert sum(map(len, splits.values())) == n_items
    assert note in " ".join(notes)
    assert "may name who annotated" not in " ".join(notes) or name == "qualtrics.csv"


def test_cases_of_an_evaluation(cases):
    def votes(name, **options):
        found = read_annotations(str(cases / name), MOOD, **options)
        return [item.votes for item in found.items], " ".join(found.notes)

    plain, _ = votes("e_h.csv", annotator="annotator_id")
    case, notes = votes("e_h_case.csv", annotator="annotator_id")
    assert case == plain
    assert "read 'Anger' as anger" in notes
    first, _ = votes("e_h_first.jsonl", annotator="annotator_id")
    assert {"mood", "strength"} <= set(first[0])
    double, notes = votes("e_h_dup.csv", annotator="annotator_id")
    assert double == plain
    assert "twice with different labels" in notes
    ids = [f"m{k}" for k in range(40)]
    spaced = read_predictions(str(cases / "e_p_space.csv"), MOOD, ids)
    assert len(spaced.rows) == 40
    assert "have spaces around them: trimmed" in " ".join(spaced.notes)
    for name, complaint in (
        ("e_p_dup.csv", "stands there twice"),
        ("e_p_prob_bad.jsonl", "line 1"),
    ):
        with pytest.raises(DataError, match=complaint):
            read_predictions(str(cases / name), MOOD, ids)


@pytest.mark.parametrize("name", ["o.csv", "o.parquet", "o.tsv.gz"])
def test_half_an_emoji_anywhere_is_replaced_and_said(tmp_path, name):
    """As a key, in what is nested, in an id: UTF-8 cannot hold it, so nothing could be written."""
    rows = [{"item_id": "a\ud83d", "text": "t", "k\ud83d": 1, "m": {"a": ["\ud83d", "\U0001f600"]}}]
    read = read_table(str(carried(rows, tmp_path, name)))
    assert read.columns == ["item_id", "text", "k\ufffd", "m", "mood"]
    assert read.rows[0]["item_id"] == "a\ufffd"
    assert json.loads(read.rows[0]["m"]) == {"a": ["\ufffd", "\U0001f600"]}
    (note,) = read_table(str(tmp_path / "in.jsonl")).notes
    assert "3 texts or keys hold half an emoji (a lone surrogate): read as U+FFFD" in note
    with pytest.raises(DataError, match="line 1: an object has the key 'k\ufffd' 2 times"):
        read_table(lines(tmp_path / "twice.jsonl", [{"k\ud83d": 1, f"k{chr(0xFFFD)}": 2}]))


def test_large_whole_numbers_beside_others_are_kept_exactly(tmp_path):
    rows = [{"n": 2**53 + 1, "w": 2**60}, {"n": 0.5, "w": 1}]
    table = pq.read_table(carried(rows, tmp_path, "o.parquet"))
    assert table["n"].to_pylist() == [str(2**53 + 1), "0.5"]
    assert table["w"].to_pylist() == [2**60, 1]
    overview = TableStream(str(tmp_path / "in.jsonl")).overview()
    assert notes_on(overview, "o.parquet") == [
        "o.parquet: n hold lists, objects or mixed types, written as JSON texts."
    ]


def test_the_text_of_a_row_of_json_is_no_column_of_anybody(tmp_path):
    for header in ("a row of JSON,text", ",text", "text,"):
        (tmp_path / "t.csv").write_text(f"{header}\nx,y\n")
        assert read_table(str(tmp_path / "t.csv")).rows == [
            dict(zip(header.split(","), "xy", strict=True))
        ]
        judge = SimpleNamespace(rubric=MOOD, exact=False)  # no column of the judge's is in the way
        PieceAnnotator(judge, AnnotateOptions()).check(header.split(","), "t.csv")
    (tmp_path / "t.csv").write_text(f"{RAW},text\nx,y\n")
    with pytest.raises(DataError, match="no column can be called"):
        read_table(str(tmp_path / "t.csv"))


def test_the_last_suffix_is_the_format():
    given = ["o.TSV", "x.tsv.csv", "x.csv.tsv.GZ", "x.CSV.gz", "tsv"]
    assert [delimiter(Path(name)) for name in given] == ["\t", ",", "\t", ",", ","]
    assert [file_format(Path(name)) for name in given] == ["csv"] * 4 + [None]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-be", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_an_encoding_that_is_not_read_is_named(tmp_path, encoding, name):
    (tmp_path / name).write_bytes("item_id,text\n1,Great help\n".encode(encoding))
    with pytest.raises(DataError, match="is UTF-32, or UTF-16 without its mark; save it as UTF-8"):
        read_table(str(tmp_path / name))


def test_the_first_line_of_excel_names_the_delimiter(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\nitem_id;text\n1;Thanks, a lot, x\n")
    read = read_table(str(tmp_path / "t.csv"))
    assert read.rows == [{"item_id": "1", "text": "Thanks, a lot, x"}]
    assert read.lines == [3]
    assert "line 1 names the delimiter, sep=;" in read.notes[0]


def test_a_blank_line_of_one_column_is_said_and_never_written(tmp_path):
    (tmp_path / "t.csv").write_text("text\na\n\nb\n")
    read = read_table(str(tmp_path / "t.csv"))
    assert len(read.rows) == 2
    assert "1 blank lines are left out, the first is line 3" in read.notes[0]
    table = pa.table({"text": ["a", "", "b"]})
    write_tables(iter([table]), tmp_path / "o.csv", Overview(["text"]))
    assert [row["text"] for row in read_table(str(tmp_path / "o.csv")).rows] == ["a", "", "b"]
