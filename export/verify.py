"""`slm-judge verify`: the exported files, run on held-out items, against adapter and annotators."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from slm_judge.model_card.page import interval, number
from slm_judge.model_card.page import write as write_report

from slm_judge.agreement.aggregate import vote_shares
from slm_judge.agreement.alpha import (
    annotators_alpha,
)
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)
from slm_judge.data.read import Annotations
from slm_judge.errors import DataError, JudgeError
from slm_judge.evaluation.evaluate import PROBES, Evaluation, evaluate, systems_of
from slm_judge.evaluation.probes import PROBED_ITEMS, option_order
from slm_judge.files import content_hash, finite, write_json
from slm_judge.judge.judge import Judge
from slm_judge.recipe import VerifyConfig
from slm_judge.rubric import Dimension, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet

from .answers import Heard, against_annotators, between, hear, losses
from .artefacts import ADAPTER, artefacts, parts

REPORT = "verify.json"


def verify(run: Run, console: Console | None = None) -> dict[str, Any]:
    """Run every artefact on the test items and write `report/verify.json`, and the page
    `report/report.html` with figures and every number (see `slm_judge.evaluation.evaluate`).

    Returns:
        The report; `report["failures"]` is empty where all thresholds hold.

    Raises:
        JudgeError: the run is not exported yet, or another process is at work on it.
    """
    with run.alone():
        return _verify(run, console or Console())


def _verify(run: Run, console: Console) -> dict[str, Any]:
    recipe, rubric, paths = run.recipe(), run.rubric(), artefacts(run)
    items = load_split(run.data, "test")[: recipe.verify.max_rows]
    gold, notes = _gold(recipe.data.gold, rubric, items)
    heard, probes = _ask_all(paths, systems_of(recipe)[0], items, console)
    with console.status("statistics and figures"):
        report = _report(run, items, heard, gold)
        report["notes"] = [*notes, *report["notes"]]
        report["sha256"] = {name: content_hash(path, parts(path)) for name, path in paths.items()}
        for name, one in heard.items():
            write_predictions(run.predictions / f"{name}.jsonl", items, rubric, one.probabilities)
        write_json(run.report / PROBES, probes)
        systems = {name: heard[name].answers() for name in systems_of(recipe)}
        evaluation = Evaluation(recipe.name, rubric, Annotations(items), systems, probes=probes)
        write_report(evaluate(evaluation), run.report)
    write_json(run.report / REPORT, report)
    return report


def _ask_all(
    paths: Mapping[str, Path], main: str, items: list[Item], console: Console
) -> tuple[dict[str, Heard], dict[str, Any]]:
    """What each artefact says, and what probes find of the main one."""
    probes: dict[str, Any] = {}

    def probe(name: str, judge: Judge, heard: Heard, progress: Progress) -> None:
        if name != main:
            return
        probed = items[:PROBED_ITEMS]
        given = {d.name: heard.labels(d.name)[:PROBED_ITEMS] for d in judge.rubric.dimensions}
        task = progress.add_task("with the options in reverse", total=len(probed))
        advance = partial(progress.advance, task)
        probes["option_order"] = option_order(judge, probed, given, advance)

    return hear(paths, items, "verifying", console, probe), probes


def _gold(
    location: str | None, rubric: Rubric, items: Sequence[Item]
) -> tuple[Predictions | None, list[str]]:
    """The right answers, of the items that have one; and what is to be said about them."""
    if not location:
        return None, []
    try:
        gold = read_predictions(location, rubric, [item.item_id for item in items])
    except DataError as error:  # a yardstick: nothing that is verified depends on it
        return None, [f"The right answers are left out: {error}"]
    if len(gold.rows) == len(items):
        return gold, []
    known = f"known for {len(gold.rows)} of the {len(items)} test items"
    return gold, [f"The right answers are {known}; their figures are of those."]


def _report(
    run: Run, items: list[Item], heard: Mapping[str, Heard], gold: Predictions | None
) -> dict[str, Any]:
    recipe, rubric = run.recipe(), run.rubric()
    train, margin = load_split(run.data, "train"), recipe.verify.max_alpha_loss
    report: dict[str, Any] = {
        "items": len(items),
        "thresholds": recipe.verify.model_dump(),
        "dimensions": {
            dimension.name: _dimension_report(dimension, items, train, heard, gold, margin)
            for dimension in rubric.dimensions
        },
        "different_prompts": _different_prompts(heard),
    }
    report = finite(report)
    report["notes"] = [
        f"{name} has no annotations among the {len(items)} test items: nothing is said about how "
        "the artefacts agree with annotators, only with each other."
        for name, dimension in report["dimensions"].items()
        if not dimension["annotations"]
    ]
    report["failures"] = failures(report, recipe.verify)
    report["undecided"] = undecided(report)
    return report


def _dimension_report(
    dimension: Dimension,
    items: Sequence[Item],
    train: Sequence[Item],
    heard: Mapping[str, Heard],
    gold: Predictions | None,
    margin: float,
) -> dict[str, Any]:
    name = dimension.name
    votes = votes_of(items, name)
    # Each item counts once, as in `slm-judge baselines`.
    train_votes = [vote_shares(row, len(dimension.options)) for row in votes_of(train, name)]
    majority = [int(np.sum(train_votes, axis=0).argmax())] * len(items)
    judged = {artefact: one.labels(name) for artefact, one in heard.items()}
    report: dict[str, Any] = {
        "annotations": sum(map(len, votes)),
        "annotators_alpha": annotators_alpha(votes, dimension),
        "majority": against_annotators(majority, votes, dimension),
        "artefacts": {
            artefact: against_annotators(labels, votes, dimension)
            for artefact, labels in judged.items()
        },
        "loss": losses(judged, votes, dimension, margin, [item.group for item in items]),
        "between": {
            f"{first} / {second}": between(dimension, heard[first], heard[second])
            for first, second in combinations(heard, 2)
        },
    }
    if gold:
        right, known = gold.answers[name].labels.tolist(), [votes[row] for row in gold.rows]
        report["reachable"] = against_annotators(right, known, dimension)
    return report


def _different_prompts(heard: Mapping[str, Heard]) -> int:
    """Items whose token ids or slots differ between any two artefacts."""
    return sum(
        any(prompt != prompts[0] for prompt in prompts)
        for prompts in zip(*(one.prompts for one in heard.values()), strict=True)
    )


def failures(report: Mapping[str, Any], thresholds: VerifyConfig) -> list[str]:
    """The thresholds that do not hold, in words."""
    found = []
    if report["different_prompts"]:
        found.append(f"{report['different_prompts']} items have different prompts per backend")
    for name, dimension in report["dimensions"].items():
        reference = dimension["artefacts"][ADAPTER]["alpha"]
        for artefact, measured in dimension["artefacts"].items():
            if artefact == ADAPTER:
                continue
            alike = dimension["between"][f"{ADAPTER} / {artefact}"]
            where = f"{name}, {artefact}:"
            if _less(alike["agreement"], thresholds.min_agreement):
                found.append(
                    f"{where} {number(alike['agreement'], 3)} of the labels agree with the "
                    f"adapter, less than min_agreement = {thresholds.min_agreement}"
                )
            if _less(alike["alpha"], thresholds.min_alpha_between):
                found.append(
                    f"{where} alpha with the adapter is {number(alike['alpha'], 3)}, less than "
                    f"min_alpha_between = {thresholds.min_alpha_between}"
                )
            if dimension.get("annotations") == 0:
                continue  # nothing to agree with; a note says so
            if _less(_minus(measured["alpha"], reference), -thresholds.max_alpha_loss):
                found.append(
                    f"{where} alpha against the annotators falls from {number(reference, 3)} to "
                    f"{number(measured['alpha'], 3)}, by more than max_alpha_loss = "
                    f"{thresholds.max_alpha_loss}; the difference is "
                    f"{_interval(dimension, artefact)}"
                )
    return found


def _less(value: float | None, bound: float) -> bool:
    """Whether a number is less than it must be; one that is not defined is."""
    return value is None or not value >= bound


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def undecided(report: Mapping[str, Any]) -> list[str]:
    """Artefacts with too few items to show that they lose less than the margin, in words."""
    return [
        f"{name}, {artefact}: the change in alpha is {_interval(dimension, artefact)}; more "
        f"held-out items would show whether it stays within {loss['margin']}"
        for name, dimension in report["dimensions"].items()
        for artefact, loss in dimension["loss"].items()
        if loss["verdict"] == "not decided"
    ]


def _interval(dimension: Mapping[str, Any], artefact: str) -> str:
    loss = dimension["loss"][artefact]
    return f"{interval(loss, 3)}, a 90 % interval"


def read_report(run: Run) -> dict[str, Any]:
    """The report of the last verification.

    Raises:
        JudgeError: there is none, or it is damaged.
    """
    path = run.require(run.report / REPORT, f"verify {run.folder}")
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return dict(report)
    except (ValueError, TypeError, RecursionError) as error:
        raise JudgeError(
            f"{path} is damaged; run `slm-judge verify {run.folder}` again: {error}"
        ) from error


def agreement_table(report: Mapping[str, Any]) -> Sheet:
    """The report in short: who agrees with the annotators, and the artefacts with the adapter."""
    table = Sheet(
        f"Agreement with the annotators on {report['items']} held-out items",
        ("alpha", "accuracy", "= adapter"),
        "alpha: Krippendorff's; = adapter: share of equal labels",
    )

    def add(name: str, found: Mapping[str, Any], equal: str = "", style: str = "") -> None:
        table.add(name, number(found["alpha"], 3), number(found["accuracy"], 3), equal, style=style)

    for dimension, given in report["dimensions"].items():
        table.group(dimension)
        among = {"alpha": given["annotators_alpha"], "accuracy": None}
        add("annotators among themselves", among)
        if "reachable" in given:
            add("right answers", given["reachable"])
        for name, found in given["artefacts"].items():
            alike = given["between"].get(f"{ADAPTER} / {name}")
            add(name, found, number(alike["agreement"], 3) if alike else "", "bold")
        add("majority label", given["majority"])
    return table
