"""Push with the real client to the loopback Hub, then use what is there and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, hf_hub_download
from safetensors.torch import load_file
from slm_judge.export.gguf import contents
from slm_judge.export.push import RESULTS, plan, push
from slm_judge.export.verify import REPORT, agreement_table, failures, read_report, verify

from benchmarks.serving import largest_difference, llama_server
from slm_judge import Judge
from slm_judge.artefact.base import Base, load_base
from slm_judge.artefact.locate import DEFAULT_FILE
from slm_judge.data.item import load_split, save_splits
from slm_judge.data.tables import read_table
from slm_judge.errors import JudgeError, ModelError, VerificationError
from slm_judge.files import content_hash, write_text
from slm_judge.recipe import VerifyConfig
from slm_judge.run import Run
from tests.conftest import LIMIT, ROOT
from tests.hub.conftest import rehashed
from tests.hub.server import HubError

KINDS = ("", "-lora", "-bnb-4bit", "-GGUF")


@pytest.fixture(scope="module")
def pushed(verified, hub):
    """The four repositories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_loopback")
        push(verified, user="me")
    return hub


def named_copy(run, folder, name):
    """A copy of the run under another name, with thresholds that even a little training meets."""
    copy = Run(folder)
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("report"))
    loose = VerifyConfig(min_agreement=0.1, min_alpha_between=-1, max_alpha_loss=1)
    recipe = run.recipe().model_copy(update={"name": name, "verify": loose})
    write_text(copy.recipe_file, recipe.model_dump_json())
    for quantization in recipe.export.gguf:
        shutil.move(copy.gguf / f"demo-{quantization}.gguf", copy.gguf_file(quantization))
    return copy


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("absent", ["", "urgency", "urgency topic refund"])
def test_what_passes_verification_is_pushed(run, logged_in, tmp_path, absent):
    """With the real verification; also where a dimension has no annotations among the items."""
    from huggingface_hub import ModelCard

    absent, name = absent.split(), f"honest-{len(absent.split())}"
    copy = named_copy(run, tmp_path / "run", name)
    items = [replace(i, votes={k: v for k, v in i.votes.items() if k not in absent})
             for i in load_split(copy.data, "test")]  # fmt: skip
    save_splits({"test": items}, copy.data)
    report = verify(copy)
    assert report["failures"] == []
    for path in copy.report.glob("*.json"):
        strict(path)
    assert strict(copy.report / REPORT) == report
    shown = "\n".join(line for line, _ in agreement_table(report).lines(80))
    assert "annotators among themselves" in shown
    assert {len(line) <= 80 for line in shown.splitlines()} == {True}
    said = [f"{name} has no annotations among the {len(items)} test items" for name in absent]
    for one, note in zip(said, report["notes"], strict=True):
        assert one in note
    for dimension in absent:
        found = report["dimensions"][dimension]
        assert found["artefacts"]["Q4_K_M"]["alpha"] is found["annotators_alpha"] is None
        assert found["between"]["adapter / Q4_K_M"]["agreement"] >= 0.1
        alike = found["between"]["adapter / Q4_K_M"]  # and not for want of annotations:
        alike["alpha_interval"] = dict.fromkeys(("estimate", "low", "high"))
        assert any("alpha with the adapter –" in f for f in failures(report, VerifyConfig()))
    assert len(push(copy, user="me")) == len(KINDS)
    for kind in KINDS:
        card = ModelCard.load(f"me/{name}{kind}")
        configs = {result.dataset_config for result in card.data.eval_results}
        assert configs == {"urgency", "topic", "refund"} - set(absent)
        assert all(one in card.text for one in said)
        files = logged_in.repo(f"me/{name}{kind}").history()[0]["files"]
        for figure in re.findall(r"\((figures/.*?)\)", card.text):
            assert figure in files


def test_four_repositories_with_one_commit_each(pushed):
    for kind in KINDS:
        history = pushed.repo(f"me/demo{kind}").history()
        assert [commit["message"] for commit in history] == [
            "Upload a judge with slm-judge",
            "initial commit",
        ]
        assert {"README.md", REPORT} <= set(history[0]["files"])
    files = pushed.repo("me/demo-GGUF").history()[0]["files"]
    assert {"demo-Q4_K_M.gguf", "demo-Q8_0.gguf", DEFAULT_FILE} <= set(files)


def test_the_four_are_a_collection(pushed, verified, logged_in):
    """Which pushing again leaves as it is, and makes whole."""
    (collection,) = [c for slug, c in pushed.collections.items() if slug.startswith("me/demo-")]
    names = [f"me/demo{kind}" for kind in KINDS]
    assert [item["id"] for item in collection["items"]] == names
    collection["items"].pop()
    push(verified, user="me")
    assert [item["id"] for item in collection["items"]] == names


@pytest.mark.parametrize("fault", [(403, ""), (500, ""), (404, "")])
@pytest.mark.parametrize("asked", ["/api/collections", "/items"])
def test_a_push_without_a_collection_is_a_push(mine, logged_in, monkeypatch, capsys, asked, fault):
    def fail(method, path):
        if path.endswith(asked):
            raise HubError(*fault, "not here")

    monkeypatch.setattr(logged_in, "fail", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    logged_in.collections.pop(next((k for k in logged_in.collections if "/demo-" in k), ""), None)
    assert len(push(mine, user="me", revision="alone")) == len(KINDS)
    said = " ".join(capsys.readouterr().out.split())
    assert "All repositories are pushed, but not in a collection of the Hub: The" in said
    assert str(fault[0]) in said


def test_annotated_items_are_published_where_somebody_asks(mine, logged_in):
    from huggingface_hub import DatasetCard, ModelCard, parse_eval_result_entries

    push(mine, user="me", revision="with-data", data=True)
    card = DatasetCard.load(hf_hub_download(
        "me/demo-data", "README.md", repo_type="dataset", revision="with-data"))  # fmt: skip
    card.validate(repo_type="dataset")
    for name in ("train", "validation", "test"):
        items = load_split(mine.data, name)
        rows = list(read_table(f"me/demo-data@with-data#{name}").rows)
        texts = {row["item_id"]: row["text"] for row in rows}
        assert texts == {item.item_id: item.state["text"] for item in items}
        votes = Counter((i.item_id, k) for i in items for k in i.votes["topic"].values())
        topics = mine.rubric().dimension("topic").values
        assert Counter((r["item_id"], topics.index(r["topic"])) for r in rows) == votes
        assert not {row["annotator_id"] for row in rows} & {"ann_1", "ann_2"}  # nobody's name
    card = ModelCard.load(hf_hub_download("me/demo-GGUF", "README.md", revision="with-data"))
    assert card.data.datasets == ["me/demo-data"]
    path = hf_hub_download("me/demo-GGUF", RESULTS, revision="with-data")
    entries = parse_eval_result_entries(yaml.safe_load(Path(path).read_text()))
    assert {entry.dataset_id for entry in entries} == {"me/demo-data"}
    values = {entry.task_id: entry.value for entry in entries}
    for result in card.data.eval_results:
        assert values[f"{result.dataset_config}-{result.metric_type}"] == result.metric_value
    plain = logged_in.repo("me/demo-GGUF").history()[0]["files"]
    assert RESULTS not in plain  # of items that are no dataset on the Hub
    assert not logged_in.repo("me/demo-data", "dataset").history()[1:]  # main is as it was


def test_cards_carry_the_metadata(pushed):
    from huggingface_hub import ModelCard

    for kind, base, relation, library in (
        ("-bnb-4bit", "me/demo", "quantized", "transformers"),
        ("-GGUF", "me/demo", "quantized", "gguf"),
        ("", None, None, "transformers"),  # the offline base has no name on the Hub
    ):
        card = ModelCard.load(f"me/demo{kind}")
        assert card.data.base_model == base
        assert card.data.get("base_model_relation") == relation
        assert card.data.library_name == library
        assert {"decision-model", "system-one", "slm-judge"} <= set(card.data.tags)
        assert ("lora" in card.data.tags) == (kind == "-lora")
        for other in KINDS:
            assert f"https://huggingface.co/me/demo{other})" in card.text


def test_the_base_of_the_hub_is_named_and_how_the_judge_stands_to_it(mine):
    from huggingface_hub import ModelCard

    mine.keep_recipe(mine.recipe().model_copy(update={"base": "other/base"}))
    planned = plan(mine, "me", read_report(mine))
    cards = [ModelCard(one.files["README.md"].decode()).data for one in planned]
    assert [(card.base_model, card.base_model_relation) for card in cards] == [
        ("other/base", "finetune"), ("other/base", "adapter"),
        ("me/demo", "quantized"), ("me/demo", "quantized"),
    ]  # fmt: skip


def test_cards_say_what_was_measured(pushed, verified):
    from huggingface_hub import ModelCard

    numbers = json.loads((verified.report / "report.json").read_text())
    for kind, artefact in (("-bnb-4bit", "bnb-4bit"), ("-GGUF", "Q4_K_M"), ("-lora", "adapter")):
        card = ModelCard.load(f"me/demo{kind}")
        card.validate()  # by the Hub
        results = {
            (r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results
        }
        names = {r.metric_type: r.metric_name for r in card.data.eval_results}
        assert names["krippendorff_alpha"] == "Krippendorff's alpha, judge with each annotator"
        assert names["accuracy"] == "Accuracy over pairs of judge and annotator"
        assert "Wang, Jiayu and Lee, Junyoung" in card.text
        assert "https://arxiv.org/abs/2604.00586" in card.text
        alpha = numbers["dimensions"]["topic"]["systems"][artefact]["alpha"]["estimate"]
        assert results["topic", "krippendorff_alpha"] == pytest.approx(alpha, abs=1e-4)
        assert len(results) == 9
        for section in ("## Intended use", "## Agreement", "## Calibration", "## Bias probes",
                        "## Training", "## Citation"):  # fmt: skip
            assert section in card.text
        files = pushed.repo(f"me/demo{kind}").history()[0]["files"]
        for figure in ("alpha", "reliability", "risk-coverage"):
            assert f"figures/{figure}.png" in files
            assert f"(figures/{figure}.png)" in card.text
        for name in verified.recipe().export.gguf:
            assert f"- {name}: {contents(verified.gguf_file(name))}\n" in card.text
        # The recipe in the card makes the run again.
        recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
        assert recipe["training"] == json.loads(verified.recipe_file.read_text())["training"]


@pytest.mark.parametrize("kind", ["", "-lora", "-bnb-4bit", "-GGUF"])
def test_the_card_s_code_runs(pushed, kind):
    from huggingface_hub import ModelCard

    text = ModelCard.load(f"me/demo{kind}").text
    assert ("bitsandbytes and PEFT" in text) == (kind == "-bnb-4bit")
    blocks = text.split("```python\n")[1:]
    assert blocks
    for block in blocks:
        namespace: dict = {}
        exec(block.split("```")[0], namespace)
        result = namespace.get("answers") or namespace["annotations"][0].labels
        assert {"urgency", "topic", "refund"} <= set(result)


def test_the_card_s_server_serves(pushed, verified, tmp_path):
    """As the card says it, with the real `hf`, and llama.cpp's server of the wheel."""
    from huggingface_hub import ModelCard

    (block,) = ModelCard.load("me/demo-GGUF").text.split("```bash\nhf ")[1:]
    download, serve = f"hf {block}".split("```")[0].splitlines()
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    subprocess.run([*hf, *download.split()[1:]], cwd=tmp_path, check=True, timeout=LIMIT)
    path = tmp_path / serve.removeprefix("llama-server -m ")
    with Judge.from_pretrained("me/demo-GGUF") as judge, llama_server(path) as url:
        assert largest_difference(judge, url, ["Refund me now!"]) < judge.backend.near_tie


def test_the_questions_of_a_judge_are_beside_it(pushed, support):
    path = hf_hub_download("me/demo-bnb-4bit", "questions.json")
    assert json.loads(Path(path).read_text()) == json.loads(json.dumps(support.questions()))


def test_stock_pipeline_answers_from_the_hub(pushed, support):
    from transformers import pipeline

    judge = pipeline("decision", model="me/demo-bnb-4bit", device="cpu")
    trained = load_file(hf_hub_download("me/demo-bnb-4bit", "adapter/adapter_model.safetensors"))
    held = {n: p for n, p in judge.model.named_parameters() if "lora_" in n}
    assert len(held) == len(trained) > 0
    for name, weight in trained.items():
        stem = name.removeprefix("base_model.model.").removesuffix(".weight")
        own = f"{stem}.default" + ".weight" * name.endswith(".weight")
        torch.testing.assert_close(held[own].float(), weight.float(), rtol=2**-7, atol=1e-6)
    answer = judge({"state": {"text": "Refund me now!"}, "questions": support.questions()})
    assert 0 <= answer["refund"]["noul"] <= 1
    assert set(answer["topic"]["probabilities"]) == {
        "billing", "delivery", "product", "account", "praise",
    }  # fmt: skip


def test_judge_answers_from_the_hub_as_from_the_file(pushed, run, logged_in):
    texts = ["Refund me now!", "I love the lamp."]
    there = Judge.from_pretrained("me/demo-GGUF").annotate(texts)
    assert there == Judge.from_pretrained(run.gguf).annotate(texts)
    eight = Judge.from_pretrained("me/demo-GGUF", quantization="Q8_0")
    assert eight.backend.path.name == "demo-Q8_0.gguf"
    other = json.dumps({"quantization": "BF16"}).encode()
    HfApi().create_branch("me/demo-GGUF", branch="wide")
    HfApi().upload_file(
        path_or_fileobj=other, path_in_repo=DEFAULT_FILE, repo_id="me/demo-GGUF", revision="wide"
    )
    wide = Judge.from_pretrained("me/demo-GGUF", revision="wide")
    assert wide.backend.path.name == "demo-BF16.gguf"


def test_what_was_downloaded_works_without_the_hub(pushed, monkeypatch):
    before = Judge.from_pretrained("me/demo-GGUF").annotate(["hello"])

    def down(method, path):
        raise HubError(503, "", "down for maintenance")

    monkeypatch.setattr(pushed, "fail", down)
    assert Judge.from_pretrained("me/demo-GGUF").annotate(["hello"]) == before


def test_revisions_are_honoured(pushed, verified, logged_in, tmp_path):
    first = HfApi().model_info("me/demo-GGUF").sha
    changed = Run(tmp_path / "run")
    shutil.copytree(verified.folder, changed.folder)
    q8 = changed.gguf_file("Q8_0")
    shutil.copyfile(changed.gguf_file("BF16"), q8)
    report = read_report(changed)
    report["sha256"]["Q8_0"] = content_hash(q8)
    write_text(changed.report / REPORT, json.dumps(report))
    push(changed, user="me", revision="experiment")
    assert HfApi().model_info("me/demo-GGUF").sha == first  # main is as it was
    path = hf_hub_download("me/demo-GGUF", "demo-Q8_0.gguf", revision="experiment")
    assert content_hash(q8) != content_hash(verified.gguf_file("Q8_0"))
    assert Path(path).read_bytes() == q8.read_bytes()
    old = Judge.from_pretrained("me/demo-GGUF", revision=first, quantization="Q8_0")
    new = Judge.from_pretrained("me/demo-GGUF", revision="experiment", quantization="Q8_0")
    assert first in str(old.backend.path)
    assert old.annotate(["hello"]) != new.annotate(["hello"])


def test_pushing_again_changes_nothing(pushed, verified, logged_in):
    before = {kind: pushed.repo(f"me/demo{kind}").refs()["main"] for kind in KINDS}
    pushed.requests.clear()
    push(verified, user="me")
    assert {kind: pushed.repo(f"me/demo{kind}").refs()["main"] for kind in KINDS} == before
    assert not [r for r in pushed.requests if r[0] == "PUT"]


def test_a_push_that_dies_is_finished_by_pushing_again(verified, logged_in, monkeypatch, tmp_path):
    named = Run(tmp_path / "run")
    shutil.copytree(verified.folder, named.folder)
    recipe = named.recipe().model_copy(update={"name": "phoenix"})
    write_text(named.recipe_file, recipe.model_dump_json())
    for quantization in recipe.export.gguf:
        verified.gguf_file(quantization)
        (named.gguf / f"demo-{quantization}.gguf").rename(named.gguf_file(quantization))
    report = read_report(named)
    for quantization in recipe.export.gguf:
        report["sha256"][quantization] = content_hash(named.gguf_file(quantization))
    write_text(named.report / REPORT, json.dumps(report))

    def die(method, path):
        if "phoenix-bnb-4bit" in path and "/commit/" in path:
            raise HubError(403, "", "the line is dead")

    monkeypatch.setattr(logged_in, "fail", die)
    with pytest.raises(JudgeError, match="Push again to finish"):
        push(named, user="me")
    assert len(logged_in.repo("me/phoenix-GGUF").history()) == 1  # made, and nothing in it
    monkeypatch.setattr(logged_in, "fail", None)
    logged_in.requests.clear()
    push(named, user="me")
    for kind in KINDS:
        history = logged_in.repo(f"me/phoenix{kind}").history()
        assert len(history) == 2, kind  # one commit each, besides the initial one
    uploads = [path for method, path in logged_in.requests if method == "PUT"]
    assert not [path for path in uploads if "bnb-4bit" in path]  # its weights were there already


def test_private_repositories_need_the_owner(verified, logged_in, monkeypatch, tmp_path):
    api = HfApi()
    api.create_repo("me/secret", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="or it is private"):
        Judge.from_pretrained("me/secret")


def test_gated_and_missing_repositories(pushed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_loopback")
        HfApi().create_repo("me/gated")
        HfApi().upload_file(path_or_fileobj=b"GGUF", path_in_repo="x.gguf", repo_id="me/gated")
    pushed.set_meta("me/gated", gated="manual")
    with pytest.raises(ModelError, match="There is no repository me/nothing on the Hub"):
        Judge.from_pretrained("me/nothing")
    with pytest.raises(ModelError, match="no revision 'v9'"):
        Judge.from_pretrained("me/demo-GGUF", revision="v9")
    with pytest.raises(ModelError, match="gated: ask for access"):
        Judge.from_pretrained("me/gated")


def test_dry_run_prints_files_and_sizes_and_pushes_nothing(verified, hub, capsys):
    hub.requests.clear()
    assert push(verified, user="dry", dry_run=True) == []
    printed = capsys.readouterr().out
    assert "dry/demo-GGUF" in printed
    assert "demo-Q4_K_M.gguf" in printed
    assert "MB" in printed
    assert hub.requests == []


def test_push_needs_a_token(verified, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(JudgeError, match="hf auth login"):
        push(verified)


def test_push_refuses_what_failed_verification(verified, tmp_path, logged_in):
    bad = Run(tmp_path / "run")
    shutil.copytree(verified.folder, bad.folder)
    report = read_report(bad) | {"failures": ["topic, Q4_K_M: too different"]}
    write_text(bad.report / REPORT, json.dumps(report))
    logged_in.requests.clear()
    with pytest.raises(VerificationError, match="too different"):
        push(bad, user="me")
    report["failures"] = []
    write_text(bad.report / REPORT, json.dumps(report))
    with bad.gguf_file("Q8_0").open("ab") as file:
        file.write(b"x")
    with pytest.raises(JudgeError, match="changed after it was verified"):
        push(bad, user="me")
    (bad.report / REPORT).unlink()
    with pytest.raises(JudgeError, match="run `slm-judge verify"):
        push(bad, user="me")
    assert logged_in.requests == []


@pytest.fixture
def mine(light, tmp_path):
    """A run to damage."""
    copy = Run(tmp_path / "run")
    shutil.copytree(light.folder, copy.folder)
    return copy


def test_what_is_not_the_judge_s_stays_here(mine, logged_in, capsys):
    strays = [mine.merged / "notes.txt", mine.merged / "optimizer.pt", mine.adapter / ".env",
              mine.bnb / "model-old.safetensors", mine.bnb / "adapter" / "notes.md",
              mine.gguf / "demo-Q2_K.gguf"]  # fmt: skip
    for path in strays:
        path.write_text("mine" if path.name != "notes.txt" else "")
    (mine.merged / "private").mkdir()
    (mine.merged / "private" / "key").write_text("mine")
    (mine.report / "figures" / "holiday.png").write_text("mine")
    push(mine, user="me", revision="strays")
    said = "".join(capsys.readouterr().out.split())
    for path in (*strays, mine.merged / "private"):
        assert f"{path}isnotpartofthejudge" in said
    for kind in KINDS:
        files = logged_in.repo(f"me/demo{kind}").history("strays")[0]["files"]
        assert not {"notes.txt", "optimizer.pt", ".env", "model-old.safetensors", "demo-Q2_K.gguf",
                    "private/key", "figures/holiday.png", "adapter/notes.md"} & files.keys()  # fmt: skip
        assert "README.md" in files


def test_another_judge_of_the_name_leaves_nothing_of_the_first(mine, logged_in, capsys):
    """What an earlier push wrote goes in the same commit; what people put there stays."""
    from slm_judge.artefact.locate import locate

    recipe = mine.recipe().model_copy(update={"name": "twice", "base": "other/base"})
    for quantization in recipe.export.gguf:
        mine.gguf_file(quantization).rename(mine.gguf / f"twice-{quantization}.gguf")
    mine.keep_recipe(recipe)
    (mine.merged / "tekken.json").write_text("{}")
    push(rehashed(mine), user="me", data=True, space=True)
    api, theirs = (
        HfApi(),
        ["notes.txt", "own/model.safetensors", "me-Q4_K_M.gguf", "twice-lora.gguf"],
    )
    theirs += ["figures/own.png", "imatrix.gguf"]
    for kind in KINDS:
        for path in theirs:
            api.upload_file(path_or_fileobj=b"x", path_in_repo=path, repo_id=f"me/twice{kind}")
    for old in ("slm_judge/old.py", "slm_judge-0.0.1.dist-info/METADATA", "mine.py"):
        api.upload_file(
            path_or_fileobj=b"x", path_in_repo=old, repo_id="me/twice-demo", repo_type="space"
        )
    api.delete_file("me-Q4_K_M.gguf", "me/twice-GGUF")

    exports = recipe.export.model_copy(update={"gguf": ["Q8_0"], "default": None})
    mine.keep_recipe(recipe.model_copy(update={"export": exports}))
    (mine.merged / "tekken.json").unlink()
    (mine.merged / "model.safetensors").rename(mine.merged / "model-00001-of-00001.safetensors")
    (mine.report / "figures/confusion-topic.png").unlink()
    mine.gguf_file("Q8_0").write_bytes(mine.gguf_file("Q8_0").read_bytes() + b"of another judge")
    capsys.readouterr()
    push(rehashed(mine), user="me", space=True)
    said = " ".join(capsys.readouterr().out.split())
    stale = {"": {"model.safetensors", "tekken.json"}, "-lora": set(), "-bnb-4bit": set(),
             "-GGUF": {"twice-Q4_K_M.gguf", "twice-BF16.gguf"}}  # fmt: skip
    for kind, gone in stale.items():
        (after, before, *_) = logged_in.repo(f"me/twice{kind}").history()
        gone = {*gone, RESULTS, "figures/confusion-topic.png"}
        assert before["files"].keys() - after["files"].keys() == gone
        for path in gone:
            assert f"me/twice{kind}: {path} is of an earlier push, and goes." in said
    (after, before, *_) = logged_in.repo("me/twice-demo", "space").history()
    gone = {"slm_judge/old.py", "slm_judge-0.0.1.dist-info/METADATA"}
    assert before["files"].keys() - after["files"].keys() == gone
    assert said.count("is of an earlier push") == 4 + 2 + 2 + 4 + 2
    for path in ("imatrix.gguf", "twice-lora.gguf"):
        api.delete_file(path, "me/twice-GGUF")
    path = locate("me/twice-GGUF", None, None)
    assert path.read_bytes().endswith(b"of another judge")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda run: (run.bnb / "tokenizer.json").write_text(""), "tokenizer.json is empty; run"),
        (lambda run: run.gguf_file("Q8_0").write_bytes(b""), "Q8_0.gguf is empty; run"),
        (lambda run: (run.merged / "config.json").unlink(), "changed after it was verified"),
        (lambda run: (run.report / REPORT).write_text("{}"), "verify.json is damaged; run"),
        (lambda run: run.keep_recipe(run.recipe().model_copy(
            update={"verify": VerifyConfig(min_agreement=0.99)})), "`verify` changed since"),
    ],
)  # fmt: skip
def test_only_what_was_verified_as_it_is_now(mine, logged_in, damage, complaint):
    damage(mine)
    logged_in.requests.clear()
    with pytest.raises(JudgeError, match=complaint):
        push(mine, user="me")
    assert logged_in.requests == []


def test_private_is_never_pushed_into_what_is_public(mine, logged_in):
    names = [f"me/demo{kind}" for kind in KINDS]
    for name in names:
        HfApi().create_repo(name, exist_ok=True)
        logged_in.set_meta(name, private=name != names[-1])
    logged_in.requests.clear()
    with pytest.raises(JudgeError, match=f"{names[-1]} is public already, which --private does"):
        push(mine, user="me", private=True, revision="hidden")
    assert not [r for r in logged_in.requests if r[0] == "PUT" or "/commit/" in r[1]]
    logged_in.set_meta(names[-1], private=True)
    assert len(push(mine, user="me", private=True, revision="hidden")) == len(KINDS)
    for name in names:
        logged_in.set_meta(name, private=False)


def test_no_folder_of_this_machine_is_published(mine, logged_in, tmp_path):
    """The base is a folder, with the name of one of ours."""
    folder = str(tmp_path / "tiny")
    mine.keep_recipe(mine.recipe().model_copy(update={"base": folder}))
    for path in (mine.adapter / "base.json", mine.adapter / "training.json"):
        settings = json.loads(path.read_text())
        base = settings["base"] if path.name == "training.json" else settings
        base["base"] = folder
        write_text(path, json.dumps(settings))
    push(rehashed(mine), user="me", revision="folders")
    for kind in KINDS:
        repo = logged_in.repo(f"me/demo{kind}")
        for name, digest in repo.history("folders")[0]["files"].items():
            content = repo.blob(digest).read_bytes()
            assert str(tmp_path).encode() not in content, (kind, name)
            assert str(ROOT).encode() not in content, (kind, name)
    there = Path(hf_hub_download("me/demo-lora", "base.json", revision="folders")).parent
    assert replace(Base.load(there), base=folder) == Base.load(mine.adapter)
    with pytest.raises(ModelError, match=r"'\./tiny' is not the name of a Hub repository"):
        load_base(Base.load(there), "cpu")


def test_offline_there_is_no_push(mine, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    with pytest.raises(JudgeError, match=r"cannot be reached .*offline mode is enabled"):
        push(mine)
