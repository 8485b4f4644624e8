"""From the logits at the answer slots to labels, probabilities and confidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm_judge.artefact.calibration import Calibration
from slm_judge.rubric import Dimension, Value

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Annotation:
    """The judge's answers about one item, keyed by dimension."""

    labels: dict[str, Value]
    """The option with the largest logit, as the value that the annotators used. It is the most
    probable one, unless rare options weighed more in training (`training.class_balance`)."""
    probabilities: dict[str, dict[Value, float]]
    """Of every option; they sum to 1 per dimension."""
    confidence: dict[str, float]
    """Probability of the label."""

    def expected(self, dimension: str) -> float:
        """The mean of a score's levels, each weighed by its probability."""
        shares = {value: share for value, share in self.probabilities[dimension].items()
                  if not isinstance(value, str)}  # fmt: skip
        return sum(value * share for value, share in shares.items()) / sum(shares.values())


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Array:
    """Probabilities over the last axis of `logits` divided by `temperature`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def probabilities(logits: npt.ArrayLike, calibration: Calibration) -> Array:
    """Calibrated probabilities over the last axis of `logits`."""
    scaled = np.asarray(logits, dtype=np.float64) / calibration.temperature
    return softmax(scaled - np.array(calibration.shift) if calibration.shift else scaled)


def gap(logits: npt.ArrayLike) -> float:
    """Difference between the largest and the second largest of a dimension's logits."""
    second, first = np.partition(np.asarray(logits, dtype=np.float64), -2)[-2:]
    return float(first - second)


def annotation_from_logits(
    dimensions: Sequence[Dimension],
    logits: Sequence[npt.ArrayLike],
    calibration: Callable[[Dimension], Calibration],
) -> Annotation:
    """Make an annotation.

    Args:
        dimensions: K dimensions.
        logits: K arrays, one logit an option of the dimension.
        calibration: of a dimension, as `Contract.calibration`.
    """
    labels: dict[str, Value] = {}
    likely: dict[str, dict[Value, float]] = {}
    confidence: dict[str, float] = {}
    for dimension, row in zip(dimensions, logits, strict=True):
        shares = probabilities(row, calibration(dimension))
        best = int(np.argmax(row))  # the first of equals, as in `pipeline("decision")`
        labels[dimension.name] = dimension.values[best]
        likely[dimension.name] = dict(zip(dimension.values, shares.tolist(), strict=True))
        confidence[dimension.name] = float(shares[best])
    return Annotation(labels, likely, confidence)
