import numpy as np
import pytest
from slm_judge.training.targets import Targets, dawid_skene, option_weights, resolve

from slm_judge.agreement.aggregate import majority_shares, vote_shares
from slm_judge.data.item import Item, unnamed
from slm_judge.errors import DataError


def item(number, votes):
    return Item(str(number), {"text": "x"}, votes, str(number))


@pytest.fixture
def items():
    return [
        item(0, {"urgency": {"a": 0, "b": 0, "c": 1}, "refund": {"a": 1}}),
        item(1, {"urgency": {"a": 3, "b": 2}}),
    ]


def test_shares():
    assert vote_shares([0, 2, 2, 2], 3) == [0.25, 0.0, 0.75]
    assert vote_shares([], 2) == [0.0, 0.0]
    assert majority_shares([0, 2, 2], 3) == [0, 0, 1]
    assert majority_shares([0, 2], 3) == [0.5, 0, 0.5]
    assert majority_shares([], 2) == [0, 0]


def test_soft_targets(items, support):
    soft = Targets(items, support, "soft")
    assert soft.fixed.shape == (2, 3, 5)
    assert soft.fixed[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert soft.fixed[1, 2].tolist() == [0] * 5  # nobody answered
    assert np.array_equal(soft.draw([1, 0], "any"), soft.fixed[[1, 0]])


def test_sampled_votes_are_votes_and_average_to_the_shares(items, support):
    sampled = Targets(items, support, "sampled")
    draws = np.stack([sampled.draw([0, 1], f"0/{epoch}") for epoch in range(600)])
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert draws.sum(axis=-1)[:, 0, 0].tolist() == [1] * 600
    assert np.abs(draws.mean(axis=0) - sampled.fixed).max() < 0.07
    assert np.array_equal(sampled.draw([1], "0/3"), sampled.draw([0, 1], "0/3")[1:])


def test_auto_follows_the_number_of_votes(support):
    def votes(n):
        return [item(i, {"urgency": {str(a): 0 for a in range(n)}}) for i in range(3)]

    assert [resolve("auto", votes(n), support) for n in (1, 2, 4, 5, 9)] == [
        "soft", "sampled", "sampled", "soft", "soft",
    ]  # fmt: skip
    assert resolve("majority", votes(9), support) == "majority"


def test_dawid_skene_trusts_the_better_annotators(support):
    """Two of five annotators answer at random: the posterior beats the majority."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)
    items = [
        item(
            number,
            {"urgency": {name: int(right if rng.random() < skill else rng.integers(0, 4))
                         for name, skill in zip("abcde", (0.9, 0.85, 0.0, 0.0, 0.0), strict=True)}},
        )
        for number, right in enumerate(truth)
    ]  # fmt: skip
    posterior = dawid_skene(items, support.dimensions[0], 5)
    assert posterior.shape == (300, 5)
    assert posterior.sum(axis=1) == pytest.approx(np.ones(300))
    majority = np.array([majority_shares(list(i.votes["urgency"].values()), 5) for i in items])
    right = [np.mean(table.argmax(axis=1) == truth) for table in (posterior, majority)]
    assert right[0] > right[1] + 0.05
    assert not dawid_skene([item(0, {})], support.dimensions[0], 5).any()


def test_dawid_skene_takes_nobody_for_one_person(support):
    votes = {"urgency": {"ann": 0, unnamed(0): 1}}
    with pytest.raises(DataError, match="2 of 4 annotations of urgency have none"):
        dawid_skene([item(0, votes), item(1, votes)], support.dimension("urgency"), 5)


def test_option_weights():
    targets = np.array([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]])
    assert option_weights(targets, 0.0).tolist() == [[1, 1, 1]]
    full = option_weights(targets, 1.0)
    assert full[0, 0] * 2.5 == pytest.approx(full[0, 1] * 0.5)
    assert (targets.sum(axis=0) * full).sum() == pytest.approx(3)
    assert full[0, 2] == 1
