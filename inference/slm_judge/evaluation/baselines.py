"""`slm-judge baselines`: what else annotates the same items, scored in the same way."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_union

from slm_judge.agreement.aggregate import aggregate_of_others, vote_shares
from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotator_coincidences,
    judge_alpha,
    judge_coincidences,
    judge_confusions,
)
from slm_judge.agreement.bootstrap import RESAMPLES, Bootstrap, Interval
from slm_judge.agreement.compare import careful_interval, with_unseen
from slm_judge.agreement.parts import all_parts, parts
from slm_judge.agreement.scores import BOUNDS, accuracy, agreeing_of, macro_f1
from slm_judge.agreement.sets import Pairs, annotator_pairs, judge_pairs
from slm_judge.data.applies import UNKNOWN, without_unasked
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import read_predictions
from slm_judge.data.sets import chosen_by, chosen_by_annotators
from slm_judge.data.split import load_splits
from slm_judge.errors import DataError
from slm_judge.files import write_json
from slm_judge.recipe import Recipe, public_settings
from slm_judge.rubric import Dimension, Multi, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet, say

from .annotators import of_shared
from .encoder import embed
from .openai import Server, ask_server
from .zero_shot import zero_shot

NEIGHBOURS = 15
_FOLDS, _CHOICES = 3, (0.1, 1.0, 10.0, 100.0)  # of the cross-validation, and of C
_MANY = 50  # items, from which on what stands in one of them alone is left out
REPORT = "baselines.json"
ANNOTATOR, AGGREGATE = "an annotator, against the rest", "the aggregate of the others"
"""Rows beside those of the systems."""

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
    *,
    encoder: str | None = None,
    zero_shots: Sequence[str] = (),
    server: Server | None = None,
) -> dict[str, dict[str, Scores]]:
    """Score the yardsticks on the test items of a recipe, and write `report/baselines.json`.

    The yardsticks: the majority label of the training items, TF-IDF (words 1-2, characters 2-5)
    with logistic regression (C=4; also with options weighed by their rarity) and with nearest
    neighbours, the annotators themselves, the judge where the run is verified, predictions of
    other systems, and those that are named here.

    Args:
        recipe: names the data; the split of its run is used where there is one.
        predictions: name of a system -> table with `item_id` and a column a dimension.
        n_resamples: of the bootstrap over items, or over groups of them (data.group).
        console: where the table is written.
        encoder: see `fit_systems`.
        zero_shots: bases and judges; see `zero_shot`.
        server: whose answers are kept in the run's `report/`.

    Returns:
        Dimension -> system -> scores.

    Raises:
        DataError: the data cannot be used, or a table of predictions lacks items.
        ModelError: the encoder, a base or a judge cannot be loaded.
        JudgeError: the server refuses, or does not answer.
    """
    console = console or Console()
    rubric, run = Rubric.from_file(recipe.rubric), Run(recipe.run_folder)
    notes: list[str] = []
    if run.recipe_file.exists():
        splits = {name: load_split(run.data, name) for name in ("train", "test")}
    else:
        splits = load_splits(recipe.data, rubric, recipe.training.seed, notes)
    train, test = splits["train"], splits["test"]
    systems: dict[str, Mapping[str, Sequence[int | None]]] = {
        name: labels_of(location, rubric, test, notes)
        for name, location in (predictions or {}).items()
    }
    answered: dict[str, dict[str, list[int | None]]] = {}
    if server:
        answered, spent = ask_server(server, rubric, test, run.report, console)
        notes += spent
    fitted, left_out = fit_systems(train, test, rubric, encoder, console)
    judged, partial_ones = judge_predictions(run, test, rubric)
    untrained: dict[str, Mapping[str, Sequence[int | None]]] = {}
    for model, name in zip(zero_shots, _names_of(zero_shots), strict=True):
        untrained[name] = zero_shot(model, rubric, test, console)
    systems |= {**fitted, **judged, **untrained, **answered}
    notes = [*left_out, *partial_ones, *notes]
    groups = [item.group for item in test]
    bootstrap = Bootstrap(len(test), n_resamples, recipe.training.seed, groups)
    if bootstrap.units < len(test):
        notes.append(f"Intervals are drawn by the {bootstrap.units} groups of the test items.")
    results = {}
    systems = {name: _asked(rubric, given) for name, given in systems.items()}
    for part in all_parts(rubric.dimensions):
        dimension, source = part.dimension, part.source
        votes = part.votes_of(votes_of(test, source))
        known = {
            name: [None if label is None else int(part.labels([label])[0]) for label in of[source]]
            for name, of in systems.items()
            if source in of
        }
        unasked = {name: sum(label == -1 for label in of) for name, of in known.items()}
        if len({*unasked.values()}) > 1:
            told = ", ".join(f"{name} {n}" for name, n in unasked.items() if n)
            notes.append(
                f"{dimension.name}: of {len(test)} items, these leave some out, to which the "
                f"question does not apply by their answers: {told}. They are scored on the others."
            )
        rows = _table(known, votes, dimension, bootstrap)  # of the others, a note says why
        results[dimension.name] = rows
        results_table(dimension, rows, len(test)).show(console)
        console.print()
        if len(answered) > 1:
            alphas = [rows[name].alpha.estimate for name in answered]
            spread = f"{np.mean(alphas):.3f} ± {np.std(alphas, ddof=1):.3f}"
            notes.append(f"{dimension.name}: alpha of {len(alphas)} runs {spread} (mean and SD).")
    for one in rubric.sets:
        results[one.name] = _set_table(one, test, systems, bootstrap)
        results_table(one, results[one.name], len(test)).show(console)
    say(console, notes)
    write_json(run.report / REPORT, as_json(results))
    return results


def _names_of(models: Sequence[str]) -> list[str]:
    """Of the systems; two folders of one name are told apart by their number."""
    names = [f"zero-shot {public_settings({'model': model})['model']}" for model in models]
    which = [names[: k + 1].count(name) for k, name in enumerate(names)]
    return [f"{name} ({n})" if n > 1 else name for name, n in zip(names, which, strict=True)]


# --- the systems --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answered:
    """What the annotators said about those N training items that they answered."""

    dimension: Dimension
    votes: list[list[int]]
    shares: Shares
    """N x options."""
    groups: list[str]


def fit_systems(
    train: Sequence[Item],
    test: Sequence[Item],
    rubric: Rubric,
    encoder: str | None = None,
    console: Console | None = None,
) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """Option indices of the majority label, logistic regression and nearest neighbours.

    A method that cannot be fitted has no labels of that dimension; the second part says why.

    Args:
        train: items to fit on.
        test: items to label; their votes are not looked at.
        rubric: gives the dimensions.
        encoder: folder or Hub repository of an encoder, whose embeddings get a logistic regression
            too, with C chosen by cross-validation.
        console: where progress is written.

    Raises:
        ModelError: the encoder cannot be used.
    """
    texts = [_text(item) for item in (*train, *test)]
    features, notes = text_features(texts[: len(train)]), list[str]()
    words = features.fit_transform(texts[: len(train)]), features.transform(texts[len(train) :])
    balanced = partial(_logistic_regression, balanced=True)
    methods: dict[str, tuple[Any, Any, Callable[..., Shares]]] = {
        "majority label": (*words, _majority),
        "TF-IDF + logistic regression": (*words, _logistic_regression),
        "TF-IDF + logistic regression, balanced": (*words, balanced),
        f"TF-IDF + {NEIGHBOURS} nearest neighbours": (*words, _nearest_neighbours),
    }
    if encoder:
        vectors, notes = embed(encoder, texts, console)
        name = f"{Path(encoder).name} + logistic regression"
        pair = vectors[: len(train)], vectors[len(train) :]
        methods[name] = (*pair, _tuned_regression)
        methods[f"{name}, balanced"] = (*pair, partial(_tuned_regression, balanced=True))
    found: dict[str, dict[str, list[int]]] = {name: {} for name in methods}
    for dimension in rubric.dimensions:
        votes = votes_of(train, dimension.name)
        kept = [i for i, row in enumerate(votes) if row]
        shares = np.array([vote_shares(votes[i], len(dimension.options)) for i in kept])
        groups = [train[i].group for i in kept]
        answered = _Answered(dimension, [votes[i] for i in kept], shares, groups)
        used = int(shares.any(axis=0).sum()) if kept else 0
        for name, (known, new, method) in methods.items():
            if used < (2 if "regression" in name else 1):
                labels = "one label alone" if used else "no label"
                notes.append(
                    f"{name} is left out: the training items have {labels} of {dimension.name}."
                )
                continue
            guessed = method(known[kept], answered, new)
            found[name][dimension.name] = guessed.argmax(axis=1).tolist()
    return found, notes


def text_features(texts: Sequence[str]) -> Any:
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


def _majority(known: Any, answered: _Answered, new: Any) -> Shares:
    return np.tile(answered.shares.sum(axis=0), (new.shape[0], 1))


def _logistic_regression(
    known: Any, answered: _Answered, new: Any, balanced: bool = False, c: float = 4
) -> Shares:
    """Every vote share is a training row of that weight; balanced: rare options weigh more."""
    rows, options = np.nonzero(answered.shares)
    weight = "balanced" if balanced else None
    model = LogisticRegression(C=c, max_iter=300, class_weight=weight)
    model.fit(known[rows], options, sample_weight=answered.shares[rows, options])
    guessed = np.zeros((new.shape[0], answered.shares.shape[1]))
    guessed[:, model.classes_] = model.predict_proba(new)
    return guessed


def _tuned_regression(known: Any, answered: _Answered, new: Any, balanced: bool = False) -> Shares:
    """With the C whose labels of items held out in turn agree best; groups are held out whole."""
    order = {group: k for k, group in enumerate(dict.fromkeys(answered.groups))}
    fold = np.array([order[group] % _FOLDS for group in answered.groups])
    shares, alphas = answered.shares, {1.0: -1.0}
    # Where a fold is empty or leaves one label alone, nothing can be compared: C is then 1.
    if len(order) >= _FOLDS and all(shares[fold != k].any(axis=0).sum() > 1 for k in range(_FOLDS)):
        for c in _CHOICES:
            labels = np.zeros(len(shares), dtype=int)
            for k in range(_FOLDS):
                rest, held = replace(answered, shares=shares[fold != k]), known[fold == k]
                guessed = _logistic_regression(known[fold != k], rest, held, balanced, c)
                labels[fold == k] = guessed.argmax(axis=1)
            found = [
                judge_alpha(
                    part.labels(labels).tolist(), part.votes_of(answered.votes), part.dimension
                )
                for part in parts(answered.dimension)
            ]
            alphas[c] = float(np.mean(found))
    best = max(alphas, key=lambda c: np.nan_to_num(alphas[c], nan=-2))
    return _logistic_regression(known, answered, new, balanced, best)


def _nearest_neighbours(known: Any, answered: _Answered, new: Any) -> Shares:
    """Vote shares of the nearest training items, weighed by their cosine similarity."""
    shares = answered.shares
    model = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(shares)), metric="cosine").fit(known)
    distances, neighbours = model.kneighbors(new)
    weights = np.maximum(1 - distances, 1e-6)
    found: Shares = (weights[:, :, None] * shares[neighbours]).sum(axis=1)
    return found


def labels_of(
    location: str, rubric: Rubric, items: Sequence[Item], notes: list[str]
) -> dict[str, list[int]]:
    """Option indices that a system gave to all of the items; `notes` takes how they were read.

    Raises:
        DataError: it lacks some of them.
    """
    found = read_predictions(location, rubric, [item.item_id for item in items])
    if len(found.rows) < len(items):
        raise DataError(f"All {len(items)} test items are needed. {' '.join(found.notes)}")
    notes += found.notes
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


def _table(
    systems: Mapping[str, Sequence[int | None]],
    votes: Sequence[Sequence[int]],
    dimension: Dimension,
    bootstrap: Bootstrap,
) -> dict[str, Scores]:
    """Annotators and systems on the items with several annotations.

    Where there are other items too, the systems on all items stand before them.
    """
    rows, places = dict[str, Scores](), _places(votes)
    for where, compared in places:
        if where == places[-1][0] and any(len(row) > 1 for row in votes):
            rows[f"{ANNOTATOR}{where}"] = score_annotators(compared, dimension, bootstrap)
            rows[f"{AGGREGATE}{where}"] = score_aggregate(compared, dimension, bootstrap)
        for name, labels in systems.items():
            rows |= _rows(f"{name}{where}", labels, compared, dimension, bootstrap)
    return rows


def _places(votes: Sequence[Sequence[Any]]) -> list[tuple[str, Sequence[Sequence[Any]]]]:
    """All items, and then those with several annotations, in words and votes; once if the same."""
    several = of_shared(votes)
    n_several = sum(map(bool, several))
    where = f", the {n_several} items with several annotations"
    return [("", votes), *([(where, several)] if n_several < sum(map(bool, votes)) else [])]


def _asked(
    rubric: Rubric, given: Mapping[str, Sequence[int | None]]
) -> Mapping[str, Sequence[int | None]]:
    """A system's labels, -1 where its own other answers make a question not apply."""
    if not rubric.conditional:
        return given
    numbers = {
        name: np.array([UNKNOWN if label is None else label for label in labels])
        for name, labels in given.items()
    }
    asked = without_unasked(rubric, numbers)
    return {name: [None if k == UNKNOWN else k for k in of.tolist()] for name, of in asked.items()}


def _rows(
    name: str,
    labels: Sequence[int | None],
    votes: Sequence[Sequence[int]],
    dimension: Dimension,
    bootstrap: Bootstrap,
) -> dict[str, Scores]:
    """The row of a system, and where some of its answers name no option, one of the others alone.

    No answer counts as the option that agrees least with the annotators of the item; where the
    question does not apply by the system's own answers (-1), the item does not count.
    """
    votes = [[] if label == -1 else row for label, row in zip(labels, votes, strict=True)]
    labels = [0 if label == -1 else label for label in labels]  # which no vote compares
    known = [-1 if label is None else label for label in labels]
    if -1 not in known:
        return {name: score(known, votes, dimension, bootstrap)}
    options = range(len(dimension.options))
    worst = [
        max(options, key=lambda o: (-row.count(o), sum(abs(o - vote) for vote in row)))
        for row in map(list, votes)
    ]
    pairs = [*zip(known, worst, votes, strict=True)]
    filled = [other if label < 0 else label for label, other, _ in pairs]
    read = [[] if label < 0 else row for label, _, row in pairs]
    alone = f"{name}, its {len(known) - known.count(-1)} readable answers alone"
    return {
        name: score(filled, votes, dimension, bootstrap),
        alone: score(filled, read, dimension, bootstrap),
    }


def score_annotators(
    votes: Sequence[Sequence[int]], dimension: Dimension, bootstrap: Bootstrap
) -> Scores:
    """Each annotation in the place of the judge's, against the item's others."""
    coincidences = annotator_coincidences(votes, len(dimension.options))
    return _scores(coincidences, coincidences, dimension, bootstrap)


def score_aggregate(
    votes: Sequence[Sequence[int]], dimension: Dimension, bootstrap: Bootstrap
) -> Scores:
    """The aggregate of an item's other annotations in the place of the judge."""
    confusions = aggregate_of_others(votes, dimension)
    both = confusions + confusions.transpose(0, 2, 1)
    return _scores(both, confusions, dimension, bootstrap)


def _scores(
    coincidences: Shares, confusions: Shares, dimension: Dimension, bootstrap: Bootstrap
) -> Scores:
    values, level = dimension.values, dimension.level_of_measurement
    pairs, totals = bootstrap.totals(coincidences), bootstrap.totals(confusions)

    def statistics(pairs: Shares | None, totals: Shares | None) -> dict[str, Shares]:
        if pairs is None or totals is None:
            return {}
        return {
            "alpha": alpha_of_coincidences(pairs, values, level),
            "accuracy": accuracy(totals),
            "macro_f1": macro_f1(totals),
        }

    each = agreeing_of(confusions), bootstrap.unit
    unseen = statistics(with_unseen(pairs, *each, symmetric=True), with_unseen(totals, *each))
    return _intervals(statistics(pairs, totals), bootstrap, unseen)


def _intervals(
    found: Mapping[str, Shares], bootstrap: Bootstrap, unseen: Mapping[str, Shares] | None = None
) -> Scores:
    return Scores(
        **{name: careful_interval(found[name], (unseen or {}).get(name), BOUNDS[name],
                                  bootstrap.units)
           for name in ("alpha", "accuracy", "macro_f1")}
    )  # fmt: skip


def _set_table(
    one: Multi,
    test: Sequence[Item],
    systems: Mapping[str, Mapping[str, Sequence[int | None]]],
    bootstrap: Bootstrap,
) -> dict[str, Scores]:
    """Annotators and systems on a set: accuracy is the share of equal sets."""
    k, votes = len(one.options), chosen_by_annotators(one, test)
    rows, places = {}, _places(votes)
    for where, compared in places:
        if where == places[-1][0] and any(len(row) > 1 for row in votes):
            among = annotator_pairs(compared, k, one.distance)
            rows[f"{ANNOTATOR}{where}"] = _set_scores(among, bootstrap)
        for name, of in systems.items():
            if of.keys() >= {*one.members}:  # of the others, a note says why
                judged = judge_pairs(chosen_by(one, of), compared, k, one.distance)
                rows[f"{name}{where}"] = _set_scores(judged, bootstrap)
    return rows


def _set_scores(pairs: Pairs, bootstrap: Bootstrap) -> Scores:
    def statistics(totals: Shares | None) -> dict[str, Shares]:
        found = {} if totals is None else pairs.statistics(totals)
        return found | {"accuracy": found["subset_accuracy"]} if found else found

    totals = bootstrap.totals(pairs.per_item)
    unseen = statistics(pairs.unseen(totals, bootstrap.unit))
    return _intervals(statistics(totals), bootstrap, unseen)


def results_table(dimension: Dimension | Multi, rows: Mapping[str, Scores], n_items: int) -> Sheet:
    """One dimension as a table."""
    title = f"{dimension.name}: {n_items} test items, 95 % bootstrap intervals"
    if isinstance(dimension, Multi):
        title += f"; sets, alpha by {dimension.distance}, accuracy: equal sets"
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
