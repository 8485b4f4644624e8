import json

import pandas as pd
import pytest

from slm_judge import Rubric
from slm_judge.data.item import load_split, save_splits
from slm_judge.data.split import load_splits
from slm_judge.errors import DataError
from slm_judge.recipe import DataConfig
from tests.conftest import ROOT

RUBRIC = Rubric.parse(
    {
        "name": "r",
        "instructions": "?",
        "fields": ["text"],
        "dimensions": [
            {"name": "clarity", "type": "score", "instructions": "?", "options": [-1, 0, 1]},
            {"name": "spam", "type": "noul", "instructions": "?"},
        ],
    },
    "test",
)


def wide(n=40, **columns):
    return pd.DataFrame(
        {
            "item_id": [f"i{k}" for k in range(n)],
            "text": [f"text number {k}" for k in range(n)],
            "clarity": [k % 3 - 1 for k in range(n)],
            "spam": [k % 2 == 0 for k in range(n)],
        }
        | columns
    )


def load(table, path, **config):
    writers = {".csv": "to_csv", ".parquet": "to_parquet", ".jsonl": "to_json", ".gz": "to_csv"}
    options = {"orient": "records", "lines": True} if path.suffix == ".jsonl" else {"index": False}
    getattr(table, writers[path.suffix])(path, **options)
    return load_splits(DataConfig(train=str(path), **config), RUBRIC, seed=0)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.jsonl", "d.csv.gz"])
def test_every_format_gives_the_same_items(tmp_path, name):
    splits = load(wide(), tmp_path / name)
    assert {k: len(v) for k, v in splits.items()} == {"train": 28, "validation": 6, "test": 6}
    items = {item.item_id: item for part in splits.values() for item in part}
    assert items["i4"].votes == {"clarity": {"": 1}, "spam": {"": 1}}
    assert items["i4"].state == {"text": "text number 4"}


def test_texts_that_look_like_missing_values_stay_texts(tmp_path):
    splits = load(
        wide(text=["NA", "null", "007"] + [f"t{k}" for k in range(37)]), tmp_path / "d.csv"
    )
    texts = {item.state["text"] for part in splits.values() for item in part}
    assert {"NA", "null", "007"} <= texts


def test_right_answers_are_looked_at_before_training(tmp_path):
    """Those of some test items are enough, which is said; a file that none is read from is not."""
    data, gold = wide(), tmp_path / "gold.csv"
    ids = [item.item_id for item in load(data, tmp_path / "d.csv")["test"]]

    def notes(table):
        table.to_csv(gold, index=False)
        found = []
        config = DataConfig(train=str(tmp_path / "d.csv"), gold=str(gold))
        load_splits(config, RUBRIC, seed=0, notes=found)
        return " ".join(found)

    right = data[data.item_id.isin(ids)]
    assert "lacks" not in notes(right)
    assert "data.gold: " in notes(right[:2])
    assert "lacks 4 of 6 items" in notes(right[:2])
    for wrong in (
        right.assign(clarity="x", spam="y"),
        right.assign(item_id=right.item_id + "\u200b"),
        right.drop(columns="spam"),
    ):
        with pytest.raises(DataError, match=r"^data\.gold: "):
            notes(wrong)
    with pytest.raises(DataError, match=r"\\u200b"):  # what cannot be seen is escaped
        notes(right.assign(item_id=right.item_id + "\u200b"))
    gold.unlink()
    with pytest.raises(DataError, match=r"^data\.gold: "):
        load(data, tmp_path / "d.csv", gold=str(gold))


def test_long_layout_collects_votes(tmp_path):
    spam = [""] + [str(k % 2 == 0) for k in range(1, 40)]
    table = pd.concat([wide(spam=spam).assign(who=who) for who in ("ann", "bob")])
    table.loc[table.who == "bob", "clarity"] = 0
    splits = load(table, tmp_path / "d.csv", annotator="who")
    items = {item.item_id: item for part in splits.values() for item in part}
    assert items["i0"].votes["clarity"] == {"ann": 0, "bob": 1}
    assert "spam" not in items["i0"].votes  # nobody answered
    assert items["i1"].votes["spam"] == {"ann": 0, "bob": 0}


def test_splits_are_seeded_and_by_group(tmp_path):
    table = wide(author=[f"a{k // 4}" for k in range(40)])
    first = load(table, tmp_path / "d.csv", group="author")
    assert first == load(table, tmp_path / "d.csv", group="author")
    owners = [{item.group for item in part} for part in first.values()]
    assert sum(len(o) for o in owners) == len(set().union(*owners)) == 10
    other = load_splits(DataConfig(train=str(tmp_path / "d.csv"), group="author"), RUBRIC, seed=1)
    assert other != first


def test_equal_texts_stay_in_one_split(tmp_path):
    splits = load(wide(text=[f"same {k // 5}" for k in range(40)]), tmp_path / "d.csv")
    texts = [{item.state["text"] for item in part} for part in splits.values()]
    assert sum(len(t) for t in texts) == len(set().union(*texts)) == 8


def test_all_problems_come_in_one_report(tmp_path):
    table = pd.concat(
        [
            wide(text=["", "  "] + [f"t{k}" for k in range(38)], clarity=[7, 8, 9, "x"] + [0] * 36),
            wide(1, text=["t0"], clarity=[0], spam=[False]),
        ]
    ).assign(who="ann")
    with pytest.raises(DataError) as error:
        load(table, tmp_path / "d.csv", annotator="who")
    message = str(error.value)
    assert "2 x rows with empty field: text" in message
    assert "4 x labels of clarity outside the rubric" in message
    assert "d.csv, line 4: '9'" in message
    assert "line 5:" not in message  # three examples a kind
    assert "1 x the same item and annotator twice with different labels" in message
    assert "1 x the same item_id with different texts" in message
    assert "clarity: only 0" in message


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"columns": {"text": "body"}}, "missing columns\n      train: body (it has item_id, text"),
        ({"columns": {"tone": "clarity"}}, "the rubric does not know\n      tone"),
        ({"annotator": "who"}, "train: who"),
    ],
)
def test_wrong_columns(tmp_path, config, complaint):
    with pytest.raises(DataError) as error:
        load(wide(), tmp_path / "d.csv", **config)
    assert complaint in str(error.value)


def test_leaks_between_given_splits(tmp_path):
    table = wide().iloc[:3].assign(item_id=["x", "y", "z"])
    table["text"] = " " + table["text"].str.replace(" ", "  ") + "\n"
    table.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match="3 x the same text in two splits"):
        load(wide(), tmp_path / "d.csv", test=str(tmp_path / "test.csv"))
    splits = load(wide(), tmp_path / "d.csv", test=str(tmp_path / "test.csv"), drop_leaks=True)
    assert len(splits["test"]) == 3
    assert sum(map(len, splits.values())) == 40


def test_columns_can_be_renamed_and_ids_left_out(tmp_path):
    table = wide().rename(columns={"text": "body", "spam": "is_spam"}).drop(columns="item_id")
    columns = {"text": "body", "spam": "is_spam"}
    splits = load(table, tmp_path / "d.csv", item_id=None, columns=columns)
    assert sum(map(len, splits.values())) == 40


def test_splits_survive_the_run_folder(tmp_path):
    splits = load(wide(text=["漢字 \u2028 😀"] + [f"t{k}" for k in range(39)]), tmp_path / "d.csv")
    save_splits(splits, tmp_path / "data")
    assert {name: load_split(tmp_path / "data", name) for name in splits} == splits


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("d.csv", "", "empty file"),
        ("d.csv", "a,a\n1,2\n", "repeated columns a"),
        ("d.csv", "a,b\n", "d.csv has no rows"),
        ("d.csv", "a,b\n1,2,3,4\n", "cannot be read as csv"),
        ("d.csv", "a,b\n\"1,2\n", "cannot be read as csv: line 2"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', "cannot be read as json"),
        ("d.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "line 2: an object has the key 'a' 2"),
        ("d.parquet", "not parquet", "cannot be read as parquet"),
        ("d.xlsx", "", "cannot be read as Excel"),
        ("d.pdf", "", "is neither .csv"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path, name, content, complaint):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=complaint):
        load_splits(DataConfig(train=str(tmp_path / name)), RUBRIC, seed=0)


def test_popquorn_is_read_as_long_data():
    path = ROOT.parent / "shared/data/popquorn_offensiveness.csv"
    if not path.exists():
        pytest.skip("the POPQUORN annotations are not beside this checkout")
    rubric = Rubric.from_file(ROOT / "rubrics/offensiveness.yaml")
    config = DataConfig(train=str(path), annotator="annotator_id")
    try:
        splits = load_splits(config, rubric, seed=0)
    except DataError as error:
        pytest.fail(str(error))
    items = [item for part in splits.values() for item in part]
    assert len(items) == 1200
    assert json.dumps(items[0].votes).count(",") >= 4
