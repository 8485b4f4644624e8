"""`slm-judge evaluate`: may this judge stand in for annotators? One page, figures and numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.agreement.bias import quarters
from slm_judge.data.item import ITEM_ID, Item, load_split
from slm_judge.data.predictions import Answers, read_predictions
from slm_judge.data.read import Annotations, Columns, open_rows, read_annotations
from slm_judge.data.tables import require_columns
from slm_judge.data.text import read_name
from slm_judge.errors import DataError, JudgeError
from slm_judge.files import finite
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric
from slm_judge.run import Run
from slm_judge.version import __version__

from .dimension import Settings, correct_probes, evaluate_dimension

PROBES = "probes.json"  # in the report of a run: what probes that ran the judge found
LENGTH = "length of the text"
_EXAMPLES = 8
_EXCERPT = 400
Systems = dict[str, dict[str, Answers]]
"""Name -> dimension -> answers."""


@dataclass
class Evaluation:
    """What is evaluated: systems, and annotations of the same items."""

    title: str
    rubric: Rubric
    annotations: Annotations
    systems: Systems
    settings: Settings = field(default_factory=Settings)
    probes: Mapping[str, Any] = field(default_factory=dict)
    """Further findings of probes that ran the judge."""


def systems_of(recipe: Recipe) -> list[str]:
    """A run's artefacts; first, on which the report goes into detail, the GGUF that people get."""
    return [*recipe.export.gguf, "bnb-4bit", "merged", "adapter"]


def of_run(run: Run, groups: Sequence[str] = (), settings: Settings | None = None) -> Evaluation:
    """The artefacts of a run against the annotators of its test items, from what verify kept.

    Args:
        run: the run.
        groups: columns of its data to probe for bias.
        settings: of the evaluation.

    Raises:
        JudgeError: the run is not verified.
    """
    recipe, rubric, items = run.recipe(), run.rubric(), load_split(run.data, "test")
    probes = json.loads(run.require(run.report / PROBES, f"verify {run.folder}").read_text("utf-8"))
    systems: Systems = {}
    kept: list[int] = []
    for name in systems_of(recipe):
        path = run.require(run.predictions / f"{name}.jsonl", f"verify {run.folder}")
        read = read_predictions(str(path), rubric, [item.item_id for item in items])
        systems[name], kept = read.answers, read.rows
    annotations = Annotations([items[i] for i in kept])
    if groups:
        location = recipe.data.test or recipe.data.train
        annotations.columns = _columns_of(location, recipe.data.item_id, groups, annotations.items)
    return Evaluation(recipe.name, rubric, annotations, systems, settings or Settings(), probes)


def _columns_of(
    location: str, item_id: str | None, columns: Sequence[str], items: Sequence[Item]
) -> dict[str, list[str]]:
    table = open_rows(location, [*([item_id] if item_id else []), *columns])
    known = Columns(item_id, further=columns).within(table)
    require_columns(table.columns, known.further, location)
    if not known.item_id or known.item_id not in table.columns:
        raise DataError(f"Groups need a column that names the items: data.item_id of {location}.")
    rows = {read_name(row.get(known.item_id)): row for row in reversed(table.rows)}
    return {
        name: [read_name(rows.get(item.item_id, {}).get(column)) for item in items]
        for name, column in zip(columns, known.further, strict=True)
    }


def of_files(
    predictions: Mapping[str, str],
    annotations: str,
    rubric: Rubric,
    item_id: str = ITEM_ID,
    annotator: str | None = None,
    groups: Sequence[str] = (),
    settings: Settings | None = None,
) -> Evaluation:
    """Any predictions against any annotations, matched on the item.

    Items that one of the systems lacks are left out for all, and counted in the notes.

    Args:
        predictions: name of a system -> table; see `read_predictions`.
        annotations: see `read_annotations`.
        rubric: the dimensions.
        item_id: column that names the item, in all tables.
        annotator: column of `annotations` that names the annotator.
        groups: columns of `annotations` to probe for bias.
        settings: of the evaluation.

    Raises:
        DataError: nothing can be compared; the message says what is missing.
    """
    found = read_annotations(annotations, rubric, item_id, annotator, further=groups)
    present = [d for d in rubric.dimensions if any(d.name in item.votes for item in found.items)]
    known = rubric.model_copy(update={"dimensions": present})
    names = [item.item_id for item in found.items]
    read = {n: read_predictions(p, known, names, item_id) for n, p in predictions.items()}
    shared = sorted(set.intersection(*(set(one.rows) for one in read.values())))
    if not shared:
        raise DataError("No annotated item has predictions of all systems.")
    systems: Systems = {}
    for name, one in read.items():
        position = {item: row for row, item in enumerate(one.rows)}
        rows = [position[item] for item in shared]
        systems[name] = {
            d: Answers(a.labels[rows], None if a.probabilities is None else a.probabilities[rows])
            for d, a in one.answers.items()
        }
        found.notes += one.notes
    return Evaluation(
        " and ".join(systems), known, found.select(shared), systems, settings or Settings()
    )


def evaluate(evaluation: Evaluation) -> dict[str, Any]:
    """Every number of the report."""
    items = evaluation.annotations.items
    words = [sum(len(text.split()) for text in item.state.values()) for item in items]
    groups: dict[str, Sequence[str]] = dict(evaluation.annotations.columns)
    if any(words):
        groups[LENGTH] = quarters(words, "words")
    dimensions = {}
    for dimension in evaluation.rubric.dimensions:
        name = dimension.name
        votes = [item.votes.get(name, {}) for item in items]
        answers = {s: given[name] for s, given in evaluation.systems.items()}
        dimensions[name] = evaluate_dimension(
            dimension, votes, answers, groups, evaluation.settings
        )
        first = next(iter(answers.values()))
        dimensions[name]["disagreements"] = _disagreements(items, votes, first, dimension.values)
    correct_probes(dimensions)
    report: dict[str, Any] = finite(
        {
            "title": evaluation.title,
            "slm_judge": __version__,
            "settings": vars(evaluation.settings),
            "items": len(items),
            "systems": list(evaluation.systems),
            "notes": evaluation.annotations.notes,
            "dimensions": dimensions,
            "probes": dict(evaluation.probes),
        }
    )
    return report


def _disagreements(
    items: Sequence[Item],
    votes: Sequence[Mapping[str, int]],
    answers: Answers,
    values: Sequence[Any],
) -> list[dict[str, Any]]:
    """Items on which the judge is surest, and no annotator, or fewest, agree."""
    found = []
    for n, row in enumerate(votes):
        if not row:
            continue
        label = int(answers.labels[n])
        agree = float(np.mean([option == label for option in row.values()]))
        given = answers.probabilities
        sure = float(given[n, label]) if given is not None else 1.0
        if agree < 0.5:
            found.append((agree - sure, n, label, sure if given is not None else None))
    return [
        {
            "item_id": items[n].item_id,
            "texts": {k: _excerpt(v) for k, v in items[n].state.items()},
            "judge": values[label],
            "confidence": sure,
            "annotators": [values[option] for option in sorted(votes[n].values())],
        }
        for _, n, label, sure in sorted(found)[:_EXAMPLES]
    ]


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]} …"


def find(
    run: Path | None,
    predictions: Mapping[str, str],
    annotations: str | None,
    rubric: Path | None,
    output: Path | None,
    columns: Columns | None = None,
    settings: Settings | None = None,
) -> tuple[Evaluation, Path]:
    """What the command line asks for, and the folder for the report; see `of_run`, `of_files`.

    `columns` says what names items and annotators, and which further ones to probe for bias.

    Raises:
        JudgeError: neither a run nor predictions, annotations and a rubric are named, or both.
    """
    columns = columns or Columns()
    if run is not None:
        if predictions or annotations or rubric:
            raise JudgeError("Name a run, or --predictions, --annotations and --rubric; not both.")
        found = Run.find(run)
        return of_run(found, columns.further, settings), output or found.report
    if not (predictions and annotations and rubric):
        files = {"predictions": predictions, "annotations": annotations, "rubric": rubric}
        missing = [f"--{key}" for key, given in files.items() if not given]
        raise JudgeError(f"Without a run, {', '.join(missing)} must be named too.")
    evaluation = of_files(
        predictions,
        annotations,
        Rubric.from_file(rubric),
        columns.item_id or ITEM_ID,
        columns.annotator,
        columns.further,
        settings,
    )
    return evaluation, output or Path("report")
