"""`slm-judge curve`: how agreement grows with the number of annotated items, and what more bring.

Each training is kept as JSON when it is done, with the labels that it gave to the test items, so
that nothing is computed twice; one that was cut short goes on at its last checkpoint.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache
from rich.console import Console

from slm_judge.agreement.alpha import (
    Floats,
    Votes,
    alpha_of_coincidences,
    annotator_coincidences,
    judge_coincidences,
)
from slm_judge.agreement.bootstrap import Bootstrap, percentile_interval
from slm_judge.agreement.learning_curve import outlook
from slm_judge.agreement.parts import all_parts
from slm_judge.data.applies import without_unasked
from slm_judge.data.item import Item, votes_of
from slm_judge.data.split import load_splits, nested
from slm_judge.errors import JudgeError
from slm_judge.evaluation.annotators import of_shared
from slm_judge.evaluation.baselines import fit_systems
from slm_judge.files import finite, locked, read_back, remove, write_json
from slm_judge.recipe import Recipe, TrainingConfig, public_settings
from slm_judge.rubric import Dimension, Rubric
from slm_judge.screen import Sheet, say

from .seeds import answers_of
from .train import train

JUDGE = "judge"
LEAST_STEPS, MOST_PASSES = 200, 40
"""Of few items: more passes, until there are as many steps."""
_FEWEST, _MOST_SIZES = 10, 6


def enough_passes(training: TrainingConfig, n_items: int, steps: int = LEAST_STEPS) -> float:
    """Passes over few items: the recipe's, or as many more as make `steps`, to a bound."""
    passes = math.ceil(steps * training.batch_size / n_items)
    return max(training.epochs, min(passes, MOST_PASSES))


@dataclass(frozen=True)
class _Curve:
    """What is computed, and where it is kept."""

    recipe: Recipe
    rubric: Rubric
    splits: dict[str, list[Item]]
    sizes: list[int]
    seeds: list[int]
    folder: Path
    job: str
    """Hash of all that decides the results."""

    def path(self, size: int, seed: int) -> Path:
        return self.folder / f"{size}-seed{seed}.json"

    def known(self, size: int, seed: int) -> dict[str, Any] | None:
        """A result that is kept.

        Raises:
            JudgeError: it is of other settings or other data.
        """
        path = self.path(size, seed)
        if not path.exists():
            return None
        found = read_back(path, "remove it, and it is computed again")
        if found["job"] != self.job:
            raise JudgeError(
                f"{path} was computed with another recipe, rubric or other data. Name another "
                "folder with --output, or remove this one."
            )
        return found


def learning_curve(
    recipe: Recipe,
    sizes: Sequence[int] = (),
    n_seeds: int = 3,
    folder: Path | None = None,
    console: Console | None = None,
) -> tuple[dict[str, Any], Path]:
    """Train on nested parts of a recipe's training items, and score them on the same test items.

    A seed draws the order in which items come, the adapter's first weights and the order of
    training; the split is that of the recipe's own seed. Few items get more passes, see
    `enough_passes`.

    Args:
        recipe: all settings.
        sizes: numbers of training items; by default all, a half, a quarter, ...
        n_seeds: trainings of each size.
        folder: where results are kept; by default beside the recipe's run.
        console: where progress is written.

    Returns:
        The report, also written as `curve.json`; and the folder.

    Raises:
        DataError: the data cannot be used.
        JudgeError: a size or the number of seeds is not sensible, or the folder is another job's.
    """
    process = PartialState()
    console = (console or Console()) if process.is_main_process else Console(quiet=True)
    folder = folder or recipe.run_folder.with_name(f"{recipe.run_folder.name}-curve")
    rubric, notes = Rubric.from_file(recipe.rubric), list[str]()
    with process.main_process_first():
        splits = load_splits(recipe.data, rubric, recipe.training.seed, notes)
    say(console, notes)
    chosen = _sizes(sizes, len(splits["train"]))
    if not 1 <= n_seeds <= 100:
        raise JudgeError(f"--seeds is how often to train, from 1 to 100; it is {n_seeds}.")
    seeds = [recipe.training.seed + k for k in range(n_seeds)]
    curve = _Curve(recipe, rubric, splits, chosen, seeds, folder, _job(recipe, rubric, splits))
    plan = [(size, seed) for seed in seeds for size in chosen]
    with locked(folder.resolve()) if process.is_main_process else nullcontext():
        missing = [one for one in plan if not curve.known(*one)]
        process.wait_for_everyone()  # before the first one writes
        for number, one in enumerate(missing, start=1):
            said = f"{one[0]} items, seed {one[1]}: training {number} of {len(missing)}"
            say(console, [said], "")
            _compute(curve, *one, console)
        report = _report(curve)
        if process.is_main_process:
            write_json(folder / "curve.json", report)
    return report, folder


def _sizes(asked: Sequence[int], most: int) -> list[int]:
    if wrong := [n for n in asked if not _FEWEST <= n <= most]:
        raise JudgeError(
            f"--items {', '.join(map(str, wrong))}: there are {most} training items, and at least "
            f"{_FEWEST} are needed. By default: all, a half, a quarter, ..."
        )
    halves = (most >> k for k in range(_MOST_SIZES))
    return sorted({*asked} or {most, *(n for n in halves if n >= 2 * _FEWEST)})


def _job(recipe: Recipe, rubric: Rubric, splits: Mapping[str, Sequence[Item]]) -> str:
    settings = recipe.model_dump(exclude={"output", "card", "export", "verify"})
    items = {name: [asdict(item) for item in part] for name, part in splits.items()}
    decides = [public_settings(settings), rubric.to_json(), items]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _compute(curve: _Curve, size: int, seed: int, console: Console) -> None:
    """Train, ask about the test items, fit the baselines, and keep what came out."""
    started, process, rubric = time.monotonic(), PartialState(), curve.rubric
    everything, test, training = curve.splits["train"], curve.splits["test"], curve.recipe.training
    part = nested(everything, size, seed)
    epochs = training.epochs
    if len(part) < len(everything):
        steps = int(epochs * len(everything) / training.batch_size)
        epochs = enough_passes(training, len(part), min(LEAST_STEPS, steps))
    own = training.model_copy(update={"seed": seed, "epochs": epochs})
    folder = curve.folder / "training" / f"{size}-seed{seed}"
    recipe = curve.recipe.model_copy(update={"output": str(folder), "training": own})
    run = train(recipe, resume=True, console=console, splits={**curve.splits, "train": part})
    clear_device_cache(garbage_collection=True)
    if process.is_main_process:
        device = None if training.device == "auto" else training.device
        said = answers_of(run.adapter, rubric, test, f"{size} items", console, device)
        judged = {name: answers.labels.tolist() for name, answers in said.items()}
        fitted = {
            name: without_unasked(rubric, {d: np.array(given) for d, given in said.items()})
            for name, said in fit_systems(part, test, rubric)[0].items()
        }
        labels = {JUDGE: judged} | {
            name: {d: given.tolist() for d, given in said.items()} for name, said in fitted.items()
        }
        result = {"items": len(part), "epochs": epochs, "labels": labels}
        result |= {"seconds": round(time.monotonic() - started, 1), "job": curve.job}
        write_json(curve.path(size, seed), result)
        remove(folder)  # results are small, adapters are not
        with suppress(OSError):  # where others wait to be gone on with
            folder.parent.rmdir()
    process.wait_for_everyone()


def _report(curve: _Curve) -> dict[str, Any]:
    """Alpha of each system, size and seed, what the annotators reach, and the outlook."""
    test = curve.splits["test"]
    results = [[curve.known(size, seed) for seed in curve.seeds] for size in curve.sizes]
    found = [[one for one in row if one] for row in results]
    items = [float(np.mean([one["items"] for one in row])) for row in found]
    bootstrap = Bootstrap(
        len(test), seed=curve.recipe.training.seed, groups=[i.group for i in test]
    )
    dimensions = {}
    for part in all_parts(curve.rubric.dimensions):
        d, source = part.dimension, part.source
        votes = part.votes_of(votes_of(test, source))
        compared, systems = of_shared(votes), {}
        for system in found[0][0]["labels"]:
            labels = [[one["labels"][system].get(source) for one in row] for row in found]
            if all(map(all, labels)):  # a baseline may not be fitted on few items
                own = [[part.labels(one).tolist() for one in row] for row in labels]
                systems[system] = _alphas(own, compared, d, bootstrap)
        several = any(len(row) > 1 for row in votes)
        annotators = annotator_coincidences(compared, len(d.options))
        dimensions[d.name] = {
            "annotators": asdict(_interval(_alpha(annotators, d, bootstrap), bootstrap))
            if several
            else None,
            "systems": {
                name: {
                    "by_seed": values[0].tolist(),
                    "mean": [asdict(_interval(v, bootstrap)) for v in values.mean(axis=2).T],
                }
                for name, values in systems.items()
            },
            "outlook": asdict(outlook(items, systems[JUDGE], bootstrap.seed, bootstrap.units)),
        }
    counts = {name: len(curve.splits[name]) for name in ("train", "validation", "test")}
    return finite(  # type: ignore[no-any-return]
        {"recipe": curve.recipe.name, "items": items, "seeds": curve.seeds, "splits": counts,
         "dimensions": dimensions}
    )  # fmt: skip


def _alphas(
    labels: Sequence[Sequence[list[int]]], votes: Votes, dimension: Dimension, bootstrap: Bootstrap
) -> Floats:
    """Alphas of labels by size and seed, (1 + resamples) x sizes x seeds."""
    n = len(dimension.options)
    rows = [[_alpha(judge_coincidences(one, votes, n), dimension, bootstrap) for one in row]
            for row in labels]  # fmt: skip
    return np.array(rows).transpose(2, 0, 1)


def _alpha(coincidences: Floats, dimension: Dimension, bootstrap: Bootstrap) -> Floats:
    values, level = dimension.values, dimension.level_of_measurement
    return alpha_of_coincidences(bootstrap.totals(coincidences), values, level)


def _interval(values: Floats, bootstrap: Bootstrap) -> Any:
    return percentile_interval(values, bounds=(-1, 1), units=bootstrap.units)


def table(report: Mapping[str, Any]) -> Sheet:
    """The report in short, for a terminal."""
    items, n = report["items"], len(report["seeds"])
    found = Sheet(
        f"Krippendorff's alpha against the annotators of {report['splits']['test']} test items",
        (*(f"{one:,.0f} items" for one in items),),
        f"mean of {n} seeds; the {report['splits']['validation']} validation items, on which "
        "checkpoints are chosen, are the same for all and come on top; where some test items have "
        "several annotations, all alphas are of these",
    )
    for name, dimension in report["dimensions"].items():
        found.group(name)
        for system, alphas in dimension["systems"].items():
            found.add(system, *(_number(one["estimate"]) for one in alphas["mean"]))
        if annotators := dimension["annotators"]:
            found.add(
                "the annotators among themselves", *[_number(annotators["estimate"])] * len(items)
            )
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
