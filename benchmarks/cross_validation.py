"""Judge, yardsticks and human ceiling on every item of a data set, by k-fold cross-validation.

    python benchmarks/cross_validation.py recipes/popquorn-tiny.yaml --folds 5

Each fold trains the recipe on the other folds (a part of them for validation) and annotates its
own items; predictions are pooled over the folds and scored once, with intervals over items.
Finished folds stay in the output folder.
"""

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from slm_judge.training.train import train

from slm_judge import Judge
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.data.item import Item, votes_of
from slm_judge.data.read import Columns, Findings, read_items
from slm_judge.data.tables import read_table
from slm_judge.evaluation.baselines import (
    as_json,
    fit_systems,
    results_table,
    score,
    score_annotators,
)
from slm_judge.files import write_json
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric


def folds_of(items: list[Item], n_folds: int, seed: int) -> list[list[Item]]:
    """Items dealt to folds, group by group."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    names = sorted(groups)
    random.Random(seed).shuffle(names)  # noqa: S311
    return [[i for name in names[k::n_folds] for i in groups[name]] for k in range(n_folds)]


def judge_fold(recipe: Recipe, splits: dict[str, list[Item]], folder: Path) -> dict[str, list[int]]:
    """Option indices of the fold's items."""
    result = folder.with_name(f"{folder.name}.json")
    if not result.exists():
        run = train(recipe.model_copy(update={"output": str(folder)}), resume=True, splits=splits)
        with Judge.from_pretrained(run.adapter) as judge:
            annotations = judge.annotate([item.state for item in splits["test"]])
            dimensions = judge.rubric.dimensions
        labels = {d.name: [d.index(a.labels[d.name]) for a in annotations] for d in dimensions}
        write_json(result, labels)
    found: dict[str, list[int]] = json.loads(result.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/cross-validation"))
    arguments = parser.parse_args()
    recipe = Recipe.from_file(arguments.recipe)
    rubric, problems, config = Rubric.from_file(recipe.rubric), Findings(), recipe.data
    columns = Columns(config.item_id, config.annotator, config.group, config.columns)
    items = read_items(read_table(config.train), columns, rubric, problems).items
    problems.raise_any(recipe.data.train)
    folds = folds_of(items, arguments.folds, recipe.training.seed)
    pooled: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for k, test in enumerate(folds):
        rest = [item for j, fold in enumerate(folds) if j != k for item in fold]
        cut = round(recipe.data.validation_share * len(rest))
        splits = {"train": rest[cut:], "validation": rest[:cut], "test": test}
        folder = arguments.output / f"{recipe.name}-{k}"
        systems = {"judge (adapter)": judge_fold(recipe, splits, folder)}
        systems |= fit_systems(splits["train"], test, rubric)[0]
        for name, labels in systems.items():
            for dimension, options in labels.items():
                pooled[name][dimension] += options
    order = [item for fold in folds for item in fold]
    bootstrap = Bootstrap(len(order), seed=recipe.training.seed)
    results = {}
    for dimension in rubric.dimensions:
        votes = votes_of(order, dimension.name)
        rows = {"annotator (human ceiling)": score_annotators(votes, dimension, bootstrap)}
        rows |= {
            n: score(s[dimension.name], votes, dimension, bootstrap)
            for n, s in pooled.items()
            if len(s[dimension.name]) == len(order)  # fitted in all folds
        }
        results[dimension.name] = rows
        results_table(dimension, rows, len(order)).show(Console(width=110))
    write_json(arguments.output / f"{recipe.name}.json", as_json(results))


if __name__ == "__main__":
    main()
