"""From the logits at the answer slots to labels, probabilities and confidence."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from slm_judge.artefact.calibration import Calibration
from slm_judge.data.applies import without_unasked
from slm_judge.data.predictions import Answers
from slm_judge.rubric import Dimension, Multi, Preference, Rubric, Value

Array = npt.NDArray[np.float64]
_LEAST = 1e-300  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Annotation:
    """The judge's answers about one item, keyed by dimension."""

    labels: dict[str, Value | list[Value] | None]
    """The option with the largest logit, as the value that the annotators used. It is the most
    probable one, unless rare options weighed more in training (`training.class_balance`). Of a
    `multi`, the options that are chosen, in the rubric's order. None where the question is not
    asked (`ask_if`), by the judge's own answers."""
    probabilities: dict[str, dict[Value, float]]
    """Of every option; they sum to 1 per dimension, but for a `multi`: that each is chosen. What is
    not asked has them too: of its answer if it were."""
    confidence: dict[str, float | None]
    """Probability of the label, None where there is none; of a `multi`, the product of those of
    its options being chosen or not."""
    flipped: dict[str, bool] = field(default_factory=dict)
    """Of a preference: whether its two readings chose different labels."""

    def expected(self, dimension: Dimension | Multi) -> float:
        """The mean of a score's levels, each weighed by its probability given that one holds."""
        given = self.probabilities[dimension.name]
        shares = {value: given[value] for value in dimension.values[: dimension.n_levels]}
        return sum(float(value) * share for value, share in shares.items()) / sum(shares.values())


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Array:
    """Probabilities over the last axis of `logits` divided by `temperature`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def probabilities(logits: npt.ArrayLike, calibration: Calibration) -> Array:
    """Calibrated probabilities over the last axis of `logits`."""
    scaled = np.asarray(logits, dtype=np.float64) / calibration.temperature
    return softmax(scaled - np.array(calibration.shift) if calibration.shift else scaled)


def exchanged_back(readings: npt.ArrayLike) -> Array:
    """Two readings of a pair (... x 2 x options), the second in the words of the first."""
    found = np.array(readings, dtype=np.float64)
    found[..., 1, :2] = found[..., 1, 1::-1].copy()
    return found


def averaged(readings: npt.ArrayLike, calibration: Calibration) -> Array:
    """Logits (... x options) whose probabilities are the mean of those of two readings.

    So they do not depend on which text is the first, to the last bit: two numbers have one sum.
    """
    likely = exchanged_back(probabilities(readings, calibration)).mean(axis=-2)
    shift = np.array(calibration.shift or 0.0)
    logits: Array = calibration.temperature * (np.log(likely.clip(_LEAST)) + shift)
    return logits


def leanings(dimension: Dimension, logits: npt.ArrayLike, calibration: Calibration) -> Array:
    """Logits (... x options) whose largest one is the label, of what `Judge.decide` gives."""
    read_twice = isinstance(dimension, Preference)
    return calibration.leanings(averaged(logits, calibration) if read_twice else logits)


def gap(logits: npt.ArrayLike) -> float:
    """Difference between the largest and the second largest of a dimension's logits."""
    second, first = sorted(np.asarray(logits, dtype=np.float64).tolist())[-2:]
    return float(first - second)


def collected(
    rubric: Rubric,
    decided: Iterable[tuple[int, Sequence[npt.ArrayLike]]],
    n_rows: int,
    advance: Callable[[], object] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """What `Judge.logits` or `Judge.decide` gives, in the order of the rows.

    Args:
        rubric: K dimensions.
        decided: (row, K arrays) of each row, in any order.
        n_rows: N.
        advance: called after each row.

    Returns:
        K arrays, N x options of the dimension; of a preference N x 2 x options.
    """
    shapes = [(2,) * isinstance(d, Preference) + (len(d.options),) for d in rubric.dimensions]
    found = [np.empty((n_rows, *shape), dtype=np.float32) for shape in shapes]
    rows = set()
    for row, logits in decided:
        rows.add(row)
        for whole, own in zip(found, logits, strict=True):
            whole[row] = own
        if advance:
            advance()
    if len(rows) != n_rows:
        raise RuntimeError(f"The engine decided {len(rows)} rows of {n_rows}.")
    return found


def answers_from_logits(
    rubric: Rubric,
    logits: Sequence[npt.ArrayLike],
    calibration: Callable[[Dimension], Calibration],
) -> dict[str, Answers]:
    """What a judge says about N items, by dimension; label -1 where it is not asked.

    Args:
        rubric: K dimensions.
        logits: K arrays, N x options of the dimension; of a preference N x 2 x options.
        calibration: of a dimension, as `Contract.calibration`.
    """
    labels, likely, flipped = {}, {}, {}
    for dimension, rows in zip(rubric.dimensions, logits, strict=True):
        how = calibration(dimension)
        if isinstance(dimension, Preference):
            first, second = exchanged_back(rows).argmax(axis=-1).T
            flipped[dimension.name], rows = first != second, averaged(rows, how)
        likely[dimension.name] = probabilities(rows, how)
        # The first of equals, as in `pipeline("decision")`.
        labels[dimension.name] = how.leanings(rows).argmax(axis=-1)
    labels = without_unasked(rubric, labels)
    return {
        name: Answers(labels[name], shares, flipped.get(name)) for name, shares in likely.items()
    }


def annotations_from_logits(
    rubric: Rubric,
    logits: Sequence[npt.ArrayLike],
    calibration: Callable[[Dimension], Calibration],
) -> list[Annotation]:
    """The annotations of N items; see `answers_from_logits`."""
    answers = answers_from_logits(rubric, logits, calibration)
    found = [Annotation({}, {}, {}) for _ in range(len(next(iter(answers.values())).labels))]
    for dimension in rubric.as_written:
        name, values = dimension.name, dimension.values
        questions = dimension.members if isinstance(dimension, Multi) else [name]
        parts = [answers[question] for question in questions]
        chosen = zip(*(part.labels.tolist() for part in parts), strict=True)
        likely = zip(*(_listed(part.probabilities) for part in parts), strict=True)
        flipped = _listed(parts[0].flipped)
        for row, (annotation, picks, shares) in enumerate(zip(found, chosen, likely, strict=True)):
            asked = picks[0] >= 0  # all of a set are, or none
            sure = math.prod(own[pick] for own, pick in zip(shares, picks, strict=True))
            label: Value | list[Value]
            if isinstance(dimension, Multi):
                label = [value for value, pick in zip(values, picks, strict=True) if pick]
                given = [own[1] for own in shares]
            else:
                label, given = values[picks[0]], shares[0]
            annotation.labels[name] = label if asked else None
            annotation.probabilities[name] = dict(zip(values, given, strict=True))
            annotation.confidence[name] = sure if asked else None
            if asked and flipped:
                annotation.flipped[name] = flipped[row]
    return found


def _listed(values: npt.NDArray[Any] | None) -> list[Any]:
    return [] if values is None else values.tolist()
