import numpy as np
import pytest
from slm_judge.training.calibration import BOUNDS, fit_temperatures, log_loss

from slm_judge.data.item import Item


def overconfident(support, n=400):
    """Items whose votes follow logits / 2, and those logits."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(scale=4, size=(n, len(d.options))) for d in support.dimensions]
    items = []
    for i in range(n):
        votes = {}
        for rows, d in zip(logits, support.dimensions, strict=True):
            p = np.exp(rows[i] / 2 - (rows[i] / 2).max())
            votes[d.name] = {"": int(rng.choice(len(p), p=p / p.sum()))}
        items.append(Item(str(i), {}, votes, str(i)))
    return items, logits


def test_temperatures_undo_overconfidence(support):
    items, logits = overconfident(support)
    found = fit_temperatures(support, items, logits)
    assert found == pytest.approx({"score": 2.0, "choice": 2.0, "noul": 2.0}, rel=0.2)


def test_few_items_keep_temperature_1(support):
    items, logits = overconfident(support, n=10)
    assert set(fit_temperatures(support, items, logits).values()) == {1.0}


def test_temperatures_stay_within_bounds(support):
    items, logits = overconfident(support)
    flat = fit_temperatures(support, items, [rows * 1e-3 for rows in logits])
    assert all(BOUNDS[0] <= t <= BOUNDS[1] for t in flat.values())


def test_log_loss_of_a_uniform_guess():
    assert log_loss([np.zeros((3, 4))], [np.eye(4)[:3]], 1.0) == pytest.approx(np.log(4))
