"""Statistics of confusion matrices, over any leading axes (so also of bootstrap resamples).

A confusion matrix is V x V: rows are what annotators said, columns what the judge said. With
several annotators an item, every (annotator, judge) pair counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .alpha import Floats, Votes, annotator_coincidences, vote_counts
from .bootstrap import Bootstrap

BOUNDS = {
    "accuracy": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "alpha": (-np.inf, 1.0),
    "kappa": (-np.inf, 1.0),
    "weighted_kappa": (-np.inf, 1.0),
    "gwet_ac": (-np.inf, 1.0),
    "icc": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "kendall": (-1.0, 1.0),
    "mean_absolute_error": (0.0, np.inf),
    "mean_shift": (-np.inf, np.inf),
}
"""What statistics can be, at least and at most."""
Weights = Literal["none", "linear", "quadratic"]
_CELLS = 20_000_000  # of tables at once, which bounds memory


def pair_accuracy(judged: Sequence[int], votes: Votes) -> float:
    """Share of (judge, annotator) pairs with the same label; nan without pairs."""
    equal = [label == vote for label, row in zip(judged, votes, strict=True) for vote in row
             if label >= 0]  # fmt: skip
    return float(np.mean(equal)) if equal else float("nan")


def agreeing_share(
    judged: Sequence[int] | npt.NDArray[np.int64], votes: Votes, n_options: int
) -> Floats:
    """Share of each item's annotators who agree with the judge, N; nan where either is silent."""
    labels = np.asarray(judged, dtype=int)
    counts = vote_counts(votes, n_options) * (labels >= 0)[:, None]
    return _ratio(counts[np.arange(len(votes)), labels], counts.sum(axis=1))


def accuracy(confusion: Floats) -> Floats:
    """Share of the pairs on the diagonal."""
    total = confusion.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.trace(confusion, axis1=-2, axis2=-1) / total)


def agreeing_of(per_item: Floats) -> Floats:
    """Share of each item's pairs that agree, N from N x V x V; nan without pairs."""
    return _ratio(np.trace(per_item, axis1=-2, axis2=-1), per_item.sum(axis=(-2, -1)))


@dataclass(frozen=True)
class PerOption:
    """How each of V options is found, ... x V; nan where it is not defined."""

    precision: Floats
    """Of what the judge called so, the share that annotators called so."""
    recall: Floats
    """Of what annotators called so, the share that the judge called so."""
    f1: Floats
    """Harmonic mean of both; 0 for an option that only one side uses."""


def per_option(confusion: Floats) -> PerOption:
    """Precision, recall and F1 of each option."""
    diagonal = np.diagonal(confusion, axis1=-2, axis2=-1)
    judged, said = confusion.sum(axis=-2), confusion.sum(axis=-1)
    return PerOption(
        _ratio(diagonal, judged), _ratio(diagonal, said), _ratio(2 * diagonal, judged + said)
    )


def f1_per_option(confusion: Floats) -> Floats:
    """F1 of each option, ... x V; 0 for an option that only one side uses, nan where none does."""
    return per_option(confusion).f1


def macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the options that occur at all, as `f1_score` of scikit-learn."""
    scores = f1_per_option(confusion)
    used = np.isfinite(scores)
    return _ratio(np.where(used, scores, 0).sum(axis=-1), used.sum(axis=-1))


def cohen_kappa(confusion: Floats, weights: Weights = "none") -> Floats:
    """Cohen's kappa: 1 - sum(w o) / sum(w e), observed over chance-expected disagreement.

    Unweighted: Cohen (1960); weighted by |i - j| or its square over the order of the options:
    Cohen (1968).

    Returns:
        1 where both sides use one and the same option throughout (0 / 0, no disagreement), as
        `krippendorff_alpha`; nan without pairs.
    """
    w = _disagreement(confusion.shape[-1], weights)
    total = confusion.sum(axis=(-2, -1))
    marginals = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    observed = (w * confusion).sum(axis=(-2, -1))
    expected = _ratio((w * marginals).sum(axis=(-2, -1)), total)
    kappa = np.where(expected > 0, 1 - _ratio(observed, expected), 1.0)
    return np.where(total > 0, kappa, np.nan)


def _disagreement(n_options: int, weights: Weights, scaled: bool = False) -> Floats:
    """Weights of disagreement, V x V, by the order of the options; scaled: at most 1."""
    rank = np.arange(n_options)
    distance = np.abs(rank[:, None] - rank[None, :]).astype(float)
    kinds = {"none": (distance > 0) * 1.0, "linear": distance, "quadratic": distance**2}
    found: Floats = kinds[weights] / (kinds[weights].max() if scaled else 1.0)
    return found


def gwet_parts(votes: Votes, n_options: int) -> Floats:
    """What `gwet_ac` needs of each item's annotators, N x V x (V + 1).

    Each item's coincidences, which sum to 1 (0 with fewer than two votes), and its vote shares.
    """
    counts = vote_counts(votes, n_options).astype(float)
    total = np.maximum(counts.sum(axis=1), 1)[:, None]
    pairs = annotator_coincidences(votes, n_options) / total[:, None]
    return np.concatenate([pairs, (counts / total)[:, :, None]], axis=-1)


def pair_parts(confusion: Floats) -> Floats:
    """The same of (annotator, judge) pairs, each two raters of one thing: ... x V x (V + 1)."""
    shares = (confusion.sum(axis=-1) + confusion.sum(axis=-2)) / 2
    return np.concatenate([confusion, shares[..., None]], axis=-1)


def gwet_ac(parts: Floats, weights: Weights = "none") -> Floats:
    """Gwet's agreement coefficient: AC1, or AC2 where disagreement has weights.

    (p_a - p_e) / (1 - p_e), where p_e = T / (V (V - 1)) sum_k pi_k (1 - pi_k) and T is the sum of
    the weights of agreement (Gwet, Handbook of Inter-Rater Reliability, 4th ed., 2014, ch. 4-5). It
    stays high where nearly all labels are of one option, where alpha and kappa fall.

    Args:
        parts: ... x V x (V + 1), sums of `gwet_parts` or `pair_parts`.
        weights: of disagreement, by the order of the options; see `cohen_kappa`.

    Returns:
        1 where all labels are one option; nan without pairs.
    """
    pairs, shares = parts[..., :-1], parts[..., -1]
    agreement = 1 - _disagreement(shares.shape[-1], weights, scaled=True)
    pi = _ratio(shares, shares.sum(axis=-1, keepdims=True))
    total = agreement.sum() / (len(agreement) * (len(agreement) - 1))
    chance = total * (pi * (1 - pi)).sum(axis=-1)
    observed = _ratio((agreement * pairs).sum(axis=(-2, -1)), pairs.sum(axis=(-2, -1)))
    return _ratio(observed - chance, 1 - chance)


def icc_parts(votes: Votes, levels: Floats) -> Floats:
    """What `icc` needs of each item, N x 6; items with fewer than two votes do not count."""
    counts = vote_counts(votes, len(levels)).astype(float)
    levels = levels - levels.mean()  # which changes no correlation, and keeps squares small
    return _icc_moments(counts.sum(axis=1), counts @ levels, counts @ levels**2)


def icc_pair_parts(confusion: Floats, levels: Floats) -> Floats:
    """The same of (annotator, judge) pairs, each two ratings of one thing: ... x 6."""
    levels = levels - levels.mean()
    one, two = levels[:, None], levels[None, :]
    cells = _icc_moments(np.full(confusion.shape[-2:], 2.0), one + two, one**2 + two**2)
    return np.tensordot(confusion, cells, axes=2)


def _icc_moments(m: Floats, total: Floats, squares: Floats) -> Floats:
    """1, m, m^2, sum(y)^2 / m and sum(y^2) of units; and sum(y)."""
    parts = np.stack([np.ones_like(m), m, m**2, _ratio(total**2, m), squares, total], axis=-1)
    return np.where((m >= 2)[..., None], parts, 0.0)


def icc(parts: Floats) -> Floats:
    """Intraclass correlation of single ratings, one-way random effects: ICC(1, 1).

    Shrout and Fleiss, "Intraclass Correlations" (1979), case 1, for units that need not have the
    same raters; of different numbers of ratings, Fleiss's k_0 (Statistical Methods, 2003, 18.3).

    Args:
        parts: ... x 6, sums of `icc_parts` or `icc_pair_parts`.

    Returns:
        1 where all ratings are one value, as `krippendorff_alpha`; nan with fewer than two units.
    """
    units, ratings, squared, between, squares, total = np.moveaxis(np.asarray(parts), -1, 0)
    ms_between = _ratio(between - _ratio(total**2, ratings), units - 1)
    ms_within = _ratio(squares - between, ratings - units)
    size = _ratio(ratings - _ratio(squared, ratings), units - 1)
    whole = ms_between + (size - 1) * ms_within
    one_value = np.isfinite(whole) & (np.abs(whole) < 1e-9)
    return np.where(one_value, 1.0, _ratio(ms_between - ms_within, whole))


def mean_absolute_error(confusion: Floats, levels: Floats) -> Floats:
    """Mean |judge - annotator| over the pairs, in units of `levels` (V)."""
    distance = np.abs(levels[:, None] - levels[None, :])
    return _ratio((confusion * distance).sum(axis=(-2, -1)), confusion.sum(axis=(-2, -1)))


def mean_shift(confusion: Floats, levels: Floats) -> Floats:
    """Mean (judge - annotator) over the pairs, in units of `levels`: above 0, it rates higher."""
    difference = levels[None, :] - levels[:, None]
    return _ratio((confusion * difference).sum(axis=(-2, -1)), confusion.sum(axis=(-2, -1)))


def rank_correlations(
    judged: Floats, means: Floats, bootstrap: Bootstrap | None = None
) -> dict[str, Floats]:
    """Spearman's rho and Kendall's tau-b of judged levels and the annotators' mean levels.

    Args:
        judged: N.
        means: N; items that are nan do not count.
        bootstrap: of the N items.

    Returns:
        Of all items, followed by those of each resample. nan where either side is constant: a rank
        correlation is not defined then.
    """
    known = np.isfinite(means)
    (first, x), (second, y) = (
        np.unique(side[known].round(9), return_inverse=True) for side in (judged, means)
    )
    shape = len(first), len(second)
    cell = x * shape[1] + y
    found: dict[str, list[Floats]] = {"spearman": [], "kendall": []}
    for weights in bootstrap.weights() if bootstrap else [np.ones((1, len(judged)))]:
        pieces = -(-len(weights) * cell.max(initial=0) // _CELLS) or 1
        for part in np.array_split(weights[:, known], min(pieces, len(weights))):
            size = part.shape[0] * shape[0] * shape[1]
            index = np.arange(len(part))[:, None] * (shape[0] * shape[1]) + cell
            table = np.bincount(index.ravel(), part.ravel(), minlength=size).astype(float)
            tables = table.reshape(len(part), *shape)
            found["spearman"].append(_spearman(tables))
            found["kendall"].append(_kendall(tables))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _spearman(tables: Floats) -> Floats:
    """Pearson's correlation of the middle ranks, of tables ... x A x B."""
    sides = []
    for axis in (-1, -2):
        n = tables.sum(axis=axis)
        ranks = n.cumsum(axis=-1) - n / 2
        ranks -= _ratio((n * ranks).sum(axis=-1), n.sum(axis=-1))[..., None]
        sides.append((ranks, (n * ranks**2).sum(axis=-1)))
    (rows, of_rows), (columns, of_columns) = sides
    shared = np.einsum("...a,...ab,...b->...", rows, tables, columns)
    return _ratio(shared, np.sqrt(of_rows * of_columns))


def _kendall(tables: Floats) -> Floats:
    """Tau-b (Kendall, 1945) of tables ... x A x B."""
    below = tables.cumsum(axis=-2)[..., :-1, :].cumsum(axis=-1)
    later = tables[..., 1:, :]
    concordant = (later[..., 1:] * below[..., :-1]).sum(axis=(-2, -1))
    discordant = (later * (below[..., -1:] - below)).sum(axis=(-2, -1))
    squares = [np.square(tables.sum(axis=axis)).sum(axis=-1) for axis in (-1, -2)]
    pairs = np.square(tables.sum(axis=(-2, -1)))
    untied = np.sqrt((pairs - squares[0]) * (pairs - squares[1])) / 2
    return _ratio(concordant - discordant, untied)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part / whole, nan where whole is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return found
