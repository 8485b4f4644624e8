"""What to annotate next: chances that hold, near duplicates, and estimates that stay valid."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from slm_judge.agreement.sample import draw, inclusion_chances
from slm_judge.annotate.rows import REVIEW_PROBABILITY
from slm_judge.cli import app
from slm_judge.errors import DataError, JudgeError
from slm_judge.evaluation.estimate import Drawing, estimate
from slm_judge.evaluation.select import Choice, choose, near_duplicates, select
from slm_judge.judge.judge import Judge
from slm_judge.rubric import Rubric

RUBRIC = Rubric.parse(
    {
        "name": "short",
        "instructions": "Read the text.",
        "fields": ["text"],
        "dimensions": [{"name": "refund", "type": "noul", "instructions": "A refund?"}],
    },
    "here",
)


@pytest.mark.parametrize("even", [0.05, 0.5, 1.0])
def test_chances_sum_to_the_number_and_are_those_of_the_draw(even):
    rng = np.random.default_rng(0)
    worth, order = rng.exponential(size=60) ** 3, rng.permutation(60)
    chances = inclusion_chances(worth, 20, even)
    assert chances.sum() == pytest.approx(20)
    assert chances.max() <= 1
    assert chances.min() > 0
    assert (np.ptp(chances) < 1e-12) == (even == 1)
    drawn = [draw(chances, order, seed) for seed in range(3000)]
    assert {len(rows) for rows in drawn} == {20}
    shares = np.bincount(np.concatenate(drawn), minlength=60) / 3000
    assert np.abs(shares - chances).max() < 4.5 * 0.5 / 3000**0.5


def test_the_first_row_is_drawn_as_often_as_the_others():
    """Two of 20; the rows' order comes from the seed too."""
    one = Choice(2, 1.0, "item_id", {}, "", [], 0)
    times = np.zeros(20)
    for seed in range(3000):
        times[choose(np.arange(20), None, replace(one, seed=seed))[1]] += 1
    assert times.sum() == 6000
    assert np.abs(times / 3000 - 0.1).max() < 4 * (0.1 * 0.9 / 3000) ** 0.5


def test_nothing_worth_anything_is_drawn_evenly_and_all_of_few_surely():
    assert inclusion_chances(np.zeros(10), 5, 0.1) == pytest.approx(np.full(10, 0.5))
    assert inclusion_chances(np.array([1.0, 0, 0]), 3, 0.2) == pytest.approx(np.ones(3))
    assert draw(np.ones(3), np.arange(3), 1).tolist() == [0, 1, 2]


WORDS = ("sea", "stone", "river", "glass", "paper", "winter", "engine", "music", "garden", "copper",
         "letter", "window", "summer", "forest", "market", "bridge", "silver", "cotton", "island")  # fmt: skip


def texts(rng, n):
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(n)]


def test_near_duplicates_do_not_fill_the_list():
    rng = np.random.default_rng(0)
    copies = [f"Hello, my order {n} has not arrived yet, where is my parcel?" for n in range(300)]
    alike = near_duplicates([*copies, *texts(rng, 300)])
    assert len(set(alike[:300])) == 1
    assert len(set(alike[300:])) > 200
    doubt = np.concatenate([np.full(300, 0.9), np.full(300, 0.3)])  # and the judge doubts them most
    _, rows = choose(alike, doubt, Choice(60, 0.2))
    assert 1 <= (rows < 300).sum() <= 60 * 0.2 * 0.5 + 2  # those of the random share, and one
    _, careless = choose(np.arange(600), doubt, Choice(60, 0.2))
    assert (careless < 300).sum() > 40
    assert near_duplicates(["one"]).tolist() == [0]


def test_what_the_judge_doubts_comes_more_often():
    doubt = np.tile([0.5, 0.05], 200)
    _, rows = choose(np.arange(400), doubt, Choice(100, 0.2))
    assert (doubt[rows] == 0.5).sum() > 80
    _, rows = choose(np.zeros(400, int), None, Choice(100))
    assert 30 < (doubt[rows] == 0.5).sum() < 70


@pytest.fixture
def pool(tmp_path):
    """400 judged texts, among them what cannot be drawn; and what was annotated already."""
    rng, rubric = np.random.default_rng(3), tmp_path / "rubric.yaml"
    rubric.write_text(RUBRIC.to_json())
    rows = [
        {"item_id": f"i{n}", "text": text, "refund": str(rng.random() < 0.4).lower(),
         "refund_confidence": f"{rng.uniform(0.5, 1):.2f}", "source": "a,\"b"}
        for n, text in enumerate(texts(rng, 400))
    ]  # fmt: skip
    rows[1]["item_id"], rows[2]["item_id"] = "", "i0"
    rows[3]["text"], rows[4]["refund_confidence"] = " ", ""
    for name, part in (("pool", rows), ("before", [rows[5], {**rows[6], "item_id": "other"}])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(part)
    return tmp_path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(folder, *options, output="next.csv"):
    arguments = ["select", str(folder / "pool.csv"), "--output", str(folder / output), *options]
    return CliRunner().invoke(app, arguments)


def test_the_command_leaves_out_what_is_annotated_and_estimates_go_on_from_there(pool):
    given = ["--rubric", str(pool / "rubric.yaml"), "--annotated", str(pool / "before.csv")]
    done = run(pool, *given, "-n", "90", "--audit", "0.25", "--corpus", str(pool / "corpus.csv"))
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    for why in ("no item is named", "the item stands there already", "no text that can be judged",
                "annotated already, by its name", "annotated already, by its text",
                "the judge gave no label"):  # fmt: skip
        assert f"1 rows cannot be drawn: {why}." in said
    assert "90 of 394 items are drawn, 25% of them at random, by the judge's doubt." in said
    rows, corpus = (
        {row["item_id"]: row for row in read(pool / "pool.csv")},
        read(pool / "corpus.csv"),
    )
    chosen = read(pool / "next.csv")
    assert (len(chosen), len(corpus)) == (90, 394)
    assert {"i5", "i6", ""}.isdisjoint(row["item_id"] for row in corpus)
    assert sum(float(row[REVIEW_PROBABILITY]) for row in corpus) == pytest.approx(90)
    for row in chosen:
        assert row in corpus
        assert {**rows[row["item_id"]], REVIEW_PROBABILITY: row[REVIEW_PROBABILITY]} == row
    with (pool / "humans.csv").open("w") as file:  # half of what the judge calls a refund is one
        file.write("item_id,refund\n")
        for n, row in enumerate(chosen):
            file.write(f"{row['item_id']},{str(row['refund'] == 'true' and n % 2 == 0).lower()}\n")
    drawing = Drawing(probability=REVIEW_PROBABILITY)
    found = estimate(str(pool / "corpus.csv"), str(pool / "humans.csv"), RUBRIC, drawing)
    share, judged = found.dimensions["refund"]["true"], sum(r["refund"] == "true" for r in corpus)
    assert share.judge_alone == pytest.approx(judged / 394)
    assert share.prediction_powered.low < judged / 394 / 2 < share.prediction_powered.high
    assert share.prediction_powered.high < share.judge_alone
    assert found.doubts == []


def test_random_choice_is_the_default_and_the_seed_draws_anew(pool):
    given = ["--rubric", str(pool / "rubric.yaml"), "-n", "50"]
    for name, seed in (("a.csv", "0"), ("b.csv", "0"), ("c.csv", "1")):
        done = run(pool, *given, "--seed", seed, output=name)
        assert "50 of 397 items are drawn, 100% of them at random." in " ".join(done.output.split())
    assert (pool / "a.csv").read_bytes() == (pool / "b.csv").read_bytes()
    assert (pool / "a.csv").read_bytes() != (pool / "c.csv").read_bytes()
    chances = [float(row[REVIEW_PROBABILITY]) for row in read(pool / "a.csv")]
    assert chances == pytest.approx([50 / 397] * 50)


def test_a_judge_is_asked_and_its_columns_come_along(run_of_tests, tmp_path):
    rubric = run_of_tests.rubric()
    (field,) = rubric.fields
    pool = tmp_path / "pool.jsonl"
    rows = [{"item_id": n, field: f"Message {n}, please refund.", "more": [n]} for n in range(12)]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Judge.from_pretrained(run_of_tests.gguf) as judge:
        notes = select(str(pool), str(tmp_path / "next.jsonl"), rubric, Choice(4, 0.5), judge)
    assert "4 of 12 items are drawn, 50% of them at random, by the judge's doubt." in notes
    chosen = [json.loads(line) for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert len(chosen) == 4
    for row in chosen:
        assert row.items() >= rows[row["item_id"]].items()
        assert {f"{d.name}_confidence" for d in rubric.dimensions} <= row.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"pool.jsonl", "next.jsonl"}


@pytest.fixture(scope="session")
def run_of_tests(request):
    """The session's trained and exported run."""
    return request.getfixturevalue("run")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-n", "398"], "-n 398: 397 items can be drawn"),
        (["--audit", "0"], "--audit is above 0"),
        (["--item-id", "number"], "lacks the columns number"),
        (["--column", "text=body"], "lacks the columns body"),
        (["--corpus", "pool.csv"], "exists already"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(pool, monkeypatch, options, why):
    monkeypatch.chdir(pool)
    result = run(pool, "--rubric", "rubric.yaml", *options)
    with pytest.raises(DataError, match=why):
        raise result.exception
    assert not (pool / "next.csv").exists()


def test_chances_are_not_overwritten_and_somebody_must_name_the_rubric(pool):
    given = ["--rubric", str(pool / "rubric.yaml"), "-n", "9"]
    assert run(pool, *given, output="pool2.csv").exit_code == 0
    (pool / "pool2.csv").rename(pool / "pool.csv")
    with pytest.raises(DataError, match="already has the column review_probability"):
        raise run(pool, "--rubric", str(pool / "rubric.yaml"), "-n", "3").exception
    with pytest.raises(JudgeError, match="--model"):
        raise run(pool).exception


def test_questions_that_were_not_asked_leave_an_item_in_the_draw(tmp_path):
    """Of them the judge has no confidence; one that it has none of at all, it gave no label."""
    asked = [{"name": "abuse", "type": "noul", "instructions": "i"},
             {"name": "target", "type": "choice", "instructions": "i", "options": ["a", "b"],
              "ask_if": {"abuse": True}},
             {"name": "kind", "type": "multi", "instructions": "i", "options": ["s", "t"]}]  # fmt: skip
    rubric = Rubric.parse(RUBRIC.model_dump() | {"dimensions": asked}, "here")
    pool = tmp_path / "pool.csv"
    with pool.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["item_id", "text", "abuse_confidence", "target_confidence", "kind_confidence"]
        )
        for k in range(40):
            sure = ["", "", ""] if k == 0 else [0.9, 0.6 if k < 10 else "", 0.8]
            rows.writerow([k, f"text {k}", *sure])
    notes = select(str(pool), str(tmp_path / "next.csv"), rubric, Choice(39, 0.5))
    assert any("1 rows cannot be drawn: the judge gave no label" in note for note in notes)
    assert len((tmp_path / "next.csv").read_text().splitlines()) == 40
