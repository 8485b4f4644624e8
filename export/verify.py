"""`slm-judge verify`: the exported files, run on held-out items, against adapter and annotators."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from slm_judge.model_card.page import write as write_report

from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    annotators_alpha,
    judge_alpha,
    judge_coincidences,
    krippendorff_alpha,
    vote_counts,
)
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.compare import difference
from slm_judge.agreement.scores import pair_accuracy
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import read_labels, write_predictions
from slm_judge.evaluation.evaluate import evaluate, of_run
from slm_judge.files import content_hash, write_text
from slm_judge.judge.answer import softmax
from slm_judge.judge.judge import Judge
from slm_judge.progress import progress_bar
from slm_judge.prompt.readers import EncodedPrompt
from slm_judge.recipe import VerifyConfig
from slm_judge.rubric import Dimension
from slm_judge.run import Run

REPORT = "verify.json"
ADAPTER = "adapter"
_RESAMPLES = 2000


@dataclass
class Answers:
    """What one artefact said about N items."""

    probabilities: dict[str, npt.NDArray[np.float64]]
    """Per dimension, N x options."""
    prompts: list[EncodedPrompt]

    def labels(self, dimension: str) -> list[int]:
        """Option indices."""
        return self.probabilities[dimension].argmax(axis=1).tolist()  # type: ignore[no-any-return]


def artefacts(run: Run) -> dict[str, Path]:
    """The exported artefacts by name, the adapter first.

    Raises:
        JudgeError: some are not there yet.
    """
    found = {ADAPTER: run.adapter, "merged": run.merged, "bnb-4bit": run.bnb}
    found |= {name: run.gguf_file(name) for name in run.recipe().export.gguf}
    for path in found.values():
        run.require(path, f"export {run.folder}")
    return found


def verify(run: Run, console: Console | None = None) -> dict[str, Any]:
    """Run every artefact on the test items and write `report/verify.json`, and the page
    `report/report.html` with figures and every number (see `slm_judge.model_card.evaluate`).

    Returns:
        The report; `report["failures"]` is empty where all thresholds hold.

    Raises:
        JudgeError: the run is not exported yet.
    """
    console = console or Console()
    recipe = run.recipe()
    paths = artefacts(run)
    items = load_split(run.data, "test")[: recipe.verify.max_rows]
    answers: dict[str, Answers] = {}
    for name, path in paths.items():
        with progress_bar("rows", console=console) as progress:
            task = progress.add_task(f"verifying {name}", total=len(items))
            answers[name] = run_artefact(path, items, partial(progress.advance, task))
    rubric = run.rubric()
    gold = read_labels(recipe.data.gold, rubric, items) if recipe.data.gold else {}
    train = load_split(run.data, "train")
    report: dict[str, Any] = {
        "items": len(items),
        "thresholds": recipe.verify.model_dump(),
        "dimensions": {
            dimension.name: _dimension_report(
                dimension, items, train, answers, gold, recipe.verify.max_alpha_loss
            )
            for dimension in rubric.dimensions
        },
        "different_prompts": _different_prompts(answers),
        "sha256": {name: content_hash(path) for name, path in paths.items()},
    }
    report["failures"] = failures(report, recipe.verify)
    report["undecided"] = undecided(report)
    for name, given in answers.items():
        path = run.predictions / f"{name}.jsonl"
        write_predictions(path, items, rubric, given.probabilities)
    with console.status("statistics and figures"):
        write_report(evaluate(of_run(run)), run.report)
    write_text(run.report / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def run_artefact(
    path: Path, items: Sequence[Item], advance: Callable[[], object] = lambda: None
) -> Answers:
    """Annotate items with a judge's file or folder, in this process; `advance` after each."""
    with Judge.from_pretrained(path) as judge:
        contract, states = judge.backend.contract, [item.state for item in items]
        rows: list[Any] = [None] * len(items)
        for index, logits in judge.logits(states):
            rows[index] = logits
            advance()
        prompts = judge.backend.reader.encode(states)
    probabilities = {
        dimension.name: softmax(
            np.stack([row[k] for row in rows]), contract.temperature(dimension.type)
        )
        for k, dimension in enumerate(contract.rubric.dimensions)
    }
    return Answers(probabilities, prompts)


def _dimension_report(
    dimension: Dimension,
    items: Sequence[Item],
    train: Sequence[Item],
    answers: Mapping[str, Answers],
    gold: Mapping[str, list[int]],
    margin: float,
) -> dict[str, Any]:
    name = dimension.name
    votes = votes_of(items, name)
    train_votes = vote_counts(votes_of(train, name), len(dimension.options)).sum(axis=0)
    majority = [int(train_votes.argmax())] * len(items)
    judged = {artefact: given.labels(name) for artefact, given in answers.items()}
    report: dict[str, Any] = {
        "annotators_alpha": annotators_alpha(votes, dimension),
        "majority": _against_annotators(majority, votes, dimension),
        "artefacts": {
            artefact: _against_annotators(labels, votes, dimension)
            for artefact, labels in judged.items()
        },
        "loss": _losses(judged, votes, dimension, margin),
        "between": {
            f"{first} / {second}": _between(dimension, answers[first], answers[second])
            for first, second in combinations(answers, 2)
        },
    }
    if gold:
        report["reachable"] = _against_annotators(gold[name], votes, dimension)
    return report


def _losses(
    judged: Mapping[str, Sequence[int]],
    votes: Sequence[Sequence[int]],
    dimension: Dimension,
    margin: float,
) -> dict[str, dict[str, Any]]:
    """Alpha of each artefact minus the adapter's, on the same resampled items."""
    values, level = dimension.values, dimension.level_of_measurement
    bootstrap = Bootstrap(len(votes), _RESAMPLES)
    alphas = {}
    for name, labels in judged.items():
        coincidences = judge_coincidences(labels, votes, len(dimension.options))
        alphas[name] = alpha_of_coincidences(bootstrap.totals(coincidences), values, level)
    reference = alphas.pop(ADAPTER)
    return {name: difference(reference, given, margin).as_dict() for name, given in alphas.items()}


def _against_annotators(
    labels: Sequence[int], votes: Sequence[Sequence[int]], dimension: Dimension
) -> dict[str, float]:
    return {
        "alpha": judge_alpha(labels, votes, dimension),
        "accuracy": pair_accuracy(labels, votes),
    }


def _between(dimension: Dimension, first: Answers, second: Answers) -> dict[str, float]:
    one, two = first.labels(dimension.name), second.labels(dimension.name)
    counts = vote_counts(list(zip(one, two, strict=True)), len(dimension.options))
    difference = np.abs(first.probabilities[dimension.name] - second.probabilities[dimension.name])
    return {
        "agreement": float(np.mean(np.array(one) == np.array(two))),
        "alpha": krippendorff_alpha(counts, dimension.values, dimension.level_of_measurement),
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
    }


def _different_prompts(answers: Mapping[str, Answers]) -> int:
    """Items whose token ids or slots differ between any two artefacts."""
    return sum(
        any(prompt != prompts[0] for prompt in prompts)
        for prompts in zip(*(given.prompts for given in answers.values()), strict=True)
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
            between = dimension["between"][f"{ADAPTER} / {artefact}"]
            where = f"{name}, {artefact}:"
            if between["agreement"] < thresholds.min_agreement:
                found.append(
                    f"{where} {between['agreement']:.3f} of the labels agree with the adapter, "
                    f"less than min_agreement = {thresholds.min_agreement}"
                )
            if between["alpha"] < thresholds.min_alpha_between:
                found.append(
                    f"{where} alpha with the adapter is {between['alpha']:.3f}, less than "
                    f"min_alpha_between = {thresholds.min_alpha_between}"
                )
            if reference - measured["alpha"] > thresholds.max_alpha_loss:
                found.append(
                    f"{where} alpha against the annotators falls from {reference:.3f} to "
                    f"{measured['alpha']:.3f}, by more than max_alpha_loss = "
                    f"{thresholds.max_alpha_loss}; the difference is "
                    f"{_interval(dimension, artefact)}"
                )
    return found


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
    return f"{loss['estimate']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}], a 90 % interval"


def read_report(run: Run) -> dict[str, Any]:
    """The report of the last verification.

    Raises:
        JudgeError: there is none.
    """
    path = run.require(run.report / REPORT, f"verify {run.folder}")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def agreement_table(report: Mapping[str, Any]) -> Table:
    """The report as one table: alphas, then agreement between the artefacts."""
    first = next(iter(report["dimensions"].values()))
    names = [name for name in first["artefacts"] if name != "merged"]
    table = Table(title=f"Krippendorff's alpha on {report['items']} held-out items")
    table.add_column("")
    for name in report["dimensions"]:
        table.add_column(name, justify="right")

    def add(title: str, values: list[float], style: str = "") -> None:
        table.add_row(title, *(f"{value:.3f}" for value in values), style=style)

    dimensions = list(report["dimensions"].values())
    add("annotators among themselves", [d["annotators_alpha"] for d in dimensions])
    if "reachable" in first:
        add("right answers vs annotators", [d["reachable"]["alpha"] for d in dimensions])
    for name in names:
        add(f"{name} vs annotators", [d["artefacts"][name]["alpha"] for d in dimensions], "bold")
    add("majority label vs annotators", [d["majority"]["alpha"] for d in dimensions])
    table.add_section()
    for one, two in combinations(names, 2):
        add(f"{one} = {two} (share)",
            [d["between"][f"{one} / {two}"]["agreement"] for d in dimensions])  # fmt: skip
    table.add_section()
    add(f"accuracy, {ADAPTER}", [d["artefacts"][ADAPTER]["accuracy"] for d in dimensions])
    add("accuracy, majority label", [d["majority"]["accuracy"] for d in dimensions])
    return table
