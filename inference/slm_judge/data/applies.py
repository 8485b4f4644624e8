"""Questions that are only asked after certain answers to others: `ask_if` of the rubric."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from slm_judge.agreement.aggregate import aggregate
from slm_judge.rubric import Rubric

from .item import Item, votes_of

UNKNOWN = -2
"""A label of a system that cannot be read."""
Labels = npt.NDArray[np.int64]


def without_unasked(rubric: Rubric, labels: Mapping[str, Labels]) -> dict[str, Labels]:
    """A system's labels of N items, -1 where its own other answers make a question not apply.

    An `UNKNOWN` answer makes no other question not apply.
    """
    found = {name: given.astype(np.int64) for name, given in labels.items()}
    for row in range(len(next(iter(found.values()), ()))) if rubric.conditional else ():
        given = {name: k for name, of in found.items() if (k := int(of[row])) != UNKNOWN}
        for name, applies in rubric.asked(given).items():
            if not applies and name in found:
                found[name][row] = -1
    return found


def drop_unasked(rubric: Rubric, items: Sequence[Item]) -> Counter[str]:
    """Drop the labels, in place, of questions that do not apply.

    What applies is decided by the annotator's own answers; where there are none, by the aggregate
    of the item's other annotators.

    Returns:
        Dimension -> how many labels were dropped.
    """
    dropped: Counter[str] = Counter()
    if not rubric.conditional:
        return dropped
    wholes = {
        name: aggregate(votes_of(items, name), rubric.dimension(name))
        for dimension in rubric.dimensions
        for name in dimension.ask_if
    }
    for row, item in enumerate(items):
        whole = {name: int(of[row]) for name, of in wholes.items() if of[row] >= 0}
        for annotator in {name for votes in item.votes.values() for name in votes}:
            own = {name: of[annotator] for name, of in item.votes.items() if annotator in of}
            for name, applies in rubric.asked(whole | own).items():
                if not applies and item.votes.get(name, {}).pop(annotator, None) is not None:
                    dropped[name] += 1
        item.votes = {name: votes for name, votes in item.votes.items() if votes}
    return dropped
