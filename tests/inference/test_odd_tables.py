"""Tables that people have, and figures that would mislead: said, refused, or with a width."""

import json

import numpy as np
import pandas as pd
import pytest

from slm_judge import Rubric
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.parts import all_parts
from slm_judge.agreement.scores import icc, icc_parts
from slm_judge.data.item import Item
from slm_judge.errors import DataError, RubricError
from slm_judge.evaluation.dimension import Settings
from slm_judge.evaluation.estimate import Drawing, estimate
from slm_judge.evaluation.evaluate import evaluate, of_files
from slm_judge.evaluation.plan import _of_pilot
from slm_judge.evaluation.select import Choice, select
from slm_judge.recipe import public_settings

KIND = {"name": "kind", "type": "choice", "instructions": "k", "options": ["a", "b", "c"]}
GRADE = {"name": "grade", "type": "score", "instructions": "g", "options": [1, 2, 3, 4]}
FEW = Settings(resamples=200)


def rubric_of(*dimensions):
    raw = {"name": "r", "instructions": "i", "fields": ["text"], "dimensions": dimensions}
    return Rubric.parse(raw, "here")


def table(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


def humans(n=30, **changes):
    """Two annotators of each item, who agree."""
    return [
        {"item_id": f"i{k}", "text": f"text {k}", "who": who, "kind": "abc"[k % 3],
         "grade": k % 4 + 1} | {name: of(k) for name, of in changes.items()}
        for k in range(n) for who in ("x", "y")
    ]  # fmt: skip


def judged(n=30, **changes):
    return [{"item_id": f"i{k}", "kind": "abc"[k % 3], "grade": k % 4 + 1}
            | {name: of(k) for name, of in changes.items()} for k in range(n)]  # fmt: skip


def report(tmp_path, said, answers, *dimensions):
    files = table(tmp_path / "h.csv", said), table(tmp_path / "p.csv", answers)
    rubric = rubric_of(*(dimensions or (KIND, GRADE)))
    read = of_files({"m": files[1]}, files[0], rubric, annotator="who", settings=FEW)
    return evaluate(read), " ".join(read.annotations.notes)


def test_two_texts_of_one_name_are_told(tmp_path):
    said = humans() + [row | {"text": f"another {row['text']}"} for row in humans()]
    _, notes = report(tmp_path, said, judged())
    assert "h.csv: 60 rows have another text than the first row with the same item_id" in notes
    assert "have another text" not in report(tmp_path, humans(), judged())[1]


def test_a_label_that_is_missing_is_told_for_all_questions(tmp_path):
    found, notes = report(tmp_path, humans(), judged(kind=lambda k: "" if k < 12 else "abc"[k % 3]))
    assert found["dimensions"]["grade"]["items"] == 18
    assert "12 items lack a label of some question: left out of all" in notes


@pytest.mark.parametrize("reverse", [False, True])
def test_probabilities_in_another_order_are_told(tmp_path, reverse):
    def shares(k):
        found = [0.8 if option == k % 3 else 0.1 for option in range(3)]
        return json.dumps(found[::-1] if reverse else found)

    _, notes = report(tmp_path, humans(), judged(kind_probabilities=shares))
    told = "20 of 30 labels of kind are not its most probable option"  # the middle one is
    assert (told in notes) == reverse


def test_a_ratio_has_no_level_below_0():
    levels = {"options": [-1, 0, 1, 2], "level_of_measurement": "ratio"}
    with pytest.raises(RubricError, match="ratios are not below 0"):
        rubric_of(GRADE | levels)
    rubric_of(GRADE | levels | {"options": [0, 1, 2]})
    rubric_of(GRADE | levels | {"level_of_measurement": "interval"})


def test_nothing_is_sure_where_nobody_erred(tmp_path):
    found, _ = report(tmp_path, humans(), judged())
    of = found["dimensions"]["grade"]
    for one in (of["humans"]["aggregate"]["alpha"], of["humans"]["alpha"],
                of["systems"]["m"]["alpha_as_one_more"], of["systems"]["m"]["alpha"]):  # fmt: skip
        assert (one["estimate"], one["high"]) == (1, 1)
        assert one["low"] < 0.99
    assert all(one["alpha"]["low"] < 0.99 for one in of["by_annotator"])
    rubric, notes = rubric_of(GRADE), []
    items = [Item(f"{k}", {"text": "t"}, {"grade": {"x": k % 4, "y": k % 4}}, f"{k}")
             for k in range(30)]  # fmt: skip
    _of_pilot(next(iter(all_parts(rubric.dimensions))), items, notes)
    assert float(notes[0].split("[")[1].split(",")[0]) < 0.95


def test_icc_knows_no_origin_of_a_scale():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 7, 400)
    votes = [[int(np.clip(t + rng.integers(-1, 2), 0, 6)) for _ in range(2)] for t in truth]
    found = [icc(Bootstrap(400, 300).totals(icc_parts(votes, np.arange(7.0) + origin)))
             for origin in (0, 2015, 1e5)]  # fmt: skip
    for one in found[1:]:
        assert one == pytest.approx(found[0], abs=1e-4)
    assert np.ptp(found[0]) > 0.01


def test_what_tables_write_for_no_group_is_none(tmp_path):
    corpus = table(tmp_path / "c.csv", [
        {"item_id": f"i{k}", "text": f"text {k}", "kind": "abc"[k % 3], "kind_confidence": 0.9,
         "talk": "NA" if k % 2 else f"t{k // 10}"} for k in range(60)])  # fmt: skip
    said = table(tmp_path / "h.csv", humans(20))
    drawing = Drawing(annotator="who", group="talk")
    with pytest.raises(DataError, match="talk is not given of 30 of 60 items"):
        estimate(corpus, said, rubric_of(KIND), drawing)


def test_ids_that_are_spelled_otherwise_are_annotated_all_the_same(tmp_path):
    pool = table(tmp_path / "pool.csv", [{"item_id": k, "text": f"text {k}"} for k in range(20)])
    done = table(tmp_path / "done.csv", [{"item_id": f"{k}.0"} for k in range(15)])
    choice = Choice(5, 1.0, annotated=[done])
    notes = select(pool, str(tmp_path / "next.csv"), rubric_of(KIND), choice)
    assert "15 rows cannot be drawn: annotated already, by its name." in notes
    assert sorted(pd.read_csv(tmp_path / "next.csv")["item_id"]) == [*range(15, 20)]


@pytest.mark.parametrize(
    ("train", "shown"),
    [
        ("https://alice:s3cret@host.example/data/x.csv?key=1", "x.csv"),
        ("file:///home/alice/x.csv", "x.csv"),
        ("/home/alice/x.csv", "x.csv"),
        ("~/x.csv", "x.csv"),
        ("alice/data", "alice/data"),
    ],
)
def test_a_card_says_neither_passwords_nor_folders(train, shown):
    settings = {"data": {"train": train}, "card": {"license": "see https://a.example/license"}}
    assert public_settings(settings) == settings | {"data": {"train": shown}}
