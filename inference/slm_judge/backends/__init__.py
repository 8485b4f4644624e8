"""Engines that read the logits of the labels at the answer slots of many items."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..contract import Contract
from ..prompt import EncodedPrompt, State

Logits = list[npt.NDArray[np.float32]]
"""One array a dimension, one logit an option."""


class Reader(Protocol):
    """Makes prompts; see `slm_judge.prompt`."""

    def encode(self, states: Sequence[State]) -> list[EncodedPrompt]:
        """Tokenize the prompts of many items."""
        ...


class Backend(Protocol):
    """An engine with a model in it."""

    name: str
    contract: Contract

    @property
    def reader(self) -> Reader:
        """Makes the engine's prompts."""
        ...

    def logits(self, states: Sequence[dict[str, str]]) -> Iterator[tuple[int, Logits]]:
        """Yield (index into `states`, logits) once for every state, in any order."""
        ...

    def close(self) -> None:
        """Free the engine's memory."""
        ...
