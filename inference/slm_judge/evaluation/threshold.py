"""`slm-judge threshold`: the confidence below which a human should look, from a target error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.agreement.aggregate import aggregate
from slm_judge.agreement.calibration import choose_threshold
from slm_judge.annotate.rows import STABLE_DIGITS
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import Answers, read_predictions
from slm_judge.errors import DataError
from slm_judge.files import write_json
from slm_judge.rubric import Dimension, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet


def thresholds(run: Run, error: float) -> dict[str, dict[str, Any]]:
    """Choose thresholds on the validation items and try them on the test items.

    Confidences are rounded as `slm-judge annotate` rounds them, so that its `--review-below` keeps
    the rows that are promised here. An error is a label other than the annotators' aggregate
    (`agreement.aggregate`). The result is also written to `report/threshold.json`.

    Args:
        run: a trained run; tried on the test items where it is verified.
        error: share of errors that is accepted among the answers that are kept.

    Returns:
        Per dimension: `threshold`, and `coverage`, `error` (and its upper 95 % limit) on
        validation; the same per artefact on test.

    Raises:
        DataError: `error` is not a share, or the run has no validation predictions.
    """
    if not 0 < error < 1:
        raise DataError(f"The target error is a share between 0 and 1, not {error}.")
    path = run.require(run.validation, f"train {run.folder / 'recipe.json'}")
    rubric = run.rubric()
    known = _confidences(path, rubric, load_split(run.data, "validation"))
    test = load_split(run.data, "test")
    files = sorted(run.predictions.glob("*.jsonl")) if run.predictions.exists() else []
    tried = {file.stem: _confidences(file, rubric, test) for file in files}
    report: dict[str, dict[str, Any]] = {}
    for dimension in rubric.dimensions:
        name = dimension.name
        chosen = choose_threshold(*known[name], error)
        report[name] = {
            "threshold": None if chosen.coverage == 0 else chosen.confidence,
            "validation": {
                "items": len(known[name][0]),
                "coverage": chosen.coverage,
                "error": None if chosen.coverage == 0 else chosen.risk,
                "error_upper": None if chosen.coverage == 0 else chosen.risk_upper,
            },
            "test": {
                artefact: _on_test(*found[name], chosen.confidence)
                for artefact, found in tried.items()
            },
        }
    write_json(run.report / "threshold.json", report)
    return report


def _confidences(
    path: Path, rubric: Rubric, items: list[Item]
) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Per dimension, confidence and error (0 or 1) of each item that was annotated."""
    found = read_predictions(str(path), rubric, [item.item_id for item in items])
    kept = [items[row] for row in found.rows]
    return {d.name: _errors(d, kept, found.answers[d.name], path) for d in rubric.dimensions}


def _errors(
    dimension: Dimension, items: list[Item], answers: Answers, path: Path
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if answers.probabilities is None:
        raise DataError(f"{path} has no probabilities.")
    whole = aggregate(votes_of(items, dimension.name), dimension)
    rows = np.flatnonzero(whole >= 0)
    labels = answers.labels[rows]
    # As `slm-judge annotate` writes them, and compares them with --review-below.
    sure = [round(p, STABLE_DIGITS) for p in answers.probabilities[rows, labels].tolist()]
    return np.array(sure), (labels != whole[rows]).astype(float)


def _on_test(confidence: Any, errors: Any, threshold: float) -> dict[str, Any]:
    kept = confidence >= threshold
    return {
        "items": len(confidence),
        "coverage": float(kept.mean()) if len(kept) else None,
        "error": float(errors[kept].mean()) if kept.any() else None,
        "error_of_all": float(errors.mean()) if len(errors) else None,
    }


def threshold_table(report: Mapping[str, Any], error: float) -> Sheet:
    """The thresholds for a terminal."""
    table = Sheet(
        f"Confidence from which at most {error:.0%} of the validation labels are wrong",
        ("threshold", "kept", "wrong of those", "wrong of all"),
        "wrong: not the annotators' aggregate; in brackets, an upper 95 % limit",
    )
    for name, found in report.items():
        table.group(name)
        on, threshold = found["validation"], found["threshold"]
        wrong = "–" if threshold is None else f"{on['error']:.1%} [{on['error_upper']:.1%}]"
        shown = "none" if threshold is None else f"{threshold:.{STABLE_DIGITS}f}"
        table.add("validation", shown, f"{on['coverage']:.0%}", wrong, "", style="bold")
        for artefact, test in found["test"].items():
            if test["coverage"] is not None:
                wrong = "–" if test["error"] is None else f"{test['error']:.1%}"
                table.add(f"{artefact}, test", "", f"{test['coverage']:.0%}", wrong,
                          f"{test['error_of_all']:.1%}")  # fmt: skip
    return table
