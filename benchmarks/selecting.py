"""Does it pay to choose which items are annotated next? `slm-judge select` against random choice.

    python -m benchmarks.selecting --learner words --seeds 8
    python -m benchmarks.selecting --learner judge --seeds 5      # SmolLM2; where there is a GPU

100 random items are annotated first, then as many again, up to 800, chosen by what the learner of
those before says about the rest of the pool. All ways have the same first items, pool and test
items, which a seed draws. Shown is alpha against the annotators of the test items, mean over seeds,
and how much more it is than with random choice (mean of the sizes from 200 on, with its standard
error over seeds). A line a seed is kept in benchmarks/results/selecting.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from slm_judge.training.curve import enough_passes
from slm_judge.training.seeds import answers_of
from slm_judge.training.train import train

from slm_judge.agreement.aggregate import vote_shares
from slm_judge.agreement.alpha import judge_alpha
from slm_judge.data.item import Item, votes_of
from slm_judge.data.split import load_splits, split_items
from slm_judge.evaluation.baselines import text_features
from slm_judge.evaluation.select import Choice, choose, near_duplicates
from slm_judge.files import write_json
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric

ROOT = Path(__file__).parents[1]
DATA = {"convabuse": "abuse-severity", "popquorn": "offensiveness"}
"""Recipe -> rubric, with one dimension."""
WAYS = {"random": (1.0, False), "diverse": (0.2, False), "doubt": (0.2, True)}
"""Way -> `audit`, and whether the learner's doubt counts."""
SIZES = (100, 200, 400, 800)


class Words:
    """Logistic regression on TF-IDF, with rare options weighed up."""

    def __init__(self, recipe: Recipe, rubric: Rubric, pool: list[Item], test: list[Item]) -> None:
        """Compute the features; those of the pool need no labels."""
        texts = ["\n".join(item.state.values()) for item in (*pool, *test)]
        features = text_features(texts[: len(pool)]).fit(texts[: len(pool)])
        self.pool, self.test = (features.transform(t) for t in (texts[: len(pool)],
                                                                texts[len(pool) :]))  # fmt: skip
        (dimension,) = rubric.dimensions
        votes = votes_of(pool, dimension.name)
        self.shares = np.array([vote_shares(row, len(dimension.options)) for row in votes])

    def ask(self, known: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Learn from some of the pool: doubt of others, and labels of the test items."""
        rows, options = np.nonzero(self.shares[known])
        model = LogisticRegression(C=4, max_iter=300, tol=1e-3, class_weight="balanced")
        model.fit(self.pool[known[rows]], options, self.shares[known[rows], options])
        doubt = 1 - model.predict_proba(self.pool[rest]).max(axis=1)
        return doubt, model.predict(self.test).tolist()


class Judges:
    """The recipe's judge, trained anew on each set of items."""

    def __init__(self, recipe: Recipe, rubric: Rubric, pool: list[Item], test: list[Item]) -> None:
        """Keep what is needed."""
        self.recipe, self.rubric, self.pool, self.test = recipe, rubric, pool, test

    def ask(self, known: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """See `Words`."""
        recipe, folder = self.recipe, ROOT / "runs" / "selecting"
        shutil.rmtree(folder, ignore_errors=True)
        parts = split_items([self.pool[i] for i in known], {"validation": 0.2}, 0)
        passes = enough_passes(recipe.training, len(parts["train"]))
        training = recipe.training.model_copy(update={"epochs": passes})
        recipe = recipe.model_copy(update={"output": str(folder), "training": training})
        run = train(recipe, splits={**parts, "test": self.test}, console=Console(quiet=True))
        items = [*(self.pool[i] for i in rest), *self.test]
        said = answers_of(run.adapter, self.rubric, items, "annotating", Console(quiet=True))
        answers = said[self.rubric.dimensions[0].name]
        assert answers.probabilities is not None
        sure = answers.probabilities[np.arange(len(items)), answers.labels]
        return 1 - sure[: len(rest)], answers.labels[len(rest) :].tolist()


def compute(name: str, learner: Any, seed: int) -> dict[str, list[float]]:
    """Alpha by way and size."""
    recipe = Recipe.from_file(ROOT / "recipes" / f"{name}.yaml")
    data = recipe.data.model_copy(update={"test_share": 0.25 if name == "popquorn" else 0.2})
    training = recipe.training.model_copy(update={"seed": seed})
    rubric = ROOT / "rubrics" / f"{DATA[name]}.yaml"
    recipe = recipe.model_copy(update={"training": training, "rubric": str(rubric)})
    questions = Rubric.from_file(rubric)
    (dimension,) = questions.dimensions
    splits = load_splits(data, questions, seed)
    pool = [item for item in (*splits["train"], *splits["validation"]) if item.votes]
    votes = votes_of(splits["test"], dimension.name)
    alike = near_duplicates(["\n".join(item.state.values()) for item in pool])
    first = np.random.default_rng(seed).permutation(len(pool))[: SIZES[0]]
    model, found = learner(recipe, questions, pool, splits["test"]), {}
    asked = model.ask(first, np.setdiff1d(np.arange(len(pool)), first))
    for way, (audit, doubts) in WAYS.items():
        known, found[way] = first, []
        for size in SIZES:
            rest = np.setdiff1d(np.arange(len(pool)), known)
            doubt, labels = asked if size == SIZES[0] else model.ask(known, rest)
            found[way].append(judge_alpha(labels, votes, dimension))
            choice = Choice(min(size, len(rest)), audit, seed=1000 * seed + size)
            drawn = choose(alike[rest], doubt if doubts else None, choice)[1]
            known = np.concatenate([known, rest[drawn]])
        print(name, seed, way, np.round(found[way], 3), flush=True)
    return found


def table(name: str, results: Sequence[dict[str, list[float]]]) -> str:
    """Of one data set, in Markdown."""
    lines = [f"| {name}, {len(results)} seeds | {' | '.join(map(str, SIZES))} | more than random |"]
    lines.append("| --- |" + " ---: |" * (len(SIZES) + 1))
    for way in WAYS:
        alphas = np.array([one[way] for one in results])
        more = (alphas - np.array([one["random"] for one in results]))[:, 1:].mean(axis=1)
        error = more.std(ddof=1) / len(more) ** 0.5 if len(more) > 1 else float("nan")
        gain = "" if way == "random" else f"{more.mean():+.3f} ± {error:.3f}"
        cells = " | ".join(f"{alpha:.3f}" for alpha in alphas.mean(axis=0))
        lines.append(f"| {way} | {cells} | {gain} |")
    return "\n".join(lines).replace("-0.", "−0.")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learner", choices=("words", "judge"), default="words")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=[*DATA])
    arguments = parser.parse_args()
    learner = {"words": Words, "judge": Judges}[arguments.learner]
    folder = ROOT / "benchmarks" / "results" / "selecting"
    for name in arguments.data:
        results = []
        for seed in range(arguments.seeds):
            path = folder / f"{name}-{arguments.learner}-seed{seed}.json"
            if not path.exists():
                write_json(path, compute(name, learner, seed))
            results.append(json.loads(path.read_text(encoding="utf-8")))
        print(f"\n{table(name, results)}\n", flush=True)


if __name__ == "__main__":
    main()
