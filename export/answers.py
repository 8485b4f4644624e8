"""What artefacts say about items, and how far that is from what the adapter says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from slm_judge.agreement.alpha import (
    alpha_of_coincidences,
    judge_alpha,
    judge_coincidences,
    krippendorff_alpha,
    vote_counts,
)
from slm_judge.agreement.bootstrap import Bootstrap
from slm_judge.agreement.compare import difference
from slm_judge.agreement.scores import pair_accuracy
from slm_judge.annotate.rows import EXACT_DIGITS
from slm_judge.data.item import Item
from slm_judge.data.predictions import Answers
from slm_judge.errors import DataError
from slm_judge.judge.answer import softmax
from slm_judge.judge.judge import Judge
from slm_judge.progress import progress_bar
from slm_judge.prompt.readers import EncodedPrompt
from slm_judge.rubric import Dimension

from .artefacts import ADAPTER


@dataclass
class Heard:
    """What one artefact said about N items, and the prompts that it read."""

    probabilities: dict[str, npt.NDArray[np.float64]]
    """Per dimension, N x options."""
    prompts: list[EncodedPrompt]

    def labels(self, dimension: str) -> list[int]:
        """Option indices."""
        return self.probabilities[dimension].argmax(axis=1).tolist()  # type: ignore[no-any-return]

    def answers(self) -> dict[str, Answers]:
        """As an evaluation reads them from the file that is kept: dimension -> answers."""
        return {
            name: Answers(p.argmax(axis=1), p.round(EXACT_DIGITS))
            for name, p in self.probabilities.items()
        }


def ask(judge: Judge, items: Sequence[Item], advance: Callable[[], object] = lambda: None) -> Heard:
    """Annotate items, and keep their prompts; `advance` after each.

    Raises:
        DataError: an item is longer than the model can read.
    """
    backend, contract = judge.backend, judge.backend.contract
    prompts = backend.reader.encode([item.state for item in items])
    for item, prompt in zip(items, prompts, strict=True):
        if len(prompt.input_ids) > backend.max_tokens:
            raise DataError(
                f"Item {item.item_id} needs {len(prompt.input_ids)} tokens, but there is room for "
                f"{backend.max_tokens}. Shorten its longest field in the data, and train again."
            )
    rows: list[Any] = [None] * len(items)
    for index, logits in judge.decide(prompts):
        rows[index] = logits
        advance()
    probabilities = {
        dimension.name: softmax(
            np.stack([row[k] for row in rows]), contract.temperature(dimension.type)
        )
        for k, dimension in enumerate(contract.rubric.dimensions)
    }
    return Heard(probabilities, prompts)


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
    groups: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Alpha of each artefact minus the adapter's, on the same resampled groups of the N items."""
    values, level = dimension.values, dimension.level_of_measurement
    bootstrap = Bootstrap(len(votes), groups=groups)
    alphas = {}
    for name, labels in judged.items():
        coincidences = judge_coincidences(labels, votes, len(dimension.options))
        alphas[name] = alpha_of_coincidences(bootstrap.totals(coincidences), values, level)
    reference = alphas.pop(ADAPTER)
    return {
        name: difference(reference, given, margin, bootstrap.units).as_dict()
        for name, given in alphas.items()
    }


def against_annotators(
    labels: Sequence[int], votes: Sequence[Sequence[int]], dimension: Dimension
) -> dict[str, float]:
    """Alpha with the annotators, and how often an annotator's label is met."""
    return {
        "alpha": judge_alpha(labels, votes, dimension),
        "accuracy": pair_accuracy(labels, votes),
    }


def between(dimension: Dimension, first: Heard, second: Heard) -> dict[str, float]:
    """How alike two artefacts answer."""
    one, two = first.labels(dimension.name), second.labels(dimension.name)
    counts = vote_counts(list(zip(one, two, strict=True)), len(dimension.options))
    difference = np.abs(first.probabilities[dimension.name] - second.probabilities[dimension.name])
    return {
        "agreement": float(np.mean(np.array(one) == np.array(two))),
        "alpha": krippendorff_alpha(counts, dimension.values, dimension.level_of_measurement),
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
    }
