"""`slm-judge evaluate`: may this judge stand in for annotators? One page, figures and numbers."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from rich.table import Table

from slm_judge import __version__
from slm_judge.agreement.bias import quarters
from slm_judge.agreement.evaluation import (
    Answers,
    Settings,
    correct_probes,
    evaluate_dimension,
)
from slm_judge.annotations import Annotations, read_annotations, read_predictions
from slm_judge.errors import DataError, JudgeError
from slm_judge.files import atomic_file, write_text
from slm_judge.items import Item, load_split
from slm_judge.judge import Judge
from slm_judge.rubric import Rubric, format_value
from slm_judge.run import Run
from slm_judge.tables import read_table, require_columns

from . import figures
from .probes import option_order

PAGE, NUMBERS, FIGURES = "report.html", "report.json", "figures"
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


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.json`, the figures (PNG and SVG) and `report.html`, which needs no other file.

    Returns:
        The page.
    """
    write_text(folder / NUMBERS, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    inline = {}
    for name, figure in figures.draw(report).items():
        for kind in ("png", "svg"):
            content = figures.save(figure, kind)
            with atomic_file(folder / FIGURES / f"{_safe(name)}.{kind}") as path:
                path.write_bytes(content)
        inline[name] = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    write_text(folder / PAGE, render(report, inline))
    return folder / PAGE


def render(report: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The page; all texts are escaped.

    Args:
        report: of `evaluate`.
        images: name of a figure -> its address.
    """
    environment = SandboxedEnvironment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"interval": interval, "number": number, "value": format_value}
    source = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report, images=images, first=report["systems"][0], significant=significant(report)
    )


def significant(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Probes that found a difference, corrected for their number."""
    return [
        {"dimension": name, **probe}
        for name, dimension in report["dimensions"].items()
        for probe in dimension["probes"]
        if probe["p_adjusted"] < 0.05
    ]


def interval(found: Mapping[str, float | None] | None, digits: int = 2) -> str:
    """An estimate with its interval."""
    if not found or found["estimate"] is None:
        return "–"
    text = number(found["estimate"], digits)
    if found["low"] is not None:
        text += f" [{number(found['low'], digits)}, {number(found['high'], digits)}]"
    return text


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def table(report: Mapping[str, Any]) -> Table:
    """The report in short, for a terminal."""
    found = Table(title=f"{report['title']}: {report['items']} items, 95 % intervals")
    for column in ("", "alpha", "accuracy"):
        found.add_column(column, justify="right" if column else "left", no_wrap=True)
    found.add_column("may replace an annotator")
    for name, dimension in report["dimensions"].items():
        found.add_row(name, style="bold")
        if humans := dimension["humans"]:
            found.add_row("  annotators", interval(humans["alpha"]), interval(humans["accuracy"]))
        for system, one in dimension["systems"].items():
            test = one["alternative_annotator_test"]
            may = ("yes" if test["passed"] else "no") if test["annotators"] else "–"
            found.add_row(f"  {system}", interval(one["alpha"]), interval(one["accuracy"]), may)
        found.add_section()
    return found


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


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
