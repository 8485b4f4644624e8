"""What calibration is worth on held-out items: none, a temperature a type, one a dimension.

    python benchmarks/calibration.py runs/demo runs/goemotions
    python benchmarks/calibration.py --words recipes/popquorn.yaml recipes/convabuse.yaml

The first asks the judges of runs. The second needs none: it fits a logistic regression on TF-IDF of
the recipe's texts, with its options weighed by `--class-balance`, in place of the judge.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union
from slm_judge.training.calibration import fit_calibration
from slm_judge.training.targets import option_weights

from slm_judge import Judge, Rubric
from slm_judge.agreement.alpha import vote_counts
from slm_judge.agreement.calibration import brier_score, calibration_error, cross_entropy
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.split import load_splits
from slm_judge.judge.answer import collected, probabilities
from slm_judge.recipe import Recipe
from slm_judge.run import Run


def of_run(run: Run) -> Iterator[str]:
    """Rows of a Markdown table, of a run's main GGUF file."""
    items = load_split(run.data, "test")
    with Judge.from_pretrained(run.gguf) as judge:
        contract = judge.backend.contract
        decided = judge.logits([item.state for item in items])
        logits = collected(contract.rubric, decided, len(items))
    yield from rows(run.recipe().name, contract, items, logits)


def of_words(recipe: Recipe, class_balance: float) -> Iterator[str]:
    """Rows of a Markdown table, of logistic regressions."""
    rubric = Rubric.from_file(recipe.rubric)
    splits = load_splits(recipe.data, rubric, recipe.training.seed)
    texts = {n: ["\n".join(i.state.values()) for i in items] for n, items in splits.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    features = make_union(words, letters).fit(texts["train"])
    seen = {name: features.transform(given) for name, given in texts.items()}
    most = max(len(d.options) for d in rubric.dimensions)
    weights, logits = np.ones((len(rubric.dimensions), most)), {"validation": [], "test": []}
    for k, dimension in enumerate(rubric.dimensions):
        counts = vote_counts(votes_of(splits["train"], dimension.name), len(dimension.options))
        answered = np.flatnonzero(counts.sum(axis=1))
        shares = counts[answered] / counts[answered].sum(axis=1, keepdims=True)
        weights[k, : len(dimension.options)] = option_weights(shares[:, None], class_balance)[0]
        row, option = np.nonzero(shares)
        model = LogisticRegression(C=30, max_iter=1000)
        model.fit(seen["train"][answered[row]], option, shares[row, option] * weights[k, option])
        for name, known in logits.items():
            said = np.full((len(splits[name]), len(dimension.options)), -20.0)
            said[:, model.classes_] = model.predict_log_proba(seen[name])
            known.append(said)
    fitted = fit_calibration(
        rubric, splits["validation"], logits["validation"], weights if class_balance else None
    )
    contract = Contract(rubric, "", "", ()).calibrated(*fitted)
    yield from rows(recipe.name, contract, splits["test"], logits["test"])


def rows(name: str, contract: Contract, items: list[Item], logits: list[Any]) -> Iterator[str]:
    """What the logits of N items are worth with each calibration."""
    for dimension, given in zip(contract.rubric.dimensions, logits, strict=True):
        counts = vote_counts(votes_of(items, dimension.name), len(dimension.options))
        known = np.flatnonzero(counts.sum(axis=1))
        votes, labels = counts[known].sum(axis=1), given[known].argmax(axis=1)
        shares = counts[known] / votes[:, None]
        by_type = Calibration(temperature=contract.temperature(dimension.type))
        own, each = contract.calibration(dimension), np.arange(len(known))
        for what, one in (("none", Calibration()), ("by type", by_type), ("own", own)):
            p = probabilities(given[known], one)
            error = calibration_error(p[each, labels], shares[each, labels], votes)
            shown = (
                f"{error.estimate:.3f} [{error.low:.3f}, {error.high:.3f}] | {error.perfect:.3f}"
            )
            cells = " | ".join(f"{cell:.3f}" for cell in (brier_score(p, shares),
                                                          cross_entropy(p, shares)))  # fmt: skip
            shifted = ", shifted" if one.shift else ""
            yield (f"| {name}, {dimension.name} | {len(known)} | {what}{shifted} | "
                   f"{one.temperature:.2f} | {shown} | {cells} |")  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--words", type=Path, nargs="*", default=[])
    parser.add_argument("--class-balance", type=float, default=0.0)
    arguments = parser.parse_args()
    print("| | items | calibration | temperature | ECE | of a perfect judge | Brier | log loss |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for folder in arguments.runs:
        for line in of_run(Run(folder)):
            print(line, flush=True)
    for path in arguments.words:
        for line in of_words(Recipe.from_file(path), arguments.class_balance):
            print(line, flush=True)


if __name__ == "__main__":
    main()
