"""One base, many judges: the adapter as a file of its own says what the merged file says."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from slm_judge.export.lora import export_lora, known_as

from benchmarks.small_judges import Gguf
from slm_judge import Judge
from slm_judge.annotate.job import job_of
from slm_judge.annotate.rows import AnnotateOptions
from slm_judge.artefact.base import Base
from slm_judge.backends.gguf import BASE_KEY
from slm_judge.errors import ModelError
from slm_judge.files import write_text
from slm_judge.run import Run

TEXTS = ["My card was charged twice. Please refund me.", "Where is my parcel?", "I love the lamp!"]


def exported(run, folder, quantization):
    """The run in a copy that has no more than its adapter, and the files apart."""
    copy = Run(folder / "demo")
    shutil.copytree(run.adapter, copy.adapter)
    recipe = run.recipe()
    exports = recipe.export.model_copy(update={"gguf": [quantization], "default": None})
    write_text(copy.recipe_file, recipe.model_copy(update={"export": exports}).model_dump_json())
    export_lora(copy)
    return copy


@pytest.fixture(scope="module")
def apart(run, tmp_path_factory):
    return exported(run, tmp_path_factory.mktemp("apart"), "BF16")


def test_a_type_whose_weights_are_moved_for_one_judge_is_no_base_of_all(run, tmp_path, capsys):
    copy = exported(run, tmp_path, "Q4_0")
    assert {path.name for path in copy.lora.iterdir()} == {
        copy.lora_file().name,
        copy.lora_file("Q8_0").name,
    }
    assert "No base in Q4_0" in capsys.readouterr().out


def said(*paths, **options):
    with Judge.from_pretrained(*paths, trust=True, **options) as judge:
        logits = dict(judge.logits(TEXTS))
    return np.stack([np.concatenate(logits[n]) for n in range(len(TEXTS))])


def test_base_and_adapter_say_what_the_merged_file_says(run, apart, tmp_path):
    """The recipe has ranks that differ, and an adapter on the input embeddings."""
    base, adapter = apart.lora_file("BF16"), apart.lora_file()
    merged = said(run.gguf_file("BF16"))
    assert np.abs(said(base, adapter=adapter) - merged).max() < 0.05
    with Judge.from_pretrained(base, adapter=adapter) as judge:  # tried in a child first
        assert judge.annotate(TEXTS[:1])[0].labels.keys() == {"urgency", "topic", "refund"}
        other = job_of(judge, AnnotateOptions())["model"]
    another = (tmp_path / "another.gguf").resolve()
    another.hardlink_to(base)
    with Judge.from_pretrained(another, adapter=adapter, trust=True) as judge:
        assert job_of(judge, AnnotateOptions())["model"] != other  # which decides what is resumed


def test_a_merged_judge_is_no_base_of_its_own_adapter(run, apart):
    """Which would be added twice."""
    merged, adapter = run.gguf_file("BF16"), apart.lora_file()
    with pytest.raises(ModelError, match=re.escape(f"{merged} is a judge already")):
        said(merged, adapter=adapter)


def test_a_base_that_does_not_say_what_it_is_is_taken_with_a_word(apart, tmp_path, capsys):
    unnamed, adapter = tmp_path / "unnamed.gguf", apart.lora_file()
    Gguf.read(apart.lora_file("BF16")).write(unnamed, {BASE_KEY: ""})
    for _ in range(2):
        said(unnamed, adapter=adapter)
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("names no base, so that") == 1
    assert f"that of {adapter}, tiny@ nf4, unseen." in told


def test_a_base_alone_and_what_does_not_belong_together_are_refused(apart, tmp_path):
    base, adapter = apart.lora_file("BF16"), apart.lora_file()
    with pytest.raises(ModelError, match="it is a language model, not a judge"):
        said(base)
    other = Gguf.read(adapter).write(tmp_path / "x.gguf", {BASE_KEY: "me/other@1 nf4"})
    with pytest.raises(ModelError, match=r"trained on the base me/other@1 nf4; .* is tiny@ nf4"):
        said(base, adapter=other)
    with pytest.raises(ModelError, match=re.escape(f"{base} is not an adapter (LoRA) of {base}")):
        said(base, adapter=base)
    with pytest.raises(ModelError, match="two GGUF files"):
        said(apart.adapter, adapter=adapter)


def test_an_adapter_with_whole_weights_is_refused(apart, tmp_path):
    copy = Run(tmp_path / "demo")
    shutil.copytree(apart.adapter, copy.adapter)
    shutil.copy(apart.recipe_file, copy.recipe_file)
    config = copy.adapter / "adapter_config.json"
    settings = json.loads(config.read_text()) | {"modules_to_save": ["lm_head"]}
    config.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="modules_to_save"):
        export_lora(copy)
    assert not copy.lora.exists()


def test_a_base_of_ones_own_is_known_without_its_folder(tmp_path):
    folder, names = tmp_path / "private" / "mine", []
    folder.mkdir(parents=True)
    for weight in (0.0, 1.0):
        output = torch.nn.Linear(2, 3)
        torch.nn.init.constant_(output.weight, weight)
        model = SimpleNamespace(get_output_embeddings=lambda output=output: output)
        names.append(known_as(Base(str(folder)), model))
        assert known_as(Base("me/base", "1"), model) == "me/base@1 none"
    assert names[0] != names[1]
    assert {name.split("@")[0] for name in names} == {"mine"}
