"""Labels: the letters behind which options stand in the prompt."""

import string
from collections.abc import Callable, Sequence

from slm_judge.errors import RubricError
from slm_judge.rubric import Rubric

MAX_LABELS = 255  # as many as llama-server keeps
Tokenize = Callable[[str], Sequence[int]]


def label_codes() -> list[str]:
    """A..Z, then AA..ZZ: the order in which llama-server and slm-judge hand out labels."""
    letters = string.ascii_uppercase
    return [*letters, *(first + second for first in letters for second in letters)]


def single_token_labels(tokenize: Tokenize) -> dict[str, int]:
    """The label codes that are one token each, with their token ids, at most `MAX_LABELS`."""
    labels: dict[str, int] = {}
    for code in label_codes():
        ids = tokenize(code)
        if len(ids) == 1 and len(labels) < MAX_LABELS:
            labels[code] = int(ids[0])
    return labels


def check_label_count(rubric: Rubric, labels: Sequence[str]) -> None:
    """Refuse a rubric that asks for more options than there are labels.

    Raises:
        RubricError: names the dimension and both counts.
    """
    for dimension in rubric.dimensions:
        if len(dimension.options) > len(labels):
            raise RubricError(
                f"{dimension.name} has {len(dimension.options)} options, but there are only "
                f"{len(labels)} labels that are one token each. Merge options, or split the "
                "dimension in two."
            )
