"""From logits to probabilities: temperatures of dimensions, and the priors of class_balance."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from slm_judge.training.calibration import fit_calibration
from slm_judge.training.targets import option_weights

from slm_judge import Rubric
from slm_judge.agreement.calibration import calibration_error, cross_entropy
from slm_judge.artefact.calibration import Calibration
from slm_judge.data.item import Item
from slm_judge.judge.answer import probabilities, softmax


def drawn(dimensions, scales, n=400, seed=0):
    """Items whose votes follow logits / scale of the dimension, and those logits."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(scale=4, size=(n, len(d.options))) for d in dimensions]
    items = []
    for i in range(n):
        votes = {}
        for rows, d, scale in zip(logits, dimensions, scales, strict=True):
            p = softmax(rows[i], scale)
            votes[d.name] = {"": int(rng.choice(len(p), p=p))}
        items.append(Item(str(i), {}, votes, str(i)))
    return items, logits


@pytest.fixture(scope="module")
def two():
    """Two dimensions of one type."""
    one = {"type": "choice", "instructions": "i", "options": ["a", "b", "c"]}
    return Rubric.model_validate(
        {"name": "r", "instructions": "i", "fields": ["text"],
         "dimensions": [{"name": "d", **one}, {"name": "e", **one}]}
    )  # fmt: skip


def test_temperatures_undo_overconfidence(support):
    items, logits = drawn(support.dimensions, [2, 2, 2])
    by_type, own = fit_calibration(support, items, logits)
    assert by_type == pytest.approx({"score": 2.0, "choice": 2.0, "noul": 2.0}, rel=0.2)
    # With one dimension a type, stock engines give the same probabilities.
    assert {d.type: own[d.name].temperature for d in support.dimensions} == by_type


def test_a_dimension_has_its_own_temperature_where_it_has_votes_enough(two):
    items, logits = drawn(two.dimensions, [1, 3])
    by_type, own = fit_calibration(two, items, logits)
    assert own["d"].temperature == pytest.approx(1, rel=0.15)
    assert own["e"].temperature == pytest.approx(3, rel=0.2)
    assert own["d"].temperature < by_type["choice"] < own["e"].temperature
    few = [Item(i.item_id, {}, dict([*i.votes.items()][: 2 if k < 5 else 1]), "")
           for k, i in enumerate(items)]  # fmt: skip
    by_type, own = fit_calibration(two, few, logits)
    assert own["e"].temperature < 1.5  # five say little against their type
    none = [Item(i.item_id, {}, {"d": i.votes["d"]}, "") for i in items]
    by_type, own = fit_calibration(two, none, logits)
    assert own["e"].temperature == pytest.approx(by_type["choice"], rel=1e-3)


def test_few_items_keep_temperature_1(support):
    by_type, own = fit_calibration(support, *drawn(support.dimensions, [2, 2, 2], n=10))
    assert set(by_type.values()) == {1.0}
    assert set(own.values()) == {Calibration()}
    unanswered = [Item("1", {}, {}, "1")]
    rows = [np.zeros((1, len(d.options))) for d in support.dimensions]
    assert set(fit_calibration(support, unanswered, rows)[0].values()) == {1.0}


@pytest.mark.parametrize(("factor", "bound", "which"), [(1e-3, 0.5, "least"), (1e3, 5.0, "most")])
def test_a_temperature_at_its_bound_is_known_as_such(support, factor, bound, which):
    items, logits = drawn(support.dimensions, [1, 1, 1])
    by_type, own = fit_calibration(support, items, [rows * factor for rows in logits])
    assert set(by_type.values()) == {bound}
    assert all(one.bound == which for one in own.values())
    assert not any(o.bound for o in fit_calibration(support, items, logits)[1].values())


def test_what_was_learned_at_a_temperature_is_calibrated_around_it(support):
    items, logits = drawn(support.dimensions, [2, 2, 2])
    plain, own = fit_calibration(support, items, logits)
    hot = [rows * 3 for rows in logits]
    by_type, calibrations = fit_calibration(support, items, hot, learned_at=3.0)
    assert by_type == pytest.approx({kind: 3 * t for kind, t in plain.items()}, rel=1e-3)
    for name, one in calibrations.items():
        assert one.temperature == pytest.approx(3 * own[name].temperature, rel=1e-3)
    # Where nothing can be fitted it is that of training; and bounds are as far from it.
    few = fit_calibration(support, items[:10], [rows[:10] for rows in hot], learned_at=3.0)
    assert set(few[0].values()) == {3.0}
    far = fit_calibration(support, items, [rows * 6 for rows in hot], learned_at=3.0)[1]
    assert {(one.temperature, one.bound) for one in far.values()} == {(15.0, "most")}


def weighed(n, exponent, seed, n_options=3):
    """Logits of a model that learned with balanced options from data with rare ones."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_options, 20_000 + 2 * n, p=[0.8, 0.15, 0.05])
    texts = rng.normal(size=(len(labels), 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[labels]
    train = slice(0, 20_000)
    weights = option_weights(np.eye(n_options)[labels[train]][:, None], exponent)
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(texts[train], labels[train], sample_weight=weights[0][labels[train]])
    logits, held = model.decision_function(texts[20_000:]), labels[20_000:]
    return logits[:n], held[:n], logits[n:], held[n:], weights


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_probabilities_of_a_class_balanced_judge_are_those_of_this_world(two, exponent):
    n = 4000
    logits, votes, new, truth, weights = weighed(n, exponent, seed=1)
    items = [Item(str(i), {}, {"d": {"": int(v)}, "e": {"": int(v)}}, "") for i, v in
             enumerate(votes)]  # fmt: skip
    both = np.repeat(weights, 2, axis=0)
    _, own = fit_calibration(two, items, [logits, logits], both)
    assert own["d"].shift == pytest.approx(np.log(weights[0]), abs=1e-4)
    by_type, plain = fit_calibration(two, items, [logits, logits])
    shares, one_hot = probabilities(new, own["d"]), np.eye(3)[truth]
    assert shares.mean(axis=0) == pytest.approx([0.8, 0.15, 0.05], abs=0.015)
    without = probabilities(new, plain["d"])
    assert cross_entropy(shares, one_hot) < cross_entropy(without, one_hot) - 0.01

    def error(p):
        labels = new.argmax(axis=1)
        everyone = np.arange(len(new))
        sure, right = p[everyone, labels], (labels == truth).astype(float)
        return calibration_error(sure, right, np.ones(len(new), dtype=int))

    assert error(shares).low == 0
    assert exponent < 1 or error(without).low > 0
    assert abs(without.mean(axis=0)[0] - 0.8) > 0.04 * exponent
    # Labels stay the balanced ones, so some are not the most probable option.
    assert (new.argmax(axis=1) != shares.argmax(axis=1)).mean() > 0.02
    assert by_type["choice"] == plain["d"].temperature


def test_a_shift_that_the_judge_did_not_learn_is_left(two):
    """An ordinal loss is not weighed, and a short training learns no priors."""
    items, logits = drawn(two.dimensions, [1, 1])
    weights = np.array([[1.0, 5.0, 25.0]] * 2)
    _, own = fit_calibration(two, items, logits, weights)
    assert [one.shift for one in own.values()] == [(), ()]
