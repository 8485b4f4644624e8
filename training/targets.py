"""What is learned about an item on which several annotators voted."""

import copy
import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slm_judge.agreement.aggregate import majority_shares, vote_shares
from slm_judge.data.item import Item, is_named, votes_of
from slm_judge.errors import DataError, require
from slm_judge.rubric import Dimension, Preference, Rubric

Method = Literal["auto", "soft", "sampled", "majority", "dawid_skene"]
Array = npt.NDArray[np.float64]
# Below, the share of a few votes is a noisy estimate of how people see an item.
FEW_VOTES = 5


def resolve(method: Method, items: Sequence[Item], rubric: Rubric) -> Method:
    """The method that "auto" stands for: sampled below `FEW_VOTES` votes an answer, else soft."""
    if method != "auto":
        return method
    counts = [len(votes) for item in items for votes in item.votes.values() if votes]
    few = 1 < float(np.mean(counts)) < FEW_VOTES if counts else False
    return "sampled" if few else "soft"


class Targets:
    """Distributions over the options, per item and dimension."""

    def __init__(self, items: Sequence[Item], rubric: Rubric, method: Method) -> None:
        """Prepare the targets of N items.

        Args:
            items: with votes.
            rubric: K dimensions, M options in the longest.
            method: see `TrainingConfig.targets`; "auto" is resolved.
        """
        self.method = resolve(method, items, rubric)
        self._votes = [votes_of(items, d.name) for d in rubric.dimensions]
        self._width = max(len(d.options) for d in rubric.dimensions)
        self._fixed = np.stack(
            [self._of_dimension(items, d, k) for k, d in enumerate(rubric.dimensions)], axis=1
        )

    def with_exchanged(self, rubric: Rubric) -> "Targets":
        """Those of 2N items: the N, and then the same with their two texts exchanged."""
        both = copy.copy(self)
        both._fixed = np.concatenate([self._fixed, exchanged(self._fixed, rubric)])
        return both

    def _of_dimension(self, items: Sequence[Item], dimension: Dimension, k: int) -> Array:
        if self.method == "dawid_skene":
            return dawid_skene(items, dimension, self._width)
        shares = majority_shares if self.method == "majority" else vote_shares
        return np.array([shares(votes, self._width) for votes in self._votes[k]])

    @property
    def fixed(self) -> Array:
        """N x K x M; the expected targets where votes are sampled. Zeros where nobody answered."""
        return self._fixed

    def draw(self, indices: Sequence[int], seed: str) -> Array:
        """Targets of some items, len(indices) x K x M; `seed` decides which votes are drawn."""
        targets = self._fixed[list(indices)]
        if self.method != "sampled":
            return targets
        for row, index in enumerate(indices):
            rng = random.Random(f"{seed}/{index}")  # noqa: S311
            for k, dimension_votes in enumerate(self._votes):
                if votes := dimension_votes[index]:
                    targets[row, k] = 0.0
                    targets[row, k, rng.choice(votes)] = 1.0
        return targets


def exchanged(targets: Array, rubric: Rubric) -> Array:
    """Targets (... x K x M) of items whose two texts changed places.

    A preference turns with them. The other dimensions may ask about one of the two texts, so
    nothing is learned of them then: zeros.
    """
    found = np.zeros_like(targets)
    for k, dimension in enumerate(rubric.dimensions):
        if isinstance(dimension, Preference):
            found[..., k, :] = targets[..., k, :]
            found[..., k, :2] = targets[..., k, 1::-1]
    return found


def dawid_skene(items: Sequence[Item], dimension: Dimension, width: int) -> Array:
    """Posterior of the true option under the model of Dawid and Skene (1979), by crowd-kit.

    Returns:
        N x width; zeros where nobody answered.

    Raises:
        DataError: it is not known who made some of the annotations.
    """
    pandas = require("pandas", "train")
    aggregation = require("crowdkit.aggregation", "train")
    rows = [
        (number, annotator, option)
        for number, item in enumerate(items)
        for annotator, option in item.votes.get(dimension.name, {}).items()
    ]
    if nameless := sum(not is_named(annotator) for _, annotator, _ in rows):
        raise DataError(
            "training.targets: dawid_skene weighs annotators by their errors, so each must have a "
            f"name; {nameless} of {len(rows)} annotations of {dimension.name} have none. Name the "
            "column in data.annotator and fill it in, or choose soft or sampled targets."
        )
    posterior = np.zeros((len(items), width))
    if not rows:
        return posterior
    table = pandas.DataFrame(rows, columns=["task", "worker", "label"])
    found: Any = aggregation.DawidSkene(n_iter=100).fit_predict_proba(table)
    posterior[np.ix_(found.index.to_numpy(), found.columns.to_numpy())] = found.to_numpy()
    return posterior


def option_weights(targets: Array, exponent: float) -> Array:
    """Weights that balance the options of each dimension.

    Args:
        targets: N x K x M.
        exponent: 0 gives ones; 1 gives every option that occurs the same total weight.

    Returns:
        K x M; the weighted targets sum to the same as the unweighted ones.
    """
    counts = targets.sum(axis=0)
    used = counts > 0
    weights = np.where(used, 1.0, 0.0)
    weights[used] = counts[used] ** -exponent
    total = (counts * weights).sum(axis=1, keepdims=True)
    weights *= np.divide(
        counts.sum(axis=1, keepdims=True), total, out=np.ones_like(total), where=total > 0
    )
    return np.where(used, weights, 1.0)
