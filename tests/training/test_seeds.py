import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from slm_judge.training import trainer as module
from slm_judge.training.run_folder import save_adapter
from slm_judge.training.train import train
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from typer.testing import CliRunner

from slm_judge import Judge
from slm_judge.agreement.alpha import judge_alpha
from slm_judge.artefact.base import Base
from slm_judge.artefact.judge_files import Contract
from slm_judge.cli import app
from slm_judge.data.item import load_split, votes_of
from slm_judge.data.predictions import Answers, write_predictions
from slm_judge.errors import JudgeError
from slm_judge.recipe import DataConfig, LoraConfig
from tests.conftest import ROOT, small_recipe
from tests.model_card import test_escaping as cards


def recipe_in(folder, seed=0):
    rows = (ROOT / "samples/support-messages.csv").read_text().splitlines()[:91]
    (file := folder.parent / "rows.csv").write_text("\n".join(rows))
    data = DataConfig(train=str(file), annotator="annotator_id", limit=12, validation_share=0.3)
    settings = {"batch_size": 6, "seed": seed, "learning_rate": 1e-2}
    recipe = small_recipe(folder, training=settings, quantization="none", lora=LoraConfig(r=2))
    return recipe.model_copy(update={"data": data})


def facts(run):
    return json.loads((run.adapter / "training.json").read_text())


def same(*runs):
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in runs)
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


class Watch(TrainerCallback):
    """Which trainings start, and at which step; `crashes` in the seed breaks it off, once."""

    started, crashes = [], "1"

    def on_train_begin(self, args, state, control, **kwargs):
        Watch.started.append((Path(args.output_dir).parent.name, state.global_step))

    def on_epoch_begin(self, args, state, control, **kwargs):
        if Watch.started[-1][0] == Watch.crashes and state.global_step:
            Watch.crashes = None
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """A run of two seeds that broke off in the second."""
    original, folder = module.SlotTrainer.__init__, tmp_path_factory.mktemp("seeds") / "two"

    def watching(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Watch())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.SlotTrainer, "__init__", watching)
        with pytest.raises(KeyboardInterrupt):
            train(recipe_in(folder), seeds=2)
        run = train(recipe_in(folder), resume=True)
        assert Watch.started == [("two", 0), ("1", 0), ("1", 2)]
        yield run


def test_the_best_by_validation_is_kept_with_figures_of_its_own(seeded):
    report, own = facts(seeded)["seeds"], [seeded.of_seed(0), seeded.of_seed(1)]
    assert json.loads((seeded.report / "seeds.json").read_text()) == report
    validation = [facts(one)["validation"]["validation_alpha"] for one in own]
    assert report["validation"]["mean of the dimensions"]["by_seed"] == pytest.approx(validation)
    assert report["kept"] == np.argmax(validation)
    assert same(seeded, own[report["kept"]])
    assert seeded.validation.read_bytes() == own[report["kept"]].validation.read_bytes()
    assert not own[1 - report["kept"]].checkpoints.exists()
    items, found = load_split(seeded.data, "test"), report["test"]["topic"]
    with Judge.from_pretrained(seeded.adapter) as judge:
        said = judge.annotate([item.state for item in items])
    topic = judge.rubric.dimension("topic")
    labels = [topic.values.index(answer.labels["topic"]) for answer in said]
    alpha, values = judge_alpha(labels, votes_of(items, "topic"), topic), found["by_seed"]
    assert values[report["kept"]] == pytest.approx(alpha)
    assert (found["mean"], found["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_a_plain_run_is_one_of_the_seeds_and_takes_more(seeded, tmp_path):
    recipe = recipe_in(tmp_path / "run", seed=1)
    splits = {name: load_split(seeded.data, name) for name in ("train", "validation", "test")}
    run = train(recipe, splits=splits)
    assert not same(run, seeded.of_seed(0))
    assert not run.seeds.exists()
    assert [path.name for path in run.report.iterdir()] == ["validation.jsonl"]
    run.predictions.mkdir()  # of the adapter that is now one of several
    Watch.started.clear()
    train(recipe, resume=True, splits=splits, seeds=2)
    assert run.predictions.exists() == (facts(run)["seeds"]["kept"] == 1)
    run.predictions.mkdir(exist_ok=True)
    assert same(run.of_seed(1), seeded.of_seed(1))  # trained alone and after another
    other = 3 - facts(run)["seeds"]["kept"]
    items, rubric = splits["validation"], run.rubric()
    votes = {
        d.name: [(row or [0])[0] for row in votes_of(items, d.name)] for d in rubric.dimensions
    }
    right = {
        d.name: Answers(np.array(votes[d.name]), np.eye(len(d.options))[votes[d.name]])
        for d in rubric.dimensions
    }
    write_predictions(run.of_seed(other).validation, items, rubric, right)
    train(recipe, resume=True, splits=splits, seeds=1)  # fewer: none is lost
    assert (facts(run)["seeds"]["seeds"], facts(run)["seeds"]["kept"]) == ([1, 2], other)
    assert same(run, run.of_seed(other))
    assert not run.predictions.exists()
    assert Watch.started == [("2", 0)]


@pytest.mark.parametrize("number", [0, -1, 101])
def test_a_number_of_seeds_that_nobody_means_is_refused(tmp_path, number):
    (tmp_path / "r.yaml").write_text(recipe_in(tmp_path / "run").model_dump_json())
    result = CliRunner().invoke(app, ["train", str(tmp_path / "r.yaml"), "--seeds", str(number)])
    with pytest.raises(JudgeError, match=f"from 1 to 100; it is {number}"):
        raise result.exception


def test_the_card_says_that_it_is_one_of_several(tmp_path, monkeypatch):
    rubric, report = cards.report_on(tmp_path / "report", cards.PLAIN)
    test = {
        d: {"by_seed": [0.5, None, 0.7], "mean": 0.6, "sd": 0.141} for d in report["dimensions"]
    }
    several = {"seeds": [4, 5, 6], "kept": 6, "items": {"validation": 7, "test": 9}, "test": test}
    render, name = cards.render_card, "render_card"
    monkeypatch.setattr(cards, name, lambda *a: render(*a[:4], a[4] | {"seeds": several}, *a[5:]))
    card = cards.card_on(rubric, report, cards.PLAIN)[1]
    text, cells = cards.parse(card)[2:]
    assert "the best of 3 trainings that differ in their seed alone (4, 5, 6): seed 6" in text
    assert {"seed 6, this judge", "0.700", "0.600 ± 0.141"} <= set(cells)
    assert "`slm-judge train recipe.yaml --seeds 3`" in card


@pytest.mark.parametrize("base", ["smollm2", "tiny", "/srv/models/ours"])
def test_an_adapter_names_its_base_as_others_find_it(base, tokenizer, support, tmp_path):
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    save_adapter(tmp_path, model, tokenizer, Contract.build(support, tokenizer), Base(base), {})
    name = json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}.get(base, Path(base).name)
