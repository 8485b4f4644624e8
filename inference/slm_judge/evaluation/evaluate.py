"""`slm-judge evaluate`: may this judge stand in for annotators? One page, figures and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.agreement.bias import quarters
from slm_judge.data.item import Item, load_split
from slm_judge.data.predictions import Answers
from slm_judge.data.read import Annotations, read_annotations, read_predictions
from slm_judge.data.tables import read_table, require_columns
from slm_judge.errors import DataError, JudgeError
from slm_judge.judge.judge import Judge
from slm_judge.rubric import Rubric
from slm_judge.run import Run
from slm_judge.version import __version__

from .dimension import Settings, correct_probes, evaluate_dimension
from .probes import option_order

LENGTH = "length of the text"
_EXAMPLES = 8
_PROBED_ITEMS = 300  # with another order of options; each reads the whole rubric
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


def of_run(run: Run, groups: Sequence[str] = (), settings: Settings | None = None) -> Evaluation:
    """The artefacts of a verified run against the annotators of its test items.

    The first system, on which the report goes into detail, is the GGUF file that people get.

    Args:
        run: the run.
        groups: columns of its data to probe for bias.
        settings: of the evaluation.

    Raises:
        JudgeError: the run is not verified.
    """
    recipe = run.recipe()
    run.require(run.predictions, f"verify {run.folder}")
    rubric, items = run.rubric(), load_split(run.data, "test")
    names = [*recipe.export.gguf, "bnb-4bit", "merged", "adapter"]
    systems: Systems = {}
    kept: list[int] = []
    for name in names:
        path = run.require(run.predictions / f"{name}.jsonl", f"verify {run.folder}")
        systems[name], kept, _ = read_predictions(
            str(path), rubric, [item.item_id for item in items]
        )
    annotations = Annotations([items[i] for i in kept])
    with Judge.from_pretrained(run.gguf_file(names[0])) as judge:
        probes = {"option_order": option_order(judge, annotations.items[:_PROBED_ITEMS])}
    if groups:
        location = recipe.data.test or recipe.data.train
        annotations.columns = _columns_of(location, recipe.data.item_id, groups, annotations.items)
    return Evaluation(recipe.name, rubric, annotations, systems, settings or Settings(), probes)


def _columns_of(
    location: str, item_id: str | None, columns: Sequence[str], items: Sequence[Item]
) -> dict[str, list[str]]:
    table = read_table(location)
    require_columns(table.column_names, columns, location)
    if not item_id or item_id not in table.column_names:
        raise DataError(f"Groups need a column that names the items: data.item_id of {location}.")
    rows = {str(row[item_id]): row for row in reversed(table.to_list())}
    return {c: [str(rows.get(i.item_id, {}).get(c, "")) for i in items] for c in columns}


def of_files(
    predictions: Mapping[str, str],
    annotations: str,
    rubric: Rubric,
    item_id: str = "item_id",
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
    shared = sorted(set.intersection(*(set(kept) for _, kept, _ in read.values())))
    if not shared:
        raise DataError("No annotated item has predictions of all systems.")
    systems: Systems = {}
    for name, (answers, kept, notes) in read.items():
        position = {item: row for row, item in enumerate(kept)}
        rows = [position[item] for item in shared]
        systems[name] = {
            d: Answers(a.labels[rows], None if a.probabilities is None else a.probabilities[rows])
            for d, a in answers.items()
        }
        found.notes += notes
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
    report: dict[str, Any] = _plain(
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


def _plain(value: Any) -> Any:
    """For JSON: None where a number is not defined."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
    item_id: str = "item_id",
    annotator: str | None = None,
    groups: Sequence[str] = (),
    settings: Settings | None = None,
) -> tuple[Evaluation, Path]:
    """What the command line asks for, and the folder for the report; see `of_run`, `of_files`.

    Raises:
        JudgeError: neither a run nor predictions, annotations and a rubric are named, or both.
    """
    if run is not None:
        if predictions or annotations or rubric:
            raise JudgeError("Name a run, or --predictions, --annotations and --rubric; not both.")
        found = Run.find(run)
        return of_run(found, groups, settings), output or found.report
    if not (predictions and annotations and rubric):
        files = {"predictions": predictions, "annotations": annotations, "rubric": rubric}
        missing = [f"--{key}" for key, given in files.items() if not given]
        raise JudgeError(f"Without a run, {', '.join(missing)} must be named too.")
    evaluation = of_files(
        predictions, annotations, Rubric.from_file(rubric), item_id, annotator, groups, settings
    )
    return evaluation, output or Path("report")
