"""Learning curves: which items a size has, what is said of more items, and the command as a whole."""

import json

import numpy as np
import pytest
from slm_judge.training import curve as module
from slm_judge.training.curve import enough_passes, learning_curve
from typer.testing import CliRunner

from benchmarks.learning_curves import CURVES, SIZES, needed, simulated
from slm_judge.agreement.alpha import judge_alpha
from slm_judge.agreement.learning_curve import GAIN, outlook
from slm_judge.cli import app
from slm_judge.data.item import Item, votes_of
from slm_judge.data.split import load_splits, nested
from slm_judge.errors import JudgeError
from slm_judge.evaluation.annotators import of_shared
from slm_judge.recipe import TrainingConfig
from slm_judge.rubric import Rubric
from tests.training.test_seeds import recipe_in


def item(number, group, text=""):
    return Item(str(number), {"text": text or f"text {number}"}, {}, group)


@pytest.mark.parametrize("seed", range(3))
def test_fewer_items_are_a_part_of_more_and_groups_stay_whole(seed):
    items = [item(n, f"g{n % 9}") for n in range(40)] + [
        item(40, "h", "same"),
        item(41, "i", "same"),
    ]
    before: set[str] = set()
    for n in (1, 5, 12, 13, 30, 42, 99):
        chosen = {one.item_id for one in nested(items, n, seed)}
        assert before <= chosen
        assert min(n, 42) <= len(chosen) < n + 5
        for group in {one.group for one in items} - {"h", "i"}:
            members = {one.item_id for one in items if one.group == group}
            assert members <= chosen or not members & chosen
        assert ("40" in chosen) == ("41" in chosen)
        before = chosen
    assert len(nested(items, 5, seed, whole=False)) == 5
    orders = {tuple(one.item_id for one in nested(items, 12, s)) for s in range(5)}
    assert len(orders) == 5


def test_few_items_are_learned_in_as_many_steps_but_not_without_end():
    training = TrainingConfig(epochs=4, batch_size=16)
    assert enough_passes(training, 3200) == 4
    assert enough_passes(training, 400) == 8  # 200 steps
    assert enough_passes(training, 20) == 40


@pytest.mark.parametrize(
    ("name", "seeds", "deviation", "items", "most"),
    [("power 0.5", 3, 0.03, 0.005, 1.2), ("steep", 5, 0.01, 0.03, 1.4),
     ("exponential", 5, 0.01, 0.03, 3.5)],  # which could also end like a power
)  # fmt: skip
def test_the_outlook_holds_the_truth_about_as_often_as_it_says(name, seeds, deviation, items, most):
    """And is about as wide as its estimates vary between studies, whatever makes them vary."""
    curve, rng, missed, found = CURVES[name], np.random.default_rng(1), np.zeros(2), []
    more, gain = needed(curve), curve(2 * SIZES[-1]) - curve(SIZES[-1])
    for _ in range(20):
        one = outlook(SIZES, simulated(rng, curve, seeds, deviation, 200, items))
        missed += [not 0.999 * one.more.low <= more <= 1.001 * one.more.high,
                   not one.twice.low - 1e-4 <= gain <= one.twice.high + 1e-4]  # fmt: skip
        found.append((one.twice.estimate, one.twice.high - one.twice.low))
    estimates, widths = np.transpose(found)
    assert missed.max() <= 3
    assert 0.85 < widths.mean() / (2 * 1.96 * estimates.std()) < most


def test_few_groups_of_test_items_and_unsteady_trainings_make_it_wider():
    curve, groups = CURVES["logarithm"], {}
    alphas = simulated(np.random.default_rng(0), curve, 3, 0.002, 500)
    for units in (None, 50, 5):
        found = outlook(SIZES, alphas, units=units).twice
        groups[units] = found.high - found.low
    assert groups[50] / groups[None] == pytest.approx(1.03, abs=0.04)
    assert 1.15 < groups[5] / groups[None] < 1.6  # Student's with 4 degrees of freedom: 1.58
    assert "not defined" in outlook(SIZES, alphas, units=1).said
    # The largest size says most of what comes next; its seeds count by themselves for a half.
    steady, widths = simulated(np.random.default_rng(0), curve, 3, 0.002, 500, 0.001), []
    for size in (0, 4):
        noisy = steady.copy()
        noisy[:, size] += [-0.08, 0, 0.08]
        found = outlook(SIZES, noisy).twice
        widths.append(found.high - found.low)
    assert widths[1] > 1.3 * widths[0]


def test_growth_that_has_not_begun_to_slow_down_is_not_carried_on():
    """It is fastest at 600 items; a law through what came before would promise far too much."""
    curve, rng = CURVES["sigmoid, ahead"], np.random.default_rng(0)
    found = [outlook(SIZES, simulated(rng, curve, 5, 0.01, 200)) for _ in range(6)]
    said = [one for one in found if one.more is None]
    assert len(said) >= 5
    assert all("grows ever faster" in one.said for one in said)


def test_what_will_not_help_is_never_promised():
    rng = np.random.default_rng(2)
    found = [outlook(SIZES, simulated(rng, CURVES["flat"], 3, 0.01, 200)) for _ in range(15)]
    verdicts = [one.verdict for one in found]
    assert set(verdicts) == {"no", "cannot be said"}
    (said,) = {one.said.partition(". ")[2] for one in found if one.verdict == "no"}
    assert (
        said == "More items of this kind will hardly help: 4 times as many would not bring +0.05."
    )


def test_a_steep_curve_without_noise_is_told_in_numbers():
    curve = CURVES["steep"]
    found = outlook(SIZES, simulated(np.random.default_rng(0), curve, 5, 0.003, 300, items=0.01))
    assert found.verdict == "items"
    assert found.more.low < needed(curve) < found.more.high < 2 * found.more.low
    assert curve(SIZES[-1] + found.more.estimate) - curve(SIZES[-1]) == pytest.approx(
        GAIN, abs=0.02
    )
    assert f"more items for +{GAIN} (" in found.said


@pytest.mark.parametrize(
    ("sizes", "alphas", "why"),
    [
        (SIZES[:4], np.full((50, 4, 3), 0.5), "5 sizes and 2 seeds are needed, there are 4 and 3"),
        (SIZES, np.full((50, 5, 1), 0.5), "there are 5 and 1"),
        (SIZES, np.full((50, 5, 3), np.nan), "alpha is not defined at all sizes"),
        (SIZES, np.array([0.1, 0.6, 0.1, 0.6, 0.1])[:, None] + 0.001 * np.random.default_rng(0).
         normal(size=(50, 5, 3)), "do not follow a law of growth"),
    ],
)  # fmt: skip
def test_what_is_not_determined_cannot_be_said(sizes, alphas, why):
    found = outlook(sizes, alphas)
    assert found.verdict == "cannot be said"
    assert found.more is None
    assert why in found.said


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A recipe on the tiny base, and its curve of two sizes."""
    folder = tmp_path_factory.mktemp("curve")
    recipe, settings = recipe_in(folder / "run"), folder / "recipe.yaml"
    settings.write_text(recipe.model_dump_json())

    def run(*options):
        output = ["--seeds", "1", "--output", str(folder / "curve"), *options]
        return CliRunner().invoke(app, ["curve", str(settings), *output], catch_exceptions=False)

    with pytest.MonkeyPatch.context() as patch:  # the second training is broken off
        train = module.train
        patch.setattr(module, "train", lambda *a, **k: (train if len(k["splits"]["train"]) < 12
                                                        else pytest.fail)(*a, **k))  # fmt: skip
        with pytest.raises((BaseException,)):
            run("--items", "10,12")
    kept = folder / "curve" / "10-seed0.json"
    before = kept.stat().st_mtime_ns
    done = run("--items", "10,12")
    assert kept.stat().st_mtime_ns == before
    return recipe, folder, done, run


def test_the_command_trains_on_parts_and_scores_the_same_test_items(command):
    recipe, folder, done, _ = command
    assert done.exit_code == 0
    report = json.loads((folder / "curve" / "curve.json").read_text())
    rubric = Rubric.from_file(recipe.rubric)
    test = load_splits(recipe.data, rubric, recipe.training.seed)["test"]
    assert report["items"] == [10, 12]
    for dimension in rubric.dimensions:
        shown = report["dimensions"][dimension.name]
        for k, size in enumerate((10, 12)):
            kept = json.loads((folder / "curve" / f"{size}-seed0.json").read_text())
            assert kept["items"] == size
            for system in ("judge", "TF-IDF + logistic regression"):
                alpha = judge_alpha(kept["labels"][system][dimension.name],
                                    of_shared(votes_of(test, dimension.name)), dimension)  # fmt: skip
                assert shown["systems"][system]["by_seed"][k] == [pytest.approx(alpha)]
                assert shown["systems"][system]["mean"][k]["estimate"] == pytest.approx(alpha)
        assert shown["annotators"]["low"] < shown["annotators"]["high"]
        assert "there are 2 and 1" in shown["outlook"]["said"]
    assert "10 items" in done.output
    assert "cannot be said" in done.output
    assert (folder / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "curve" / "curve.svg").read_bytes()[:1000]
    assert not (folder / "curve" / "training").exists()


def test_judge_and_annotators_are_compared_on_the_same_items(command, monkeypatch):
    """Of half of the test items one annotation is left: they are in no alpha."""
    recipe, folder, _, _ = command
    rubric = Rubric.from_file(recipe.rubric)
    splits = load_splits(recipe.data, rubric, recipe.training.seed)
    for one in splits["test"][::2]:
        one.votes = {name: dict([*votes.items()][:1]) for name, votes in one.votes.items()}
    labels = [n % 4 // 2 for n in range(len(splits["test"]))]
    found = []
    for test, said in ((splits["test"], labels), (splits["test"][1::2], labels[1::2])):
        result = {"items": 12, "labels": {"judge": {d.name: said for d in rubric.dimensions}}}
        monkeypatch.setattr(module._Curve, "known", lambda *_, result=result: result)
        curve = module._Curve(recipe, rubric, {**splits, "test": test}, [12], [0], folder, "")
        found.append(module._report(curve)["dimensions"])
    for name, whole in found[0].items():
        for figure in (lambda of: of["systems"]["judge"]["by_seed"],
                       lambda of: of["annotators"]["estimate"]):  # fmt: skip
            assert figure(whole) == figure(found[1][name])


def test_nothing_is_computed_twice_or_with_other_settings(command, monkeypatch):
    recipe, folder, _, run = command
    monkeypatch.setattr(module, "train", pytest.fail)
    assert run("--items", "10,12").exit_code == 0
    for options, why in ([["--items", "10,11"], None], [["--items", "9"], "at least 10 are needed"],
                         [["--items", "13"], "there are 12 training items"],
                         [["--items", "ten"], "whole numbers"], [["--seeds", "0"], "from 1 to 100"]):  # fmt: skip
        if why:
            with pytest.raises(JudgeError, match=why):
                run(*options)
    other = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"r": 3})})
    with pytest.raises(JudgeError, match="another recipe, rubric or other data"):
        learning_curve(other, [10], 1, folder / "curve")
