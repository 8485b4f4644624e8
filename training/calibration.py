"""What makes probabilities of the adapter's logits, fitted on validation items."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from slm_judge.agreement.aggregate import vote_shares
from slm_judge.artefact.calibration import BOUNDS, Calibration
from slm_judge.data.item import Item, votes_of
from slm_judge.judge.answer import probabilities
from slm_judge.rubric import Dimension, Rubric

MIN_ITEMS = 20  # below, a fitted temperature is mostly noise
OWN_ITEMS = 50
"""Answered items from which on a dimension has a temperature of its own. A number fitted on n items
costs 1 / 2n nats on new ones, so it pays where own and pooled temperature are a fifth apart: a
vote has an information of 0.2 to 0.5 on the logarithm of the temperature."""

Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class _Answered:
    """The N items of a dimension that have votes."""

    logits: Logits
    """N x options."""
    shares: npt.NDArray[np.float64]
    """N x options."""
    shift: tuple[float, ...] = ()


def log_loss(answered: Sequence[_Answered], temperature: float, shifted: bool = True) -> float:
    """Mean cross-entropy of the vote shares over the items, in nats."""
    losses = []
    for one in answered:
        how = Calibration(temperature=temperature, shift=one.shift if shifted else ())
        losses.append(-(one.shares * np.log(probabilities(one.logits, how).clip(1e-12))).sum(-1))
    return float(np.concatenate(losses).mean())


def fit_calibration(
    rubric: Rubric,
    items: Sequence[Item],
    logits: Sequence[Logits],
    weights: npt.NDArray[np.float64] | None = None,
) -> tuple[dict[str, float], dict[str, Calibration]]:
    """Temperatures that minimise the log loss (Guo et al., 2017), after the shift of the priors.

    A judge that learned with weights w has learned p(k) ~ w_k q(k), where q are the probabilities
    of the annotators' votes, so log w is taken off again (Saerens, Latinne and Decaestecker, 2002);
    no temperature could do that. Where it makes the log loss worse it is left: an ordinal loss,
    which is not weighed, or a short training has kept the judge from learning the weights.

    Args:
        rubric: K dimensions.
        items: N validation items with votes.
        logits: per dimension, N x options.
        weights: K x M, of the options in training; None where all weighed the same.

    Returns:
        By question type, for stock engines, which cannot shift: one temperature of all its
        dimensions. By dimension: its own from `OWN_ITEMS` answered items on, else that of all
        dimensions of its type. All within `BOUNDS`; 1 with fewer than `MIN_ITEMS` answers.
    """
    kinds: dict[str, dict[str, _Answered]] = {}
    for k, (dimension, rows) in enumerate(zip(rubric.dimensions, logits, strict=True)):
        shift = _shift(dimension, None if weights is None else weights[k])
        answered = _better(_answered(dimension, items, rows, shift))
        kinds.setdefault(dimension.type, {})[dimension.name] = answered
    temperatures, calibrations = {}, {}
    for kind, by_name in kinds.items():
        together = [*by_name.values()]
        temperatures[kind] = _fitted(together, shifted=False)
        pooled = _fitted(together)
        for name, one in by_name.items():
            own = _fitted([one]) if len(one.logits) >= OWN_ITEMS else pooled
            calibrations[name] = Calibration(temperature=own, shift=one.shift)
    return temperatures, calibrations


def _shift(dimension: Dimension, weights: npt.NDArray[np.float64] | None) -> tuple[float, ...]:
    if weights is None:
        return ()
    logs = np.log(weights[: len(dimension.options)])
    return tuple(round(float(log), 4) for log in logs) if np.ptp(logs) else ()


def _better(answered: _Answered) -> _Answered:
    """With the shift or without, by the log loss of each at its best temperature."""
    plain = replace(answered, shift=())
    if len(answered.logits) < MIN_ITEMS:
        return answered
    return min((answered, plain), key=lambda one: log_loss([one], _fitted([one])))


def _answered(
    dimension: Dimension, items: Sequence[Item], logits: Logits, shift: tuple[float, ...]
) -> _Answered:
    votes = votes_of(items, dimension.name)
    rows = [i for i, row in enumerate(votes) if row]
    shares = [vote_shares(votes[i], len(dimension.options)) for i in rows]
    return _Answered(
        logits[rows], np.array(shares).reshape(len(rows), len(dimension.options)), shift
    )


def _fitted(answered: Sequence[_Answered], shifted: bool = True) -> float:
    known = [one for one in answered if len(one.logits)]
    if sum(len(one.logits) for one in known) < MIN_ITEMS:
        return 1.0
    found = minimize_scalar(
        lambda log_t: log_loss(known, float(np.exp(log_t)), shifted),
        bounds=tuple(np.log(BOUNDS)),
        method="bounded",
    )
    fitted = float(np.exp(found.x))
    near = min(BOUNDS, key=lambda bound: abs(np.log(bound / fitted)))
    return near if abs(np.log(near / fitted)) < 1e-3 else round(fitted, 4)
