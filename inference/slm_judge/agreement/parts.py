"""What agreement in a dimension is computed on: its scale, and whether it applies at all.

An option that is `not_applicable` is no level and no category, so it has no distance to the others.
Where there is one, labels that apply are compared on the scale; whether they apply, true or false,
is compared by itself. A label that is none of a part is -1 there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slm_judge.rubric import APPLICABLE, Dimension, Noul

from .alpha import Floats


@dataclass(frozen=True)
class Part:
    """A dimension that has no option off its scale, and how labels of its source become its own."""

    dimension: Dimension
    source: str
    options: tuple[int, ...]
    """Of each option of the source, that of the part, or -1."""

    def votes(self, votes: Mapping[str, int]) -> dict[str, int]:
        """An item's votes, of those who said something in this part."""
        mapped = {name: self.options[option] for name, option in votes.items()}
        return {name: option for name, option in mapped.items() if option >= 0}

    def votes_of(self, votes: Iterable[Sequence[int]]) -> list[list[int]]:
        """The same of several items, without names."""
        return [[o for vote in row if (o := self.options[vote]) >= 0] for row in votes]

    def labels(self, labels: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A system's labels, -1 where it said nothing in this part."""
        found: npt.NDArray[np.int64] = np.array([*self.options, -1])[np.asarray(labels, dtype=int)]
        return found

    def shares(self, probabilities: Floats) -> Floats:
        """Probabilities of this part's options, given that one of them holds: N x options."""
        if self.options == tuple(range(len(self.dimension.options))):
            return probabilities
        found = np.zeros((len(probabilities), len(self.dimension.options)))
        for option, own in enumerate(self.options):
            if own >= 0:
                found[:, own] += probabilities[:, option]
        total = found.sum(axis=1, keepdims=True)
        shares: Floats = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
        return shares


def parts(dimension: Dimension) -> list[Part]:
    """A dimension itself; of one with options off its scale, the scale and whether it applies."""
    n, everything = dimension.n_levels, range(len(dimension.options))
    if n == len(everything):
        return [Part(dimension, dimension.name, tuple(everything))]
    applies = Noul(name=f"{dimension.name}{APPLICABLE}", instructions=dimension.instructions)
    return [
        Part(dimension.scale, dimension.name, tuple(k if k < n else -1 for k in everything)),
        Part(applies, dimension.name, tuple(int(k < n) for k in everything)),
    ]


def all_parts(dimensions: Iterable[Dimension]) -> list[Part]:
    """The parts of several dimensions."""
    return [part for dimension in dimensions for part in parts(dimension)]
