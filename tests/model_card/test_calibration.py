"""What the page says of confidences, where it is known whether they are right."""

import numpy as np
import pytest
from slm_judge.model_card.page import calibration

from benchmarks.guarantees import JUDGES, confidences
from slm_judge import Rubric
from slm_judge.agreement.calibration import calibration_error
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.judge_files import Contract, calibration_notes


def sentence(name, n):
    rng = np.random.default_rng(0)
    sure = confidences(n, rng)
    right = (rng.random(n) < JUDGES[name](sure)).astype(float)
    return calibration(calibration_error(sure, right, np.ones(n, dtype=int)).as_dict())


@pytest.mark.parametrize("n", [50, 300, 1000])
def test_a_perfect_judge_is_said_to_be_not_shown_to_be_off(n):
    said = sentence("perfect", n)
    assert "not shown to be off; it may be by up to 0." in said
    assert "a perfect judge would show 0." in said


def test_a_judge_that_is_off_is_said_to_be_so_where_the_items_suffice():
    assert "is off, by 0." in sentence("too sure", 1000)
    assert "not shown to be off" in sentence("too sure", 60)


def test_what_people_should_know_about_probabilities_is_said():
    one = {"type": "noul", "instructions": "i"}
    rubric = Rubric.model_validate(
        {"name": "r", "instructions": "i", "fields": ["text"],
         "dimensions": [{"name": name, **one} for name in ("a", "b", "c")]}
    )  # fmt: skip
    plain = Contract(rubric, "", "", ())
    assert calibration_notes(plain) == []
    same = plain.calibrated({"noul": 1.5}, dict.fromkeys("abc", Calibration(temperature=1.5)))
    assert calibration_notes(same) == []
    notes = calibration_notes(
        plain.calibrated(
            {"noul": 1.5},
            {"a": Calibration(temperature=5.0, bound="most"),
             "b": Calibration(temperature=0.5, bound="least"),
             "c": Calibration(temperature=1.5, shift=(-0.3, 0.7))},
        )
    )  # fmt: skip
    assert notes[0].startswith("a: the temperature that calibrates it is at its bound, 5")
    assert "still too high" in notes[0]
    assert "still too low" in notes[1]
    assert notes[2].startswith("c: labels are chosen as if options were balanced")
    assert notes[3].startswith("a, b, c: transformers' own pipeline and llama-server")
