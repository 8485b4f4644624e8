"""`slm-judge compare`: what moved is found, what did not is not said to have."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from slm_judge.agreement.bootstrap import Interval, fixed
from slm_judge.cli import main
from slm_judge.data.item import Item, load_split, save_splits
from slm_judge.data.predictions import Answers, write_predictions
from slm_judge.errors import DataError, JudgeError
from slm_judge.evaluation.drift import Source, compare, drift_table
from slm_judge.evaluation.evaluate import systems_of
from slm_judge.files import write_text
from slm_judge.recipe import Recipe
from slm_judge.rubric import RUBRIC_FILE, Rubric
from slm_judge.run import Run

RUBRIC = Rubric.model_validate(
    {
        "name": "r",
        "instructions": "i",
        "fields": ["text"],
        "dimensions": [
            {"name": "refund", "type": "noul", "instructions": "r"},
            {"name": "grade", "type": "score", "instructions": "g", "options": [1, 2, 3]},
        ],
    }
)
ARTEFACT = "Q4_0"  # that people get by default


class World:
    """A judge's answers about items, of conversations where there are such, and people's."""

    def __init__(self, folder, group=None):
        self.folder, self.group, self.run = folder, group, Run(folder / "run")
        self.run.folder.mkdir(parents=True)
        data = {"train": "t.csv", "group": group}
        self.run.keep_recipe(Recipe.model_validate({"name": "j", "rubric": "r", "data": data}))
        self.run.adapter.mkdir()
        write_text(self.run.adapter / RUBRIC_FILE, RUBRIC.to_json())

    def drawn(self, n, seed, share=0.3, sure=0.8, right=0.8, people=2, size=1, name="i"):
        """True refunds, the judge's and people's, alike within conversations of `size`."""
        rng = np.random.default_rng(seed)
        talk = np.arange(n) // size
        level = share if size == 1 else rng.choice([0.05, 0.9], n, p=[0.7, 0.3])[talk]
        truth = rng.random(n) < level
        frame = pd.DataFrame(
            {
                "item_id": [f"{name}{k}" for k in range(n)],
                "text": [f"{name} says {k}" for k in range(n)],
                "talk": [f"{name}{t}" for t in talk],
                "judge_refund": np.where(rng.random(n) < right, truth, ~truth),
                "judge_refund_confidence": np.clip(rng.normal(sure, 0.1, n), 0.5, 1).round(2),
                "judge_grade": rng.integers(1, 4, n),
                "judge_grade_confidence": rng.uniform(0.4, 1, n).round(2),
            }
        )
        said = rng.random((people, n)) < 0.8
        return frame, [
            dict(zip("ab", map(int, row), strict=False)) for row in np.where(said, truth, ~truth).T
        ]

    def hold_out(self, *drawn):
        """Make these the held-out items of the run, which `verify` asked about."""
        frame, votes = drawn
        items = [
            Item(row.item_id, {"text": row.text}, {"refund": vote} if vote else {}, row.talk)
            for row, vote in zip(frame.itertuples(), votes, strict=True)
        ]
        known = [Item("t", {"text": "learnt by heart"}, {}, "t")]
        save_splits({"train": known, "validation": known, "test": items}, self.run.data)
        answers = {}
        for d in RUBRIC.dimensions:
            labels = np.array([d.index(v) for v in frame[f"judge_{d.name}"]])
            sure = frame[f"judge_{d.name}_confidence"].to_numpy()
            rest = (1 - sure) / (len(d.options) - 1)
            shares = np.tile(rest[:, None], len(d.options))
            shares[np.arange(len(frame)), labels] = sure
            answers[d.name] = Answers(labels, shares)
        self.run.predictions.mkdir(parents=True, exist_ok=True)
        write_predictions(self.run.predictions / f"{ARTEFACT}.jsonl", items, RUBRIC, answers)

    def new(self, frame, votes=(), **more):
        """Compare with these."""
        place = self.folder / "new.csv"
        frame.to_csv(place, index=False)
        people = self.folder / "people.csv"
        rows = [
            (i, who, bool(v))
            for i, vote in zip(frame.item_id, votes, strict=False)
            for who, v in vote.items()
        ]
        pd.DataFrame(rows, columns=["item_id", "who", "refund"]).to_csv(people, index=False)
        given = {"annotations": str(people), "annotator": "who"} if rows else {}
        tolerance = more.pop("tolerance", 0.0)
        return compare(
            self.run, Source(str(place), **{"prefix": "judge_", **given, **more}), tolerance
        )


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.hold_out(*made.drawn(300, seed=0))
    return made


def moved(report):
    return {(one["dimension"], one["what"]) for one in report["findings"] if one["moved"]}


def told(report):
    return " ".join(one["told"] for one in report["findings"] if one["moved"])


# --- what moved ---


def test_a_share_that_moved_is_found_with_its_size(world):
    report = world.new(world.drawn(300, seed=1, share=0.8, name="n")[0])
    assert report["drift"]
    assert moved(report) == {("refund", "share of true")}  # not the share of false as well
    (one,) = (one for one in report["findings"] if one["moved"])
    truth = (0.8 * 0.8 + 0.2 * 0.2) - (0.3 * 0.8 + 0.7 * 0.2)  # of the judge's labels
    assert one["difference"]["low"] <= truth <= one["difference"]["high"]
    assert one["difference"]["estimate"] == pytest.approx(one["new"] - one["held_out"])
    assert "refund: share of true was 0.3" in told(report)
    assert one["effect"] == pytest.approx(one["difference"]["estimate"] / 0.5, rel=0.1)
    assert "refund: agreement, since people labelled no new item" in " ".join(
        report["cannot_be_said"]
    )
    calm = world.new(world.drawn(300, seed=1, share=0.8, name="n")[0], tolerance=0.6)
    assert not calm["drift"]


def test_a_confidence_that_moved_is_found(world):
    report = world.new(world.drawn(300, seed=1, sure=0.72, name="n")[0])
    assert moved(report) == {("refund", "confidence")}
    assert "refund: confidence was 0.794 and is 0.712: −0.0" in told(report)


@pytest.mark.parametrize(
    ("people", "measure"), [(2, "agreement beyond annotators"), (1, "agreement")]
)
def test_an_agreement_that_moved_is_found(world, people, measure):
    """Beyond the annotators' own where both sides have several; else alone, with a caveat."""
    frame, votes = world.drawn(300, seed=1, right=0.5, share=0.3, people=people, name="n")
    report = world.new(frame, votes)
    assert ("refund", measure) in moved(report)
    assert ("perhaps since other people annotated" in told(report)) is (people == 1)
    # Noisier people are no fault of the judge: with several of them that is seen.
    frame, votes = world.drawn(300, seed=2, people=people, name="n")
    rng = np.random.default_rng(0)
    noisy = [
        {w: int(rng.random() < 0.5) if rng.random() < 0.5 else v for w, v in vote.items()}
        for vote in votes
    ]
    report = world.new(frame, noisy)
    assert ("refund", measure) not in moved(report) or people == 1
    assert {one["what"] for one in report["findings"] if one["dimension"] == "refund"} >= {
        measure,
        "shift",
    }


@pytest.mark.parametrize(("before", "after"), [(0.95, 1.0), (0.7, 0.95), (0.95, 0.7)])
def test_people_who_agree_otherwise_are_no_drift_of_the_judge(world, before, after):
    """It is always right; beyond the annotators' agreement, its own falls or rises with theirs."""

    def drawn(seed, right, name):
        frame, _ = world.drawn(300, seed=seed, right=1.0, name=name)
        rng, truth = np.random.default_rng(seed), frame.judge_refund.to_numpy()
        said = np.where(rng.random((2, 300)) < right, truth, ~truth)
        return frame, [dict(zip("ab", map(int, row), strict=True)) for row in said.T]

    world.hold_out(*drawn(0, before, "i"))
    report = world.new(*drawn(1, after, "n"))
    assert not report["drift"]
    rows = {one["what"]: one for one in report["findings"] if one["dimension"] == "refund"}
    assert rows["agreement"]["held_out"] == pytest.approx(before, abs=0.04)
    assert rows["agreement among annotators"]["p_adjusted"] is None
    untold = [text for text in report["cannot_be_said"] if "whether the judge moved" in text]
    assert any("agreement beyond annotators" in text for text in untold) or after != 1.0
    assert "−0.000" not in str(report)
    assert drift_table(report)


def test_a_judge_better_than_people_that_gets_worse_has_moved(world):
    world.hold_out(*world.drawn(500, seed=0, right=1.0))
    report = world.new(*world.drawn(500, seed=1, right=0.85, name="n"))
    assert ("refund", "agreement beyond annotators") in moved(report)


def test_zero_has_no_minus():
    assert [fixed(-0.0004), fixed(-0.0006), fixed(0.0, sign="+")] == ["0.000", "-0.001", "+0.000"]
    assert str(Interval(-1e-9, -0.5, -1e-9)) == "0.000 [-0.500, 0.000]"


# --- what did not ---


@pytest.mark.parametrize("size", [1, 20])
def test_where_nothing_moved_at_most_5_percent_say_so(tmp_path, size):
    """Also where conversations differ, which by items would often be drift."""
    alarms = {group: [] for group in (("talk", None) if size > 1 else (None,))}
    for seed in range(30):
        for group, found in alarms.items():
            one = World(tmp_path / f"{seed}{group}", group)
            one.hold_out(*one.drawn(200, (seed, 0), size=size))
            found.append(one.new(*one.drawn(200, (seed, 1), size=size, name="n"))["drift"])
    first = np.mean(next(iter(alarms.values())))
    assert first <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 30)
    assert size == 1 or np.mean(alarms[None]) > 0.2


def test_texts_of_the_training_are_left_out(world):
    frame, _ = world.drawn(100, seed=1, name="n")
    frame.loc[:59, "text"] = "learnt by heart"
    frame.loc[:59, "judge_refund"] = True
    report = world.new(frame)
    assert not report["drift"]
    assert report["items"]["new"] == 40
    assert "60 items have texts that the judge was trained on: left out." in report["notes"]
    assert not any("not there to be compared" in note for note in report["notes"])
    assert any(
        "not there to be compared" in n for n in world.new(frame.drop(columns="text"))["notes"]
    )


def test_conversations_with_items_of_both_are_compared_within(tmp_path):
    """The judge is surer in some conversations, of which most of the new items are; else as sure."""
    one = World(tmp_path, "talk")
    (old, votes), (frame, _) = one.drawn(600, 0), one.drawn(600, 1, name="n")
    rng = np.random.default_rng(2)
    for table, share in ((old, 0.3), (frame, 0.7)):
        high = rng.random(600) < share
        table["talk"] = np.where(high, rng.integers(0, 15, 600), rng.integers(15, 30, 600)).astype(
            str
        )
        table["judge_refund_confidence"] = np.where(high, 0.9, 0.6) + rng.choice([0, 0.05], 600)
    one.hold_out(old, votes)
    (row,) = (
        r
        for r in one.new(frame)["findings"]
        if (r["dimension"], r["what"]) == ("refund", "confidence")
    )
    assert row["new"] > row["held_out"] + 0.05
    assert not row["moved"]
    assert abs(row["difference"]["estimate"]) < 0.02
    assert row["told"].endswith("in groups with items of both.")


def test_missing_groups_are_no_group(tmp_path):
    """60 items of no conversation, by as much as NA says, are 60 groups and not one."""
    one = World(tmp_path, "talk")
    one.hold_out(*one.drawn(100, seed=0))
    frame, _ = one.drawn(60, seed=1, name="n")
    report = one.new(frame.assign(talk="NA"))
    assert any("talk of 60 items is missing: one group each." in note for note in report["notes"])
    assert "share of true" in {one["what"] for one in report["findings"]}


def test_where_nothing_can_be_tested_nothing_is_said(world):
    frame, votes = world.drawn(9, seed=1, name="n")
    with pytest.raises(DataError, match="nothing can be tested"):
        world.new(frame)
    frame, votes = world.drawn(60, seed=1, name="n")
    report = world.new(frame, votes[:5])
    (one,) = (text for text in report["cannot_be_said"] if "refund: agreement" in text)
    assert "of fewer than 10 items" in one
    frame.loc[:49, "judge_grade"] = None
    report = world.new(frame.assign(judge_grade=None))
    assert "grade: 60 of 60 items have no label: left out." in report["notes"]
    assert {one["what"] for one in report["findings"] if one["dimension"] == "grade"} == {
        "confidence"
    }


# --- the command ---


@pytest.fixture
def slm_judge(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["slm-judge", "compare", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def test_exit_codes_and_json(world, slm_judge):
    place = world.folder / "new.csv"
    world.new(world.drawn(100, seed=1, name="n")[0])
    code, out, _ = slm_judge(world.run.folder, place, "--prefix", "judge_")
    assert (code, "No drift is shown by 6 comparisons" in out) == (0, True)
    assert "cannot be said: refund: agreement" in out
    world.new(world.drawn(100, seed=1, share=1.0, name="n")[0])
    code, out, _ = slm_judge(world.run.folder, place, "--prefix", "judge_", "--json")
    report = json.loads(out)
    assert (code, report["drift"], report["items"]) == (1, True, {"held_out": 300, "new": 100})
    code, out, _ = slm_judge(world.run.folder, place, "--prefix", "judge_")
    assert (code, "Drift is shown in 1 of 6 comparisons, of which" in out) == (1, True)
    for arguments, complaint in [
        ((world.run.folder, place, "--prefix", "other_"), "lacks the columns other_refund"),
        ((world.run.folder, world.folder / "none.csv"), "There is no file"),
        ((world.folder, place), "is not a run"),
        (
            (world.run.folder, place, "--prefix", "judge_", "--artefact", "Q9"),
            "Q9.jsonl is missing",
        ),
        (
            (world.run.folder, place, "--prefix", "judge_", "--group", "author"),
            "lacks the columns author",
        ),
        ((world.run.folder, place, "--prefix", "judge_", "--tolerance", "2"), "between 0 and 1"),
        (
            (
                world.run.folder,
                place,
                "--prefix",
                "judge_",
                "--item-id",
                "id",
                "--annotations",
                place,
            ),
            "has no column id",
        ),
    ]:
        code, _, err = slm_judge(*arguments)
        assert (code, complaint in " ".join(err.split())) == (2, True), err
    frame = pd.read_csv(place).astype({"judge_refund_confidence": object})
    frame.loc[0, "judge_refund_confidence"] = "high"
    with pytest.raises(DataError, match="holds numbers, not 'high'"):
        world.new(frame)
    shutil.rmtree(world.run.predictions)
    with pytest.raises(JudgeError, match="verify"):
        world.new(frame)


def test_texts_are_annotated_by_the_run_and_kept(run, tmp_path):
    """With the real judge: new texts that are the held-out ones did not move."""
    from functools import partial

    from slm_judge.export.answers import ask

    from slm_judge import Judge

    mine, rubric = Run(tmp_path / "mine"), run.rubric()
    for name in ("data", "adapter", "gguf"):
        (mine.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (mine.folder / name).symlink_to(getattr(run, name).resolve())
    shutil.copy(run.recipe_file, mine.recipe_file)
    items = load_split(run.data, "test")[:40]
    artefact = systems_of(run)[0]
    with Judge.from_pretrained(run.gguf_file(artefact), trust=True) as judge:
        heard = ask(judge, items)
    mine.predictions.mkdir(parents=True)
    write_predictions(mine.predictions / f"{artefact}.jsonl", items, rubric, heard.answers)
    rows = [
        {"item_id": item.item_id, "body": item.state["text"], "who": who,
         **{d.name: d.values[item.votes[d.name][who]] for d in rubric.dimensions if who in item.votes[d.name]}}
        for item in items for who in item.votes["urgency"]
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "new.csv", index=False)
    again = partial(
        compare, mine, Source(str(tmp_path / "new.csv"), annotator="who", columns={"text": "body"})
    )
    report = again()
    assert not report["drift"]
    assert report["items"] == {"held_out": len(items), "new": len(items)}
    assert all(
        one["difference"]["estimate"] == pytest.approx(0, abs=0.011) for one in report["findings"]
    )
    assert "agreement beyond annotators" in {one["what"] for one in report["findings"]}
    (kept,) = (mine.report / "compare").glob("*.parquet")
    before = kept.stat().st_mtime_ns
    assert again()["findings"] == report["findings"]
    assert kept.stat().st_mtime_ns == before
