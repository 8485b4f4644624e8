"""`slm-judge evaluate`: may this judge stand in for annotators? One page, figures and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.agreement.bias import quarters
from slm_judge.agreement.parts import Part, all_parts
from slm_judge.artefact.judge_files import Contract, calibration_notes
from slm_judge.artefact.locate import default_gguf
from slm_judge.data.item import ITEM_ID, Item, load_split
from slm_judge.data.predictions import Answers, read_predictions
from slm_judge.data.read import (
    Annotations,
    Columns,
    Findings,
    open_rows,
    read_annotations,
    read_items,
)
from slm_judge.data.sets import whole_sets
from slm_judge.data.tables import require_columns
from slm_judge.errors import DataError, JudgeError
from slm_judge.files import finite, read_back
from slm_judge.recipe import Recipe
from slm_judge.rubric import Rubric
from slm_judge.run import Run
from slm_judge.version import __version__

from .dimension import Groups, Settings, correct_probes, evaluate_dimension
from .sets import evaluate_set

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
    held_out: bool = False
    """Whether it is known that the systems did not learn from these items."""


def systems_of(run: Run) -> list[str]:
    """A run's artefacts; first, on which the report goes into detail, the GGUF that people get."""
    first = default_gguf(run)
    others = [name for name in run.recipe().export.gguf if name != first]
    return [first, *others, "bnb-4bit", "merged", "adapter"]


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
    command = f"verify {run.folder}"
    probes = read_back(
        run.require(run.report / PROBES, command), f"run `slm-judge {command}` again"
    )
    systems: Systems = {}
    kept: list[int] = []
    for name in systems_of(run):
        path = run.require(run.predictions / f"{name}.jsonl", f"verify {run.folder}")
        read = read_predictions(str(path), rubric, [item.item_id for item in items])
        systems[name], kept = read.answers, read.rows
    notes = calibration_notes(Contract.load(run.adapter))
    annotations = Annotations([items[i] for i in kept], notes=notes)
    if groups:
        add_columns(annotations, recipe, rubric, groups)
    return Evaluation(
        recipe.name, rubric, annotations, systems, settings or Settings(), probes, True
    )


def add_columns(
    annotations: Annotations, recipe: Recipe, rubric: Rubric, names: Sequence[str]
) -> None:
    """Columns of a run's data, of its items or of their annotators."""
    data, location = recipe.data, recipe.data.test or recipe.data.train
    table = open_rows(location, [*([data.item_id] if data.item_id else []), *names])
    columns = Columns(data.item_id, data.annotator, None, data.columns, names).within(table)
    require_columns(table.columns, columns.further, location)
    if not columns.item_id or columns.item_id not in table.columns:
        raise DataError(f"Groups need a column that names the items: data.item_id of {location}.")
    found = read_items(table, columns, rubric, Findings(strict=False))
    row = {item.item_id: n for n, item in enumerate(found.items)}
    rows = [row.get(item.item_id) for item in annotations.items]
    asked = dict(zip(columns.further, names, strict=True))
    annotations.columns = {
        asked[name]: ["" if n is None else values[n] for n in rows]
        for name, values in found.columns.items()
    }
    annotations.of_annotators = {asked[name]: by for name, by in found.of_annotators.items()}
    annotations.notes += found.notes


def of_files(
    predictions: Mapping[str, str],
    annotations: str,
    rubric: Rubric,
    item_id: str = ITEM_ID,
    annotator: str | None = None,
    groups: Sequence[str] = (),
    settings: Settings | None = None,
    cluster: str | None = None,
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
        cluster: column of `annotations` whose items belong together, e.g. the author: intervals
            and probes take them whole.

    Raises:
        DataError: nothing can be compared; the message says what is missing.
    """
    found = read_annotations(annotations, rubric, item_id, annotator, groups, cluster)
    present = [d for d in rubric.dimensions if any(d.name in item.votes for item in found.items)]
    known = rubric.model_copy(update={"dimensions": present})
    names = [item.item_id for item in found.items]
    needed = {d.name for d in present}  # and what they are asked after
    for d in reversed(rubric.dimensions):
        needed |= {*d.ask_if} if d.name in needed else set()
    wider = rubric.model_copy(
        update={"dimensions": [d for d in rubric.dimensions if d.name in needed]}
    )
    read = {n: read_predictions(p, wider, names, item_id) for n, p in predictions.items()}
    shared = sorted(set.intersection(*(set(one.rows) for one in read.values())))
    if not shared:
        raise DataError("No annotated item has predictions of all systems.")
    systems: Systems = {}
    for name, one in read.items():
        position = {item: row for row, item in enumerate(one.rows)}
        rows = [position[item] for item in shared]
        systems[name] = {d: a.of(rows) for d, a in one.answers.items()}
        found.notes += one.notes
    return Evaluation(
        " and ".join(systems), known, found.select(shared), systems, settings or Settings()
    )


def evaluate(evaluation: Evaluation) -> dict[str, Any]:
    """Every number of the report."""
    items = evaluation.annotations.items
    words = [sum(len(text.split()) for text in item.state.values()) for item in items]
    attributes: dict[str, Sequence[str]] = dict(evaluation.annotations.columns)
    if any(words):
        attributes[LENGTH] = quarters(words, "words")
    groups = Groups(
        [item.group for item in items], attributes, evaluation.annotations.of_annotators
    )
    dimensions = {
        part.dimension.name: _evaluate_part(part, items, evaluation, groups)
        for part in all_parts(evaluation.rubric.dimensions)
    }
    correct_probes(dimensions)
    sets = {
        one.name: evaluate_set(one, items, evaluation.systems, evaluation.settings)
        for one in whole_sets(evaluation.rubric)
    }
    report: dict[str, Any] = finite(
        {
            "title": evaluation.title,
            "slm_judge": __version__,
            "settings": vars(evaluation.settings),
            "items": len(items),
            "held_out": evaluation.held_out,
            "systems": list(evaluation.systems),
            "notes": evaluation.annotations.notes,
            "dimensions": dimensions,
            "sets": sets,
            "probes": dict(evaluation.probes),
        }
    )
    return report


def _evaluate_part(
    part: Part, items: Sequence[Item], evaluation: Evaluation, groups: Groups
) -> dict[str, Any]:
    """A part of a dimension, on the items of which all systems said something there."""
    systems = {
        name: Answers(
            part.labels(given[part.source].labels),
            None if (p := given[part.source].probabilities) is None else part.shares(p),
        )
        for name, given in evaluation.systems.items()
    }
    votes = [part.votes(item.votes.get(part.source, {})) for item in items]
    silent = np.any([one.labels < 0 for one in systems.values()], axis=0)
    lost = sum(map(bool, compress(votes, silent)))
    rows = np.flatnonzero(~silent).tolist()
    votes, kept = [votes[i] for i in rows], [items[i] for i in rows]
    systems = {name: one.of(rows) for name, one in systems.items()}
    found = evaluate_dimension(part.dimension, votes, systems, groups.of(rows), evaluation.settings)
    if lost:
        found["notes"].append(
            f"{lost} items with annotations here are left out, since a system gave no label of "
            "these options: it said that none applies, or its own other answers made the question "
            "not apply (`ask_if`)."
        )
    first = next(iter(systems.values()))
    found["disagreements"] = _disagreements(kept, votes, first, part.dimension.values)
    return found


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

    `columns` says what names items, annotators and groups, and which further ones to probe.

    Raises:
        JudgeError: neither a run nor predictions, annotations and a rubric are named, or both.
    """
    columns = columns or Columns()
    if run is not None:
        if columns.group:
            raise JudgeError("--cluster is for files: a run knows data.group of its recipe.")
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
        columns.group,
    )
    return evaluation, output or Path("report")
