"""`slm-judge verify`: the exported files, run on held-out items, against adapter and annotators."""

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
from slm_judge.agreement.alpha import annotators_alpha
from slm_judge.agreement.parts import Part, all_parts
from slm_judge.artefact.judge_files import Contract, calibration_notes
from slm_judge.data.item import Item, load_split, sample_rows, votes_of
from slm_judge.data.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)
from slm_judge.data.read import Annotations
from slm_judge.data.sets import whole_sets
from slm_judge.errors import DataError
from slm_judge.evaluation.annotators import of_shared
from slm_judge.evaluation.evaluate import PROBES, Evaluation, evaluate, systems_of
from slm_judge.evaluation.probes import PROBED_ITEMS, option_order
from slm_judge.files import content_hash, finite, read_back, write_json
from slm_judge.judge.judge import Judge
from slm_judge.recipe import VerifyConfig
from slm_judge.rubric import Preference, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet

from .answers import Heard, against_annotators, between, flip_rate, hear, losses
from .artefacts import ADAPTER, artefacts, parts
from .decide import all_checks, in_words
from .sets import set_report

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
    seed = recipe.training.seed
    items = load_split(run.data, "test")
    items = [items[row] for row in sample_rows(len(items), recipe.verify.max_rows, seed)]
    gold, notes = _gold(recipe.data.gold, rubric, items)
    heard, probes = _ask_all(paths, systems_of(run)[0], items, console)
    with console.status("statistics and figures"):
        report = _report(run, items, heard, gold)
        report["notes"] = [*notes, *report["notes"]]
        report["sha256"] = {name: content_hash(path, parts(path)) for name, path in paths.items()}
        for name, one in heard.items():
            write_predictions(run.predictions / f"{name}.jsonl", items, rubric, one.answers)
        flips = {name: d["flips"] for name, d in report["dimensions"].items() if "flips" in d}
        probes |= {"flips": flips} if flips else {}
        write_json(run.report / PROBES, probes)
        systems = {name: heard[name].answers for name in systems_of(run)}
        known = Annotations(items, notes=calibration_notes(Contract.load(run.adapter)))
        evaluation = Evaluation(recipe.name, rubric, known, systems, probes=probes, held_out=True)
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
        rows = sample_rows(len(items), PROBED_ITEMS, 0)
        probed, given = [items[row] for row in rows], {}
        for dimension in judge.rubric.dimensions:
            labels = heard.labels(dimension.name)
            given[dimension.name] = [labels[row] for row in rows]
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
        why = str(error).replace(location, Path(location).name)  # since model cards say it too
        return None, [f"The right answers are left out: {why}"]
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
            part.dimension.name: _part_report(part, items, train, heard, gold, margin)
            for part in all_parts(rubric.dimensions)
        },
        "sets": {one.name: set_report(one, items, heard, margin) for one in whole_sets(rubric)},
        "different_prompts": _different_prompts(heard),
    }
    report = finite(report)
    report["notes"] = [
        f"{name} has no annotations among the {len(items)} test items, or none where the adapter "
        "gives an answer: nothing is said about how the artefacts agree with annotators, only with "
        "each other."
        for name, dimension in report["dimensions"].items()
        if not dimension["annotations"]
    ]
    report["failures"] = failures(report, recipe.verify)
    report["undecided"] = undecided(report, recipe.verify)
    return report


def _part_report(
    part: Part,
    items: Sequence[Item],
    train: Sequence[Item],
    heard: Mapping[str, Heard],
    gold: Predictions | None,
    margin: float,
) -> dict[str, Any]:
    dimension, name = part.dimension, part.source
    votes, known = (part.votes_of(votes_of(given, name)) for given in (items, train))
    # Each item counts once, as in `slm-judge baselines`.
    train_votes = [vote_shares(row, len(dimension.options)) for row in known]
    majority = [int(np.sum(train_votes, axis=0).argmax())] * len(items)
    judged = {artefact: part.labels(one.labels(name)).tolist() for artefact, one in heard.items()}
    groups = [item.group for item in items]
    compared = of_shared(votes)  # with annotators where these are compared, as on the page
    report: dict[str, Any] = {
        "annotations": sum(
            len(row) for row, label in zip(votes, judged[ADAPTER], strict=True) if label >= 0
        ),
        "annotators_alpha": annotators_alpha(votes, dimension),
        "annotated": sum(map(bool, votes)),
        "compared": sum(map(bool, compared)),
        "majority": against_annotators(majority, compared, dimension),
        "artefacts": {
            artefact: against_annotators(labels, compared, dimension)
            for artefact, labels in judged.items()
        },
        "loss": losses(judged, votes, dimension, margin, groups),
        "between": {
            f"{first} / {second}": between(part, heard[first], heard[second], groups)
            for first, second in combinations(heard, 2)
        },
    }
    if isinstance(dimension, Preference):
        report["flips"] = {a: flip_rate(one.answers[name], groups) for a, one in heard.items()}
    if gold:
        right = part.labels(gold.answers[name].labels).tolist()
        known = [compared[row] for row in gold.rows]
        report["reachable"] = against_annotators(right, known, dimension)
    return report


def _different_prompts(heard: Mapping[str, Heard]) -> int:
    """Items whose token ids or slots differ between any two artefacts."""
    return sum(
        any(prompt != prompts[0] for prompt in prompts)
        for prompts in zip(*(one.prompts for one in heard.values()), strict=True)
    )


def failures(report: Mapping[str, Any], thresholds: VerifyConfig) -> list[str]:
    """The thresholds that do not hold, in words; also what is not decided, where that refuses."""
    found = []
    if report["different_prompts"]:
        found.append(f"{report['different_prompts']} items have different prompts per backend")
    refused = ("does not hold", "not defined")
    checked = all_checks(report, thresholds, ADAPTER)
    found += in_words(check for check in checked if check.verdict in refused)
    if thresholds.undecided == "refuse":
        found += undecided(report, thresholds)
    return found


def undecided(report: Mapping[str, Any], thresholds: VerifyConfig) -> list[str]:
    """The thresholds for which the items are too few, and how many would decide, in words."""
    checked = all_checks(report, thresholds, ADAPTER)
    return in_words(check for check in checked if check.verdict == "not decided")


def read_report(run: Run, name: str = REPORT) -> dict[str, Any]:
    """The report of the last verification, or another file of it.

    Raises:
        JudgeError: there is none, or it is damaged.
    """
    path = run.require(run.report / name, f"verify {run.folder}")
    return read_back(path, f"run `slm-judge verify {run.folder}` again")


def agreement_table(report: Mapping[str, Any]) -> Sheet:
    """The report in short: who agrees with the annotators, and the artefacts with the adapter."""
    twice = any("flips" in given for given in report["dimensions"].values())
    table = Sheet(
        f"Agreement with the annotators on {report['items']} held-out items",
        ("alpha", "accuracy", "= adapter", *(["flips"] if twice else [])),
        "alpha: Krippendorff's; = adapter: share of equal labels"
        + ("; flips: share of other labels when the two texts change places" if twice else ""),
    )

    def add(
        name: str, found: Mapping[str, Any], equal: str = "", style: str = "", flips: str = ""
    ) -> None:
        figures = (number(found["alpha"], 3), number(found["accuracy"], 3), equal)
        table.add(name, *figures, *([flips] if twice else []), style=style)

    for dimension, given in [*report["dimensions"].items(), *report.get("sets", {}).items()]:
        apart = given["compared"] < given["annotated"]
        whole = f"{dimension}, sets of options" if "distance" in given else dimension
        table.group(
            f"{whole}, {given['compared']} items with several annotations" if apart else whole
        )
        among = {"alpha": given["annotators_alpha"], "accuracy": None}
        add("annotators among themselves", among)
        if "reachable" in given:
            add("right answers", given["reachable"])
        for name, found in given["artefacts"].items():
            alike = given["between"].get(f"{ADAPTER} / {name}")
            flips = interval(given["flips"][name]) if "flips" in given else ""
            add(name, found, number(alike["agreement"], 3) if alike else "", "bold", flips)
        for key, name in (("majority", "majority label"), ("constant", "always one set, at best")):
            if key in given:
                add(name, given[key])
    return table
