"""What a server says: System One's answers, and the judge's own annotations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slm_judge.artefact.judge_files import Contract
from slm_judge.backends import Logits
from slm_judge.judge.answer import (
    Annotation,
    annotations_from_logits,
    averaged,
    probabilities,
)
from slm_judge.rubric import Dimension, Preference, Rubric, format_value


def system_one(contract: Contract, logits: Logits) -> dict[str, dict[str, Any]]:
    """The answers about one row by question, as stock servers of System One give them.

    Each question has one, whether it is asked (`ask_if`) or not. The chosen option is that with the
    largest logit, as everywhere: with `training.class_balance` it is not the most probable one.
    """
    answers = {}
    for dimension, own in zip(contract.rubric.dimensions, logits, strict=True):
        how, values = contract.calibration(dimension), np.asarray(own, dtype=np.float64)
        if isinstance(dimension, Preference):
            values = averaged(values, how)
        label, shares = int(how.leanings(values).argmax()), probabilities(values, how)
        answers[dimension.name] = _answer(dimension, shares.tolist(), label)
    return answers


def _answer(dimension: Dimension, shares: list[float], label: int) -> dict[str, Any]:
    if dimension.asked_as == "noul":
        return {"type": "noul", "noul": shares[1]}
    n = len(shares)
    if dimension.asked_as == "choice":
        keys = [dimension.key(i) for i in range(n)]
        sure = (shares[label] - 1 / n) / (1 - 1 / n) if n > 1 else 1.0
        return {"type": "choice", "choice": keys[label], "confidence": max(0.0, sure),
                "probabilities": dict(zip(keys, shares, strict=True))}  # fmt: skip
    levels = np.arange(n)
    far, usual = shares @ abs(levels - label), abs(levels - (n - 1) / 2).mean()
    legend = dimension.question()["criteria"]
    return {"type": "score", "score": float(shares @ levels),
            "legend": {str(i): text for i, text in enumerate(legend)},
            "confidence": max(0.0, 1 - float(far / usual)) if n > 1 else 1.0,
            "probabilities": {str(i): share for i, share in enumerate(shares)}}  # fmt: skip


def annotations(contract: Contract, logits: Sequence[Logits]) -> list[dict[str, Any]]:
    """The annotations of rows as JSON has them: options are named by their texts."""
    rubric = contract.rubric
    stacked = [np.stack(of) for of in zip(*logits, strict=True)]
    found = annotations_from_logits(rubric, stacked, contract.calibration)
    return [_annotation(one, rubric) for one in found]


def _annotation(one: Annotation, rubric: Rubric) -> dict[str, Any]:
    said: dict[str, Any] = {
        "labels": one.labels,
        "probabilities": {
            name: {format_value(value): share for value, share in of.items()}
            for name, of in one.probabilities.items()
        },
        "confidence": one.confidence,
    }
    return said | ({"flipped": one.flipped} if rubric.pair else {})
