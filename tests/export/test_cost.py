"""`export` says by itself what each file loses to the adapter."""

import io
import json

from rich.console import Console
from slm_judge.export.cost import REPORT, cost_table, remedies, tell_cost

from slm_judge.data.item import load_split
from slm_judge.recipe import ExportConfig
from slm_judge.run import Run


def shown(sheet):
    console = Console(file=io.StringIO(), width=100)
    sheet.show(console)
    return console.file.getvalue()


def test_an_export_leaves_and_prints_what_was_lost(run):
    report = json.loads((run.report / REPORT).read_text())
    assert report["items"] == len(load_split(run.data, "validation"))
    assert [*report["dimensions"]] == ["urgency", "topic", "refund"]
    for systems in report["dimensions"].values():
        assert [*systems] == ["adapter", "merged", "bnb-4bit", *run.recipe().export.gguf]
        assert systems["merged"]["between"]["agreement"] > 0.95
        change = systems["Q8_0"]["change"]
        assert change["low"] <= change["estimate"] <= change["high"]
        lost = systems["Q8_0"]["alpha"] - systems["adapter"]["alpha"]
        assert abs(change["estimate"] - lost) < 1e-9
    text = shown(cost_table(report))
    assert f"on {report['items']} validation items" in text
    assert text.count("bnb-4bit") == 3


def test_it_can_be_said_again(run):
    console = Console(file=io.StringIO(), width=100)
    before = json.loads((run.report / REPORT).read_text())
    assert tell_cost(run, console)["dimensions"] == before["dimensions"]
    assert "What the files lose to the adapter" in console.file.getvalue()


def about(estimate):
    return {"estimate": estimate, "low": estimate - 0.01, "high": estimate + 0.01}


def lossy(*names, equal=0.5, change=-0.3, between=0.9, adapter=0.8):
    alike = {"agreement_interval": about(equal), "alpha_interval": about(between)}
    found = {"alpha": 0.5, "between": alike, "change": {**about(change), "items": 100}}
    systems = {"adapter": {"alpha": adapter}, **dict.fromkeys(names, found)}
    return {"items": 100, "dimensions": {"d": systems}}


def recipe_with(run, monkeypatch, gguf):
    recipe = run.recipe().model_copy(update={"export": ExportConfig(gguf=gguf)})
    monkeypatch.setattr(Run, "recipe", lambda self: recipe)
    return run


def test_a_loss_names_what_helps(run, monkeypatch):
    recipe_with(run, monkeypatch, ["Q4_K_M"])
    assert remedies(run, lossy("Q4_K_M", equal=0.99, change=-0.01)) == []
    (said,) = remedies(run, lossy("Q4_K_M", "bnb-4bit"))
    assert said.startswith("Q4_K_M, bnb-4bit may be refused by `slm-judge verify`. Remedies: ")
    assert "`export.bnb_16bit: [self_attn.v_proj, down_proj]`" in said
    assert "add Q4_0 to `export.gguf`" in said
    assert "add Q8_0 to `export.gguf`" in said
    recipe_with(run, monkeypatch, ["Q8_0", "Q4_0"])
    (said,) = remedies(run, lossy("Q4_0", equal=0.95))  # alpha alone
    assert said.endswith("Remedies: train longer: what is learned with small margins falls first.")
    assert remedies(run, lossy("Q4_0", change=0.0))  # labels alone
    assert remedies(run, lossy("Q4_0", equal=0.95, change=0.0, between=0.7))
    assert remedies(run, lossy("Q4_0", equal=0.905, change=-0.051, between=0.9))  # not decided
    assert not remedies(run, lossy("Q4_0", equal=0.905, change=-0.049, between=0.9))
    assert not remedies(run, lossy("Q4_0", equal=0.99, change=0.0, between=0.7))  # rare options
    nothing = float("nan")
    assert remedies(run, lossy("Q4_0", equal=0.99, change=0.0, between=nothing))
    assert remedies(run, lossy("Q4_0", equal=0.99, change=nothing))
    assert not remedies(run, lossy("Q4_0", equal=0.99, change=nothing, adapter=None))
    (said,) = remedies(recipe_with(run, monkeypatch, ["BF16"]), lossy("merged"))
    assert "Q4_0" not in said
