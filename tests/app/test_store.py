"""The store: nothing that was confirmed is lost, and every answer says what it answers."""

import json
import sqlite3
import subprocess
import sys
from collections import Counter

import pytest
from rich.console import Console

from slm_judge.app.app import Settings, prepare
from slm_judge.app.items import TABLE, draw, read_items
from slm_judge.app.judging import Judges, Named
from slm_judge.app.standing import disagreements, export, long_table, standing, votes
from slm_judge.app.store import Judged, Store, Task
from slm_judge.data.read import Columns, Findings, read_annotations
from slm_judge.data.read import read_items as read_strictly
from slm_judge.data.tables import read_table
from slm_judge.errors import DataError
from slm_judge.evaluation.estimate import Drawing, estimate
from slm_judge.rubric import Rubric
from tests.conftest import LIMIT, ROOT

ALL = {"urgency": "3", "topic": "billing", "refund": "true"}

# Forks writers that say on a pipe what was confirmed, and kills each of them, while another one
# writes on. Prints what was confirmed, killed and surviving.
WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from slm_judge.app.store import Store
from slm_judge.rubric import Rubric

store = Store(Path(sys.argv[1]), Rubric.from_file(sys.argv[2]))
store.add_items({str(n): {"text": f"text {n}"} for n in range(40)}, {})

def writer(name, most):
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, os.fdopen(reading)
    for n in range(most):
        store.answer(str(n % 40), name, "topic", random.choice(["billing", "praise"]), n)
        os.write(writing, f"{name} {n}\\n".encode())
    os._exit(0)

rng = random.Random(0)
steady, said = writer("steady", 60)
for kill in range(100):
    pid, told = writer(f"killed {kill}", 10_000)
    lines = [told.readline() for _ in range(rng.randint(1, 2))]
    time.sleep(rng.uniform(0, 0.003))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    sys.stdout.writelines(lines + told.readlines())
sys.stdout.writelines(said.readlines())
os.waitpid(steady, 0)
"""


def test_killed_100_times_beside_another_writer(tmp_path):
    path, rubric = tmp_path / "annotations.db", ROOT / "rubrics" / "support-messages.yaml"
    command = [sys.executable, "-c", WRITERS, path, rubric]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
    confirmed = ended.stdout.splitlines()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        kept = db.execute(
            "SELECT annotator, CAST(seconds AS INTEGER), at, rubric FROM answer"
        ).fetchall()
    written = {f"{who} {n}" for who, n, at, version in kept if at and version}
    assert len(written) == len(kept)
    assert set(confirmed) <= written
    assert len(written) - len(confirmed) <= 100  # written, and killed before it could be said
    assert {f"steady {n}" for n in range(60)} <= set(confirmed)
    assert len({line.rpartition(" ")[0] for line in confirmed}) == 101


def answer(store, item, annotator, **answers):
    for dimension, option in (answers or ALL).items():
        store.answer(item, annotator, dimension, option, 1.5)


def work_through(store, annotator):
    done = []
    while item := store.next_item(annotator):
        answer(store, item, annotator)
        done.append(item)
    return done


def test_every_item_gets_as_many_annotators_as_were_asked_for(make_store):
    store = make_store(9, overlap=2)
    opened = store.next_item("Ada")
    assert store.next_item("Ada") == opened  # resumes
    assert store.next_item("Bob") == opened  # since a half-annotated item says little
    done = Counter(work_through(store, "Cy"))
    assert opened not in done
    assert len(done) == 8
    done.update([*work_through(store, "Bob"), *work_through(store, "Ada")])
    assert set(done.values()) == {2}
    assert len(done) == 9
    assert store.progress("Cy") == {"own": 8, "done": 9, "total": 9}
    assert store.next_item("Cy") is None


def test_an_open_item_is_kept_for_a_while(make_store):
    store = make_store(1)
    assert store.next_item("Ada") == "item 00"
    assert store.next_item("Bob") is None
    with store.writing() as db:
        db.execute("UPDATE claim SET at = '2020-01-01T00:00:00+00:00'")
    assert store.next_item("Bob") == "item 00"


def test_an_item_that_somebody_left_half_answered_comes_to_others(make_store):
    store = make_store(1)
    answer(store, "item 00", "Ada", urgency="1")
    assert store.next_item("Bob") is None  # for a while it is hers
    with store.writing() as db:
        db.execute("UPDATE claim SET at = '2020-01-01T00:00:00+00:00'")
    assert store.next_item("Bob") == "item 00"
    answer(store, "item 00", "Bob")
    assert store.next_item("Cy") is None
    assert store.next_item("Ada") == "item 00"  # she began it


def conditional(rubric, **ask_if):
    """`rubric`, with refunds asked only of some items."""
    raw = json.loads(rubric.to_json())
    raw["dimensions"][2]["ask_if"] = ask_if or {"topic": ["billing", "product"]}
    return Rubric.parse(raw, "conditional")


@pytest.mark.parametrize("shown", ["never", "after", "before"])
def test_a_question_that_does_not_apply_has_no_votes(make_store, support, shown):
    store = make_store(3, conditional(support), shown=shown, overlap=2)
    answer(store, "item 00", "Ada", refund="true", urgency="1", topic="praise")
    answer(store, "item 00", "Bob", refund="false", urgency="1", topic="product")
    answer(store, "item 00", "Cy", refund="false", urgency="1", topic=None)
    store.add_judged("judge", {"item 00": Judged({"refund": ("false", 0.9)})})
    (refund,) = [d for d in store.rubric.dimensions if d.name == "refund"]
    assert votes(store, refund) == {"item 00": {"Bob": 0, "Cy": 0}}
    assert disagreements(store, "refund")["total"] == 0
    answer(store, "item 01", "Ada", urgency="1", topic="praise")
    assert store.open(store.own("item 01", "Ada")) == []
    store.answer("item 01", "Ada", "refund", None, 0.0)  # as the page does when it goes on
    assert store.progress("Ada")["own"] == 2
    seen = {row["item_id"]: row["judge_seen"] for row in long_table(store)}
    assert seen["item 01"] == (shown == "before")
    assert store.undo("Ada") == "item 01"
    assert store.own("item 01", "Ada") == {"urgency": "1"}
    assert store.open({"urgency": "1"}) == ["topic", "refund"]


def test_orders(make_store):
    store = make_store(8, order="uncertainty")
    store.add_judged(
        "judge", {f"item {n:02}": Judged({"refund": ("true", 0.5 + n / 100)}) for n in range(2, 8)}
    )
    assert work_through(store, "Ada")[:6] == [f"item {n:02}" for n in range(2, 8)]
    store = make_store(8, name="random.db")
    done = work_through(store, "Ada")
    assert sorted(done) == [f"item {n:02}" for n in range(8)] != done


@pytest.mark.parametrize("shown", ["never", "after", "before"])
def test_what_was_seen_of_the_judge_is_kept_with_each_answer(make_store, shown):
    store = make_store(1, shown=shown)
    answer(store, "item 00", "Ada")
    answer(store, "item 00", "Ada", topic="praise")  # after the judge's answer was there
    assert store.undo("Ada") == "item 00"
    answer(store, "item 00", "Ada", topic="product")
    rows = store.rows("SELECT dimension, shown, seen FROM answer WHERE NOT undone ORDER BY id")
    assert {row["shown"] for row in rows} == {shown}
    expected = {"never": [0] * 5, "after": [0, 0, 0, 1, 1], "before": [1] * 5}[shown]
    assert [row["seen"] for row in rows] == expected
    assert store.own("item 00", "Ada") == ALL | {"topic": "product"}


def test_undo_goes_back_answer_by_answer_and_keeps_what_was_said(make_store):
    store = make_store(2)
    answer(store, "item 00", "Ada", urgency="1", topic=None)
    answer(store, "item 00", "Bob", urgency="2")
    assert store.own("item 00", "Ada") == {"urgency": "1", "topic": None}
    store.undo("Ada")
    assert store.own("item 00", "Ada") == {"urgency": "1"}
    store.undo("Ada")
    assert store.own("item 00", "Ada") == {}
    assert store.undo("Ada") is None
    assert store.own("item 00", "Bob") == {"urgency": "2"}
    assert len(store.rows("SELECT 1 FROM answer")) == 5


def test_a_changed_rubric_is_noticed_question_by_question(make_store, support):
    store = make_store(3)
    work_through(store, "Ada")
    raw = json.loads(support.to_json())
    raw["dimensions"][0]["instructions"] = "How soon must we answer?"
    raw["dimensions"][1]["paraphrases"] = []  # which annotators do not see
    changed = Store(store.path, Rubric.parse(raw, "changed"), store.task)
    assert changed.stale() == {"urgency": 3}
    assert changed.own("item 00", "Ada") == {"topic": "billing", "refund": "true"}
    assert len(work_through(changed, "Ada")) == 3
    assert len({row["rubric"] for row in changed.rows("SELECT rubric FROM answer")}) == 2
    again = Store(store.path, support, store.task)
    assert again.stale() == {"urgency": 3}
    assert again.own("item 00", "Ada") == ALL


def test_a_renamed_question_is_another_one(make_store, support):
    store = make_store(1)
    answer(store, "item 00", "Ada")
    said = Judged({"urgency": ("1", 0.9), "topic": ("praise", 0.9), "refund": ("true", 0.9)})
    store.add_judged("judge", {"item 00": said})
    assert store.unjudged("judge") == {}
    raw = json.loads(support.to_json())
    raw["dimensions"][2]["name"] = "money_back"
    renamed = Store(store.path, Rubric.parse(raw, "renamed"), store.task)
    assert renamed.stale() == {"refund": 1}
    assert renamed.own("item 00", "Ada") == {"urgency": "3", "topic": "billing"}
    assert list(renamed.unjudged("judge")) == ["item 00"]


def test_what_is_no_store_or_no_answer_is_refused(make_store, tmp_path, support):
    (tmp_path / "notes.db").write_text("mine")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE mine (x)").connection.close()
    for name in ("notes.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DataError, match="is no store of annotations"):
            Store(tmp_path / name, support)
        assert (tmp_path / name).read_bytes() == before
    store = make_store(1)
    for wrong in (
        ("item 99", "topic", "billing"),
        ("item 00", "tone", "billing"),
        ("item 00", "topic", "3"),
    ):
        with pytest.raises(DataError):
            store.answer(wrong[0], "Ada", *wrong[1:], 1.0)
    with pytest.raises(DataError, match="another text for the item item 00"):
        store.add_items({"item 00": {"text": "changed"}}, {})
    assert store.rows("SELECT 1 FROM answer") == []


def test_a_review_file_goes_in_and_a_table_for_training_comes_out(tmp_path, support):
    """With `estimate` at the end, which corrects the judge by what people said."""
    review = tmp_path / "texts.review.csv"
    rows = [f"m{n},text {n},{n % 4 + 1},0.{50 + n},billing,0.6{n % 10},{'true' if n % 3 else 'false'},0.55,annotated,{1 if n < 10 else 0.2}"
            for n in range(20)]  # fmt: skip
    head = "item_id,text,urgency,urgency_confidence,topic,topic_confidence,refund,refund_confidence,outcome,review_probability"
    review.write_text("\n".join([head, *rows, rows[0]]) + "\n")
    items = read_items(str(review), support)
    assert items.notes == [f"{review}: 1 rows repeat an item: shown once."]
    assert items.judged["m1"].labels == {
        "urgency": ("2", 0.51),
        "topic": ("billing", 0.61),
        "refund": ("true", 0.55),
    }
    store = Store(tmp_path / "a.db", support, Task(overlap=2))
    store.add_items(items.states, items.chances)
    store.add_judged(TABLE, items.judged)
    for who in ("Ada", "Bob"):
        for n, item in enumerate(sorted(items.states)):
            if n < 12:
                answer(
                    store,
                    item,
                    who,
                    urgency="2",
                    topic="praise" if who == "Ada" and n == 7 else "billing",
                    refund=None if n == 3 else "true",
                )
    found = disagreements(store, "topic", "Ada")
    assert [row["item"] for row in found["items"]] == [sorted(items.states)[7]]
    output = tmp_path / "long.csv"
    assert export(store, output) == 24
    strict = Findings()
    read = read_strictly(
        read_table(str(output)), Columns(annotator="annotator_id"), support, strict
    )
    strict.raise_any("long.csv")
    assert len(read.items) == 12
    assert read_annotations(str(output), support, annotator="annotator_id").items == read.items
    drawing = Drawing(annotator="annotator_id", probability="review_probability")
    estimates = estimate(str(review), str(output), support, drawing)
    assert estimates.dimensions["urgency"]["mean"].humans_alone.estimate == 2


def test_people_and_judge_are_compared_on_the_items_that_several_answered(tmp_path, support):
    """Ada and Bob agree on topics as often as not; the judge says what Ada says, and on the items
    of hers alone it never does."""
    store = Store(tmp_path / "a.db", support, Task(overlap=2))
    items = [f"m{n:02}" for n in range(40)]
    store.add_items({item: {"text": item} for item in items}, {})
    answers = {item: ("billing", "praise")[n // 2 % 2] for n, item in enumerate(items)}
    other = {"billing": "praise", "praise": "billing"}
    judged = {}
    for n, item in enumerate(items):
        answer(store, item, "Ada", topic=answers[item])
        if n < 20:
            answer(store, item, "Bob", topic=answers[item] if n % 2 else other[answers[item]])
        if n % 10:  # the judge answered not all
            said = answers[item] if n < 20 else other[answers[item]]
            judged[item] = Judged({"topic": (said, 0.9)})
    store.add_judged(TABLE, judged)
    (found,) = [one for one in standing(store, 0.2)["dimensions"] if one["dimension"] == "topic"]
    assert (found["shared"], found["judge"]["items"], found["judge_apart"]["items"]) == (20, 18, 18)
    assert found["judge"]["estimate"] > 0.4 > 0 > found["judge_apart"]["estimate"]
    assert found["people"]["estimate"] != found["people_there"]["estimate"]
    assert found["people_there"]["estimate"] == pytest.approx(0.1, abs=0.1)


def test_what_is_settled_stands_in_for_what_differed(make_store):
    store = make_store(2)
    answer(store, "item 00", "Ada")
    answer(store, "item 00", "Bob", **ALL | {"topic": "praise"})
    store.settle("item 00", "topic", "product", "both are half right", "Cy")
    assert disagreements(store)["total"] == 0
    (row,) = disagreements(store, settled=True)["items"]
    assert (row["people"], row["settled"]["comment"]) == (
        {"Ada": "billing", "Bob": "praise"},
        "both are half right",
    )
    lines = {row["annotator_id"]: row for row in long_table(store, settled=True)}
    assert [lines[who]["topic"] for who in ("Ada", "Bob", "Cy")] == [None, None, "product"]
    assert lines["Bob"]["refund"] == "true"
    assert [row["topic"] for row in long_table(store)] == ["billing", "praise"]
    store.settle("item 00", "topic", None, "open again", "Cy")
    assert disagreements(store)["total"] == 1


def test_worst_first(make_store):
    store = make_store(4, overlap=2)
    for n, pair in enumerate([("1", "2"), ("1", "4"), ("2", "4"), ("3", "3")]):
        for who, option in zip(("Ada", "Bob"), pair, strict=True):
            answer(store, f"item {n:02}", who, urgency=option)
    store.add_judged("judge", {"item 03": Judged({"urgency": ("4", 0.9)})})
    found = disagreements(store)["items"]
    assert [row["item"] for row in found] == ["item 01", "item 02", "item 00", "item 03"]
    assert [round(row["distance"], 3) for row in found] == [1, 0.667, 0.333, 0.222]


def test_an_option_that_is_no_level_is_no_step_from_one(make_store, support):
    raw = json.loads(support.to_json())
    levels = raw["dimensions"][0]["options"]
    raw["dimensions"][0]["options"] = [*levels, {"value": "none", "not_applicable": True}]
    store = make_store(3, Rubric.parse(raw, "off the scale"), overlap=2)
    for n, pair in enumerate([("3", "none"), ("1", "2"), ("none", "none")]):
        for who, option in zip(("Ada", "Bob"), pair, strict=True):
            answer(store, f"item {n:02}", who, urgency=option)
    found = {row["item"]: row["distance"] for row in disagreements(store, "urgency")["items"]}
    assert found == {"item 00": 1, "item 01": pytest.approx(1 / 3)}


@pytest.mark.parametrize("cell", ['"0,93"', "nan", "93", "-0.1", "inf"])
def test_a_confidence_that_is_none_is_named(tmp_path, support, cell):
    table = tmp_path / "judged.csv"
    table.write_text(f"text,topic,topic_confidence,outcome\na,billing,{cell},annotated\n")
    with pytest.raises(DataError, match=r"line 2: topic_confidence is .*no probability"):
        read_items(str(table), support)


def test_sets_of_a_table_are_read_as_their_questions(tmp_path):
    dimension = {"name": "kind", "type": "multi", "instructions": "Which?", "options": ["a", "b"]}
    raw = {"name": "r", "instructions": "Read.", "fields": ["text"], "dimensions": [dimension]}
    table = tmp_path / "judged.jsonl"
    rows = [{"item_id": str(n), "text": f"t{n}", "j_kind": of, "j_kind_confidence": 0.7,
             "j_outcome": "annotated"} for n, of in enumerate([["b"], [], None])]  # fmt: skip
    table.write_text("\n".join(map(json.dumps, rows)))
    found = read_items(str(table), Rubric.parse(raw, "r"), prefix="j_")
    assert found.notes == []
    assert [one.labels for one in found.judged.values()] == [
        {"kind_a": ("false", 0.7), "kind_b": ("true", 0.7)},
        {"kind_a": ("false", 0.7), "kind_b": ("false", 0.7)},
        {},
    ]


def test_chances_of_a_design_are_those_with_which_items_are_drawn():
    sure = {
        f"m{n}": one for n, one in enumerate([0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0, 1.0, 0.95])
    }
    seeds, drawn = 4000, Counter()
    for seed in range(seeds):
        chances, names = draw(sure, 4, seed)
        assert len(set(names)) == 4
        drawn.update(names)
    assert sum(chances.values()) == pytest.approx(4)
    assert max(chances.values()) <= 1
    assert min(chances.values()) >= 0.1 * 0.4 / 2
    for name, chance in chances.items():
        error = (chance * (1 - chance) / seeds) ** 0.5
        assert drawn[name] / seeds == pytest.approx(chance, abs=4.5 * error + 1e-9), name
    assert draw(sure, 10)[0] == pytest.approx(dict.fromkeys(sure, 1.0))
    with pytest.raises(DataError, match="between 1 and 10"):
        draw(sure, 11)


def test_a_design_is_drawn_once_and_its_items_alone_are_annotated(tmp_path, support):
    table = tmp_path / "judged.csv"
    rows = [f"m{n},text {n},billing,0.{50 + n},annotated" for n in range(30)]
    table.write_text("\n".join(["item_id,text,topic,topic_confidence,outcome", *rows]) + "\n")

    def start(draw, items=str(table), name="a.db"):
        task = Task(order="design")
        settings = Settings(items=items, store=tmp_path / name, task=task, draw=draw)
        return prepare(settings, support, Judges([], support), Console())

    with pytest.raises(DataError, match="needs --draw"):
        start(None)
    store, notes = start(5)
    assert notes == ["Drawn: 5 of 30 items, by the judge's uncertainty."]
    chances = {row["id"]: row["chance"] for row in store.rows("SELECT id, chance FROM item")}
    assert sum(chances.values()) == pytest.approx(5)
    assert chances["m0"] > chances["m29"] > 0
    assert store.progress("Ada")["total"] == 5
    done = work_through(store, "Ada")
    assert len(done) == 5
    assert {row["item_id"]: row["review_probability"] for row in long_table(store)} == {
        item: chances[item] for item in done
    }
    again, notes = start(None)
    assert "stands: 5 of 30" in notes[0]
    assert again.next_item("Ada") is None
    with pytest.raises(DataError, match="a design of 5 items already"):
        start(6)
    (tmp_path / "bare.csv").write_text("text\na\nb\n")
    with pytest.raises(DataError, match="name a judge, or items with its answers"):
        start(1, str(tmp_path / "bare.csv"), "b.db")
    settings = Settings(items=str(table), store=tmp_path / "a.db")
    with pytest.raises(DataError, match="has a design: go on with --order design"):
        prepare(settings, support, Judges([], support), Console())


@pytest.mark.parametrize("every", [True, False])
def test_a_design_among_items_that_were_drawn_has_the_product_of_both_chances(
    tmp_path, support, every
):
    table = tmp_path / "review.csv"
    given = {f"m{n}": 0.25 if n % 2 else 0.5 for n in range(20)}
    rows = [f"{name},text {name},billing,0.6,annotated,{chance if every or name != 'm3' else ''}"
            for name, chance in given.items()]  # fmt: skip
    head = "item_id,text,topic,topic_confidence,outcome,review_probability"
    table.write_text("\n".join([head, *rows]) + "\n")
    task = Task(order="design")
    settings = Settings(items=str(table), store=tmp_path / "a.db", task=task, draw=5)
    if not every:
        with pytest.raises(DataError, match="Only some items have a review_probability"):
            prepare(settings, support, Judges([], support), Console())
        return
    store, _ = prepare(settings, support, Judges([], support), Console())
    chances = {row["id"]: row["chance"] for row in store.rows("SELECT id, chance FROM item")}
    assert chances == pytest.approx({name: chance * 5 / 20 for name, chance in given.items()})


def test_whatever_ends_the_judging_is_said(make_store, support):
    judges = Judges([Named("judge", "key", None)], support)
    judges.judge_items(make_store(2))  # None has no backend: an AttributeError
    judges.wait(LIMIT)
    assert "stopped judging the items: AttributeError" in judges.problem
