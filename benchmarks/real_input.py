"""GoEmotions on the offline base, end to end, beside TF-IDF and logistic regression.

    python benchmarks/real_input.py --data ../shared/data --output runs/goemotions-tiny

Trains and exports (unless the run is there already), annotates every row of the dev file with
the adapter, the bitsandbytes model and the GGUF files, and prints a table and JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline, make_union
from slm_judge.export.export import export
from slm_judge.export.verify import REPORT, artefacts, verify
from slm_judge.training.train import train

from slm_judge import Judge
from slm_judge.agreement.alpha import judge_alpha
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric
from slm_judge.run import Run

RECIPE = Path(__file__).parents[1] / "recipes" / "goemotions-tiny.yaml"


def make_run(data: Path, output: Path) -> Run:
    """Train, export and verify, unless that was done before."""
    recipe = Recipe.from_file(RECIPE)
    sources = recipe.data.model_copy(
        update={
            "train": str((data / "goemotions_train.csv").resolve()),
            "test": str((data / "goemotions_dev.csv").resolve()),
        }
    )
    run = train(recipe.model_copy(update={"data": sources, "output": str(output)}), resume=True)
    if not run.gguf.exists():
        export(run)
    if not (run.report / REPORT).exists():
        verify(run)
    return run


def scores(labels: list[int], items: list[Item], rubric: Rubric) -> dict[str, float]:
    """Accuracy, macro-F1 and alpha against the single label of each item."""
    dimension = rubric.dimensions[0]
    votes = votes_of(items, dimension.name)
    truth = [row[0] for row in votes]
    return {
        "accuracy": accuracy_score(truth, labels),
        "macro_f1": f1_score(truth, labels, average="macro", zero_division=0),
        "alpha": judge_alpha(labels, votes, dimension),
    }


def annotate(path: Path, items: list[Item]) -> tuple[list[int], float]:
    """Labels as option indices, and rows a second (loading not counted)."""
    with Judge.from_pretrained(path) as judge:
        dimension = judge.rubric.dimensions[0]
        rows = [item.state for item in items]
        judge.annotate(rows[:64])
        started = time.perf_counter()
        annotations = judge.annotate(rows)
        seconds = time.perf_counter() - started
    labels = [dimension.index(a.labels[dimension.name]) for a in annotations]
    return [label for label in labels if label is not None], len(rows) / seconds


def baseline(train_items: list[Item], items: list[Item], name: str) -> tuple[list[int], float]:
    """TF-IDF of word 1-2 grams and character 2-5 grams with logistic regression (C=4)."""
    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
    )
    model = make_pipeline(features, LogisticRegression(C=4, max_iter=300))
    model.fit([item.state["text"] for item in train_items],
              [row[0] for row in votes_of(train_items, name)])  # fmt: skip
    started = time.perf_counter()
    labels = model.predict([item.state["text"] for item in items]).tolist()
    return labels, len(items) / (time.perf_counter() - started)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/goemotions-tiny"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    run = make_run(arguments.data, arguments.output)
    rubric = Rubric.from_file(run.recipe().rubric)
    train_items, items = load_split(run.data, "train"), load_split(run.data, "test")
    results: dict[str, Any] = {}
    labels: dict[str, list[int]] = {}
    for name, path in artefacts(run).items():
        labels[name], speed = annotate(path, items)
        results[name] = {**scores(labels[name], items, rubric), "rows_per_second": speed}
    for name, same in labels.items():
        agreement = np.mean(np.array(same) == np.array(labels["adapter"]))
        results[name]["agreement_with_adapter"] = float(agreement)
    predicted, speed = baseline(train_items, items, rubric.dimensions[0].name)
    results["TF-IDF + LR"] = {**scores(predicted, items, rubric), "rows_per_second": speed}
    facts = json.loads((run.adapter / "training.json").read_text())
    print(f"{len(train_items)} training items, {len(items)} test items, "
          f"trained in {facts['seconds']:.0f} s\n")  # fmt: skip
    print("| | accuracy | macro-F1 | alpha | = adapter | rows/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, row in results.items():
        same = f"{row['agreement_with_adapter']:.3f}" if "agreement_with_adapter" in row else ""
        print(f"| {name} | {row['accuracy']:.3f} | {row['macro_f1']:.3f} | {row['alpha']:.3f} | "
              f"{same} | {row['rows_per_second']:.0f} |")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
