"""Does a small model, fine-tuned on few labels, agree with people better than what else there is?

    python -m benchmarks.study                              # what there is, and how far it is
    python -m benchmarks.study popquorn ablation --minutes 90
    python -m benchmarks.study curve --only "convabuse-50-*"
    python -m benchmarks.study convabuse --workers 12 --judges-alone    # where there is a GPU
    python -m benchmarks.study --show popquorn              # the table of docs/results.md

A table is a list of rows: a recipe, settings that differ from it, a seed, a part of the data. A row
is computed once and kept in benchmarks/results/TABLE/ROW.json; one that was cut short goes on where
it stopped. Baselines learn from all of a row's labelled items: those that the judge trains on and
those on which it chooses its checkpoint. They need no GPU: a row whose judge was computed alone
gets them the next time. Folds are pooled and scored once.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from slm_judge.training.curve import enough_passes
from slm_judge.training.energy import device_name
from slm_judge.training.targets import resolve
from slm_judge.training.train import train

from benchmarks.convabuse import make
from benchmarks.minilm import minilm_folder
from benchmarks.study_tables import curve_figure, markdown
from slm_judge import Judge
from slm_judge.agreement.aggregate import vote_shares
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.calibration import cross_entropy
from slm_judge.data.item import Item, votes_of
from slm_judge.data.split import load_splits, nested, split_items
from slm_judge.errors import JudgeError
from slm_judge.evaluation.baselines import fit_systems, score, score_annotators
from slm_judge.evaluation.zero_shot import zero_shot
from slm_judge.files import write_json
from slm_judge.judge.answer import collected, softmax
from slm_judge.recipe import Recipe, RecipeError, public_settings
from slm_judge.rubric import Rubric, explain
from slm_judge.run import Run

ROOT = Path(__file__).parents[1]
FOLDS = 5
VALIDATION_SHARE, MOST_VALIDATION = 0.2, 200
"""Of the labelled items of a learning curve: "50 labels" are 40 to train and 10 to choose on."""

Splits = dict[str, list[Item]]
Labels = dict[str, dict[str, list[int]]]
"""System -> dimension -> option index of each test item."""
Results = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One training, and what else is scored on the same test items."""

    label: str
    """What the table calls it; rows that differ in the seed or the fold alone share it."""
    recipe: str
    """Name of a file in recipes/."""
    seed: int = 0
    """Of the split, the weights and the order of the items."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`section.key` -> value; "x2" multiplies the recipe's."""
    labelled: int | None = None
    """Training and validation items together; 0 means all, by the same rule."""
    fold: int | None = None
    yardsticks: bool = True
    """Whether baselines are fitted too."""
    zero_shot: bool = True
    """Whether the base is asked without training too."""

    @property
    def name(self) -> str:
        """Of its file."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.label}-seed{self.seed}{fold}"


# --- the plan -----------------------------------------------------------------------------------

SEEDS = range(3)
_SEVERITY = {"rubric": str(ROOT / "rubrics" / "abuse-severity.yaml")}
_CURVES: dict[str, dict[str, Any]] = {"convabuse": _SEVERITY, "popquorn": {"data.test_share": 0.25}}
"""Data -> settings of its learning curve and its ablations."""
SIZES = (50, 100, 200, 400, 800, 0)
ABLATED, _PASSES = 600, {"convabuse": 4, "popquorn": 8}
"""Labelled items of an ablation, and passes over them."""
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "paraphrases": {"augmentation.paraphrase": True},
    "field-order": {"augmentation.permute_fields": True},
    "shuffled-options": {"augmentation.shuffle_options": "all"},
    "token-dropout-0.1": {"augmentation.token_dropout": 0.1},
    **{f"targets-{t}": {"training.targets": t} for t in ("soft", "sampled", "majority",
                                                         "dawid_skene")},
    **{f"class-balance-{b:g}": {"training.class_balance": b} for b in (0.0, 0.5, 1.0)},
    **{f"ordinal-weight-{w:g}": {"training.ordinal_weight": w} for w in (0.0, 0.5, 1.0)},
    **{f"squared-error-{w:g}": {"training.ordinal_loss": "squared_error",
                                "training.ordinal_weight": w} for w in (0.5, 1.0)},
    **{f"rank-{r}": {"lora.r": r, "lora.alpha": 2 * r} for r in (4, 16, 64)},
    "random-init": {"lora.init": "random"},
    "vocabulary-weight-1": {"training.vocabulary_weight": 1.0},
    "beta2-0.999": {"training.adam_beta2": 0.999},
    "linear-schedule": {"training.scheduler": "linear"},
    "rslora": {"lora.rslora": True},
    "upper-half": {"lora.layers": 0.5},
    "rate-x0.5": {"training.learning_rate": "x0.5"},
    "rate-x2": {"training.learning_rate": "x2"},
}  # fmt: skip
ON_BOTH = ("recipe", "targets", "class-balance", "ordinal-weight", "squared-error")
"""Starts of the variants that are tried on POPQUORN too, which has more votes an item."""

PLAN: dict[str, list[Row]] = {
    # The test items are given, so what does not depend on the seed is computed once.
    "goemotions": [
        Row("all", "goemotions", s, yardsticks=s == 0, zero_shot=s == 0) for s in SEEDS
    ],
    "popquorn": [Row("all", "popquorn", s, fold=k) for s in SEEDS for k in range(FOLDS)],
    "convabuse": [Row("all", "convabuse", s) for s in SEEDS],
    "curve": [
        Row(f"{data}-{n or 'all'}", data, s, settings, labelled=n, zero_shot=n == SIZES[0])
        for s in SEEDS for n in SIZES for data, settings in _CURVES.items()
    ],
    "ablation": [
        Row(f"{data}-{variant}", data, s,
            {**settings, "training.epochs": _PASSES[data], **changes}, ABLATED,
            yardsticks=False, zero_shot=False)
        for s in SEEDS for data, settings in _CURVES.items()
        for variant, changes in VARIANTS.items()
        if data == "convabuse" or variant.startswith(ON_BOTH)
    ],
}  # fmt: skip


# --- one row ------------------------------------------------------------------------------------


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of `section.key`.

    Raises:
        RecipeError: it has no such key, or the value does not fit.
    """
    raw = recipe.model_dump()
    for path, value in settings.items():
        *parents, key = path.split(".")
        section = raw
        for parent in parents:
            section = section[parent]
        is_factor = isinstance(value, str) and value.startswith("x")
        section[key] = section[key] * float(value[1:]) if is_factor else value
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{recipe.name} with {dict(settings)}:\n{explain(error)}") from error


def deciding(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide a result, without folders of this machine."""
    return public_settings(recipe.model_dump(exclude={"output", "card", "export", "verify"}))


def kept(result: Results) -> dict[str, Any]:
    """What decided a result; settings that came since had what is their default now."""
    return deciding(Recipe.model_validate(result["recipe"]))


def splits_of(row: Row, recipe: Recipe, rubric: Rubric) -> Splits:
    """The row's items: those of the recipe, a fold of them, or as many labelled ones as it says."""
    seed, share = recipe.training.seed, recipe.data.validation_share
    splits = load_splits(recipe.data, rubric, seed)
    if row.fold is not None:
        everything = [item for part in splits.values() for item in part]
        folds = split_items(everything, {str(k): 1 / FOLDS for k in range(1, FOLDS)}, seed)
        test = folds.pop(str(row.fold) if row.fold else "train")
        rest = [item for fold in folds.values() for item in fold]
        return {**split_items(rest, {"validation": share}, seed), "test": test}
    if row.labelled is not None:
        pool = [*splits["train"], *splits["validation"]]
        chosen = nested(pool, row.labelled or len(pool), seed, whole=False)
        share = min(VALIDATION_SHARE, MOST_VALIDATION / len(chosen))
        return {**split_items(chosen, {"validation": share}, seed), "test": splits["test"]}
    return splits


def recipe_of(row: Row, common: Mapping[str, Any]) -> Recipe:
    """The recipe with the row's settings, and those of all rows."""
    recipe = Recipe.from_file(ROOT / "recipes" / f"{row.recipe}.yaml")
    return with_settings(recipe, {**row.settings, "training.seed": row.seed, **common})


def resolved(row: Row, common: Mapping[str, Any]) -> tuple[Recipe, Rubric, Splits]:
    """All that decides a row: targets by name, and passes enough for few items."""
    recipe = recipe_of(row, common)
    rubric = Rubric.from_file(recipe.rubric)
    splits, training = splits_of(row, recipe, rubric), recipe.training
    settings: dict[str, Any] = {
        "training.targets": resolve(training.targets, splits["train"], rubric)
    }
    if row.labelled is not None and "training.epochs" not in {*common, *row.settings}:
        settings["training.epochs"] = enough_passes(training, len(splits["train"]))
    return with_settings(recipe, settings), rubric, splits


def compute(row: Row, folder: Path, common: Mapping[str, Any]) -> Results:
    """Train, annotate the test items, and score.

    Returns:
        settings, cost and scores, as they are kept.
    """
    recipe, rubric, splits = resolved(row, common)
    started = time.monotonic()
    run = train(recipe.model_copy(update={"output": str(folder)}), resume=True, splits=dict(splits))
    test = splits["test"]
    labels, losses = judged(run, test)
    systems: Labels = {"judge": labels}
    if row.zero_shot:
        systems["base, zero-shot"] = zero_shot(recipe.base, rubric, test)
    facts = json.loads((run.adapter / "training.json").read_text(encoding="utf-8"))
    kept = ("seconds", "targets", "device", "versions", "validation", "best_checkpoint")
    result = {
        "row": {**asdict(row), "settings": public_settings(dict(row.settings))},
        "recipe": deciding(recipe),
        "items": {name: len(items) for name, items in splits.items()},
        **{key: facts[key] for key in kept},
        "threads": torch.get_num_threads(),
        "seconds_with_scoring": round(time.monotonic() - started, 1),
        "loss": [[h["step"], round(h["loss"], 4)] for h in facts["history"] if "loss" in h],
        "log_loss": losses,
        "results": {},
        "labels": {},
    }
    add(result, systems, test, rubric, row.seed)
    return result


def add(result: Results, systems: Labels, test: list[Item], rubric: Rubric, seed: int) -> None:
    """Score systems, and keep what they say with the result of a row."""
    for dimension, found in scored(systems, test, rubric, seed).items():
        result["results"].setdefault(dimension, {}).update(found)
    for name, labels in systems.items():
        result["labels"][name] = {d: packed(said) for d, said in labels.items()}


def yardsticks(row: Row, common: Mapping[str, Any], result: Results) -> None:
    """Fit the baselines of a row, and score them."""
    _, rubric, splits = resolved(row, common)
    learned = [*splits["train"], *splits["validation"]]
    folder = minilm_folder()
    systems = fit_systems(learned, splits["test"], rubric, folder and str(folder))[0]
    add(result, systems, splits["test"], rubric, row.seed)


def is_whole(row: Row, result: Results) -> bool:
    """Whether a row's result has its baselines."""
    return not row.yardsticks or len(result["labels"]) > 1 + row.zero_shot


def judged(run: Run, items: Sequence[Item]) -> tuple[dict[str, list[int]], dict[str, float]]:
    """The adapter's option indices, and its log loss against the vote shares, per dimension."""
    with Judge.from_pretrained(run.adapter) as judge:
        contract = judge.backend.contract
        decided = judge.logits([item.state for item in items])
        found = collected(contract.rubric, decided, len(items))
    labels, losses = {}, {}
    for dimension, logits in zip(contract.rubric.dimensions, found, strict=True):
        labels[dimension.name] = logits.argmax(axis=1).tolist()
        votes = votes_of(items, dimension.name)
        answered = [i for i, row in enumerate(votes) if row]
        shares = np.array([vote_shares(votes[i], len(dimension.options)) for i in answered])
        temperature = contract.temperature(dimension.type)
        probabilities = softmax(logits[answered], temperature)
        losses[dimension.name] = round(cross_entropy(probabilities, shares), 5)
    return labels, losses


def scored(systems: Labels, items: Sequence[Item], rubric: Rubric, seed: int) -> Results:
    """Dimension -> system -> alpha, accuracy and macro-F1 with 95 % intervals."""
    bootstrap, results = Bootstrap(len(items), seed=seed, groups=[i.group for i in items]), {}
    for dimension in rubric.dimensions:
        name, votes = dimension.name, votes_of(items, dimension.name)
        found = {"annotator": score_annotators(votes, dimension, bootstrap)}
        found |= {
            s: score(labels[name], votes, dimension, bootstrap)
            for s, labels in systems.items()
            if len(labels.get(name, ())) == len(items)
        }
        results[name] = {system: rounded(asdict(scores)) for system, scores in found.items()}
    return results


def rounded(value: Any) -> Any:
    """Numbers with five digits, which keeps the files small."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return round(value, 5)


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def packed(labels: Iterable[int]) -> str:
    """Option indices as a text, a letter an item."""
    return "".join(_DIGITS[label] for label in labels)


def unpacked(text: str) -> list[int]:
    """What `packed` was given."""
    return [_DIGITS.index(letter) for letter in text]


# --- many rows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """Where rows are kept, and what all of them have in common."""

    results: Path
    runs: Path
    common: Mapping[str, Any]
    keep: bool = False
    baselines: bool = True

    def path(self, table: str, name: str) -> Path:
        """The file of a row."""
        return self.results / table / f"{name}.json"

    def rows(self, table: str) -> list[tuple[Row, Results]]:
        """What was computed so far; of folds, what was pooled."""
        planned = {whole(row).name: whole(row) for row in PLAN[table]}
        paths = {name: self.path(table, name) for name in planned}
        return [(planned[name], json.loads(path.read_text(encoding="utf-8")))
                for name, path in paths.items() if path.exists()]  # fmt: skip

    def run(self, table: str, row: Row, until: float = math.inf) -> None:
        """Compute what a row lacks, and pool its folds when it is the last of them."""
        path = self.path(table, row.name)
        folder = self.runs / table / path.stem
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
        elif time.time() > until:  # other rows took the time
            return
        else:
            print(f"\n--- {table}/{row.name}", flush=True)
            result = self._same(table, row) or compute(row, folder, self.common)
            write_json(path, result)
        if self.baselines and not is_whole(row, result):
            yardsticks(row, self.common, result)
            write_json(path, result)
        if not self.keep:
            shutil.rmtree(folder, ignore_errors=True)
        if row.fold is not None:
            self.pool(table, row)

    def _same(self, table: str, row: Row) -> Results | None:
        """The result of the recipe as it is, where the row's settings are those that it has."""
        plain = Row(f"{row.recipe}-recipe", row.recipe, row.seed, labelled=row.labelled)
        path = self.path(table, plain.name)
        if table != "ablation" or row.label == plain.label or not path.exists():
            return None
        earlier: Results = json.loads(path.read_text(encoding="utf-8"))
        recipe = resolved(row, self.common)[0]
        return earlier if deciding(recipe) == kept(earlier) else None

    def pool(self, table: str, row: Row) -> None:
        """Score all items once, from the labels that each got in its fold, where all are there."""
        folds = [one for one in PLAN[table] if whole(one) == whole(row)]
        paths = [self.path(table, fold.name) for fold in folds]
        if not all(path.exists() for path in paths):
            return
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if len({tuple(sorted(part["labels"])) for part in parts}) > 1:
            return  # some have their baselines already
        systems: Labels = defaultdict(lambda: defaultdict(list))
        items, rubric = list[Item](), None
        for fold, part in zip(folds, parts, strict=True):
            _, rubric, splits = resolved(fold, self.common)
            items += splits["test"]
            for name, labels in part["labels"].items():
                for dimension, text in labels.items():
                    systems[name][dimension] += unpacked(text)
        assert rubric is not None
        losses = {d: np.average([part["log_loss"][d] for part in parts],
                                weights=[part["items"]["test"] for part in parts]).item()
                  for d in parts[0]["log_loss"]}  # fmt: skip
        write_json(
            self.path(table, whole(row).name),
            {
                **{key: parts[0][key] for key in ("recipe", "device", "threads", "versions")},
                "items": {name: parts[0]["items"][name] for name in ("train", "validation")}
                | {"test": len(items)},
                "seconds": round(sum(part["seconds"] for part in parts), 1),
                "log_loss": rounded(losses),
                "results": scored(systems, items, rubric, row.seed),
            },
        )

    def outdated(self, table: str, row: Row) -> list[str]:
        """Settings with other values now than in the result of a row."""
        result = json.loads(self.path(table, row.name).read_text(encoding="utf-8"))
        before = flat(kept(result)) | {"labelled": result["row"]["labelled"]}
        now = flat(deciding(recipe_of(row, self.common))) | {"labelled": row.labelled}
        by_items = {"training.targets", "training.epochs"}
        changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
        return sorted(changed - by_items)

    def seconds(self, row: Row) -> float:
        """What a row will take, by the row of the same data that is nearest in size; 0: unknown."""
        recipe, _, splits = resolved(row, self.common)
        items = {name: len(part) for name, part in splits.items()}
        own, known = work(items, recipe.training.epochs), dict[float, float]()
        alike = recipe.name, recipe.base, Path(recipe.rubric).name
        for path in self.results.glob("*/*.json"):
            done = json.loads(path.read_text(encoding="utf-8"))
            if "row" not in done or done["device"] != device_name():  # pooled, or of another study
                continue
            settings = done["recipe"]
            if [settings[key] for key in ("name", "base", "rubric")] == [*alike]:
                size = work(done["items"], settings["training"]["epochs"])
                known[size] = done["seconds_with_scoring"]
        if not known:
            return 0
        nearest = min(known, key=lambda size: abs(math.log(size / own)))
        return known[nearest] * max(1, own / nearest)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` -> value; a key without a section stays as it is."""
    return {
        name if key is None else f"{name}.{key}": value
        for name, section in settings.items()
        for key, value in (section.items() if isinstance(section, dict) else [(None, section)])
    }


def whole(row: Row) -> Row:
    """The row to which a fold belongs."""
    return replace(row, fold=None)


def work(items: Mapping[str, int], epochs: float) -> float:
    """Rows that are computed: forward and backward, or (a third) forward alone."""
    return epochs * (items["train"] + items["validation"] / 3) + items["test"] / 3


def chosen(tables: Sequence[str], patterns: Sequence[str]) -> list[tuple[str, Row]]:
    """The planned rows that a pattern fits, those of the first pattern first, then by seed.

    What is cut short is whole for some seeds.
    """
    found = []
    for table in tables:
        for row in PLAN[table]:
            names = row.name, f"{table}/{row.name}"
            fits = [i for i, one in enumerate(patterns) if any(fnmatch(n, one) for n in names)]
            if fits:
                found.append((fits[0], row.seed, table, row))
    found.sort(key=lambda one: one[:2])
    return [(table, row) for _, _, table, row in found]


def compute_all(
    study: Study, rows: Sequence[tuple[str, Row]], minutes: float, workers: int = 1
) -> list[str]:
    """Compute what is missing, as long as there is time; returns what failed."""
    until, failed, missing = time.time() + 60 * minutes, list[str](), list[tuple[str, Row]]()
    for table, row in rows:
        if study.path(table, row.name).exists():
            if changed := study.outdated(table, row):
                said = f"was computed with other {', '.join(changed)}; remove it to do so again"
                print(f"{study.path(table, row.name)} {said}", flush=True)
                continue
        elif workers == 1 and until - time.time() < (needed := study.seconds(row)):
            print(f"{table}/{row.name} would take {needed:.0f} s")
            continue
        missing.append((table, row))
        if workers == 1:
            failed += attempt(study, table, row, until)
    if workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _one_thread) as pool:
            asked = [pool.submit(attempt, study, table, row, until) for table, row in missing]
            failed += [one for done in as_completed(asked) for one in done.result()]
    return failed


def attempt(study: Study, table: str, row: Row, until: float) -> list[str]:
    """Compute a row; returns why it failed, so that the other rows are computed all the same."""
    try:
        study.run(table, row, until)
    except Exception as error:
        if not isinstance(error, JudgeError):
            traceback.print_exc()
        print(said := f"{table}/{row.name}: {error}", flush=True)
        return [said]
    return []


def _one_thread() -> None:
    """Of each process, where several share the cores."""
    torch.set_num_threads(1)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(PLAN))
    parser.add_argument("--only", nargs="+", default=["*"], metavar="ROW",
                        help="names, or TABLE/names, with *; in this order")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no row that exceeds")
    parser.add_argument("--show", action="store_true", help="print the tables, draw the curve")
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders")
    parser.add_argument("--workers", type=int, default=1, help="rows at a time, a thread each")
    parser.add_argument("--judges-alone", action="store_true", help="leave the baselines for later")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument(
        "--common", nargs="+", default=[], metavar="section.key=value", help="for all rows, to try"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - PLAN.keys():
        parser.error(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(PLAN)}")
    given = (setting.split("=", 1) for setting in arguments.common)
    common = {key: yaml.safe_load(value) for key, value in given}
    study = Study(
        arguments.results, arguments.runs, common, arguments.keep, not arguments.judges_alone
    )
    if arguments.show:
        for table in arguments.tables or PLAN:
            print(f"`python -m benchmarks.study {table}`\n\n{markdown(table, study.rows(table))}")
        if "curve" in (arguments.tables or PLAN):
            curve_figure(study.rows("curve"), ROOT / "docs" / "learning-curve.png")
        return
    rows = chosen(arguments.tables, arguments.only)
    raw, made = (ROOT.parent / "shared" / "data" / "convabuse_raw.csv",
                 ROOT / "runs" / "data" / "convabuse.csv")  # fmt: skip
    if raw.exists() and not made.exists():
        print(make(raw, made))
    if failed := compute_all(study, rows, arguments.minutes, arguments.workers):
        raise SystemExit("\n".join(["failed:", *failed]))
    for table, planned in PLAN.items():
        done = sum(study.path(table, row.name).exists() for row in planned)
        print(f"{table}: {done} of {len(planned)} rows")


if __name__ == "__main__":
    main()
