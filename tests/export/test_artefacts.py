"""The exported files say what the adapter says."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from slm_judge.export.answers import ask
from slm_judge.export.artefacts import parts
from slm_judge.export.gguf import quantization_type
from slm_judge.export.verify import read_report, verify

from slm_judge import Judge
from slm_judge.artefact.base import Base, load_base
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends.gguf import GgufBackend
from slm_judge.backends.transformers import TransformersBackend
from slm_judge.data.item import load_split
from slm_judge.errors import JudgeError, ModelError
from slm_judge.files import TEMPORARY
from slm_judge.judge.answer import gap, softmax
from slm_judge.recipe import ExportConfig
from slm_judge.run import Run
from tests.conftest import ROOT, small_recipe


@pytest.fixture(scope="module")
def items(run):
    return load_split(run.data, "test")[:40]


@pytest.fixture(scope="module")
def rows(items):
    return [item.state for item in items]


def probabilities(path, rows, **options):
    """rows x all options of all dimensions."""
    with Judge.from_pretrained(path, **options) as judge:
        annotations = judge.annotate(rows)
    return np.array(
        [[p for d in a.probabilities.values() for p in d.values()] for a in annotations]
    )


def logits(backend, states):
    return dict(backend.run(backend.reader.encode(states)))


@pytest.fixture(scope="module")
def stock(run, rows):
    """What transformers' own pipeline answers on the merged float32 model."""
    from transformers import pipeline

    judge = pipeline("decision", model=str(run.merged), device="cpu")
    questions = Contract.load(run.merged).rubric.questions()
    answers = judge([{"state": row, "questions": questions} for row in rows])
    table = []
    for answer in answers:
        refund = answer["refund"]["noul"]
        shares = [
            *answer["urgency"]["probabilities"].values(),
            *answer["topic"]["probabilities"].values(),
        ]
        table.append([*shares, 1 - refund, refund])
    return np.array(table)


def test_judge_equals_stock_pipeline(run, rows, stock):
    assert np.abs(probabilities(run.merged, rows) - stock).max() < 1e-4


def test_stock_pipeline_takes_a_plain_string(run, rows, stock):
    from transformers import pipeline

    judge = pipeline("decision", model=str(run.merged), device="cpu")
    questions = Contract.load(run.merged).rubric.questions()
    answer = judge({"state": rows[0]["text"], "questions": questions})
    assert answer["refund"]["noul"] == pytest.approx(stock[0, -1], abs=1e-4)


def test_gguf_in_bf16_is_near_stock_pipeline(run, rows, stock):
    assert np.abs(probabilities(run.gguf_file("BF16"), rows) - stock).max() < 0.02


def test_merging_keeps_the_trained_function(run, rows):
    difference = np.abs(probabilities(run.merged, rows) - probabilities(run.adapter, rows))
    assert difference.max() < 1e-3


def test_temperatures_reach_both_artefacts(run):
    contract = Contract.load(run.adapter)
    backend = GgufBackend(run.gguf_file("Q4_K_M"))
    assert backend.contract.temperatures == pytest.approx(dict(contract.temperatures), rel=1e-6)
    assert backend.contract.calibrations == contract.calibrations
    assert set(contract.calibrations) == {d.name for d in contract.rubric.dimensions}
    assert backend.contract.rubric == contract.rubric
    backend.close()


def test_gguf_keys_are_those_of_llama_server(run):
    reader = gguf.GGUFReader(run.gguf_file("Q4_K_M"))
    values = {key: field.contents() for key, field in reader.fields.items() if "." in key and
              ("decision" in key or "systemone" in key or key.startswith(("slm_judge", "general")))}  # fmt: skip
    assert values["qwen3.decision.type"] == "nimble"
    assert values["general.name"] == "demo"
    assert {f"qwen3.decision.temperature.{t}" for t in ("score", "choice", "noul")} <= set(values)
    assert values["tokenizer.chat_template.systemone"].startswith("{%- macro")
    assert values["slm_judge.rubric"].startswith("{")
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    assert {"Q4_K", "Q6_K"} <= types  # real K-quants


def test_saved_tokenizers_have_no_sentinels(run):
    for folder in (run.adapter, run.merged, run.bnb):
        assert "<|mark|>" not in (folder / "tokenizer.json").read_text(encoding="utf-8")


def test_bnb_is_really_4_bit(run):
    from safetensors import safe_open

    with safe_open(run.bnb / "model.safetensors", "pt") as file:
        names = list(file.keys())
        weight = file.get_slice("model.layers.0.mlp.down_proj.weight")
        assert weight.get_dtype() == "U8"
    assert any("quant_state.bitsandbytes__nf4" in name for name in names)


def test_the_4_bit_file_says_what_was_trained(run, rows):
    """Trained on a base in 4 bits, the adapter stays beside that very base, and is not rounded."""
    from safetensors import safe_open

    assert json.loads((run.bnb / "decision.json").read_text())["adapter"] == "adapter"
    with safe_open(run.bnb / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    trained, file = TransformersBackend.load(run.adapter), TransformersBackend.load(run.bnb)
    first, second = logits(trained, rows), logits(file, rows)
    for index in range(len(rows)):
        for a, b in zip(first[index], second[index], strict=True):
            assert np.abs(a - b).max() < 0.01
    assert all(path.is_file() for path in parts(run.bnb))
    names = [path.relative_to(run.bnb).as_posix() for path in parts(run.bnb)]
    beside = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    assert [name for name in names if "/" in name] == beside
    # Without its adapter a base is not the judge; and no other folder is looked into.
    bare = run.folder.parent / "bare"
    shutil.copytree(run.bnb, bare, ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(ModelError, match=r"adapter has no adapter_config\.json"):
        TransformersBackend.load(bare)
    with pytest.raises(ModelError, match="is a judge whose adapter lies beside"):
        load_base(Base(str(bare)), "cpu")
    decision = json.loads((bare / "decision.json").read_text()) | {"adapter": "../adapter"}
    (bare / "decision.json").write_text(json.dumps(decision))
    with pytest.raises(ModelError, match="adapter"):
        TransformersBackend.load(bare)


def test_pack_size_does_not_change_answers(run, rows):
    wide = TransformersBackend.load(run.merged)
    narrow = TransformersBackend.load(run.merged)
    narrow.tokens_per_pack = 1
    first, second = logits(wide, rows), logits(narrow, rows)
    for index in range(len(rows)):
        for a, b in zip(first[index], second[index], strict=True):
            assert np.abs(softmax(a) - softmax(b)).max() < 1e-4


def test_gguf_rows_of_any_length(run, rows):
    """Long rows make the context grow, and change nothing for the short ones."""
    backend = GgufBackend(run.gguf_file("Q8_0"))
    backend._open_context(512)
    long = {"text": "The parcel has not arrived. " * 150}
    mixed = logits(backend, [rows[0], long, rows[1]])
    alone = logits(backend, [rows[1]])
    assert sorted(mixed) == [0, 1, 2]
    assert backend._n_ctx > 900
    assert np.abs(softmax(mixed[2][1]) - softmax(alone[0][1])).max() < 0.02
    too_long = {"text": "word " * 5000}
    with pytest.raises(ModelError, match="room for 4096"):
        logits(backend, [too_long])
    backend.close()


def test_a_probe_that_breaks_the_prefix_is_still_right(run):
    """A text whose first token merges with what stands before it cannot share all of the rubric."""
    backend = GgufBackend(run.gguf_file("Q8_0"))
    texts = [" starts with a space", "\n\nnew lines", "...", "x"]
    prompts = backend.reader.encode([{"text": t} for t in texts])
    shared = [backend._shared(prompt) for prompt in prompts]
    assert max(shared) == len(backend._prefix)
    got = logits(backend, [{"text": t} for t in texts])
    reference = TransformersBackend.load(run.merged)
    want = logits(reference, [{"text": t} for t in texts])
    for index in range(len(texts)):
        for a, b in zip(got[index], want[index], strict=True):
            assert np.abs(softmax(a) - softmax(b)).max() < 0.05
    backend.close()


def test_annotations_look_as_documented(run, rows):
    judge = Judge.from_pretrained(run.gguf)
    (annotation,) = judge.annotate([rows[0]["text"]])
    assert set(annotation.labels) == {"urgency", "topic", "refund"}
    assert annotation.labels["urgency"] in (1, 2, 3, 4)
    assert isinstance(annotation.labels["refund"], bool)
    assert set(annotation.probabilities["urgency"]) == {1, 2, 3, 4}
    assert 0.25 <= annotation.confidence["urgency"] <= 1
    assert judge.rubric.fields == ["text"]
    assert list(judge.rubric.questions()) == ["urgency", "topic", "refund"]
    assert judge.annotate([]) == []


@pytest.mark.parametrize("kind", ["adapter", "merged", "bnb"])
def test_label_rows_give_the_model_s_own_logits(run, rows, kind):
    """In packs behind the cached rubric, as in plain forward passes of whole prompts."""
    backend = TransformersBackend.load(getattr(run, kind))
    assert backend._label_rows is not None
    found = logits(backend, rows)
    for index, prompt in enumerate(backend.reader.encode(rows)):
        with torch.inference_mode():
            own = backend.model(
                input_ids=torch.tensor([prompt.input_ids]),
                logits_to_keep=torch.tensor(prompt.slots),
                use_cache=False,
            )
        own = own.logits[0][:, backend._label_ids].numpy()
        for ours, theirs in zip(found[index], own, strict=True):
            assert np.abs(ours - theirs[: len(ours)]).max() < 1e-4
            assert ours.argmax() == theirs[: len(ours)].argmax()


@pytest.mark.parametrize("kind", ["adapter", "merged", "bnb"])
def test_sixteen_bits_annotate_as_thirty_two(run, rows, kind):
    """The arithmetic of a GPU, on the CPU; labels that are nearly tied may differ."""
    with (
        Judge.from_pretrained(getattr(run, kind), dtype="bfloat16") as half,
        Judge.from_pretrained(getattr(run, kind), dtype="float32") as full,
    ):
        for judge, dtype in ((half, torch.bfloat16), (full, torch.float32)):
            model = judge.backend.model
            assert model.get_input_embeddings().weight.dtype == dtype
            assert model.get_output_embeddings().weight.dtype == dtype
        ours, theirs = dict(half.logits(rows)), dict(full.logits(rows))
        for index in range(len(rows)):
            for a, b in zip(ours[index], theirs[index], strict=True):
                assert a.argmax() == b.argmax() or gap(b) < half.backend.near_tie
        together = half.annotate(rows)
        half.exact = True
        alone = half.annotate(rows)
        assert [a.labels for a in together] == [a.labels for a in alone]


LIMITED = """
import resource, sys
from pathlib import Path
from slm_judge import Judge
from slm_judge.backends.gguf import GgufBackend
from slm_judge.errors import ModelError
backend = GgufBackend(Path(sys.argv[1]), n_threads=1)
backend._open_context(1024)
judge = Judge(backend)
print(judge.annotate(["first"])[0].labels)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used,) * 2)
try:
    judge.annotate(["word " * 2500])
except ModelError as error:
    print(error)
print(judge.annotate(["first"])[0].labels)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's limits")
def test_llama_cpp_without_memory_is_a_sentence(run):
    """Under a real limit of the address space; afterwards the judge answers as before."""
    command = [sys.executable, "-c", LIMITED, str(run.gguf_file("Q8_0"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    before, message, after = done.stdout.strip().splitlines()
    assert message.startswith("Out of memory for a context of 2")
    assert "Set or lower max_memory" in message
    assert after == before


def test_after_a_row_without_memory_there_is_room_for_many_again(run, monkeypatch):
    with Judge.from_pretrained(run.gguf_file("Q8_0"), trust=True) as judge:
        usual = judge.backend._n_ctx
        monkeypatch.setattr("slm_judge.backends.gguf._free_memory", lambda _: 0)
        with pytest.raises(ModelError, match="Out of memory for a context of"):
            judge.annotate(["word " * 3800])
        monkeypatch.undo()
        judge.annotate(["short"])
        assert judge.backend._n_ctx == usual


# --- export ---


def test_bars_of_libraries_do_not_spill_into_the_output(run, tmp_path):
    copy = Run(tmp_path / "run")
    copy.folder.mkdir()
    shutil.copytree(run.adapter, copy.adapter)
    recipe = json.loads(run.recipe_file.read_text())
    recipe["export"]["bnb"] = "merged"
    copy.recipe_file.write_text(json.dumps(recipe))
    shown = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}
    text = ""
    for arguments in (["export", copy.folder], ["annotate", ROOT / "samples/new-messages.csv",
                      "--model", copy.merged, "--output", tmp_path / "out.csv"]):  # fmt: skip
        command = [sys.executable, "-m", "slm_judge", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, env=shown, check=True
        )
        text += done.stdout + done.stderr
    for bar in ("Loading weights", "Writing model shards", "Writing:", "it/s]", "%|"):
        assert bar not in text, text[-2000:]
    assert re.findall(r"^\[(\d)/3\]", text, re.MULTILINE) == ["1", "2", "3"]
    assert len(re.findall(r"^ +[0-9.]+ s$", text, re.MULTILINE)) == 3
    # Of a run whose data were taken away, files are made all the same, and it is said.
    said = " ".join(text.split())
    assert "train.jsonl is missing: weights are rounded as they are." in said
    assert "validation.jsonl is missing: what the files lose is not said." in said


def test_a_base_that_moves_on_is_merged_as_it_was_trained(logged_in, tmp_path):
    """On the Hub, `main` gets other weights between training, resuming and merging."""
    from slm_judge.export.merge import merge
    from slm_judge.training.facts import base_settings
    from slm_judge.training.train import train

    from slm_judge.offline.tiny import tiny_base

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
             "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.125}  # fmt: skip
    api = HfApi()
    api.create_repo("me/base")
    first = api.upload_folder(repo_id="me/base", folder_path=tiny_base(0, **shape)).oid
    recipe = small_recipe(
        tmp_path / "run", base="me/base", training={"epochs": 1},
        export=ExportConfig(dtype="float32"),
    )  # fmt: skip
    trained = train(recipe)
    second = api.upload_folder(repo_id="me/base", folder_path=tiny_base(1, **shape)).oid
    assert first != second
    base = Base.load(trained.adapter)
    assert (base.base, base.revision, base.requested_revision) == ("me/base", first, None)
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", first)
    assert base_settings(recipe, trained.folder).revision == first  # resumed
    assert base_settings(recipe).revision == second  # started now
    merge(trained)
    texts = ["Refund me now!", "I love the lamp."]
    difference = probabilities(trained.merged, texts) - probabilities(trained.adapter, texts)
    assert np.abs(difference).max() < 1e-3
    (trained.adapter / "base.json").unlink()
    with pytest.raises(
        ModelError, match=r"base\.json says what the adapter was trained on, but cannot be read"
    ):
        merge(trained)


# --- verify ---


def test_verify_writes_its_report(run):
    report = verify(run)
    assert report == read_report(run)
    assert report["different_prompts"] == 0
    for dimension in report["dimensions"].values():
        loss = dimension["loss"]["merged"]
        assert loss["verdict"] in ("not inferior", "not decided")  # 58 items may be too few
        assert loss["low"] <= 0  # of a judge that always says the same, no change costs anything
        assert loss["estimate"] > -0.02
        assert loss["margin"] == 0.05
        assert 0 < loss["items"] <= report["items"]
    topic = report["dimensions"]["topic"]
    assert set(topic["artefacts"]) == {"adapter", "merged", "bnb-4bit", "Q4_K_M", "Q8_0", "BF16"}
    assert topic["between"]["adapter / merged"]["agreement"] >= 0.97
    assert 0.8 < topic["reachable"]["alpha"] < 1
    alike = topic["between"]["adapter / Q4_K_M"]
    assert set(alike) == {
        "agreement", "agreement_interval", "alpha", "alpha_interval", "largest_difference",
        "mean_difference",
    }  # fmt: skip
    assert alike["agreement_interval"]["low"] < alike["agreement"]


def test_verify_measures_what_it_says(run, items):
    with Judge.from_pretrained(run.gguf_file("Q8_0")) as judge:
        answers = ask(judge, items)
    judge = Judge.from_pretrained(run.gguf, quantization="Q8_0")
    labels = [a.labels["topic"] for a in judge.annotate([item.state for item in items])]
    values = judge.rubric.dimension("topic").values
    assert [values[i] for i in answers.labels("topic")] == labels


# --- what cannot be used ---


def test_a_gguf_that_is_no_judge(run, tmp_path):
    from slm_judge.offline.llama_source import llama_cpp_source

    with pytest.raises(ModelError, match=r"(not a judge|can load)"):
        Judge.from_pretrained(llama_cpp_source() / "models" / "ggml-vocab-qwen2.gguf")
    from slm_judge.export.gguf import convert

    plain = convert(run.merged, tmp_path / "plain.gguf", "bf16", "plain")
    with pytest.raises(ModelError, match="it is a language model, not a judge"):
        Judge.from_pretrained(plain)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelError, match=r"not a GGUF file that llama\.cpp can load"):
        Judge.from_pretrained(broken)


def test_a_folder_that_is_no_judge(run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run.merged, folder)
    (folder / "decision_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"not a judge: it has no decision_template.jinja"):
        Judge.from_pretrained(folder)


def test_wrong_backend_and_quantization(run):
    with pytest.raises(ModelError, match="a judge for the gguf backend"):
        Judge.from_pretrained(run.gguf, backend="transformers")
    with pytest.raises(ModelError, match="no Q2_K file; choose one"):
        Judge.from_pretrained(run.gguf, quantization="Q2_K")
    with pytest.raises(ModelError, match="backend is auto"):
        Judge.from_pretrained(run.gguf, backend="onnx")
    with pytest.raises(JudgeError, match=r"no quantization 'Q5_X'; it knows .*Q4_K_M"):
        quantization_type("Q5_X")


def test_stages_out_of_order(tmp_path):
    from slm_judge.export.export import export

    from slm_judge.run import Run

    with pytest.raises(JudgeError, match="is not a run"):
        export(Run(tmp_path))


def test_a_misspelt_quantization_is_said_before_an_hour_of_rounding(tmp_path):
    from slm_judge.export.export import export

    recipe = small_recipe(tmp_path, export=ExportConfig(gguf=["Q8_0", "Q4_K"]))
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    with pytest.raises(JudgeError, match="knows no quantization 'Q4_K'"):
        export(Run(tmp_path))


def test_what_others_are_writing_outlives_a_command_on_the_folder(tmp_path):
    """In a folder that is no run, and beside what is a run's own."""
    others = [tmp_path / "demo" / f"{TEMPORARY}0-out.csv", tmp_path / f"{TEMPORARY}0-out.csv"]
    others[0].parent.mkdir()
    own = tmp_path / "gguf" / f"{TEMPORARY}0-demo.gguf"
    own.parent.mkdir()
    for path in (*others, own):
        path.touch()
    with Run(tmp_path).alone():
        assert own.exists()
    (tmp_path / "recipe.json").write_text(small_recipe(tmp_path).model_dump_json())
    with Run(tmp_path).alone():
        assert not own.exists()
        assert all(path.exists() for path in others)


def test_gold_is_read_against_the_rubric(run, items, tmp_path):
    from slm_judge.data.predictions import read_predictions
    from slm_judge.errors import DataError

    rubric, ids = Contract.load(run.adapter).rubric, [item.item_id for item in items]
    path = ROOT / "samples/support-messages-gold.csv"
    gold = read_predictions(str(path), rubric, ids)
    with path.open(newline="") as file:
        rows = {row["item_id"]: row for row in csv.DictReader(file)}
    expected = [int(rows[name]["urgency"]) - 1 for name in ids]
    assert gold.answers["urgency"].labels.tolist() == expected
    (tmp_path / "g.csv").write_text("item_id,urgency,topic,refund\nother,1,billing,true\n")
    with pytest.raises(DataError, match="no predictions for the annotated items"):
        read_predictions(str(tmp_path / "g.csv"), rubric, ids)
