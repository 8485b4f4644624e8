import numpy as np
import pytest

from slm_judge.judge.answer import annotation_from_logits, softmax


def test_labels_are_the_annotators_values(support):
    logits = [[0.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 9.0], [1.0, 1.0]]
    annotation = annotation_from_logits(support.dimensions, logits, {"score": 2.0})
    assert annotation.labels == {"urgency": 2, "topic": "praise", "refund": False}
    assert annotation.probabilities["urgency"][2] == pytest.approx(softmax([0, 3, 1, 0], 2.0)[1])
    assert annotation.confidence["refund"] == 0.5
    for probabilities in annotation.probabilities.values():
        assert sum(probabilities.values()) == pytest.approx(1)


def test_softmax_of_large_logits():
    assert softmax([1e4, 1e4]).tolist() == [0.5, 0.5]
    assert np.isfinite(softmax([[-1e9, 0.0]])).all()
