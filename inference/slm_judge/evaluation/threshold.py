"""`slm-judge threshold`: the confidence below which a human should look, from a target error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slm_judge.agreement.aggregate import aggregate
from slm_judge.agreement.calibration import (
    LEVEL,
    Threshold,
    choose_threshold,
    guaranteed_threshold,
    items_to_guarantee,
    threshold_sequence,
)
from slm_judge.agreement.compare import independent_items
from slm_judge.annotate.rows import STABLE_DIGITS
from slm_judge.data.item import Item, load_split, votes_of
from slm_judge.data.predictions import Predictions, read_predictions
from slm_judge.errors import DataError
from slm_judge.files import finite, write_json
from slm_judge.rubric import Dimension, Rubric
from slm_judge.run import Run
from slm_judge.screen import Sheet

Scored = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]
"""Confidence and error (0 or 1) of each item, and the group that it belongs to."""


def thresholds(run: Run, error: float, level: float = LEVEL) -> dict[str, dict[str, Any]]:
    """Choose thresholds for a target error: an estimate, and for each artefact a guaranteed one.

    The estimate is chosen on the validation items, and tried on the test items. The guaranteed
    threshold of an artefact is found on what it said about the test items, since nothing else was
    chosen on them; the validation items say in which order thresholds are tested.

    Confidences are rounded as `slm-judge annotate` rounds them, so that its `--review-below` keeps
    the rows that are promised here. An error is a label other than the annotators' aggregate
    (`agreement.aggregate`). The result is also written to `report/threshold.json`.

    Args:
        run: a trained run; artefacts count where it is verified.
        error: share of errors that is accepted among the answers that are kept.
        level: probability with which a guaranteed threshold holds that, over the test items.

    Returns:
        Per dimension: `estimate`, with `threshold`, `coverage`, `error` (and its upper 95 % limit)
        on validation; per artefact under `test`, what the estimate does, and `guaranteed`, with
        the same keys, or where there is none, `error_of_surest`, the error of the answers with
        which testing starts, on validation and test, and `items_needed`.

    Raises:
        DataError: `error` or `level` is no share, or the run has no validation predictions.
    """
    for name, share in (("target error", error), ("confidence", level)):
        if not 0 < share < 1:
            raise DataError(f"The {name} is a share between 0 and 1, not {share}.")
    path = run.require(run.validation, f"train {run.folder / 'recipe.json'}")
    rubric = run.rubric()
    known = _confidences(path, rubric, load_split(run.data, "validation"))
    test = load_split(run.data, "test")
    files = sorted(run.predictions.glob("*.jsonl")) if run.predictions.exists() else []
    tried = {file.stem: _confidences(file, rubric, test) for file in files}
    report: dict[str, dict[str, Any]] = {}
    for name in (dimension.name for dimension in rubric.as_written):
        chosen = choose_threshold(*known[name][:2], error)
        sequence = threshold_sequence(*known[name][:2], error, 10**-STABLE_DIGITS)
        report[name] = {
            "estimate": _as_dict(chosen, len(known[name][0])),
            "test": {
                artefact: {
                    **_on_test(*found[name][:2], chosen.confidence),
                    **_guaranteed(sequence, known[name], found[name], error, level),
                }
                for artefact, found in tried.items()
            },
        }
    report = finite(report)
    write_json(run.report / "threshold.json", report)
    return report


def _as_dict(found: Threshold, items: int) -> dict[str, Any]:
    return {
        "items": items,
        "threshold": round(found.confidence, STABLE_DIGITS),
        "coverage": found.coverage,
        "error": found.risk,
        "error_upper": found.risk_upper,
    }


def _guaranteed(
    sequence: Any, known: Scored, tried: Scored, error: float, level: float
) -> dict[str, Any]:
    """The guaranteed threshold; if there is none, how surest answers err, and the items needed."""
    found = guaranteed_threshold(sequence, *tried[:2], error, level, tried[2])
    report = {"guaranteed": _as_dict(found, len(tried[1]))}
    if found.coverage:
        return report
    confidence, errors = map(np.concatenate, zip(known[:2], tried[:2], strict=True))
    keeps = confidence >= sequence[0] - 1e-9
    surest = float(errors[keeps].mean()) if keeps.any() else float("nan")
    coverage = float(keeps.mean()) if len(keeps) else 0.0
    needed = items_to_guarantee(surest, coverage, error, level)
    if needed and len(tried[2]):
        needed = int(np.ceil(needed * len(tried[2]) / independent_items(*tried[1:])))
    return report | {"error_of_surest": surest, "items_needed": needed}


def _confidences(path: Path, rubric: Rubric, items: list[Item]) -> dict[str, Scored]:
    """Per dimension, of each item that was annotated."""
    found = read_predictions(str(path), rubric, [item.item_id for item in items])
    kept = [items[row] for row in found.rows]
    sets = {one.name: one.members for one in rubric.sets}
    return {
        d.name: _errors(
            [rubric.dimension(name) for name in sets.get(d.name, [d.name])], kept, found, path
        )
        for d in rubric.as_written
    }


def _errors(
    dimensions: list[Dimension], items: list[Item], found: Predictions, path: Path
) -> Scored:
    """Of a dimension, or of the questions of a set, all of which must be right."""
    sure, right, known = np.ones(len(items)), np.ones(len(items), bool), np.ones(len(items), bool)
    for dimension in dimensions:
        answers = found.answers[dimension.name]
        if answers.probabilities is None:
            raise DataError(f"{path} has no probabilities.")
        whole = aggregate(votes_of(items, dimension.name), dimension)
        known &= (whole >= 0) & (answers.labels >= 0)
        sure *= answers.probabilities[np.arange(len(items)), answers.labels]
        right &= answers.labels == whole
    # As `slm-judge annotate` writes them, and compares them with --review-below.
    rounded = [round(p, STABLE_DIGITS) for p in sure[known].tolist()]
    groups = [items[row].group for row in np.flatnonzero(known)]
    return np.array(rounded), (~right[known]).astype(float), groups


def _on_test(confidence: Any, errors: Any, threshold: float) -> dict[str, Any]:
    kept = confidence >= threshold
    return {
        "items": len(confidence),
        "coverage": float(kept.mean()) if len(kept) else None,
        "error": float(errors[kept].mean()) if kept.any() else None,
        "error_of_all": float(errors.mean()) if len(errors) else None,
    }


def threshold_table(report: Mapping[str, Any], error: float, level: float = LEVEL) -> Sheet:
    """The thresholds for a terminal."""
    table = Sheet(
        f"Confidence from which at most {100 * error:g}% of the labels are wrong",
        ("threshold", "kept", "wrong of those", "wrong of all"),
        "wrong: not the annotators' aggregate; in brackets, an upper 95 % limit. estimate: holds "
        "on the validation items, on new ones about as often as not. guaranteed: found on the "
        f"test items, and exceeds {100 * error:g}% in at most {1 - level:.0%} of the cases.",
    )

    def shown(found: Mapping[str, Any], wrong: str) -> tuple[str, str, str]:
        if found["threshold"] is None:
            return "none", "0%", "–"
        return f"{found['threshold']:.{STABLE_DIGITS}f}", f"{found['coverage']:.0%}", wrong

    for name, found in report.items():
        table.group(name)
        one = found["estimate"]
        wrong = one["threshold"] is not None and f"{one['error']:.1%} [{one['error_upper']:.1%}]"
        table.add("estimate", *shown(one, wrong or ""), "", style="bold")
        for artefact, test in found["test"].items():
            if test["coverage"] is not None:
                wrong = "–" if test["error"] is None else f"{test['error']:.1%}"
                table.add(f"{artefact}, test", "", f"{test['coverage']:.0%}", wrong,
                          f"{test['error_of_all']:.1%}")  # fmt: skip
        for artefact, test in found["test"].items():
            one = test["guaranteed"]
            if one["items"]:
                wrong = "" if one["threshold"] is None else f"{one['error']:.1%}"
                table.add(f"{artefact}, guaranteed", *shown(one, wrong), "", style="bold")
    return table


def threshold_notes(report: Mapping[str, Any], level: float = LEVEL) -> list[str]:
    """Where nothing is guaranteed, why not, and what would help."""
    if not all(found["test"] for found in report.values()):
        return ["The thresholds are estimates; for guaranteed ones, run `slm-judge verify` first."]
    notes: dict[tuple[str, str], list[str]] = {}
    for name, found in report.items():
        for artefact, test in found["test"].items():
            one, needed = test["guaranteed"], test.get("items_needed")
            if one["threshold"] is not None or not one["items"]:
                continue
            more = f"about {needed} would be enough"
            if not needed:
                wrong = test["error_of_surest"]
                more = "more would not help, " + (
                    "since it is never sure" if wrong is None else
                    f"since even where it is surest {wrong:.1%} of its labels are wrong"
                )  # fmt: skip
            said = f"nothing is guaranteed with {level:.0%} confidence on {one['items']} test items"
            notes.setdefault((name, f"{said}; {more}."), []).append(artefact)
    return [f"{name}, {', '.join(who)}: {said}" for (name, said), who in notes.items()]
