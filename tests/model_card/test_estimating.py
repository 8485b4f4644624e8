"""`slm-judge estimate` from tables to sentences, on corpora whose truth is known."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from slm_judge.cli import main
from slm_judge.data.item import Item, save_splits
from slm_judge.errors import DataError, JudgeError
from slm_judge.evaluation.estimate import Drawing, estimate, estimate_table
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric
from slm_judge.run import Run

RUBRIC = Rubric.model_validate(
    {
        "name": "r",
        "instructions": "i",
        "fields": ["text"],
        "dimensions": [
            {"name": "refund", "type": "noul", "instructions": "r"},
            {"name": "topic", "type": "choice", "instructions": "t", "options": ["a", "b", "c"]},
            {"name": "grade", "type": "score", "instructions": "g", "options": [1, 2, 3]},
        ],
    }
)
REFUND = RUBRIC.model_copy(update={"dimensions": RUBRIC.dimensions[:1]})


def test_an_output_replaces_nothing_unasked(tmp_path, monkeypatch, capsys):
    """Neither what is read nor what is there, before any work; nor do pre-annotations."""
    monkeypatch.chdir(tmp_path)
    for name in ("corpus.csv", "people.csv", "rubric.yaml", "mine.json", "mine.xml"):
        (tmp_path / name).write_text("mine")
    command = ["estimate", "corpus.csv", "--annotations", "people.csv", "--rubric", "rubric.yaml"]
    back = ["export-predictions", "corpus.csv", "--rubric", "rubric.yaml", "--to", "label-studio"]
    (tmp_path / "rubric.yaml").write_text(RUBRIC.to_json())
    for arguments in (
        *([*command, "--output", name] for name in ("corpus.csv", "rubric.yaml", "mine.json")),
        [*command, "--output", "corpus.csv", "--overwrite"],
        [*back, "--output", "mine.json"],
    ):
        monkeypatch.setattr(sys, "argv", ["slm-judge", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        assert "ame another file" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "mine.json").read_text() == (tmp_path / "corpus.csv").read_text() == "mine"


class World:
    """2,000 items, true labels and a judge's in a folder."""

    def __init__(self, folder, seed=1, n=2000):
        self.folder, self.rng = folder, np.random.default_rng(seed)
        rng = self.rng
        self.refund, self.topic = (
            rng.random(n) < 0.35,
            rng.choice(list("abc"), n, p=[0.6, 0.3, 0.1]),
        )
        self.grade = rng.integers(1, 4, n)
        sure = rng.random(n)
        flip = rng.random(n) < 0.4 * (1 - sure)
        self.corpus = pd.DataFrame(
            {
                "item_id": [f"i{k}" for k in range(n)],
                "text": [f"message {k}" for k in range(n)],
                "channel": rng.choice(["mail", "web"], n),
                "length": rng.integers(1, 100, n),
                "author": rng.integers(0, 200, n),
                "refund": self.refund ^ flip,
                "refund_confidence": 0.6 + 0.4 * sure,
                "topic": np.where(rng.random(n) < 0.8, self.topic, "a"),
                "topic_confidence": rng.random(n),
                "grade": np.clip(self.grade + (rng.random(n) < 0.3), 1, 3),
                "grade_confidence": rng.random(n),
            }
        )

    def people(self, rows):
        return pd.DataFrame(
            {
                "item_id": self.corpus.item_id.to_numpy()[rows],
                "refund": self.refund[rows],
                "topic": self.topic[rows],
                "grade": self.grade[rows],
            }
        )

    def estimate(self, people, rubric=RUBRIC, drawing=None, **options):
        for table, name in ((self.corpus, "corpus.csv"), (people, "people.csv")):
            table.to_csv(self.folder / name, index=False)
        places = str(self.folder / "corpus.csv"), str(self.folder / "people.csv")
        return estimate(*places, rubric, drawing, **options)

    def run(self, train, validation=(), numbered=False):
        """A run that was trained on some of the items."""
        run = Run(self.folder / "run")
        run.folder.mkdir(exist_ok=True)
        data = {"train": "t.csv", "item_id": None if numbered else "item_id"}
        recipe = Recipe.model_validate({"name": "j", "rubric": "r.yaml", "data": data})
        run.keep_recipe(recipe)
        names = self.corpus.item_id if not numbered else pd.Series(range(1, len(self.corpus) + 1))
        items = {
            split: [
                Item(str(names[k]), {"text": self.corpus.text[k]}, {}, "g") for k in rows
            ]
            for split, rows in {"train": train, "validation": validation}.items()
        }  # fmt: skip
        save_splits(items, run.data)
        return run


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def holds(interval, truth):
    return interval.low <= truth <= interval.high


# --- several annotators ---


def test_votes_and_not_majorities_are_estimated(world):
    """28 % of the votes are true; the items' majorities, ties to the commoner option, say 15 %."""
    rows = []
    for k in range(600):
        chance = 0.6 if k % 5 == 0 else 0.2
        rows += [(f"i{k}", f"p{a}", world.rng.random() < chance) for a in range(4)]
    world.corpus["refund"] = [k % 5 == 0 for k in range(2000)]
    people = pd.DataFrame(rows, columns=["item_id", "who", "refund"])
    found = world.estimate(people, REFUND, Drawing(annotator="who")).dimensions["refund"]
    assert holds(found["true"].prediction_powered, 0.28)
    assert found["true"].humans_alone.estimate == pytest.approx(people.refund.mean())
    majority = people.groupby("item_id").refund.mean() > 0.5
    assert majority.mean() < 0.2 < found["true"].prediction_powered.low
    for kind in ("prediction_powered", "humans_alone"):
        both = [getattr(found[key], kind).estimate for key in ("false", "true")]
        assert sum(both) == pytest.approx(1)


def test_a_share_that_would_be_below_zero_is_moved_and_said(world):
    """The judge says c of a tenth of the annotated items, people of none; of the others of none."""
    world.corpus["topic"] = ["c" if k < 30 else "a" if k % 2 else "b" for k in range(2000)]
    people = world.people(range(300))
    people["topic"] = ["a" if k % 2 else "b" for k in range(300)]
    found = world.estimate(people)
    topic = found.dimensions["topic"]
    assert topic["c"].uncut < 0 == topic["c"].prediction_powered.estimate
    assert sum(one.prediction_powered.estimate for one in topic.values()) == pytest.approx(1)
    assert any(
        "topic: corrected for the judge's errors, c would be below 0" in n for n in found.notes
    )


def test_names_of_items_are_the_corpus_s_however_numbers_are_written(world):
    """1 here and 1.0 there is one item; names that do not meet are shown, even where one cannot see."""
    world.corpus["item_id"] = [f"{k}.0" for k in range(2000)]
    people = world.people(range(300))
    plain = people.assign(item_id=[str(k) for k in range(300)])
    found, same = world.estimate(plain, REFUND), world.estimate(people, REFUND)
    assert found.dimensions == same.dimensions
    assert any("300 ids are written otherwise" in note for note in found.notes)
    with pytest.raises(
        DataError, match=r"it has 0\.0, 1\.0, 2\.0, the annotations have '0\\u200b'"
    ):
        world.estimate(plain.assign(item_id=plain.item_id + "\u200b"), REFUND)


# --- what the judge was trained on ---


def test_items_that_the_judge_was_trained_on_are_left_out_and_counted(world):
    """The judge knows 300 labels by heart and elsewhere hardly says true (.35 are)."""
    world.corpus.loc[300:, "refund"] = world.rng.random(1700) < 0.05
    world.corpus.loc[:299, "refund"] = world.refund[:300]
    known = world.estimate(world.people(range(300)), REFUND)
    assert known.dimensions["refund"]["true"].prediction_powered.high < 0.2  # and so it warns:
    assert any("was trained on them" in text for text in known.doubts)
    assert "--run leaves out" in estimate_table(known).caption
    run = world.run(range(200), range(200, 300))
    found = world.estimate(world.people(range(600)), REFUND, run=run)
    said = " ".join(found.notes)
    assert (
        f"300 items are those that {run.folder} was trained and chosen on (300 by their text, "
        in said
    )
    assert "0 by their name alone): left out, with 300 of the 600 annotated ones" in said
    share = found.dimensions["refund"]["true"]
    assert holds(share.prediction_powered, world.refund[300:].mean())
    assert (share.n_human, share.n_judged) == (300, 1400)
    assert not found.doubts
    assert "--run" not in estimate_table(found).caption
    with pytest.raises(DataError, match=r"trained on all annotated items.*--folds"):
        world.estimate(world.people(range(300)), REFUND, run=run)


def test_a_text_under_another_name_and_a_name_with_another_text(world):
    people = world.people(range(200))
    run = world.run(range(100))
    world.corpus.loc[:49, "item_id"] = [f"new{k}" for k in range(50)]
    people.loc[:49, "item_id"] = [f"new{k}" for k in range(50)]
    world.corpus.loc[50:99, "text"] = "edited"
    world.corpus.loc[:1, "text"] = [
        "MESSAGE 0",
        "  message\n \t1\n",
    ]  # case and space do not matter
    found = world.estimate(people, REFUND, run=run)
    assert "(50 by their text, 50 by their name alone)" in " ".join(found.notes)
    assert found.dimensions["refund"]["true"].n_human == 100


def test_numbered_rows_are_known_by_their_texts_alone(world):
    world.corpus["item_id"] = [str(k) for k in range(2000)]
    run = world.run(range(100), numbered=True)
    found = world.estimate(world.people(range(200)), REFUND, run=run)
    assert "(100 by their text, 0 by their name alone)" in " ".join(found.notes)
    # Without texts nothing can be said; with those of the annotations, it can.
    world.corpus = world.corpus.rename(columns={"text": "body"})
    found = world.estimate(world.people(range(200)), REFUND, run=run)
    assert found.excluded == 0
    assert "has not all of the columns text (see --column)" in " ".join(found.notes)
    people = world.people(range(200)).assign(text=world.corpus.body[:200])
    assert world.estimate(people, REFUND, run=run).excluded == 100
    named = world.estimate(
        world.people(range(200)), REFUND, Drawing(columns={"text": "body"}), run=run
    )
    assert named.excluded == 100


def test_a_folder_that_is_no_run(world):
    with pytest.raises(JudgeError, match="is not a run"):
        world.estimate(world.people(range(200)), REFUND, run=Run(world.folder))


def test_judges_of_folds(world):
    """Each of two judges knows its half of the labels by heart; the other one judges it."""
    n, half = len(world.corpus), np.arange(300) % 2
    for name, bias in (("x_", 0.05), ("y_", 0.1)):
        judged = world.refund ^ (world.rng.random(n) < bias)
        own = np.flatnonzero(half == (name == "y_"))
        judged[own] = world.refund[own]
        world.corpus[f"{name}refund"] = judged
        world.corpus[f"{name}refund_confidence"] = 0.9
    people = world.people(range(300)).assign(fold=np.where(half, "x_", "y_"))
    found = world.estimate(people, REFUND, Drawing(folds="fold"))
    share = found.dimensions["refund"]["true"]
    assert holds(share.prediction_powered, world.refund.mean())
    assert 0.3 < share.trust < 1
    expected = world.corpus[["x_refund", "y_refund"]][300:].to_numpy().mean()
    assert share.judge_alone == pytest.approx(expected, abs=0.01)
    assert found.excluded == 0
    with pytest.raises(DataError, match="lacks the columns z_refund"):
        world.estimate(people.assign(fold="z_"), REFUND, Drawing(folds="fold"))
    with pytest.raises(DataError, match="leave out --run"):
        world.estimate(people, REFUND, Drawing(folds="fold"), run=world.run(range(9)))
    people.loc[3, "fold"] = None
    with pytest.raises(DataError, match="fold is not given of all annotated items"):
        world.estimate(people, REFUND, Drawing(folds="fold"))


# --- how items were drawn ---


def test_a_queue_for_review_is_noticed_and_carries_its_probabilities(world):
    sure = world.corpus.refund_confidence
    queue = np.flatnonzero(sure < 0.65)
    found = world.estimate(world.people(queue), REFUND)
    (doubt,) = [text for text in found.doubts if "confidence is" in text]
    assert "Items chosen for review are no random sample" in doubt
    assert (
        f"has a confidence above 0.65, {(sure > sure[queue].max()).mean():.0%} of all have" in doubt
    )
    chances = np.where(sure < 0.65, 1.0, 0.1)
    rows = np.flatnonzero(world.rng.random(2000) < chances)
    people = world.people(rows)
    drawn = people.assign(review_probability=chances[rows])
    found = world.estimate(drawn, REFUND, Drawing(probability="review_probability"))
    assert not found.doubts
    # By this name the column is known, and a line says so; equal chances change nothing.
    unasked = world.estimate(drawn, REFUND)
    assert unasked.dimensions == found.dimensions
    assert [line for line in unasked.notes if "people.csv has unequal review_probability" in line]
    equal = world.estimate(people.assign(review_probability=0.1, who="w"), REFUND)
    assert equal == world.estimate(people, REFUND)
    assert holds(found.dimensions["refund"]["true"].prediction_powered, world.refund.mean())
    assert world.estimate(people, REFUND).doubts
    # In the corpus the column is as good; a part of what was drawn is not all of it.
    world.corpus["review_probability"] = chances
    again = world.estimate(people, REFUND, Drawing(probability="review_probability"))
    assert again.dimensions == found.dimensions == world.estimate(people, REFUND).dimensions
    half = world.estimate(people[::2], REFUND, Drawing(probability="review_probability"))
    assert any("stand for" in text and "the corpus has 2,000" in text for text in half.doubts)


def test_chances_of_each_annotator_are_chances_of_items_and_an_item_has_one(world):
    """An annotator took the queue, another one the random part: the column is of both."""
    chances = np.where(np.arange(300) < 200, 0.8, 0.05)
    people = world.people(range(300)).assign(
        review_probability=chances, who=np.where(chances > 0.5, "a", "b")
    )
    asked = Drawing(annotator="who", probability="review_probability")
    found = world.estimate(people, REFUND, Drawing(annotator="who"))
    assert found.dimensions == world.estimate(people, REFUND, asked).dimensions
    assert (
        found.dimensions
        != world.estimate(people.drop(columns="review_probability"), REFUND).dimensions
    )
    twice = pd.concat([people, people.assign(review_probability=0.3, who="c")])
    for drawing in (asked, Drawing(annotator="who"), Drawing()):
        with pytest.raises(DataError, match="review_probability differs between the rows of one"):
            world.estimate(twice, REFUND, drawing)


@pytest.mark.parametrize("value", ["0", "1.5", "often", "", "nan", "-0.1"])
def test_what_is_no_probability(world, value):
    people = world.people(range(100)).assign(chance="0.05")
    people.loc[7, "chance"] = value
    with pytest.raises(DataError, match=r"chance of item i7 is .*; a probability above 0"):
        world.estimate(people, REFUND, Drawing(probability="chance"))
    with pytest.raises(DataError, match="lacks the columns luck"):
        world.estimate(people, REFUND, Drawing(probability="luck"))


def test_strata_and_groups(world):
    mail = np.flatnonzero(world.corpus.channel == "mail")[:150]
    web = np.flatnonzero(world.corpus.channel == "web")[:30]
    people = world.people([*mail, *web])
    found = world.estimate(people, REFUND, Drawing(strata="channel"))
    weights = world.corpus.channel.value_counts(normalize=True)
    expected = sum(
        weights[c] * world.refund[rows].mean() for c, rows in (("mail", mail), ("web", web))
    )
    assert found.dimensions["refund"]["true"].humans_alone.estimate == pytest.approx(expected)
    with pytest.raises(DataError, match="channel mail has 150, web has 1: join those with few"):
        world.estimate(world.people([*mail, web[0]]), REFUND, Drawing(strata="channel"))
    grouped = world.estimate(people, REFUND, Drawing(group="author")).dimensions["refund"]["true"]
    plain = world.estimate(people, REFUND).dimensions["refund"]["true"]
    assert grouped.humans_alone.estimate == pytest.approx(plain.humans_alone.estimate)
    assert grouped.humans_alone.high != pytest.approx(plain.humans_alone.high, abs=1e-4)
    world.corpus["author"] = world.corpus.author.astype(object)
    world.corpus.loc[5, "author"] = None
    with pytest.raises(DataError, match=r"author is not given of 1 of 2000 items .*, e.g. i5"):
        world.estimate(people, REFUND, Drawing(group="author"))


def test_nothing_is_left_out_without_a_line(world):
    people = world.people(range(200)).drop(columns="topic")
    people.loc[:4, "item_id"] = [f"unknown{k}" for k in range(5)]
    world.corpus.loc[1999, "item_id"] = "i7"
    del world.corpus["refund_confidence"]
    found = world.estimate(people)
    said = " ".join(found.notes)
    assert "5 annotated items are not in" in said
    assert "1 of 2000 rows do not count at all: the item stands there already (1)." in said
    assert "lacks topic: left out." in said
    assert "topic: people gave no label, so nothing is estimated." in said
    assert "The judge's confidence in refund is not given of all items" in said
    assert set(found.dimensions) == {"refund", "grade"}


# --- regressions ---


def test_models(world):
    """The judge finds refunds in mail alone; people know that the channel has no effect."""
    world.corpus["refund"] &= world.corpus.channel == "mail"
    world.corpus["likes"] = 1 + 0.5 * world.refund + world.rng.normal(0, 0.3, 2000)
    world.corpus.loc[3, "length"] = None
    models = [
        "refund ~ channel + length", "topic=b ~ grade", "likes ~ refund", "grade ~ topic:channel",
    ]  # fmt: skip
    found = world.estimate(world.people(range(400)), models=models)
    channel = found.models[models[0]]["channel[T.web]"]
    assert channel.judge_alone < -0.3
    assert holds(channel.prediction_powered, 0)
    assert set(found.models[models[0]]) == {"Intercept", "channel[T.web]", "length"}
    assert "refund ~ channel + length: 1 items lack channel, length: left out." in found.notes
    assert (
        "refund ~ channel + length: channel are categories, since not all are numbers."
        in found.notes
    )
    effect = found.models[models[2]]["refund"]
    assert holds(effect.prediction_powered, 0.5)
    assert effect.judge_alone < 0.4
    assert holds(found.models[models[1]]["grade"].prediction_powered, 0)
    assert len(found.models[models[3]]) == 6
    rows = estimate_table(found).rows
    assert ("refund ~ channel + length", (), "bold") in rows
    logit = world.estimate(world.people(range(400)), models=["refund ~ channel"], logit=True)
    assert holds(
        logit.models["refund ~ channel"]["Intercept"].prediction_powered, np.log(0.35 / 0.65)
    )


def test_each_annotators_label_has_its_share_in_a_model(world):
    """With one term, a regression is a mean; two annotators, of whom one skips a question."""
    people = pd.concat([world.people(range(300)).assign(who=w) for w in "ab"], ignore_index=True)
    people.loc[300:449, "refund"] = ~people.loc[300:449, "refund"]
    found = world.estimate(people, RUBRIC, Drawing(annotator="who"), models=["refund ~ 1"])
    mean = found.dimensions["refund"]["true"].humans_alone.estimate
    assert found.models["refund ~ 1"]["Intercept"].humans_alone.estimate == pytest.approx(mean)
    people["refund"] = people.refund.astype(object)
    people.loc[300:, "refund"] = None
    found = world.estimate(people, RUBRIC, Drawing(annotator="who"), models=["grade ~ refund"])
    assert found.models["grade ~ refund"]["refund"].n_human == 300


@pytest.mark.parametrize(
    ("formula", "complaint"),
    [
        ("refund", "is written as outcome ~ terms"),
        ("refund ~ ", "is written as outcome ~ terms"),
        ("refund ~ weather", "there is no weather. The rubric has refund, topic, grade"),
        ("refund ~ channel +* length", "cannot be read"),
        ("refund ~ channel | length", "cannot be read: terms are joined by"),
        ("length ~ channel", "no dimension of the rubric"),
        ("topic ~ channel", "say which option, as in topic=...; topic has a, b, c"),
        ("topic=d ~ channel", "say which option"),
        ("channel ~ refund", "channel holds texts; an outcome is a number"),
        ("refund ~ np.exp(1000 * length)", "not defined for some items"),
        ("refund ~ np.nothing(length)", "cannot be computed"),
        ("refund ~ length + I(2 * length)", "do not tell all coefficients apart"),
    ],
)
def test_models_that_cannot_be_estimated(world, formula, complaint):
    with pytest.raises(DataError, match=complaint.replace(".", r"\.").replace("|", r"\|")):
        world.estimate(world.people(range(200)), models=[formula])


def test_a_model_on_a_column_without_values(world):
    world.corpus["length"] = None
    with pytest.raises(DataError, match="0 items have a label of people and of the judge"):
        world.estimate(world.people(range(200)), models=["refund ~ length"])


def test_a_logistic_model_needs_a_yes_or_no(world):
    with pytest.raises(DataError, match="outcome of a logistic regression is 0 or 1"):
        world.estimate(world.people(range(200)), models=["grade ~ channel"], logit=True)


# --- the command ---


def command(world, monkeypatch, *options):
    rubric = world.folder / "rubric.json"
    rubric.write_text(REFUND.model_dump_json())
    places = [str(world.folder / name) for name in ("corpus.csv", "people.csv", "out.json")]
    monkeypatch.setattr(sys, "argv", [
        "slm-judge", "estimate", places[0], "--annotations", places[1], "--rubric", str(rubric),
        "--overwrite", "--output", places[2], *options,
    ])  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code or 0


def test_the_command_warns_loudly_and_goes_on(world, monkeypatch, capsys):
    queue = np.flatnonzero(world.corpus.refund_confidence < 0.7)
    world.estimate(world.people(queue), REFUND)
    assert command(world, monkeypatch, "--model", "refund ~ channel", "--group", "author") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: refund: the judge's mean confidence is 0.6" in said
    assert "refund ~ channel" in said
    saved = json.loads((world.folder / "out.json").read_text())
    assert set(saved["dimensions"]) == {"refund"}
    assert set(saved["models"]["refund ~ channel"]) == {"Intercept", "channel[T.web]"}
    assert any("mean confidence" in text for text in saved["doubts"])
    run = world.run(queue)
    assert command(world, monkeypatch, "--run", str(run.folder)) == 2
    assert "trained on all annotated items" in " ".join(capsys.readouterr().err.split())
    assert command(world, monkeypatch, "--model", "refund ~ (") == 2
    assert "cannot be read" in capsys.readouterr().err
