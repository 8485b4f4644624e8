"""Engines that read the logits of the labels at the answer slots of many items."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from slm_judge.artefact.judge_files import Contract
from slm_judge.data.text import State
from slm_judge.errors import ModelError
from slm_judge.prompt.readers import EncodedPrompt
from slm_judge.rubric import Rubric

Logits = list[npt.NDArray[np.float32]]
"""One array a dimension, one logit an option."""


class Reader(Protocol):
    """Makes prompts; see `slm_judge.prompt`."""

    prefix: list[int]
    """Tokens that all but odd prompts start with: the rubric."""

    def encode(self, states: Sequence[State]) -> list[EncodedPrompt]:
        """Tokenize the prompts of many items."""
        ...


class Backend(Protocol):
    """An engine with a model in it."""

    name: str
    path: Path
    """The file or folder of the judge."""
    files: list[Path]
    """All that its answers depend on: `path`, and a base beside it."""
    contract: Contract

    @property
    def reader(self) -> Reader:
        """Makes the engine's prompts."""
        ...

    def reader_of(self, rubric: Rubric) -> Reader:
        """A reader of the judge's rubric with its options in another order."""
        ...

    def expect(self, reader: Reader) -> None:
        """Compute the rubric as `reader` words it once for the prompts to come."""
        ...

    max_tokens: int
    """Of the longest prompt that the engine can read."""
    noise: float
    """How far the lead of the best label may move (in logits) with what else is in the batch."""
    near_tie: float
    """Where the two best labels are nearer than this, their order may depend on what else is in the
    batch: `noise`, or 0 where nothing moves."""
    most_near_ties: float
    """Share of rows above which it is faster to compute all rows alone than these ones twice."""

    def fills(self, prompt: EncodedPrompt) -> bool:
        """Whether a row is so long that it costs as little alone as in a batch."""
        ...

    def run(
        self, prompts: Sequence[EncodedPrompt], alone: bool = False
    ) -> Iterator[tuple[int, Logits]]:
        """Yield (index into `prompts`, logits) once for every prompt, in any order.

        Args:
            prompts: made by `reader`, none longer than `max_tokens`.
            alone: compute each row by itself, so that its logits depend on nothing else.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory."""
        ...


def check_finite(logits: Logits, path: Path) -> None:
    """Refuse what is no number, which would become a label all the same.

    Raises:
        ModelError: `path` is named, whose weights are damaged.
    """
    if not all(np.isfinite(row).all() for row in logits):
        raise ModelError(
            f"{path} gives logits that are not finite: its weights are damaged, or too large for "
            "the dtype. Download or export it again."
        )


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Give `advice` where memory runs out in the block, of the machine or of a GPU.

    Raises:
        ModelError: memory ran out.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if out_of_memory(error):
            raise ModelError(f"Out of memory. {advice}") from error
        raise


def out_of_memory(error: Exception) -> bool:
    """Whether an error says so: PyTorch's are RuntimeErrors, the system's OSErrors."""
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
