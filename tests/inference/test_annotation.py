import numpy as np
import pytest

from slm_judge.artefact.calibration import Calibration
from slm_judge.judge.answer import softmax
from tests.conftest import annotation_from_logits


def test_labels_are_the_annotators_values(support):
    logits = [[0.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 9.0], [1.0, 1.0]]
    halved = {"score": Calibration(temperature=2.0)}
    annotation = annotation_from_logits(
        support, logits, lambda d: halved.get(d.type, Calibration())
    )
    assert annotation.labels == {"urgency": 2, "topic": "praise", "refund": False}
    assert annotation.probabilities["urgency"][2] == pytest.approx(softmax([0, 3, 1, 0], 2.0)[1])
    assert annotation.confidence["refund"] == 0.5
    for probabilities in annotation.probabilities.values():
        assert sum(probabilities.values()) == pytest.approx(1)


def test_softmax_of_large_logits():
    assert softmax([1e4, 1e4]).tolist() == [0.5, 0.5]
    assert np.isfinite(softmax([[-1e9, 0.0]])).all()


def test_labels_stay_balanced_where_probabilities_are_of_this_world(support):
    """With `training.class_balance`, a label need not be the most probable option."""
    logits = [[0.0, 0.0, 0.0, 0.0], [0.0] * 5, [1.0, 1.5]]
    common = {"refund": Calibration(shift=(-1.0, 1.0))}
    annotation = annotation_from_logits(
        support, logits, lambda d: common.get(d.name, Calibration())
    )
    assert annotation.labels["refund"] is True
    assert annotation.confidence["refund"] == pytest.approx(softmax([2.0, 0.5])[1])
    assert annotation.confidence["refund"] < annotation.probabilities["refund"][False]
