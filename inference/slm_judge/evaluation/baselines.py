"""`slm-judge baselines`: what else annotates the same items, scored in the same way."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_union

from slm_judge.agreement.aggregate import vote_shares
from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    judge_coincidences,
    judge_confusions,
)
from slm_judge.agreement.bootstrap import RESAMPLES, Bootstrap, Interval, percentile_interval
from slm_judge.agreement.scores import BOUNDS, accuracy, macro_f1
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import read_predictions
from slm_judge.data.split import load_splits
from slm_judge.errors import DataError
from slm_judge.files import write_json
from slm_judge.recipe import Recipe
from slm_judge.rubric import Dimension, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet, say

NEIGHBOURS = 15
_MANY = 50  # items, from which on what stands in one of them alone is left out
REPORT = "baselines.json"

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """How one system agrees with the annotators of a dimension."""

    alpha: Interval
    accuracy: Interval
    macro_f1: Interval


def baselines(
    recipe: Recipe,
    predictions: Mapping[str, str] | None = None,
    n_resamples: int = RESAMPLES,
    console: Console | None = None,
) -> dict[str, dict[str, Scores]]:
    """Score the yardsticks on the test items of a recipe, and write `report/baselines.json`.

    The yardsticks: the majority label of the training items, TF-IDF (words 1-2, characters 2-5)
    with logistic regression (C=4; also with options weighed by their rarity) and with nearest
    neighbours, the annotators themselves, the judge where the run is verified, and predictions of
    other systems.

    Args:
        recipe: names the data; the split of its run is used where there is one.
        predictions: name of a system -> table with `item_id` and a column a dimension.
        n_resamples: of the bootstrap over items.
        console: where the table is written.

    Returns:
        Dimension -> system -> scores.

    Raises:
        DataError: the data cannot be used, or a table of predictions lacks items.
    """
    console = console or Console()
    rubric, run = Rubric.from_file(recipe.rubric), Run(recipe.run_folder)
    read: list[str] = []
    if run.recipe_file.exists():
        splits = {name: load_split(run.data, name) for name in ("train", "test")}
    else:
        splits = load_splits(recipe.data, rubric, recipe.training.seed, read)
    train, test = splits["train"], splits["test"]
    systems: dict[str, dict[str, list[int]]] = {
        name: labels_of(location, rubric, test) for name, location in (predictions or {}).items()
    }
    with console.status("TF-IDF with logistic regression and nearest neighbours"):
        fitted, notes = fit_systems(train, test, rubric)
    judged, partial_ones = judge_predictions(run, test, rubric)
    systems |= fitted | judged
    notes += [*partial_ones, *read]
    bootstrap = Bootstrap(len(test), n_resamples, recipe.training.seed)
    results = {}
    for dimension in rubric.dimensions:
        votes = votes_of(test, dimension.name)
        rows = {"annotator (human ceiling)": score_annotators(votes, dimension, bootstrap)}
        for name, labels in systems.items():
            if dimension.name not in labels:
                continue  # a note says why
            rows[name] = score(labels[dimension.name], votes, dimension, bootstrap)
        results[dimension.name] = rows
        results_table(dimension, rows, len(test)).show(console)
        console.print()
    say(console, notes)
    write_json(run.report / REPORT, as_json(results))
    return results


# --- the systems --------------------------------------------------------------------------------


def fit_systems(
    train: Sequence[Item], test: Sequence[Item], rubric: Rubric
) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """Option indices of the majority label, logistic regression and nearest neighbours.

    A method that cannot be fitted has no labels of that dimension; the second part says why.
    """
    texts = [_text(item) for item in train]
    features = _features(texts)
    known = features.fit_transform(texts)
    new = features.transform([_text(item) for item in test])
    methods: dict[str, Callable[..., Shares]] = {
        "majority label": _majority,
        "TF-IDF + logistic regression": _logistic_regression,
        "TF-IDF + logistic regression, balanced": partial(_logistic_regression, balanced=True),
        f"TF-IDF + {NEIGHBOURS} nearest neighbours": _nearest_neighbours,
    }
    found: dict[str, dict[str, list[int]]] = {name: {} for name in methods}
    notes = []
    for dimension in rubric.dimensions:
        votes = votes_of(train, dimension.name)
        answered = [i for i, row in enumerate(votes) if row]
        shares = np.array([vote_shares(votes[i], len(dimension.options)) for i in answered])
        used = int(shares.any(axis=0).sum()) if answered else 0
        for name, method in methods.items():
            if used < (2 if "regression" in name else 1):
                labels = "one label alone" if used else "no label"
                notes.append(
                    f"{name} is left out: the training items have {labels} of {dimension.name}."
                )
                continue
            guessed = method(known[answered], shares, new)
            found[name][dimension.name] = guessed.argmax(axis=1).tolist()
    return found, notes


def _features(texts: Sequence[str]) -> Any:
    """TF-IDF of words, where there are any, and of characters; of few texts all count."""
    worded = sum(bool(re.search(r"\b\w\w+\b", text)) for text in texts)
    least = 2 if worded >= _MANY else 1
    characters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=least
    )
    words = [TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)] if worded else []
    return make_union(*words, characters)


def _text(item: Item) -> str:
    return "\n".join(item.state.values())


def _majority(known: Any, shares: Shares, new: Any) -> Shares:
    return np.tile(shares.sum(axis=0), (new.shape[0], 1))


def _logistic_regression(known: Any, shares: Shares, new: Any, balanced: bool = False) -> Shares:
    """Every vote share is a training row of that weight; balanced: rare options weigh more."""
    rows, options = np.nonzero(shares)
    weight = "balanced" if balanced else None
    model = LogisticRegression(C=4, max_iter=300, class_weight=weight)
    model.fit(known[rows], options, sample_weight=shares[rows, options])
    guessed = np.zeros((new.shape[0], shares.shape[1]))
    guessed[:, model.classes_] = model.predict_proba(new)
    return guessed


def _nearest_neighbours(known: Any, shares: Shares, new: Any) -> Shares:
    """Vote shares of the nearest training items, weighed by their cosine similarity."""
    model = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(shares)), metric="cosine").fit(known)
    distances, neighbours = model.kneighbors(new)
    weights = np.maximum(1 - distances, 1e-6)
    found: Shares = (weights[:, :, None] * shares[neighbours]).sum(axis=1)
    return found


def labels_of(location: str, rubric: Rubric, items: Sequence[Item]) -> dict[str, list[int]]:
    """Option indices that a system gave to all of the items.

    Raises:
        DataError: it lacks some of them.
    """
    found = read_predictions(location, rubric, [item.item_id for item in items])
    if len(found.rows) < len(items):
        raise DataError(f"All {len(items)} test items are needed. {' '.join(found.notes)}")
    return {name: answers.labels.tolist() for name, answers in found.answers.items()}


def judge_predictions(
    run: Run, test: Sequence[Item], rubric: Rubric
) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """The judge's own labels, as `slm-judge verify` left them; and which are not of all items."""
    found, notes = {}, []
    for path in sorted(run.predictions.glob("*.jsonl")):
        name = f"judge ({path.stem})"
        read = read_predictions(str(path), rubric, [item.item_id for item in test])
        if len(read.rows) < len(test):
            known = f"it was verified on {len(read.rows)} of the {len(test)} test items"
            notes.append(f"{name} is left out: {known} (verify.max_rows).")
            continue
        found[name] = {d: answers.labels.tolist() for d, answers in read.answers.items()}
    return found, notes


# --- the scores ---------------------------------------------------------------------------------


def score(
    labels: Sequence[int],
    votes: Sequence[Sequence[int]],
    dimension: Dimension,
    bootstrap: Bootstrap,
) -> Scores:
    """A system against every annotator of each item."""
    n_options = len(dimension.options)
    confusions = judge_confusions(labels, votes, n_options)
    return _scores(judge_coincidences(labels, votes, n_options), confusions, dimension, bootstrap)


def score_annotators(
    votes: Sequence[Sequence[int]], dimension: Dimension, bootstrap: Bootstrap
) -> Scores:
    """Each annotator in the place of the judge, against the rest."""
    coincidences = annotator_coincidences(votes, len(dimension.options))
    return _scores(coincidences, coincidences, dimension, bootstrap)


def _scores(
    coincidences: Shares, confusions: Shares, dimension: Dimension, bootstrap: Bootstrap
) -> Scores:
    values, level = dimension.values, dimension.level_of_measurement
    totals = bootstrap.totals(confusions)
    found = {
        "alpha": alpha_of_coincidences(bootstrap.totals(coincidences), values, level),
        "accuracy": accuracy(totals),
        "macro_f1": macro_f1(totals),
    }
    return Scores(
        **{name: percentile_interval(v, bounds=BOUNDS[name]) for name, v in found.items()}
    )


def results_table(dimension: Dimension, rows: Mapping[str, Scores], n_items: int) -> Sheet:
    """One dimension as a table."""
    title = f"{dimension.name}: {n_items} test items, 95 % bootstrap intervals"
    table = Sheet(title, ("alpha", "accuracy", "macro-F1"))
    for name, scores in rows.items():
        table.add(name, str(scores.alpha), str(scores.accuracy), str(scores.macro_f1))
    return table


def as_json(results: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    """Plain numbers."""
    return {
        dimension: {name: asdict(scores) for name, scores in rows.items()}
        for dimension, rows in results.items()
    }
