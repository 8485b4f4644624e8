"""Thresholds for asking humans, and estimates for a corpus."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from slm_judge.export.answers import ask
from slm_judge.export.verify import verify

from slm_judge import Judge, Rubric
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import STABLE_DIGITS, AnnotateOptions
from slm_judge.cli import main
from slm_judge.data.item import Item, load_split
from slm_judge.errors import DataError
from slm_judge.evaluation.estimate import Drawing, as_json, estimate, estimate_table
from slm_judge.evaluation.evaluate import evaluate, of_run
from slm_judge.evaluation.threshold import threshold_notes, threshold_table, thresholds


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
        if found["estimate"]["threshold"] is not None:
            assert found["estimate"]["error"] <= 0.3 < found["estimate"]["error_upper"] + 0.3
        assert {"adapter", "Q4_K_M"} <= set(found["test"])
    # All errors are accepted: everything is kept.
    everything = thresholds(verified, 0.999, 0.01)
    assert all(f["estimate"]["coverage"] == 1 for f in everything.values())
    for found in everything.values():
        for one in found["test"].values():
            assert one["guaranteed"]["coverage"] > 0 or one["guaranteed"]["error"] is None
    assert len(threshold_table(everything, 0.999, 0.01).rows) > len(everything)
    for error, confidence in ((10, 0.9), (0.1, 1.0), (0.1, float("nan"))):
        with pytest.raises(DataError, match="between 0 and 1"):
            thresholds(verified, error, confidence)


def test_what_cannot_be_guaranteed_is_said(verified):
    """The run has a few dozen test items."""
    report = thresholds(verified, 0.001)
    notes = " ".join(threshold_notes(report))
    for name, found in report.items():
        assert name in notes
        assert all(artefact in notes for artefact in found["test"])
    said = re.findall(r"test items; (.*?)\.(?: |$)", notes)
    assert said
    assert all("would be enough" in one or one.startswith("more would not help") for one in said)
    shown = "\n".join(line for line, _ in threshold_table(report, 0.001).lines(80))
    assert "on new ones about as often as not" in shown.replace("\n", " ")
    unverified = {"topic": {"estimate": report["topic"]["estimate"], "test": {}}}
    assert "run `slm-judge verify` first" in threshold_notes(unverified)[0]


def test_review_below_a_threshold_keeps_the_promised_rows(verified, tmp_path):
    report, items = thresholds(verified, 0.3), load_split(verified.data, "test")
    table = pd.DataFrame([{"item_id": item.item_id, **item.state} for item in items])
    table.to_csv(tmp_path / "test.csv", index=False)
    with Judge.from_pretrained(verified.gguf_file("Q8_0")) as judge:
        annotate_table(judge, str(tmp_path / "test.csv"), tmp_path / "o.csv", show_progress=False)
        written = pd.read_csv(tmp_path / "o.csv")
        for name, found in report.items():
            threshold = found["estimate"]["threshold"]
            if threshold is None:
                continue
            assert round(threshold, STABLE_DIGITS) == threshold
            promised, answered = found["test"]["Q8_0"], written[f"{name}_confidence"]
            assert promised["items"] == len(items)
            kept = (answered >= threshold).sum()
            assert kept == round(promised["coverage"] * len(items))
        chosen = [f["estimate"]["threshold"] for f in report.values()]
        lowest = max(one for one in chosen if one is not None)
        options = AnnotateOptions(review_below=lowest)
        summary = annotate_table(judge, str(tmp_path / "test.csv"), tmp_path / "r.csv", options,
                                 show_progress=False)  # fmt: skip
    columns = [f"{name}_confidence" for name in report]
    assert summary.reviewed == (written[columns] < lowest).any(axis=1).sum()
    shown = "\n".join(line for line, _ in threshold_table(report, 0.3).lines(80))
    assert f"{lowest:.{STABLE_DIGITS}f}" in shown


def test_an_item_that_is_too_long_is_named(run):
    long = Item("the-long-one", {"text": "word " * 20_000}, {}, "g")
    with (
        Judge.from_pretrained(run.gguf_file("Q8_0")) as judge,
        pytest.raises(DataError, match=r"Item the-long-one needs .* tokens, but there is room for"),
    ):
        ask(judge, [*load_split(run.data, "test")[:2], long])


def test_a_report_is_made_again_without_a_model(verified, monkeypatch):
    """Evaluating a run reads what verify kept."""
    made = json.loads((verified.report / "report.json").read_text())

    def opened(*_args, **_options):
        pytest.fail("a model was opened")

    monkeypatch.setattr(Judge, "from_pretrained", opened)
    assert json.loads(json.dumps(evaluate(of_run(verified)))) == made


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
            **{f"{d}_confidence": rng.random(n) for d in ("urgency", "topic", "refund")},
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
    refund, urgency = found.dimensions["refund"]["true"], found.dimensions["urgency"]["mean"]
    assert refund.judge_alone > share + 0.1
    assert refund.prediction_powered.low < share < refund.prediction_powered.high
    assert urgency.judge_alone > mean + 0.2
    assert urgency.prediction_powered.low < mean < urgency.prediction_powered.high
    narrow = urgency.prediction_powered.high - urgency.prediction_powered.low
    assert narrow < urgency.humans_alone.high - urgency.humans_alone.low
    assert found.dimensions["topic"]["billing"].prediction_powered.estimate == pytest.approx(1.0)
    assert (refund.n_human, refund.n_judged) == (300, 1700)
    assert len(estimate_table(found).rows) == 3 + 1 + 5 + 2
    assert found.notes == []
    assert as_json(found)["dimensions"]["refund"]["true"]["n_human"] == 300


def test_what_does_not_count_in_an_estimate_is_said(tmp_path, support):
    corpus(tmp_path)
    table = pd.read_parquet(tmp_path / "corpus.parquet").astype(object)
    table["outcome"] = "annotated"
    table.loc[1990:, ["urgency", "topic", "refund"]] = None
    table.loc[1990:, "outcome"] = "empty field: text"
    table.loc[1989, "topic"] = "weather"
    table.to_csv(tmp_path / "corpus.csv", index=False)
    humans = pd.read_csv(tmp_path / "humans.csv", dtype=str)
    humans.loc[:9, "topic"] = "Billing"
    humans.loc[10, "topic"] = "sunshine"
    humans.to_csv(tmp_path / "humans.csv", index=False)
    found = estimate(str(tmp_path / "corpus.csv"), str(tmp_path / "humans.csv"), support)
    said = " ".join(found.notes)
    assert (
        "11 of 2000 rows do not count for topic: empty field: text (10), 'weather' is not" in said
    )
    assert "10 of 2000 rows do not count for refund: empty field: text (10)." in said
    assert "'Billing' as billing (10 times)" in said
    assert "left out 1 x labels of topic outside the rubric" in said
    assert found.dimensions["topic"]["billing"].n_human == 299
    assert found.dimensions["refund"]["true"].n_judged == 1690


def test_too_few_labels(tmp_path, support):
    corpus(tmp_path, labelled=1)
    with pytest.raises(DataError, match="1 items have a label of people and of the judge"):
        estimate(str(tmp_path / "corpus.parquet"), str(tmp_path / "humans.csv"), support)
    with pytest.raises(DataError, match="lacks the columns judge_urgency"):
        estimate(
            str(tmp_path / "corpus.parquet"), str(tmp_path / "humans.csv"), support,
            Drawing(prefix="judge_"),
        )  # fmt: skip


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
    saved = json.loads((tmp_path / "e.json").read_text())
    assert saved["dimensions"]["urgency"]["mean"]["n_human"] == 300
