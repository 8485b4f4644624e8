import pytest
import torch
from slm_judge.training.loss import (
    ORDINAL,
    SlotLoss,
    option_logits,
    ranked_probability_score,
    squared_error,
)

from slm_judge import Rubric

RUBRIC = Rubric.parse(
    {
        "name": "r", "instructions": "?", "fields": ["text"],
        "dimensions": [
            {"name": "level", "type": "score", "instructions": "?", "options": [1, 2, 3]},
            {"name": "kind", "type": "choice", "instructions": "?", "options": ["a", "b"]},
        ],
    },
    "test",
)  # fmt: skip
LABEL_IDS = [5, 2, 0]
LOGITS = torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
PLAIN = torch.tensor([[0, 1, 2], [0, 1, 2]])


def test_cross_entropy_of_the_answered_slots_over_the_vocabulary():
    expected = -(
        LOGITS[0, 0].log_softmax(0)[5]
        + LOGITS[0, 1].log_softmax(0)[[5, 2]].mean()
        + LOGITS[1, 1].log_softmax(0)[2]
    )
    loss = SlotLoss(RUBRIC, LABEL_IDS)(LOGITS, TARGETS, PLAIN)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_saying_an_option_at_all_has_a_weight_of_its_own():
    two = LOGITS[:, 1][:, LABEL_IDS[:2]].log_softmax(-1)  # the second dimension has two options
    among = -(LOGITS[0, 0][LABEL_IDS].log_softmax(0)[0] + two[0].mean() + two[1][1])
    at_all = SlotLoss(RUBRIC, LABEL_IDS)(LOGITS, TARGETS, PLAIN) - among
    assert at_all > 0.1
    for weight in (0.0, 0.25):
        loss = SlotLoss(RUBRIC, LABEL_IDS, vocabulary_weight=weight)(LOGITS, TARGETS, PLAIN)
        assert loss.item() == pytest.approx((among + weight * at_all).item(), rel=1e-6)


def test_a_temperature_asks_for_logits_that_are_further_apart():
    """Of the options among themselves, not beside other tokens; of levels in the ordinal term."""
    hot = LOGITS.clone()
    hot[..., LABEL_IDS] *= 3
    kept = {"vocabulary_weight": 0.0, "ordinal_weight": 2.0}
    plain = SlotLoss(RUBRIC, LABEL_IDS, **kept)(LOGITS, TARGETS, PLAIN)
    cooled = SlotLoss(RUBRIC, LABEL_IDS, temperature=3.0, **kept)(hot, TARGETS, PLAIN)
    assert cooled.item() == pytest.approx(plain.item(), rel=1e-5)
    two = [
        SlotLoss(RUBRIC, LABEL_IDS, temperature=3.0, vocabulary_weight=weight)(
            LOGITS, TARGETS, PLAIN
        )
        for weight in (0.0, 1.0)
    ]
    at_all = [
        SlotLoss(RUBRIC, LABEL_IDS, vocabulary_weight=weight)(LOGITS, TARGETS, PLAIN)
        for weight in (0.0, 1.0)
    ]
    assert (two[1] - two[0]).item() == pytest.approx((at_all[1] - at_all[0]).item(), rel=1e-5)


def test_a_shuffle_moves_the_label_and_not_the_target():
    """Option 0 behind label 2: its target is the probability of label 2's token."""
    shuffled = torch.tensor([[2, 0, 1], [1, 0, 2]])
    assert option_logits(LOGITS, torch.tensor(LABEL_IDS), shuffled)[0, 0].tolist() == (
        LOGITS[0, 0][[0, 5, 2]].tolist()
    )
    expected = -(
        LOGITS[0, 0].log_softmax(0)[0]
        + LOGITS[0, 1].log_softmax(0)[[2, 5]].mean()
        + LOGITS[1, 1].log_softmax(0)[5]
    )
    loss = SlotLoss(RUBRIC, LABEL_IDS)(LOGITS, TARGETS, shuffled)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_ranked_probability_score():
    # Epstein's score by hand: F = .2, .7; O = 0, 1 -> (.04 + .09) / 2.
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    score = ranked_probability_score(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    assert score.item() == pytest.approx(0.065, rel=1e-5)
    right = ranked_probability_score(
        torch.tensor([[0.0, 99.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    )
    assert right.item() == pytest.approx(0, abs=1e-9)
    far, near = (
        ranked_probability_score(torch.tensor([row]), torch.tensor([[1.0, 0.0, 0.0]]))
        for row in ([0.0, 0.0, 99.0], [0.0, 99.0, 0.0])
    )
    assert (far.item(), near.item()) == pytest.approx((1.0, 0.5))
    assert ranked_probability_score(logits, torch.zeros(1, 3)).item() == 0


def test_the_ordinal_term_counts_scores_alone():
    plain = SlotLoss(RUBRIC, LABEL_IDS)(LOGITS, TARGETS, PLAIN)
    both = SlotLoss(RUBRIC, LABEL_IDS, ordinal_weight=2.0)(LOGITS, TARGETS, PLAIN)
    term = ranked_probability_score(LOGITS[:, 0][:, LABEL_IDS], TARGETS[:, 0]).sum()
    assert (both - plain).item() == pytest.approx(2 * term.item(), rel=1e-5)


def test_option_weights_weigh_the_targets():
    weights = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    plain = SlotLoss(RUBRIC, LABEL_IDS)(LOGITS, TARGETS, PLAIN)
    weighed = SlotLoss(RUBRIC, LABEL_IDS, option_weights=weights)(LOGITS, TARGETS, PLAIN)
    assert (weighed - plain).item() == pytest.approx(
        -LOGITS[0, 0].log_softmax(0)[5].item(), rel=1e-5
    )


def test_squared_error_of_the_expected_level():
    # Levels 0, 1/2, 1: .25 + .3 = .55 expected, 1/2 the annotators'.
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert squared_error(logits, torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(0.0025)
    assert squared_error(logits, torch.zeros(1, 3)).item() == 0
    both = [
        SlotLoss(RUBRIC, LABEL_IDS, 2.0, ordinal=ORDINAL[name])(LOGITS, TARGETS, PLAIN)
        - SlotLoss(RUBRIC, LABEL_IDS)(LOGITS, TARGETS, PLAIN)
        for name in ("rps", "squared_error")
    ]
    scores = LOGITS[:1, 0, LABEL_IDS]
    for added, loss in zip(both, ORDINAL.values(), strict=True):
        assert added.item() == pytest.approx(2 * loss(scores, TARGETS[:1, 0]).item(), rel=1e-4)
