import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from slm_judge.training.train import train

from slm_judge.errors import JudgeError
from slm_judge.files import write_text
from slm_judge.recipe import DataConfig, Recipe, RecipeError
from slm_judge.run import Run
from tests.conftest import ROOT, small_recipe


def weights(run):
    return load_file(run.adapter / "adapter_model.safetensors")


def test_the_run_folder_tells_how_it_was_made(run):
    facts = json.loads((run.adapter / "training.json").read_text())
    assert facts["recipe"]["name"] == "demo"
    assert {"torch", "trl", "peft", "transformers", "slm-judge"} <= set(facts["versions"])
    assert len(facts["sha256"]["support-messages.csv"]) == 64
    assert facts["items"]["train"] == 96
    assert "validation_alpha_topic" in facts["validation"]
    assert "cores" in facts["device"] or "NVIDIA" in facts["device"]
    assert 0 < facts["energy_kwh"] < 1
    evaluations = [row for row in facts["history"] if "eval_alpha" in row]
    assert len(evaluations) == 2  # after each epoch
    published = (run.adapter / "training.json").read_text() + (
        run.adapter / "base.json"
    ).read_text()
    assert not re.search(r'"/(root|home|tmp|work)', published)  # no folders of this machine
    assert (
        json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "tiny"
    )


def test_a_taken_folder_is_not_overwritten(run):
    with pytest.raises(JudgeError, match="--resume"):
        train(run.recipe())
    assert run.adapter.exists()


def test_resuming_a_finished_run_keeps_it(run, capsys):
    before = (run.adapter / "training.json").read_bytes()
    assert train(run.recipe(), resume=True).folder == run.folder
    assert "is trained already" in capsys.readouterr().out
    assert (run.adapter / "training.json").read_bytes() == before


def test_resuming_with_other_data_is_refused(run, tmp_path):
    changed = Run(tmp_path / "run")
    shutil.copytree(run.folder, changed.folder)
    lines = (changed.data / "train.jsonl").read_text().splitlines(keepends=True)
    (changed.data / "train.jsonl").write_text("".join(lines[1:]))
    recipe = run.recipe().model_copy(update={"output": str(changed.folder)})
    write_text(changed.recipe_file, recipe.model_dump_json())
    with pytest.raises(JudgeError, match="The data changed since"):
        train(recipe, resume=True)


def test_resuming_with_another_rubric_is_refused(run, tmp_path):
    rubric = tmp_path / "support-messages.yaml"
    text = Path(run.recipe().rubric).read_text()
    rubric.write_text(text)
    shutil.copytree(run.folder, tmp_path / "run")
    changes = {"rubric": str(rubric), "output": str(tmp_path / "run")}
    recipe = run.recipe().model_copy(update=changes)
    write_text(tmp_path / "run" / "recipe.json", recipe.model_dump_json())
    train(recipe, resume=True)  # the same rubric, elsewhere
    rubric.write_text(text.replace("rate it", "judge it", 1))
    with pytest.raises(JudgeError, match="The rubric changed since"):
        train(recipe, resume=True)


def test_a_run_that_was_to_be_overwritten_survives_a_kill(run, tmp_path):
    """Killed before the first checkpoint, the successor is a folder with its recipe alone."""
    old = Run(tmp_path / "old")
    shutil.copytree(run.folder, tmp_path / ".old-earlier")
    old.data.mkdir(parents=True)
    recipe = run.recipe().model_copy(update={"output": str(old.folder)})
    write_text(old.recipe_file, recipe.model_dump_json())
    write_text(tmp_path / ".old-earlier" / "recipe.json", recipe.model_dump_json())
    train(recipe, resume=True)
    assert (old.adapter / "adapter_model.safetensors").exists()
    assert not (tmp_path / ".old-earlier").exists()


def test_a_run_is_found_by_its_recipe(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run.find(run.folder) == run
    assert Run.find(ROOT / "recipes/tiny.yaml").folder == Path("runs/tiny")


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path):
    from slm_judge.training import trainer as module
    from transformers import TrainerCallback

    settings = {"training": {"epochs": 2, "batch_size": 32}}
    whole = train(small_recipe(tmp_path / "whole", **settings))

    class Crash(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            if state.epoch and state.epoch >= 1:
                raise KeyboardInterrupt

    original = module.SlotTrainer.__init__
    recipe = small_recipe(tmp_path / "broken", **settings)
    try:

        def crashing(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(Crash())

        module.SlotTrainer.__init__ = crashing
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    finally:
        module.SlotTrainer.__init__ = original
    assert not (tmp_path / "broken" / "adapter").exists()
    resumed = train(recipe, resume=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_resuming_with_other_settings_is_refused(run):
    changed = run.recipe().model_copy(update={"name": "other"})
    with pytest.raises(JudgeError, match="other settings"):
        train(changed, resume=True)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    assert Recipe.from_file(path).rubric.endswith(".yaml")


def test_the_paper_s_setting():
    recipe = Recipe.from_file(ROOT / "recipes/qwen3-1.7b.yaml")
    assert recipe.base == "Qwen/Qwen3-1.7B"
    assert (recipe.quantization, recipe.lora.r, recipe.lora.alpha) == ("nf4", 16, 32)
    config = recipe.training
    assert (config.epochs, config.batch_size, config.learning_rate) == (5, 32, 5e-5)
    assert (config.scheduler, config.warmup_share, config.weight_decay) == ("linear", 0.05, 0.01)
    assert config.optimizer == "auto"  # 8-bit AdamW on a GPU


def test_recipe_errors_list_every_problem(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\nrubrik: r.yaml\ntraining: {epochs: -1, batch_size: 6, micro_batch_size: 4}\n"
    )
    with pytest.raises(RecipeError) as error:
        Recipe.from_file(path)
    for complaint in (
        "rubrik: Extra inputs",
        "rubric: Field required",
        "data: Field required",
        "epochs",
    ):
        assert complaint in str(error.value)


@pytest.mark.parametrize("value", ["9" * 400, -1, ".inf", 2**31, "!!bool maybe"])
def test_a_seed_that_no_library_takes_is_refused(tmp_path, value):
    path = tmp_path / "r.yaml"
    path.write_text(f"name: x\nrubric: r\ndata: {{train: d}}\ntraining: {{seed: {value}}}\n")
    with pytest.raises(RecipeError):
        Recipe.from_file(path)


def test_bad_data_is_reported_before_a_model_loads(tmp_path, monkeypatch):
    (tmp_path / "d.csv").write_text("item_id,text,urgency,topic,refund\n1,,9,billing,true\n")
    recipe = small_recipe(tmp_path / "run")
    recipe = recipe.model_copy(
        update={"data": DataConfig(train=str(tmp_path / "d.csv")), "base": "no/such"}
    )
    with pytest.raises(JudgeError, match="empty field"):
        train(recipe)


def test_a_missing_base_names_the_repository(tmp_path, hub):
    recipe = small_recipe(tmp_path / "run").model_copy(update={"base": "no/such-base"})
    with pytest.raises(JudgeError, match="no repository no/such-base on the Hub"):
        train(recipe)


def test_paraphrasing_without_paraphrases_is_refused(tmp_path, support):
    from slm_judge.recipe import AugmentationConfig, RecipeError

    plain = support.model_dump(mode="json") | {"paraphrases": []}
    for dimension in plain["dimensions"]:
        dimension["paraphrases"] = []
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(json.dumps(plain))
    recipe = small_recipe(
        tmp_path / "run", rubric=str(rubric), augmentation=AugmentationConfig(paraphrase=True)
    )
    with pytest.raises(RecipeError, match="has no `paraphrases`"):
        train(recipe)
    assert not (tmp_path / "run").exists()


# --- nothing is lost, nothing half-made is left ---


def test_what_fails_before_the_first_step_leaves_no_folder(tmp_path, hub):
    folder = tmp_path / "run"
    with pytest.raises(JudgeError, match="no repository no/such-base"):
        train(small_recipe(folder, base="no/such-base"))
    assert not folder.exists()
    long = tmp_path / "long.csv"
    sample = (ROOT / "samples/support-messages.csv").read_text().splitlines()
    long.write_text("\n".join([*sample, f"long,ann_1,{'word ' * 5000},1,billing,true"]))
    recipe = small_recipe(folder)
    data = recipe.data.model_copy(update={"train": str(long), "limit": None})
    with pytest.raises(JudgeError, match=r"1 of .* prompts are longer .* long of"):
        train(recipe.model_copy(update={"data": data}))
    assert not folder.exists()


def test_overwrite_takes_a_run_alone_and_gives_it_back(run, tmp_path, monkeypatch):
    from slm_judge.training.trainer import SlotTrainer

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for choice in ("resume", "overwrite"):
        with pytest.raises(JudgeError, match="is not a run"):
            train(small_recipe(mine), **{choice: True})
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    old = Run(tmp_path / "old")
    shutil.copytree(run.folder, old.folder)
    recipe = run.recipe().model_copy(update={"output": str(old.folder)})
    with pytest.raises(JudgeError, match="choose one"):
        train(recipe, resume=True, overwrite=True)

    old.report.mkdir(exist_ok=True)
    (old.report / "openai-x.jsonl").write_text("paid for")
    (old.report / "report.html").write_text("of the earlier run")
    seen = []

    def broken(self, *args, **kwargs):
        left = [path for path in old.report.rglob("*") if path.is_file()]
        seen.append({path.name: path.read_bytes() for path in left})
        raise KeyboardInterrupt

    monkeypatch.setattr(SlotTrainer, "training_step", broken)
    measured = tmp_path / "measured" / "report" / "baselines.json"  # before training
    measured.parent.mkdir(parents=True)
    measured.write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(tmp_path / "measured"), resume=True)
    assert [path.name for path in (tmp_path / "measured").iterdir()] == ["report"]
    assert measured.exists()
    with pytest.raises(KeyboardInterrupt):
        train(recipe, overwrite=True)
    assert seen[-1] == {"openai-x.jsonl": b"paid for"}
    assert (old.report / "report.html").exists()
    assert (old.adapter / "adapter_model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_settings_of_later_stages_may_change(run, tmp_path, capsys):
    later = Run(tmp_path / "run")
    shutil.copytree(run.folder, later.folder)
    recipe = run.recipe().model_copy(update={"output": str(later.folder)})
    write_text(later.recipe_file, recipe.model_dump_json())
    verify = recipe.verify.model_copy(update={"max_rows": 7})
    train(recipe.model_copy(update={"verify": verify}), resume=True)
    assert "has the new settings of verify" in " ".join(capsys.readouterr().err.split())
    assert later.recipe().verify.max_rows == 7
    lora = recipe.lora.model_copy(update={"r": 99})
    with pytest.raises(JudgeError, match="other settings of lora"):
        train(recipe.model_copy(update={"lora": lora}), resume=True)


def test_a_split_without_labels_is_a_problem_of_the_data(tmp_path):
    rows = [f"v{k},text {k}" for k in range(12)]
    (tmp_path / "v.csv").write_text(
        "item_id,text,annotator_id,urgency,topic,refund\n"
        + "".join(f"{row},ann_1,,,\n" for row in rows)
    )
    recipe = small_recipe(tmp_path / "run")
    data = recipe.data.model_copy(update={"validation": str(tmp_path / "v.csv")})
    with pytest.raises(JudgeError, match="no item of the validation split has a label"):
        train(recipe.model_copy(update={"data": data}))
