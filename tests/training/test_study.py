"""The figures of docs/results.md: which items a row sees, what is kept, how folds are pooled."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import study
from benchmarks.convabuse import FIELDS, FOLLOW_UPS, SEVERITY, TYPES, make
from benchmarks.study import Row, Study, compute_all, packed, splits_of, unpacked
from benchmarks.study_tables import curve_figure, markdown
from slm_judge.agreement.alpha import judge_alpha
from slm_judge.data.item import votes_of
from slm_judge.files import write_json
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric

ROOT = Path(__file__).parents[2]
HEADER = [
    "example_no", "annotator_id", "conv_id", *FIELDS, "bot",
    *(f"is_abuse.{level}" for level in SEVERITY),
    *(f"type.{name}" for name in (*TYPES, "ableism", "racist", "transphobic")),
    *(f"{name}.{option}" for name, options in FOLLOW_UPS.items() for option in options),
]  # fmt: skip


def published(annotator, conversation, user, *ticked):
    """A row of the published table."""
    row = dict.fromkeys(HEADER, "0") | dict.fromkeys(FIELDS, "hello")
    row |= {"annotator_id": annotator, "conv_id": conversation, "user": user}
    return row | dict.fromkeys(ticked, "1")


def test_convabuse_becomes_a_long_table(tmp_path):
    rows = [
        published(
            "a", "1", "x", "is_abuse.-2", "type.sexist", "target.system", "direction.implicit"
        ),
        published("a", "1", "x", "is_abuse.1"),  # the same again
        published("b", "2", "x", "is_abuse.-1", "target.system", "target.individual"),
        published("a", "2", "y", "is_abuse.0", "type.sexist", "target.system"),  # not asked
        published("a", "3", "z", "is_abuse.1"),
    ]
    with (tmp_path / "raw.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    said = make(tmp_path / "raw.csv", tmp_path / "made" / "long.csv")
    with (tmp_path / "made" / "long.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    kept = ("item_id", "conversation", "severity", "sexist", "target", "direction")
    assert [tuple(row[key] for key in kept) for row in found] == [
        ("1", "1", "-2", "true", "system", "implicit"),
        ("1", "1", "-1", "false", "", ""),
        ("2", "1", "0", "false", "", ""),
        ("3", "3", "1", "false", "", ""),
    ]
    assert "4 annotations of 3 items in 2 groups" in said
    for what in ("1 later annotations", "2 types, targets and directions ticked where no abuse",
                 "1 answers of target with several ticks"):  # fmt: skip
        assert what in said


@pytest.fixture(scope="module")
def sample():
    """The shipped sample, as a recipe and its rubric."""
    recipe = Recipe.from_file(ROOT / "recipes" / "tiny.yaml")
    return recipe, Rubric.from_file(recipe.rubric)


def ids(items):
    return {item.item_id for item in items}


@pytest.mark.parametrize("seed", [0, 1])
def test_fewer_labels_are_a_part_of_more_and_none_is_tested_on(sample, seed):
    recipe, rubric = sample
    recipe = study.with_settings(recipe, {"training.seed": seed})
    everything = splits_of(Row("all", "tiny", seed, labelled=0), recipe, rubric)
    smaller: set[str] = set()
    for n in (50, 100, 400, 0):
        splits = splits_of(Row("few", "tiny", seed, labelled=n), recipe, rubric)
        labelled = ids([*splits["train"], *splits["validation"]])
        assert smaller <= labelled
        assert len(labelled) == n or not n
        assert 0 < len(splits["validation"]) <= min(0.3 * len(labelled), study.MOST_VALIDATION)
        assert ids(splits["test"]) == ids(everything["test"])
        assert not labelled & ids(splits["test"])
        smaller = labelled


def test_folds_test_each_item_once(sample):
    recipe, rubric = sample
    splits = [splits_of(Row("all", "tiny", fold=k), recipe, rubric) for k in range(study.FOLDS)]
    tested = [item.item_id for one in splits for item in one["test"]]
    assert len(tested) == len(set(tested)) == 720
    for one in splits:
        learned = ids([*one["train"], *one["validation"]])
        assert len(learned) == 720 - len(one["test"])
        assert not learned & ids(one["test"])


def test_a_factor_is_one_of_the_recipes_value(sample):
    recipe, _ = sample
    changed = study.with_settings(recipe, {"training.learning_rate": "x0.5", "lora.r": 4})
    assert changed.training.learning_rate == recipe.training.learning_rate / 2
    assert changed.lora.r == 4
    with pytest.raises(study.RecipeError, match=r"lora\.ranks"):
        study.with_settings(recipe, {"lora.ranks": 4})


def test_pooled_folds_are_scored_as_one(sample, tmp_path, monkeypatch):
    recipe, rubric = sample
    rows = [Row("all", "tiny", fold=k) for k in range(study.FOLDS)]
    monkeypatch.setitem(study.PLAN, "demo", rows)
    here = Study(tmp_path / "results", tmp_path / "runs", {})
    items, labels = [], []
    for row in rows:
        test = splits_of(row, recipe, rubric)["test"]
        own = {d.name: [votes[0] for votes in votes_of(test, d.name)] for d in rubric.dimensions}
        items += test
        labels += own["urgency"]
        part = {
            "recipe": {}, "device": "", "threads": 1, "versions": {}, "seconds": 1.0,
            "items": {"train": 1, "validation": 1, "test": len(test)},
            "log_loss": {name: float(row.fold) for name in own},
            "labels": {"judge": {name: packed(one) for name, one in own.items()}},
        }  # fmt: skip
        write_json(here.path("demo", row.name), part)
        here.pool("demo", row)
    ((pooled, result),) = here.rows("demo")
    expected = judge_alpha(labels, votes_of(items, "urgency"), rubric.dimension("urgency"))
    assert pooled.name == "all-seed0"
    assert result["items"]["test"] == 720
    assert result["seconds"] == study.FOLDS
    assert result["results"]["urgency"]["judge"]["alpha"]["estimate"] == pytest.approx(
        expected, abs=1e-5
    )
    assert "| judge | " in markdown("demo", here.rows("demo"))


def test_labels_are_kept_as_letters():
    assert unpacked(packed([0, 9, 10, 27])) == [0, 9, 10, 27]


def test_rows_come_in_the_order_of_the_patterns_and_seed_by_seed():
    patterns = ["convabuse/*seed2", "curve/popquorn-50-*", "convabuse/*"]
    found = study.chosen(["curve", "convabuse"], patterns)
    assert [f"{table}/{row.name}" for table, row in found] == [
        "convabuse/all-seed2",
        *(f"curve/popquorn-50-seed{seed}" for seed in range(3)),
        "convabuse/all-seed0",
        "convabuse/all-seed1",
    ]


def test_baselines_can_come_later_and_several_rows_at_a_time(tmp_path, monkeypatch):
    rows = [Row("few", "tiny", seed, labelled=40, zero_shot=False) for seed in range(2)]
    monkeypatch.setitem(study.PLAN, "curve", rows)
    monkeypatch.setattr(study, "minilm_folder", lambda: None)  # the encoder has tests of its own
    given = [("curve", row) for row in rows]
    here = Study(tmp_path / "results", tmp_path / "runs", {"training.epochs": 1}, baselines=False)
    assert compute_all(here, given, minutes=10, workers=2) == []
    results = [json.loads(here.path("curve", row.name).read_text()) for row in rows]
    assert [[*one["labels"]] for one in results] == [["judge"]] * 2
    assert results[0]["labels"] != results[1]["labels"]
    assert compute_all(replace(here, baselines=True), given, minutes=0) == []
    for row, before in zip(rows, results, strict=True):
        now = json.loads(here.path("curve", row.name).read_text())
        assert now["labels"]["judge"] == before["labels"]["judge"]
        assert "majority label" in now["results"]["urgency"]
        assert now["results"]["urgency"]["judge"] == before["results"]["urgency"]["judge"]


def test_a_row_is_computed_once_and_shown(tmp_path, monkeypatch):
    row = Row("sample-50", "tiny", labelled=50, yardsticks=False, zero_shot=False)
    monkeypatch.setitem(study.PLAN, "curve", [row])
    one = tmp_path / "urgency.yaml"
    rubric = Rubric.from_file(ROOT / "rubrics" / "support-messages.yaml")
    one.write_text(rubric.model_copy(update={"dimensions": rubric.dimensions[:1]}).to_json())
    common = {"training.epochs": 1, "rubric": str(one)}
    here = Study(tmp_path / "results", tmp_path / "runs", common)
    assert compute_all(here, [("curve", row)], minutes=10) == []
    path = here.path("curve", row.name)
    result = json.loads(path.read_text())
    assert result["items"]["train"] + result["items"]["validation"] == 50
    assert len(result["labels"]["judge"]["urgency"]) == result["items"]["test"]
    assert not (here.runs / "curve" / path.stem).exists()
    before = path.stat().st_mtime_ns
    assert compute_all(here, [("curve", row)], minutes=10) == []
    assert path.stat().st_mtime_ns == before
    assert here.outdated("curve", row) == []
    warmer = replace(here, common={**common, "training.learning_rate": 1.0})
    assert warmer.outdated("curve", row) == ["training.learning_rate"]
    (here.results / "other").mkdir()
    write_json(here.results / "other" / "of-another-study.json", {"random": 1})
    assert here.seconds(row) == result["seconds_with_scoring"]
    del result["recipe"]["training"]["dtype"]  # a setting that came later
    write_json(path, result)
    assert here.outdated("curve", row) == []
    curve_figure(here.rows("curve"), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| 50 | " in markdown("curve", here.rows("curve"))
