"""What speaks against annotated items being the random sample that an estimate takes them for.

A random sample differs from its corpus by chance alone in whatever the judge says, be the judge
good or bad, calibrated or not. So its confidences and labels on the annotated items are compared
with those on all items: where it is surer of the annotated ones, it may have been trained on them;
where it is less sure, they may be a queue for review. And a judge whose confidence means what it
says agrees with people on fresh items as often as that; where it agrees far more often with the
annotated labels, it may know them. Nor does any judge agree with fresh annotations more often than
the root of how often these agree with each other: of an item with shares p of the options it meets
max p at most, which is at most the root of the sum of p^2.
"""

import numpy as np
import numpy.typing as npt

from slm_judge.agreement.alpha import Floats
from slm_judge.agreement.sample import Sample
from slm_judge.errors import require
from slm_judge.rubric import Dimension

RISK = 0.001
"""Of a false alarm in a whole estimate of a random sample."""
MARGIN = 0.1
"""By which agreement may exceed confidence: more than calibrated judges were seen to be off."""
PLAUSIBLE = 0.9
"""An alpha that nobody is expected to reach against single annotations."""
_PAIRED = 30  # items with several annotations, which show how often these agree
_FEWEST = 10  # expected annotated items with an option, below which t is no guide
_ADVICE = (
    "Labels that the judge was trained on bias every estimate: leave them out (--run), annotate a "
    "random sample of fresh items, or use judges trained on the other folds (--folds)."
)


def doubts_about(
    dimension: Dimension,
    sample: Sample,
    judged: Floats,
    people: Floats,
    sure: Floats | None,
    annotations: npt.NDArray[np.int64] | None = None,
) -> list[tuple[str, float]]:
    """Sentences, each with its p-value where the annotated items are a random sample.

    Args:
        dimension: of the labels.
        sample: how the annotated items are taken to be drawn.
        judged: N x K shares of the judge's labels.
        people: n x K shares of people's.
        sure: N confidences of the judge, if it gives any.
        annotations: n numbers of people; None where the judge is known not to know their labels.
    """
    weighted = ", weighted," if np.ptp(sample.weights) > 1e-9 else ""
    found = _labels(dimension, sample, judged, weighted)
    agreed = (judged[sample.rows] * people).sum(axis=1)
    if sure is not None:
        found.append(_confidence(dimension, sample, sure, weighted))
        found.append(_agreement(dimension, sample, agreed, sure))
    if annotations is not None and (most := _most(sample, people, annotations, sure is None)):
        inside = float(sample.weights @ agreed) / len(judged)
        text = (
            f"{dimension.name}: the judge agrees with people on {inside:.1%} of the annotated "
            f"items{weighted}, more than {most[1]}. Was it trained on them? {_ADVICE}"
        )
        found.append((text, _too_often(sample, agreed, most[0])))
    return found


def _most(
    sample: Sample, people: Floats, annotations: npt.NDArray[np.int64], unsure: bool
) -> tuple[float, str] | None:
    """The largest plausible share of agreement on fresh items, and why; None where nobody knows."""
    m, several = annotations[annotations > 1], annotations > 1
    if len(m) >= _PAIRED:
        pairs = (m * (people[several] ** 2).sum(axis=1) - 1) / (m - 1)
        highest = min(1.0, pairs.mean() + 4 * pairs.std() / np.sqrt(len(m)))
        return float(np.sqrt(highest)), f"people, who agree on {pairs.mean():.0%} of theirs, allow"
    shares = sample.weights @ people / sample.weights.sum()
    rule = f"is expected of single annotations (alpha {PLAUSIBLE}), and it gives no confidence"
    return (1 - (1 - PLAUSIBLE) * float(1 - shares @ shares), rule) if unsure else None


def _labels(
    dimension: Dimension, sample: Sample, judged: Floats, weighted: str
) -> list[tuple[str, float]]:
    share, found = judged.mean(axis=0), []
    common = np.minimum(share, 1 - share) * sample.effective() >= _FEWEST
    if len(share) == 2:
        common[0] = False  # says what the other one says
    inside, everywhere, p = sample.away(judged)
    for k in np.flatnonzero(common).tolist():
        text = (
            f"{dimension.name}: the judge says {dimension.key(k)} of {inside[k]:.1%} of the "
            f"annotated items{weighted} and of {everywhere[k]:.1%} of all, which does not come "
            "about by chance in a random sample. They were chosen in another way, or the judge was "
            f"trained on them. {_ADVICE}"
        )
        found.append((text, float(p[k])))
    return found


def _confidence(
    dimension: Dimension, sample: Sample, sure: Floats, weighted: str
) -> tuple[str, float]:
    (inside,), (everywhere,), (p,) = sample.away(sure[:, None])
    text = (
        f"{dimension.name}: the judge's mean confidence is {inside:.2f} on the annotated "
        f"items{weighted} and {everywhere:.2f} on all, which does not come about by chance in a "
        "random sample. "
    )
    if inside > everywhere:
        return f"{text}Was it trained on them? {_ADVICE}", float(p)
    most = float(sure[sample.rows].max())
    if above := float((sure > most).mean()):
        text += f"No annotated item has a confidence above {most:.2f}, {above:.0%} of all have. "
    advice = (
        "Items chosen for review are no random sample: say with which probability each was drawn "
        "(--probability; see --review-share of annotate)."
    )
    return text + advice, float(p)


def _agreement(
    dimension: Dimension, sample: Sample, agreed: Floats, sure: Floats
) -> tuple[str, float]:
    fresh = np.ones(len(sure), dtype=bool)
    fresh[sample.rows] = False
    expected = float(sure[fresh].mean())
    inside = float(sample.weights @ agreed) / len(sure)
    text = (
        f"{dimension.name}: the judge agrees with people on {inside:.0%} of the annotated items, "
        f"and its mean confidence on the others is {expected:.2f}. Either it was trained on the "
        "annotated items, or its confidence is too low for these labels, e.g. since they are "
        f"decisions of several people. {_ADVICE}"
    )
    return text, _too_often(sample, agreed, expected + MARGIN)


def _too_often(sample: Sample, agreed: Floats, most: float) -> float:
    """The one-sided p-value of so much agreement where `most` is expected at most."""
    if most >= 1:
        return 1.0
    stats = require("scipy.stats", "evaluate")
    nothing = np.zeros((len(sample.strata), 1))
    influence = sample.influence(nothing, agreed[:, None], 0)
    shown = float((sample.sums(influence - influence.mean()) ** 2).sum())
    error = np.sqrt(max(shown, most * (1 - most) / sample.effective()[0]))
    return float(stats.t.sf((influence.mean() - most) / error, sample.freedom))


def doubt_about_chances(n_items: int, chances: npt.ArrayLike) -> str:
    """A sentence where inclusion probabilities and the number of items do not go together, or "".

    Reciprocals of the probabilities of what was drawn sum to the number of items, give or take the
    standard error of independent draws (Horvitz and Thompson, 1952).
    """
    each = np.asarray(chances, dtype=float)
    total, error = (1 / each).sum(), np.sqrt(((1 - each) / each**2).sum())
    if abs(total - n_items) <= 4 * error + 0.01 * n_items:
        return ""
    return (
        f"By their probabilities, the {len(each)} annotated items stand for {total:,.0f} items; "
        f"the corpus has {n_items:,}. Either not all that were drawn are annotated, and the "
        "missing ones may be missing for a reason, or these are not the probabilities of the draw."
    )
