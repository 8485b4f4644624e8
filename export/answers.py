"""What artefacts say about items, and how far that is from what the adapter says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from slm_judge.agreement.alpha import (
    Floats,
    Votes,
    alpha_of_coincidences,
    judge_alpha,
    judge_coincidences,
)
from slm_judge.agreement.bootstrap import Bootstrap, Interval, percentile_interval
from slm_judge.agreement.compare import (
    CONFIDENCE,
    change_cost,
    difference,
    lower_limit,
    share_of,
)
from slm_judge.agreement.parts import Part
from slm_judge.agreement.scores import pair_accuracy
from slm_judge.annotate.rows import EXACT_DIGITS
from slm_judge.data.item import Item
from slm_judge.data.predictions import Answers
from slm_judge.errors import DataError
from slm_judge.judge.answer import answers_from_logits, collected
from slm_judge.judge.judge import Judge
from slm_judge.progress import progress_bar
from slm_judge.prompt.readers import EncodedPrompt
from slm_judge.rubric import Dimension

from .artefacts import ADAPTER


@dataclass
class Heard:
    """What one artefact said about N items, and the prompts that it read."""

    answers: dict[str, Answers]
    """Per dimension, with probabilities as the file that is kept has them."""
    prompts: list[EncodedPrompt]

    def labels(self, dimension: str) -> list[int]:
        """Option indices; -1 where the question is not asked."""
        labels: list[int] = self.answers[dimension].labels.tolist()
        return labels

    def probabilities(self, dimension: str) -> npt.NDArray[np.float64]:
        """N x options."""
        found = self.answers[dimension].probabilities
        assert found is not None
        return found


def ask(judge: Judge, items: Sequence[Item], advance: Callable[[], object] | None = None) -> Heard:
    """Annotate items, and keep their prompts; `advance` after each.

    Raises:
        DataError: an item is longer than the model can read.
    """
    backend, contract = judge.backend, judge.backend.contract
    prompts = judge.encode([item.state for item in items])
    for item, prompt in zip(items, prompts, strict=True):
        if prompt.n_tokens > backend.max_tokens:
            raise DataError(
                f"Item {item.item_id} needs {prompt.n_tokens} tokens, but there is room for "
                f"{backend.max_tokens}. Shorten its longest field in the data, and train again."
            )
    logits = collected(contract.rubric, judge.decide(prompts), len(items), advance)
    answers = answers_from_logits(contract.rubric, logits, contract.calibration)
    for name, said in answers.items():
        assert said.probabilities is not None
        answers[name] = replace(said, probabilities=said.probabilities.round(EXACT_DIGITS))
    return Heard(answers, prompts)


def hear(
    paths: Mapping[str, Path],
    items: Sequence[Item],
    verb: str,
    console: Console,
    then: Callable[[str, Judge, Heard, Progress], None] = lambda *_: None,
) -> dict[str, Heard]:
    """Ask artefacts by name about items, one after the other; `then` before each is closed."""
    heard = {}
    for name, path in paths.items():
        with (
            progress_bar("rows", console=console) as progress,
            Judge.from_pretrained(path, trust=True) as judge,
        ):
            task = progress.add_task(f"{verb} {name}", total=len(items))
            heard[name] = ask(judge, items, partial(progress.advance, task))
            then(name, judge, heard[name], progress)
    return heard


def losses(
    judged: Mapping[str, Sequence[int]],
    votes: Sequence[Sequence[int]],
    dimension: Dimension,
    margin: float,
    groups: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Alpha of each artefact minus the adapter's, on the same resampled groups of the N items."""
    rows = [row for row, given in enumerate(votes) if given] or [*range(len(votes))]
    kept, alphas = [votes[row] for row in rows], dict[str, Floats]()
    bootstrap = Bootstrap(len(rows), groups=groups and [groups[row] for row in rows])
    for name, labels in judged.items():
        alphas[name] = _alphas([labels[row] for row in rows], kept, dimension, bootstrap)
    reference = alphas.pop(ADAPTER)
    cost = change_cost(np.array([judged[ADAPTER][row] for row in rows]), kept, dimension)
    return {
        name: {
            **difference(reference, given, margin, cost, bootstrap.units).as_dict(),
            "items": len(rows),
        }
        for name, given in alphas.items()
    }


def _alphas(
    labels: Sequence[int], votes: Votes, dimension: Dimension, bootstrap: Bootstrap
) -> Floats:
    """Alpha of labels with votes, followed by those of resampled items."""
    totals = bootstrap.totals(judge_coincidences(labels, votes, len(dimension.options)))
    return alpha_of_coincidences(totals, dimension.values, dimension.level_of_measurement)


def against_annotators(
    labels: Sequence[int], votes: Sequence[Sequence[int]], dimension: Dimension
) -> dict[str, float]:
    """Alpha with the annotators, and how often an annotator's label is met."""
    return {
        "alpha": judge_alpha(labels, votes, dimension),
        "accuracy": pair_accuracy(labels, votes),
    }


def flip_rate(said: Answers, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """How often the two readings of a preference choose different labels, with a 90 % interval."""
    assert said.flipped is not None
    rows = np.flatnonzero(said.labels >= 0).tolist()
    own = None if groups is None else [groups[row] for row in rows]
    return share_of(said.flipped[rows].astype(float), own).as_dict()


def between(
    part: Part, first: Heard, second: Heard, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """How alike two artefacts answer; intervals are of 90 %, over items or groups of them."""
    dimension, source = part.dimension, part.source
    one, two = (part.labels(heard.labels(source)).tolist() for heard in (first, second))
    pairs = [[label] * (label >= 0) for label in one]
    alphas = _alphas(two, pairs, dimension, bootstrap := Bootstrap(len(two), groups=groups))
    if max(*one, *two) < 0:  # neither ever gave an answer
        alphas = np.ones_like(alphas)
    alpha = percentile_interval(alphas, CONFIDENCE, units=bootstrap.units)
    alpha = lower_limit(alpha, alphas, change_cost(np.array(two), pairs, dimension))
    # Where neither has an answer in this part, nothing is equal; unless that is all there is.
    rows = [row for row, pair in enumerate(zip(one, two, strict=True)) if max(pair) >= 0]
    rows = rows or [*range(len(one))]
    same = (np.array(one) == np.array(two)).astype(float)[rows]
    equal = share_of(same, None if groups is None else [groups[row] for row in rows])
    apart = np.abs(first.probabilities(source) - second.probabilities(source))
    return {
        **alike(equal, alpha),
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
    }


def alike(equal: Interval, alpha: Interval) -> dict[str, Any]:
    """What the report says of two artefacts: the share of equal labels, and their alpha."""
    return {
        "agreement": equal.estimate,
        "agreement_interval": equal.as_dict(),
        "alpha": alpha.estimate,
        "alpha_interval": alpha.as_dict(),
    }
