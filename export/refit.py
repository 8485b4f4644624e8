"""The labels' rows of the output layer, fitted anew to a model whose other weights were rounded.

What rounding changes in the answers is in good part a linear function of the hidden state that the
output layer reads, a shift that all items share first of all. So the row of each label is moved by
the ridge regression of what its logit lost on those states, in closed form, on prompts of training
items. Rows of the output layer keep 6 bits or more in every file. Where they are the input
embeddings too, the rubric is read a little differently afterwards, which is measured.
"""

from collections.abc import Sequence
from typing import Any

from slm_judge.errors import require
from slm_judge.rubric import Rubric

CHECKED = 32
"""Items by which the rows are kept, or given back: where they are the input embeddings too, the
fit cannot know what that does."""
PENALTIES = tuple(10.0**-n for n in range(9))
"""Of the ridge, times the largest eigenvalue; the one with the smallest leave-one-out error."""


def states(model: Any, packs: Sequence[dict[str, Any]]) -> Any:
    """What the output layer reads at the slots: slots (item by item) x channels, float32."""
    torch, found = require("torch", "export"), list[Any]()
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: found.append(given[0].flatten(0, -2).float().cpu())
    )
    try:
        for inputs in packs:
            model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return torch.cat(found)


def label_logits(model: Any, hidden: Any, ids: Sequence[int], rubric: Rubric) -> Any:
    """Per item and dimension, the logits of the labels minus the mean of the dimension's.

    Returns:
        items x dimensions x labels; 0 where a dimension has no such option.
    """
    torch = require("torch", "export")
    rows = model.get_output_embeddings().weight[list(ids)].float().cpu()
    logits = (hidden @ rows.T).unflatten(0, (-1, len(rubric.dimensions)))
    centred = torch.zeros_like(logits)
    for k, dimension in enumerate(rubric.dimensions):
        own = logits[:, k, : len(dimension.options)]
        centred[:, k, : own.shape[1]] = own - own.mean(dim=1, keepdim=True)
    return centred


def refit_labels(
    model: Any, packs: Sequence[dict[str, Any]], wanted: Any, ids: Sequence[int], rubric: Rubric
) -> None:
    """Move the labels' rows so that the logits come near `wanted`; else they stay as they were.

    Args:
        model: with rounded weights.
        packs: of training items.
        wanted: items x dimensions x labels, `label_logits` before the rounding.
        ids: of the labels' tokens.
        rubric: of the judge.
    """
    weight = model.get_output_embeddings().weight
    before, hidden = weight[list(ids)].clone(), states(model, packs)
    lost = wanted - label_logits(model, hidden, ids, rubric)
    _fit(model, hidden, lost, ids, rubric)
    checked, dimensions = 0, len(rubric.dimensions)
    for number, one in enumerate(packs, start=1):
        checked += one["logits_to_keep"].numel() // dimensions
        if checked >= CHECKED:
            packs = packs[:number]
            break
    left = wanted[:checked] - label_logits(model, states(model, packs), ids, rubric)
    if not left.square().mean() < lost[:checked].square().mean():
        weight[list(ids)] = before


def _fit(model: Any, hidden: Any, lost: Any, ids: Sequence[int], rubric: Rubric) -> None:
    hidden = hidden.unflatten(0, (-1, len(rubric.dimensions)))
    weight = model.get_output_embeddings().weight
    for label, token in enumerate(ids):
        asked = [k for k, d in enumerate(rubric.dimensions) if label < len(d.options)]
        if asked:
            change = _ridge(hidden[:, asked].flatten(0, 1), lost[:, asked, label].flatten())
            weight[token] += change.to(weight)


def _ridge(x: Any, y: Any) -> Any:
    """Coefficients of y on x, with the penalty that predicts left-out rows best (Allen, 1974)."""
    torch = require("torch", "export")
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    projected, best = u.T @ y.double(), (torch.inf, None)
    for penalty in PENALTIES:
        shrunk = s**2 / (s**2 + penalty * s[0] ** 2)
        leverage = (u.square() * shrunk).sum(dim=1)
        error = (((y - u @ (shrunk * projected)) / (1 - leverage)) ** 2).mean().item()
        if error < best[0]:
            best = error, shrunk
    shrunk = best[1]
    if shrunk is None or best[0] >= y.square().mean():  # no better than to leave the row
        return torch.zeros_like(vh[0])
    return vh.T @ (shrunk / s.clamp(min=1e-12) * projected)
