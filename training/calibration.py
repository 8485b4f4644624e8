"""What makes probabilities of the adapter's logits, fitted on validation items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from slm_judge.agreement.aggregate import vote_shares
from slm_judge.agreement.alpha import vote_counts
from slm_judge.artefact.calibration import Calibration
from slm_judge.data.item import Item, votes_of
from slm_judge.judge.answer import averaged, probabilities
from slm_judge.rubric import Dimension, Rubric

BOUNDS: dict[float, Literal["least", "most"]] = {0.5: "least", 5.0: "most"}
"""Of a fitted temperature, times that of training; beyond, the judge needs more training, not
calibration."""
MIN_ITEMS = 20  # below, a fitted temperature is mostly noise
SPREAD = 0.25
"""Standard deviation of a dimension's log temperature around that of its type, before its votes are
seen. On ConvAbuse 0.25 to 0.4 gave less log loss on new items than one temperature a type or one
that each dimension had alone (`benchmarks/calibration.py --words`)."""
PRIOR = 20.0
"""Annotations with an option of a set, by which all its options speak for the threshold of one."""
_CLEARLY = 2.0  # standard errors

Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class _Answered:
    """The N items of a dimension that have votes."""

    logits: Logits
    """N x options; of a preference N x 2 x options, both readings."""
    shares: npt.NDArray[np.float64]
    """N x options."""
    shift: tuple[float, ...] = ()

    @property
    def first_reading(self) -> Logits:
        """N x options, all that stock engines see of a preference."""
        return self.logits[:, 0] if self.logits.ndim == 3 else self.logits

    def losses(self, temperature: float) -> npt.NDArray[np.float64]:
        """N cross-entropies of the vote shares, in nats."""
        how = Calibration(temperature=temperature, shift=self.shift)
        logits = averaged(self.logits, how) if self.logits.ndim == 3 else self.logits
        found: npt.NDArray[np.float64] = -(
            self.shares * np.log(probabilities(logits, how).clip(1e-12))
        ).sum(axis=-1)
        return found


def fit_calibration(
    rubric: Rubric,
    items: Sequence[Item],
    logits: Sequence[Logits],
    weights: npt.NDArray[np.float64] | None = None,
    learned_at: float = 1.0,
) -> tuple[dict[str, float], dict[str, Calibration]]:
    """Temperatures that minimise the log loss (Guo et al., 2017), after the shift of the priors.

    A judge that learned with weights w has learned p(k) ~ w_k q(k), where q are the probabilities
    of the annotators' votes, so log w is taken off again (Saerens, Latinne and Decaestecker, 2002);
    no temperature could do that. Where it clearly makes the log loss worse it is left out: an
    ordinal loss, which is not weighed, or a short training kept the judge from learning it.

    A dimension's temperature is drawn to that of all dimensions of its type, as by a normal prior
    of its logarithm with deviation `SPREAD`: many votes decide by themselves, few hardly move it.

    Args:
        rubric: K dimensions.
        items: N validation items with votes.
        logits: per dimension, N x options; of a preference N x 2 x options.
        weights: K x M, of the options in training; None where all weighed the same.
        learned_at: the temperature of training.

    Returns:
        By question type one temperature, for stock engines, which cannot shift; and by dimension
        its calibration. All within `BOUNDS`; that of training where a type has fewer than
        `MIN_ITEMS` answers.
    """
    logits = [np.asarray(rows) / learned_at for rows in logits]
    kinds: dict[str, dict[str, _Answered]] = {}
    for k, (dimension, rows) in enumerate(zip(rubric.dimensions, logits, strict=True)):
        shift = _shift(dimension, None if weights is None else weights[k])
        answered = _checked(_answered(dimension, items, rows, shift))
        kinds.setdefault(dimension.asked_as, {})[dimension.name] = answered
    temperatures, calibrations = {}, {}
    for kind, by_name in kinds.items():
        together = [*by_name.values()]
        plain = [replace(one, shift=(), logits=one.first_reading) for one in together]
        temperatures[kind] = round(_fitted(plain) * learned_at, 4)
        pooled = _fitted(together)
        for name, one in by_name.items():
            own = _fitted([one], pooled) if len(together) > 1 else pooled
            calibrations[name] = Calibration(
                temperature=round(own * learned_at, 4), shift=one.shift, bound=BOUNDS.get(own)
            )
    return temperatures, calibrations


def fit_thresholds(
    rubric: Rubric,
    items: Sequence[Item],
    logits: Sequence[Logits],
    calibrations: Mapping[str, Calibration],
) -> dict[str, Calibration]:
    """Calibrations with the probability above which an option of a set is chosen.

    That of the best F1 on the annotations, of a grid. The counts of all options of the set, scaled
    to `PRIOR` annotations that chose one, stand beside an option's own, so that a rare one takes
    over the others' threshold. Of as good ones, the nearest to 0.5.

    Args:
        rubric: K dimensions.
        items: N validation items with votes.
        logits: per dimension, N x options.
        calibrations: of the dimensions.
    """
    rows = dict(zip((d.name for d in rubric.dimensions), logits, strict=True))
    found, grid = dict(calibrations), np.linspace(0.05, 0.95, 19)
    for one in rubric.sets:
        counts = []
        for name in one.members:
            yes = probabilities(rows[name], found[name])[:, 1]
            chosen = (yes[:, None] > grid)[:, :, None]  # N x grid x 1
            votes = vote_counts(votes_of(items, name), 2)[:, None, :]
            no, hit = np.moveaxis((chosen * votes).sum(axis=0), -1, 0).astype(float)
            counts.append(np.stack([hit, no, votes[..., 1].sum() - hit]))
        pooled = np.sum(counts, axis=0)
        positives = float(pooled[0, 0] + pooled[2, 0])
        if not positives:
            continue
        for name, own in zip(one.members, counts, strict=True):
            hit, no, missed = own + pooled * min(1.0, PRIOR / positives)
            f1 = 2 * hit / (2 * hit + no + missed)
            best = max(range(len(grid)), key=lambda k: (round(f1[k], 9), -abs(grid[k] - 0.5)))
            threshold = round(float(grid[best]), 2)
            found[name] = found[name].model_copy(update={"threshold": threshold})
    return found


def _shift(dimension: Dimension, weights: npt.NDArray[np.float64] | None) -> tuple[float, ...]:
    if weights is None:
        return ()
    logs = np.log(weights[: len(dimension.options)])
    return tuple(round(float(log), 4) for log in logs) if np.ptp(logs) else ()


def _checked(answered: _Answered) -> _Answered:
    """Without the shift, where the log loss is clearly worse with it, each at its temperature."""
    if not answered.shift or len(answered.logits) < MIN_ITEMS:
        return answered
    plain = replace(answered, shift=())
    worse = answered.losses(_fitted([answered])) - plain.losses(_fitted([plain]))
    clear = worse.mean() > _CLEARLY * worse.std(ddof=1) / np.sqrt(len(worse))
    return plain if clear else answered


def _answered(
    dimension: Dimension, items: Sequence[Item], logits: Logits, shift: tuple[float, ...]
) -> _Answered:
    votes = votes_of(items, dimension.name)
    rows = [i for i, row in enumerate(votes) if row]
    shares = [vote_shares(votes[i], len(dimension.options)) for i in rows]
    return _Answered(
        logits[rows], np.array(shares).reshape(len(rows), len(dimension.options)), shift
    )


def _fitted(answered: Sequence[_Answered], around: float | None = None) -> float:
    """The temperature of least log loss; with a prior `around` another one, however few items."""
    known = [one for one in answered if len(one.logits)]
    if around is None and sum(len(one.logits) for one in known) < MIN_ITEMS:
        return 1.0

    def loss(log_t: float) -> float:
        prior = 0.0 if around is None else ((log_t - np.log(around)) / SPREAD) ** 2 / 2
        return float(prior + sum(one.losses(float(np.exp(log_t))).sum() for one in known))

    found = minimize_scalar(loss, bounds=tuple(np.log([*BOUNDS])), method="bounded")
    fitted = float(np.exp(found.x))
    near = min(BOUNDS, key=lambda bound: abs(np.log(bound / fitted)))
    return near if abs(np.log(near / fitted)) < 1e-3 else round(fitted, 4)
