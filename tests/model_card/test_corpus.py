"""Thresholds for asking humans, and estimates for a corpus."""

import json

import numpy as np
import pandas as pd
import pytest
from slm_judge.export.verify import verify

from slm_judge import Judge, Rubric
from slm_judge.cli import main
from slm_judge.data.item import load_split
from slm_judge.errors import DataError
from slm_judge.evaluation.estimate import as_json, estimate, estimate_table
from slm_judge.evaluation.threshold import threshold_table, thresholds


@pytest.fixture(scope="module")
def verified(run):
    verify(run)
    return run


def test_training_keeps_what_the_adapter_said_about_validation(run):
    lines = [json.loads(line) for line in run.validation.read_text().splitlines()]
    items = load_split(run.data, "validation")
    assert [line["item_id"] for line in lines] == [item.item_id for item in items]
    with Judge.from_pretrained(run.adapter) as judge:
        for line, given in zip(lines, judge.annotate([i.state for i in items]), strict=True):
            expected = list(given.probabilities["topic"].values())
            assert line["topic_probabilities"] == pytest.approx(expected, abs=1e-3)


def test_thresholds_are_chosen_on_validation_and_tried_on_test(verified):
    report = thresholds(verified, 0.3)
    assert json.loads((verified.report / "threshold.json").read_text()) == report
    for found in report.values():
        if found["threshold"] is not None:
            assert found["validation"]["error"] <= 0.3 < found["validation"]["error_upper"] + 0.3
        assert {"adapter", "Q4_K_M"} <= set(found["test"])
    # All errors are accepted: everything is kept.
    everything = thresholds(verified, 0.999)
    assert all(f["validation"]["coverage"] == 1 for f in everything.values())
    assert threshold_table(everything, 0.999).row_count > len(everything)
    with pytest.raises(DataError, match="between 0 and 1"):
        thresholds(verified, 10)


def test_verify_makes_the_report(verified):
    report = json.loads((verified.report / "report.json").read_text())
    assert set(report["dimensions"]) == {"urgency", "topic", "refund"}
    order = report["probes"]["option_order"]["topic"]
    assert 0 <= order["consistency"]["low"] <= order["consistency"]["high"] <= 1
    assert "Order of the options" in (verified.report / "report.html").read_text()


def corpus(folder, bias=0.3, n=2000, labelled=300, seed=0):
    """A judge that calls too many items true, and humans who know."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    judged = truth | (rng.random(n) < bias)
    levels = rng.integers(1, 5, n)
    table = pd.DataFrame(
        {
            "item_id": range(n),
            "urgency": np.clip(levels + (rng.random(n) < 0.5), 1, 4),
            "topic": "billing",
            "refund": judged,
        }
    )
    table.to_parquet(folder / "corpus.parquet")
    humans = pd.DataFrame(
        {"item_id": range(labelled), "urgency": levels[:labelled], "topic": "billing",
         "refund": np.where(truth[:labelled], "true", "false")}
    )  # fmt: skip
    humans.to_csv(folder / "humans.csv", index=False)
    return truth.mean(), levels.mean()


def test_estimates_correct_the_judge(tmp_path, support):
    share, mean = corpus(tmp_path)
    found = estimate(str(tmp_path / "corpus.parquet"), str(tmp_path / "humans.csv"), support)
    refund, urgency = found["refund"]["true"], found["urgency"]["mean"]
    assert refund.judge_alone > share + 0.1
    assert refund.prediction_powered.low < share < refund.prediction_powered.high
    assert urgency.judge_alone > mean + 0.2
    assert urgency.prediction_powered.low < mean < urgency.prediction_powered.high
    narrow = urgency.prediction_powered.high - urgency.prediction_powered.low
    assert narrow < urgency.humans_alone.high - urgency.humans_alone.low
    assert found["topic"]["billing"].prediction_powered.estimate == pytest.approx(1.0)
    assert (refund.n_human, refund.n_judged) == (300, 1700)
    assert estimate_table(found).row_count == 3 + 1 + 5 + 2
    assert as_json(found)["refund"]["true"]["n_human"] == 300


def test_too_few_labels(tmp_path, support):
    corpus(tmp_path, labelled=1)
    with pytest.raises(DataError, match="1 items have a label of people and of the judge"):
        estimate(str(tmp_path / "corpus.parquet"), str(tmp_path / "humans.csv"), support)
    with pytest.raises(DataError, match="lacks the columns judge_urgency"):
        estimate(
            str(tmp_path / "corpus.parquet"), str(tmp_path / "humans.csv"), support, prefix="judge_"
        )


def test_the_command_line(tmp_path, support, monkeypatch, capsys):
    corpus(tmp_path)
    rubric = tmp_path / "rubric.json"
    rubric.write_text(support.model_dump_json())
    assert Rubric.from_file(rubric) == support
    arguments = ["slm-judge", "estimate", str(tmp_path / "corpus.parquet"), "--annotations",
                 str(tmp_path / "humans.csv"), "--rubric", str(rubric), "--output",
                 str(tmp_path / "e.json")]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "prediction-powered" in capsys.readouterr().out
    assert json.loads((tmp_path / "e.json").read_text())["urgency"]["mean"]["n_human"] == 300
