"""The pigeonhole bootstrap: items (or their groups) and annotators are drawn, both at once.

Owen, "The Pigeonhole Bootstrap" (Annals of Applied Statistics, 2007): an annotation counts as often
as its item was drawn times as often as its annotator was. Intervals then speak about new items and
new annotators; the variance is overestimated a little, never underestimated.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .aggregate import Ratings
from .alpha import Floats
from .bootstrap import Bootstrap

_ENTRIES = 20_000_000  # of weights at once, which bounds memory


class TwoWay:
    """Resamples of the items or groups of a bootstrap, and of the annotators."""

    def __init__(self, bootstrap: Bootstrap, ratings: Ratings) -> None:
        """Take N x M ratings: option indices, -1 where an annotator did not answer."""
        self.bootstrap, self.ratings = bootstrap, ratings
        self.units = min(bootstrap.units, ratings.shape[1])
        """The fewer of what is drawn: items or groups, and annotators."""

    def judge_totals(self, judged: Sequence[int], n_options: int) -> Floats:
        """Sums of `judge_confusions` over all items, and over each resample: ... x V x V."""
        items, annotators = np.nonzero(self.ratings >= 0)
        cells = self.ratings[items, annotators] * n_options + np.asarray(judged, dtype=int)[items]
        return self._totals(items, [annotators], cells, np.ones(len(items)), n_options)

    def annotator_totals(self, n_options: int) -> Floats:
        """The same of `annotator_coincidences`; nobody is compared with a copy of themselves."""
        items, first, second = np.nonzero(
            (self.ratings[:, :, None] >= 0)
            & (self.ratings[:, None, :] >= 0)
            & ~np.eye(self.ratings.shape[1], dtype=bool)
        )
        cells = self.ratings[items, first] * n_options + self.ratings[items, second]
        others = np.maximum((self.ratings >= 0).sum(axis=1) - 1, 1)
        return self._totals(items, [first, second], cells, 1.0 / others[items], n_options)

    def _totals(
        self,
        items: npt.NDArray[np.intp],
        annotators: Sequence[npt.NDArray[np.intp]],
        cells: npt.NDArray[np.int64],
        weights: Floats,
        n_options: int,
    ) -> Floats:
        """Sums over P pairs: each has an item, annotators, a cell of a matrix and a weight."""
        from scipy.sparse import csr_array

        shape, seed = (len(items), n_options**2), (self.bootstrap.seed, 1)
        cell_of = csr_array((weights, (np.arange(len(items)), cells)), shape=shape)
        parts = [np.ones((1, len(items))) @ cell_of]
        of_items = self.bootstrap.draws(self.bootstrap.units, self.bootstrap.seed)
        of_annotators = self.bootstrap.draws(self.ratings.shape[1], seed)
        for drawn, who in zip(of_items, of_annotators, strict=True):
            for rows in np.array_split(
                np.arange(len(drawn)), min(len(drawn), 1 + drawn.shape[0] * len(items) // _ENTRIES)
            ):
                often = drawn[rows][:, self.bootstrap.unit[items]]
                for column in annotators:
                    often = often * who[rows][:, column]
                parts.append(often @ cell_of)
        return np.concatenate(parts).reshape(-1, n_options, n_options)
