"""One temperature per question type, fitted on validation items."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from slm_judge.agreement.aggregate import vote_shares
from slm_judge.data.item import Item, votes_of
from slm_judge.judge.answer import softmax
from slm_judge.rubric import Rubric

BOUNDS = (0.5, 5.0)  # beyond, the judge needs more training, not calibration
MIN_ITEMS = 20  # below, a fitted temperature is mostly noise


def log_loss(
    logits: Sequence[npt.NDArray[Any]], targets: Sequence[npt.NDArray[Any]], temperature: float
) -> float:
    """Mean cross-entropy of the vote shares, over pairs of N x options arrays, in nats."""
    losses = [
        -(shares * np.log(softmax(rows, temperature).clip(1e-12))).sum(axis=-1)
        for rows, shares in zip(logits, targets, strict=True)
    ]
    return float(np.concatenate(losses).mean())


def fit_temperatures(
    rubric: Rubric, items: Sequence[Item], logits: Sequence[npt.NDArray[Any]]
) -> dict[str, float]:
    """The temperature per question type that minimises the log loss (Guo et al., 2017).

    Args:
        rubric: gives the types.
        items: N validation items with votes.
        logits: per dimension, N x options.

    Returns:
        Temperatures within `BOUNDS`; 1 for a type with fewer than `MIN_ITEMS` answers.
    """
    pooled: dict[str, tuple[list[Any], list[Any]]] = {}
    for dimension, rows in zip(rubric.dimensions, logits, strict=True):
        votes = votes_of(items, dimension.name)
        answered = [i for i, row in enumerate(votes) if row]
        shares = [vote_shares(votes[i], len(dimension.options)) for i in answered]
        if answered:
            own = pooled.setdefault(dimension.type, ([], []))
            own[0].append(rows[answered])
            own[1].append(np.array(shares))
    temperatures = {}
    for kind, (rows_of_kind, shares_of_kind) in pooled.items():
        temperatures[kind] = 1.0
        if sum(map(len, rows_of_kind)) >= MIN_ITEMS:
            temperatures[kind] = _minimise(rows_of_kind, shares_of_kind)
    return temperatures


def _minimise(logits: list[Any], shares: list[Any]) -> float:
    result = minimize_scalar(
        lambda log_t: log_loss(logits, shares, float(np.exp(log_t))),
        bounds=tuple(np.log(BOUNDS)),
        method="bounded",
    )
    return round(float(np.exp(result.x)), 4)
