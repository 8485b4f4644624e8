"""Bias probes that run the judge: does it answer by what an option says, or by where it stands?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from slm_judge.agreement.bootstrap import RESAMPLES, Bootstrap, Interval
from slm_judge.agreement.compare import share_widened
from slm_judge.agreement.scores import agreeing_share
from slm_judge.data.item import Item, votes_of
from slm_judge.judge.answer import collected, leanings
from slm_judge.judge.judge import Judge

PROBED_ITEMS = 300  # with another order of options


def option_order(
    judge: Judge,
    items: Sequence[Item],
    given: Mapping[str, Sequence[int]],
    advance: Callable[[], object] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """List every dimension's options in reverse, and see what the judge says then.

    A judge that was trained without `shuffle_options` may go by the label's letter, and says so
    here.

    Args:
        judge: the judge.
        items: N items.
        given: what it said about them, per dimension N option indices.
        advance: called after each item.
        resamples: of the bootstrap over items, or their groups.
        seed: of it.

    Returns:
        Per dimension: `consistency`, the share of equal labels, and `agreement_change`, the change
        in the share of annotators who agree, each with its interval; nan where nobody answered.
    """
    rubric, backend = judge.rubric, judge.backend
    reader = backend.reader_of(rubric.reversed())
    prompts = judge.encode([item.state for item in items], reader)
    backend.expect(reader)
    try:
        logits = collected(rubric, judge.decide(prompts, reverse=True), len(items), advance)
    finally:
        backend.expect(backend.reader)
    groups = [item.group for item in items]
    found: dict[str, dict[str, Any]] = {}
    for dimension, raw in zip(rubric.dimensions, logits, strict=True):
        n_options = len(dimension.options)
        how, before = backend.contract.calibration(dimension), np.asarray(given[dimension.name])
        after = leanings(dimension, raw, how).argmax(axis=-1)
        votes = votes_of(items, dimension.name)
        agree = [agreeing_share(labels, votes, n_options) for labels in (before, after)]
        changes = np.where(before < 0, np.nan, agree[1] - agree[0])  # nan: not asked
        found[dimension.name] = {"items": len(items)}
        same = np.where(before < 0, np.nan, before == after)
        for name, per_item in (("consistency", same), ("agreement_change", changes)):
            rows = np.flatnonzero(np.isfinite(per_item))
            own = [groups[row] for row in rows]
            mean = _mean(per_item[rows], Bootstrap(len(rows), resamples, seed, own))
            if name == "consistency":
                mean = share_widened(mean, per_item[rows], own)
            found[dimension.name][name] = mean.as_dict()
    return found


def _mean(per_item: Any, bootstrap: Bootstrap) -> Interval:
    if not len(per_item):
        return Interval(*[float("nan")] * 3)
    sums = np.stack([np.asarray(per_item, dtype=float), np.ones(len(per_item))], axis=1)
    return bootstrap.interval(sums, lambda totals: totals[..., 0] / totals[..., 1])
