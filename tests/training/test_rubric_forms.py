"""Sets, options off the scale and conditional questions, from the recipe to annotations."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from slm_judge.export.export import export
from slm_judge.export.verify import read_report, verify
from slm_judge.model_card.card import render_card
from slm_judge.model_card.page import NUMBERS, PAGE
from slm_judge.training.train import train

from slm_judge import Judge
from slm_judge.annotate.job import annotate_table
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import load_split
from slm_judge.evaluation.baselines import baselines
from slm_judge.evaluation.estimate import estimate
from slm_judge.evaluation.threshold import thresholds
from slm_judge.files import write_text
from slm_judge.judge.answer import softmax
from slm_judge.recipe import ExportConfig
from slm_judge.rubric import read_yaml
from tests.conftest import ROOT, small_recipe

MEMBERS = ["about_billing", "about_delivery", "about_refund"]
PARTS = ["urgency", "urgency_applicable", "refund", *MEMBERS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, exported and verified, of the sample put in other forms."""
    folder = tmp_path_factory.mktemp("forms")
    rubric = read_yaml(ROOT / "rubrics" / "support-messages.yaml", ValueError)
    urgency, _, refund = rubric["dimensions"]
    urgency["not_applicable"] = {1: urgency["options"].pop(1)}
    refund["ask_if"] = {"urgency": [3, 4]}
    about = {"name": "about", "type": "multi", "instructions": "What is it about?",
             "paraphrases": ["Name the subjects."],
             "options": {"billing": "charges", "delivery": "parcels", "refund": "money back"}}  # fmt: skip
    rubric["dimensions"] = [urgency, refund, about]
    write_text(folder / "rubric.yaml", yaml.safe_dump(rubric))
    with (ROOT / "samples" / "support-messages.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for row in rows:
        named = [row.pop("topic"), *(["refund"] if row["refund"] == "true" else [])]
        row["about"] = [name for name in named if name in about["options"]]
    write_text(folder / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    recipe = small_recipe(folder / "run", export=ExportConfig(dtype="float32", gguf=["BF16"]))
    changes = {"limit": 48, "test_share": 0.04, "validation_share": 0.04, "gold": None}
    data = recipe.data.model_copy(update={"train": str(folder / "train.jsonl"), **changes})
    recipe = recipe.model_copy(update={"data": data, "rubric": str(folder / "rubric.yaml")})
    run = train(recipe)
    export(run)
    verify(run)
    return run


def test_both_backends_answer_by_the_same_rules(trained):
    items = [item.state for item in load_split(trained.data, "test")]
    contract = Contract.load(trained.adapter)
    assert all(contract.calibration(contract.rubric.dimension(m)).threshold for m in MEMBERS)
    said = {}
    for path in (trained.merged, trained.gguf_file("BF16")):
        with Judge.from_pretrained(path) as judge:
            assert judge.backend.contract.calibrations == contract.calibrations
            assert judge.rubric == contract.rubric
            said[path] = judge.annotate(items)
    for one, other in zip(*said.values(), strict=True):
        assert list(one.labels) == ["urgency", "refund", "about"]
        for annotation in (one, other):
            asked = annotation.labels["urgency"] in (3, 4)
            assert (annotation.labels["refund"] is not None) == asked
            assert isinstance(annotation.labels["about"], list)
        for name, shares in one.probabilities.items():
            assert list(shares.values()) == pytest.approx(
                [*other.probabilities[name].values()], abs=0.05
            )
    equal = [a.labels == b.labels for a, b in zip(*said.values(), strict=True)]
    assert np.mean(equal) > 0.8


def test_stock_engines_answer_every_question(trained):
    from transformers import pipeline

    contract, item = Contract.load(trained.merged), load_split(trained.data, "test")[0].state
    stock = pipeline("decision", model=str(trained.merged), device="cpu")
    answer = stock({"state": item, "questions": contract.rubric.questions()})
    assert [*answer] == ["urgency", "refund", *MEMBERS]
    with Judge.from_pretrained(trained.merged) as judge:
        ours = dict(zip(answer, next(iter(judge.logits([item])))[1], strict=True))
    for name in MEMBERS:
        share = softmax(ours[name], contract.temperature("noul"))[1]
        assert answer[name]["noul"] == pytest.approx(share, abs=1e-4)
    levels = answer["urgency"]["probabilities"]  # of a choice: 1 is no level
    assert [*levels] == ["2", "3", "4", "1"]
    shares = softmax(ours["urgency"], contract.temperature("choice"))
    assert [*levels.values()] == pytest.approx(shares.tolist(), abs=1e-4)


def test_every_stage_knows_them(trained, tmp_path):
    verified = read_report(trained)
    report = json.loads((trained.report / NUMBERS).read_text())
    assert list(verified["dimensions"]) == list(report["dimensions"]) == PARTS
    assert list(report["sets"]["about"]["systems"]) == ["BF16", "bnb-4bit", "merged", "adapter"]
    assert report["sets"]["about"]["humans"]["alpha"]["estimate"] > 0.5
    assert '<h2 id="s-1">about</h2>' in (trained.report / PAGE).read_text()
    facts = json.loads((trained.adapter / "training.json").read_text())
    assert {"validation_alpha_about", "validation_alpha_urgency_applicable"} <= set(
        facts["validation"]
    )
    card = render_card("", "me", trained.recipe(), trained.rubric(), facts, verified, report, {})
    assert "Asked if urgency is `3` or `4`" in card
    assert "(not applicable: no level and no category)" in card
    assert "**about** (multi, nominal)" in card
    assert "with the distance masi" in card
    assert list(thresholds(trained, 0.2)) == ["urgency", "refund", "about"]
    scored = baselines(trained.recipe(), n_resamples=20)
    assert list(scored) == [*PARTS, "about"]
    assert scored["about"]["judge (adapter)"].alpha.estimate == pytest.approx(
        report["sets"]["about"]["systems"]["adapter"]["alpha"]["estimate"], abs=0.02
    )


def test_a_table_is_annotated_and_estimated(trained, tmp_path):
    source, output = trained.recipe().data.train, tmp_path / "out.csv"
    rows = [*map(json.loads, Path(source).read_text().splitlines())][:120]
    texts = {row["item_id"]: {"item_id": row["item_id"], "text": row["text"]} for row in rows}
    write_text(tmp_path / "in.jsonl", "".join(json.dumps(t) + "\n" for t in texts.values()))
    with Judge.from_pretrained(trained.gguf_file("BF16")) as judge:
        annotate_table(judge, str(tmp_path / "in.jsonl"), output, show_progress=False)
        first = judge.annotate([next(iter(texts.values()))])[0]
    with output.open() as file:
        found = [*csv.DictReader(file)]
    assert json.loads(found[0]["about"]) == first.labels["about"]
    for row in found:
        assert (row["refund"] == "") == (row["urgency"] not in ("3", "4"))
        assert (row["refund_confidence"] == "") == (row["refund"] == "")
    humans = [row for row in rows if row["item_id"] in [*texts][:20]]
    write_text(tmp_path / "h.jsonl", "".join(json.dumps(row) + "\n" for row in humans))
    estimates = estimate(str(output), str(tmp_path / "h.jsonl"), trained.rubric())
    assert list(estimates.dimensions) == ["urgency", *MEMBERS]
    assert "mean" not in estimates.dimensions["urgency"]
    assert any("so no mean is estimated" in note for note in estimates.notes)
