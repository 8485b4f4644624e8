"""`export` says by itself what each file loses to the adapter."""

import io
import json

import pytest
from pydantic import ValidationError
from rich.console import Console
from slm_judge.export.cost import REPORT, choose_default, cost_table, remedies, tell_cost
from slm_judge.export.push import left_out

from slm_judge import Judge
from slm_judge.artefact.locate import DEFAULT_FILE, default_gguf
from slm_judge.data.item import load_split
from slm_judge.errors import ModelError
from slm_judge.recipe import ExportConfig, Recipe
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


def recipe_with(run, monkeypatch, gguf, **changes):
    export = ExportConfig(gguf=gguf, bnb="merged")
    recipe = run.recipe().model_copy(update={"export": export, **changes})
    monkeypatch.setattr(Run, "recipe", lambda self: recipe)
    return run


def test_a_loss_names_what_helps(run, monkeypatch):
    recipe_with(run, monkeypatch, ["Q4_K_M"])
    assert remedies(run, lossy("Q4_K_M", equal=0.99, change=-0.01)) == []
    (said,) = remedies(run, lossy("Q4_K_M", "bnb-4bit"))
    assert said.startswith("Q4_K_M, bnb-4bit may be refused by `slm-judge verify`. Remedies: ")
    assert "`export.bnb_16bit: [self_attn.v_proj, down_proj]`" in said
    assert "`export.bnb: adapter`, which takes the answers of the adapter along whole" in said
    assert "add Q4_0 to `export.gguf`" in said
    assert "add Q8_0 to `export.gguf`" in said
    recipe_with(run, monkeypatch, ["Q8_0", "Q4_0"], quantization="none")
    (said,) = remedies(run, lossy("bnb-4bit"))
    assert "train with `quantization: nf4`" in said
    (said,) = remedies(run, lossy("Q4_0", equal=0.95))  # alpha alone
    assert said.endswith(
        "Remedies: raise `export.rounding_tokens` (now 8192); or train longer: what is learned with "
        "small margins falls first."
    )
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


def exported(run, folder, **settings):
    """The GGUF files of a run, small first, whose recipe says something else."""
    recipe = run.recipe()
    changed = recipe.model_copy(update={"export": recipe.export.model_copy(update=settings)})
    mine = Run(folder / "mine")
    mine.gguf.mkdir(parents=True)
    mine.recipe_file.write_text(changed.model_dump_json())
    for name in recipe.export.gguf:
        mine.gguf_file(name).symlink_to(run.gguf_file(name).resolve())
    return mine


def measured(**of):
    """Equal labels, and the interval of the change of alpha, of each file."""
    systems = {
        name: {"between": {"agreement": equal}, "change": {"low": low, "high": high}}
        for name, (equal, low, high) in of.items()
    }
    return {"dimensions": {"d": systems}}


def chosen(run, **of):
    said = " ".join(choose_default(run, measured(**of)))
    assert f"By default people get {default_gguf(run)}, " in said
    return default_gguf(run), said


def test_people_get_the_smallest_file_that_keeps_the_answers(run, tmp_path):
    mine = exported(run, tmp_path, default=None)
    all_well = {"Q4_K_M": (0.98, -0.03, 0.01), "Q8_0": (1, 0, 0), "BF16": (1, 0, 0)}
    assert chosen(mine, **all_well)[0] == "Q4_K_M"
    name, said = chosen(mine, **all_well | {"Q4_K_M": (0.96, -0.01, 0.01)})
    assert name == "Q8_0"
    assert "the smallest that keeps the adapter's answers" in said
    assert "Q4_K_M 0.960, Q8_0 1.000, BF16 1.000" in said
    assert chosen(mine, **all_well | {"Q4_K_M": (0.98, -0.09, -0.02)})[0] == "Q8_0"  # alpha
    assert chosen(mine, **all_well | {"Q4_K_M": (0.98, None, None)})[0] == "Q4_K_M"
    none = {"Q4_K_M": (0.9, 0, 0), "Q8_0": (0.96, 0, 0), "BF16": (0.96, 0, 0)}
    name, said = chosen(mine, **none)
    assert name == "Q8_0"
    assert "no file keeps 97% of every dimension's" in said
    # It is what a folder is taken for, and no stray file.
    with Judge.from_pretrained(mine.gguf) as judge:
        assert judge.backend.path == mine.gguf_file("Q8_0")
    with Judge.from_pretrained(mine.gguf, quantization="BF16") as judge:
        assert judge.backend.path == mine.gguf_file("BF16")
    (mine.gguf / DEFAULT_FILE).write_text("{}")
    with pytest.raises(ModelError, match=r"default_gguf\.json is damaged"):
        Judge.from_pretrained(mine.gguf)


def test_the_recipe_may_say_which_file_people_get(run, tmp_path):
    assert default_gguf(run) == run.recipe().export.default == "Q4_K_M"
    assert (run.gguf / DEFAULT_FILE) not in left_out(run)
    mine = exported(run, tmp_path, default="BF16")
    name, said = chosen(mine, **dict.fromkeys(["Q4_K_M", "Q8_0", "BF16"], (1, 0, 0)))
    assert name == "BF16"
    assert "as the recipe says" in said
    (mine.gguf / DEFAULT_FILE).unlink()  # as where no validation items are left
    assert default_gguf(mine) == "BF16"
    one = exported(run, tmp_path / "one", default=None, gguf=["Q8_0"])
    assert choose_default(one, measured(Q8_0=(0.5, 0, 0))) == []
    assert default_gguf(one) == "Q8_0"
    with pytest.raises(ValidationError, match="default: Q4_0 is none of gguf: Q8_0"):
        ExportConfig(gguf=["Q8_0"], default="Q4_0")
    kept = {**run.recipe().model_dump(), "quantization": "none", "export": {"bnb": "adapter"}}
    with pytest.raises(ValidationError, match=r"export\.bnb: adapter needs quantization: nf4"):
        Recipe.model_validate(kept)
