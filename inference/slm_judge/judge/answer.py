"""From the logits at the answer slots to labels, probabilities and confidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm_judge.rubric import Dimension, Value

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Annotation:
    """The judge's answers about one item, keyed by dimension."""

    labels: dict[str, Value]
    """The most probable option, as the value that the annotators used."""
    probabilities: dict[str, dict[Value, float]]
    """Of every option; they sum to 1 per dimension."""
    confidence: dict[str, float]
    """Probability of the label, between 1 / number of options and 1."""


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Array:
    """Probabilities over the last axis of `logits` divided by `temperature`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def gap(logits: npt.ArrayLike) -> float:
    """Difference between the largest and the second largest of a dimension's logits."""
    second, first = np.partition(np.asarray(logits, dtype=np.float64), -2)[-2:]
    return float(first - second)


def annotation_from_logits(
    dimensions: Sequence[Dimension],
    logits: Sequence[npt.ArrayLike],
    temperatures: Mapping[str, float],
) -> Annotation:
    """Make an annotation.

    Args:
        dimensions: K dimensions.
        logits: K arrays, one logit an option of the dimension.
        temperatures: per question type; 1 where absent.
    """
    labels: dict[str, Value] = {}
    probabilities: dict[str, dict[Value, float]] = {}
    confidence: dict[str, float] = {}
    for dimension, row in zip(dimensions, logits, strict=True):
        shares = softmax(row, float(temperatures.get(dimension.type, 1.0)))
        best = int(shares.argmax())  # the first of equals, as in `pipeline("decision")`
        labels[dimension.name] = dimension.values[best]
        probabilities[dimension.name] = dict(zip(dimension.values, shares.tolist(), strict=True))
        confidence[dimension.name] = float(shares[best])
    return Annotation(labels, probabilities, confidence)
