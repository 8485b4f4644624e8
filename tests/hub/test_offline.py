"""What was downloaded works without the Hub, in a new process: by branch, by commit, by neither."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from slm_judge import Judge
from slm_judge.artefact.base import base_commit, load_tokenizer
from slm_judge.artefact.locate import locate
from slm_judge.offline.tiny import tiny_base
from tests.conftest import LIMIT, TOKEN

SCRIPT = """
import json, sys
from huggingface_hub import constants
from slm_judge import Judge
from slm_judge.artefact.base import base_commit, load_tokenizer
from slm_judge.artefact.locate import locate
from slm_judge.data.tables import read_table
from slm_judge.errors import JudgeError

def attempt(work):
    try:
        return work()
    except JudgeError as error:
        return str(error)

asked, judged = json.loads(sys.argv[1])
found = {}
for name, (cache, model, revision) in asked.items():
    constants.HF_HUB_CACHE = cache
    found[name] = str(locate(model, revision, None))
for model in judged:
    with Judge.from_pretrained(model) as judge:
        found[model] = judge.annotate(["hello"])[0].labels
if constants.HF_HUB_OFFLINE:
    found["commit"] = base_commit("me/off-base", None)
    found["tokens"] = load_tokenizer("me/off-base")("hello")["input_ids"]
    found["absent"] = attempt(lambda: Judge.from_pretrained("me/off-GGUF", quantization="Q8_0"))
    found["dataset"] = attempt(lambda: read_table("me/off-data"))
    import evaluate
    from slm_judge.evaluation.metrics import metric_path
    alpha = evaluate.load(metric_path("krippendorff_alpha"))
    found["alpha"] = alpha.compute(predictions=[0, 1], references=[[0], [1]])["krippendorff_alpha"]
print(json.dumps(found))
"""


def upload(name, files):
    """A new repository with these files and a branch "v1"; its commit."""
    api = HfApi()
    api.create_repo(name)
    operations = [CommitOperationAdd(path, source) for path, source in files.items()]
    commit = api.create_commit(name, operations, commit_message="files").oid
    api.create_branch(name, branch="v1")
    return commit


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    return {path.relative_to(folder).as_posix(): path for path in files}


@pytest.fixture(scope="module")
def there(run, hub):
    """The repositories -> their commits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        return repositories(run)


def repositories(run):
    gguf = {run.gguf_file(name).name: run.gguf_file(name) for name in ("Q4_K_M", "Q8_0")}
    commits = {"me/off-GGUF": upload("me/off-GGUF", gguf)}
    commits["me/off"] = upload("me/off", contents(run.bnb))
    commits["me/off-base"] = upload("me/off-base", contents(tiny_base()))
    base = json.loads((run.adapter / "base.json").read_text())
    base |= {"base": "me/off-base", "revision": commits["me/off-base"]}
    adapter = contents(run.adapter) | {"base.json": json.dumps(base).encode()}
    commits["me/off-lora"] = upload("me/off-lora", adapter)
    return commits


def without_the_hub(settings, folder, *given):
    """What a new process finds, and what it notes."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)], capture_output=True, text=True,
        timeout=LIMIT, cwd=folder, env=os.environ | settings,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1]), " ".join(result.stderr.split())


def test_offline_from_a_cold_start(there, tmp_path, monkeypatch):
    asked, expected, judged = {}, {}, ("me/off-GGUF", "me/off", "me/off-lora")
    for model in judged:
        for form, revision in (("commit", there[model]), ("branch", "v1"), ("none", None)):
            cache = str(tmp_path / form)
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
            asked[f"{model}, {form}"] = [cache, model, revision]
            expected[f"{model}, {form}"] = str(locate(model, revision, None))
        with Judge.from_pretrained(model) as judge:
            expected[model] = judge.annotate(["hello"])[0].labels
    expected["commit"] = base_commit("me/off-base", None)
    expected["tokens"] = load_tokenizer("me/off-base")("hello")["input_ids"]
    found, said = without_the_hub({"HF_HUB_OFFLINE": "1"}, tmp_path, asked, judged)
    assert {name: found[name] for name in expected} == expected
    assert "not in the local cache" in found["absent"]
    assert "the Hub cannot be reached" in found["dataset"]
    assert found["alpha"] == 1
    for model in (*judged, "me/off-base"):
        note = f"{model} is taken from the local cache, at commit {there[model]}."
        assert said.count(note) == 1, said


def test_a_hub_that_does_not_answer(there, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = {"here": [str(tmp_path), "me/off-GGUF", None]}
    path = str(locate("me/off-GGUF", None, None))
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    found, said = without_the_hub(nobody, tmp_path, asked, ["me/off-GGUF"])
    assert found["here"] == path
    assert f"at commit {there['me/off-GGUF']}." in said
