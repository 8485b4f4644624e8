"""`slm-judge job`: on the loopback Hub, whose jobs are processes of this machine."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, _tree_cache, get_session
from huggingface_hub.errors import RepositoryNotFoundError
from rich.console import Console
from slm_judge.export import job as stage
from slm_judge.export import on_hub
from slm_judge.export.job import RECIPE, SCRIPT, bundle, job, requirements
from slm_judge.export.on_hub import BRANCH, _keep

from slm_judge import Judge
from slm_judge.errors import JudgeError
from slm_judge.recipe import ExportConfig, Recipe, VerifyConfig
from tests.conftest import LIMIT, ROOT, small_recipe
from tests.hub.conftest import attempt
from tests.hub.faults import JOBS, PULL, faults
from tests.hub.server import HubError

TOKEN = "hf_loopback"


def told(*arguments, **options):
    """What the job says, and how it ends."""
    console, error = Console(file=io.StringIO(), width=200), None
    try:
        job(*arguments, **options, console=console)
    except JudgeError as caught:
        error = str(caught)
    return console.file.getvalue(), error


def test_the_script_says_what_it_needs(tmp_path):
    script = bundle(Recipe.from_file(ROOT / "recipes/tiny.yaml"))[SCRIPT].decode()
    (head,) = re.findall(r"(?m)^# /// script\n((?:# .*\n)+?)# ///$", script)
    needs = re.search(r"dependencies = (\[.*?\])", head.replace("\n# ", "\n"), re.DOTALL)[1]
    names = {re.match(r"[\w-]+", need)[0] for need in json.loads(needs)}
    assert {"torch", "trl", "peft", "llama-cpp-python", "krippendorff", "pydantic"} <= names
    assert not names & {"slm-judge", "pytest", "ray", "openpyxl"}
    assert not any(";" in need for need in requirements("train", "export"))


@pytest.mark.parametrize("timeout", ["soon", "-5m", "", "0h", "5 m"])
def test_a_timeout_that_is_none_is_refused_before_anything_is_sent(logged_in, tmp_path, timeout):
    recipe = small_recipe(tmp_path / "run", name="never")
    _, error = told(recipe, "cpu-basic", timeout)
    assert f"--timeout is a number with s, m, h or d, e.g. 90m, not {timeout!r}" in error
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("me/never-job")


def test_a_job_that_fails_says_why_and_sends_no_more_than_it_needs(logged_in, tmp_path):
    """The base is not there, which only the machine of the job finds out."""
    recipe = small_recipe(tmp_path / "run", base="me/no-base", name="failing")
    said, error = told(recipe, "cpu-basic", "5m")
    assert "There is no repository me/no-base on the Hub" in " ".join(said.split())
    assert "ended: ERROR exit code 2. What it had finished is kept in me/failing-job" in error
    asked = list(logged_in.jobs.values())[-1]
    assert (asked.spec["flavor"], asked.spec["timeoutSeconds"]) == ("cpu-basic", 300)
    assert asked.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in said + error + str(asked.spec["command"])
    repo = logged_in.repo("me/failing-job")
    assert repo.meta["private"]
    files = repo.history()[0]["files"]
    assert {"job.py", "recipe.json", "rubric.json", "package/slm_judge/training/train.py",
            "package/slm_judge/model_card/card.md.jinja"} <= files.keys()  # fmt: skip
    sent = yaml.safe_load(repo.blob(files["recipe.json"]).read_text())
    assert sent["data"]["train"] == "data/train-support-messages.csv"
    assert str(ROOT) not in json.dumps(sent)
    assert files[sent["data"]["train"]]


def test_what_cannot_be_sent_is_refused_before_anything_is(logged_in, tmp_path):
    logged_in.requests.clear()
    recipe = small_recipe(tmp_path / "run", base=str(tmp_path))
    assert "The base is a folder" in told(recipe, "cpu-basic", "5m")[1]
    assert logged_in.requests == []


@pytest.mark.parametrize("fault", ["ConnectError", "ReadTimeout", "FileNotFoundError"])
def test_a_fault_of_the_line_does_not_end_a_job(tmp_path, monkeypatch, capsys, fault):
    library = sys.modules[type(get_session()).__module__.partition(".")[0]]  # httpx, or its heir
    error = getattr(library, fault, FileNotFoundError)

    class Api:
        calls = 0

        def upload_folder(self, **given):
            self.calls += 1
            raise error("the line is dead")

    api = Api()
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    _keep(api, "me/x-job", tmp_path / "nothing")
    assert (api.calls, capsys.readouterr().out) == (0, "")
    _keep(api, "me/x-job", tmp_path)
    said = capsys.readouterr().out
    if error is FileNotFoundError:  # what vanished meanwhile
        assert (api.calls, said) == (1, "")
    else:
        assert said.startswith("The run is not kept this time: me/x-job: the Hub cannot be reached")
        assert (api.calls, said.count("\n")) == (4, 1)


def test_a_fault_in_the_job_is_a_sentence_of_its_log(logged_in, monkeypatch, tmp_path):
    asked = []

    def fail(method, path):
        if path.startswith("/api/models/me/faulty-job/tree/"):
            asked.append(path)
            if len(asked) == 1:  # which the job tries again
                raise HubError(400, "", "a moment, please")
        if path.endswith(f"/branch/{BRANCH}"):
            raise HubError(403, "", "not with this token")

    monkeypatch.setattr(logged_in, "fail", fail)
    said, error = told(small_recipe(tmp_path / "run", name="faulty"), "cpu-basic", "5m")
    assert "error: me/faulty-job: the Hub refuses this to the token in use (403" in said
    assert (len(asked), "Traceback" in said) == (2, False)
    assert "ended: ERROR exit code 1" in error


@pytest.fixture
def small(monkeypatch):
    """Jobs that are given next to nothing."""
    monkeypatch.setattr(stage, "bundle", lambda recipe: {SCRIPT: b"job"})


@pytest.mark.parametrize("request_", JOBS)
def test_faults_start_no_second_job(impatient, small, monkeypatch, request_):
    hub, recipe = impatient, Recipe.from_file(ROOT / "recipes/tiny.yaml")
    monkeypatch.setattr(hub, "does", ["sh", "-c", "echo hello; sleep 0.2; echo bye"])
    for name, hook in faults({request_: JOBS[request_]}):
        if name in ("status, list", "status, object"):
            continue  # huggingface_hub asks on, and a person ends it
        before, hub.fail = len(hub.jobs), hook
        said, error = told(recipe, "cpu-basic", "5m")
        assert len(hub.jobs) <= before + 1, name
        assert error is None or not name.endswith("once"), (name, error)
        if error is None:
            assert len(hub.jobs) == before + 1, name
            assert request_ == "logs" or said.endswith("hello\nbye\n"), (name, said)
        elif request_ in ("logs", "status"):
            assert (
                "until it ends, the same command follows it. To end it: `hf jobs cancel " in error
            )
        elif "402" in name:
            assert "asks for payment (402" in error
            assert "add credit to the account" in error
        assert "hf_other" not in said + str(error), name
        hub.fail = None
        for one in hub.jobs.values():
            one.listener.join(LIMIT)


def test_a_job_that_is_at_work_is_followed(logged_in, small, monkeypatch):
    waits = "echo hello; while [ ! -e go ]; do sleep 0.1; done; echo bye"
    monkeypatch.setattr(logged_in, "does", ["sh", "-c", waits])
    recipe, before, said = Recipe.from_file(ROOT / "recipes/tiny.yaml"), len(logged_in.jobs), []
    other = recipe.model_copy(update={"name": "tiny-2"})
    threads = []
    for number, each in enumerate((recipe, other, recipe)):
        logged_in.requests.clear()
        threads.append(Thread(target=lambda: said.append(told(each, "cpu-basic", "5m"))))  # noqa: B023
        threads[-1].start()
        until(lambda: [path for _, path in logged_in.requests if path.endswith("/logs")])
        assert len(logged_in.jobs) == before + min(number + 1, 2)
    assert "at work on this and pushes it publicly" in told(recipe, "x", "5m", private=True)[1]
    for one in list(logged_in.jobs.values())[before:]:
        (one.folder / "go").touch()
    for thread in threads:
        thread.join(LIMIT)
    assert len(logged_in.jobs) == before + 2
    assert [error for _, error in said] == [None] * 3
    assert all(text.endswith("hello\nbye\n") for text, _ in said)
    assert sum("is at work on this already" in text for text, _ in said) == 1


def until(holds):
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_the_log_and_says_that_the_job_goes_on(logged_in, monkeypatch, tmp_path):
    monkeypatch.setattr(logged_in, "does", ["sh", "-c", "echo hello; sleep 60"])
    command = [sys.executable, "-m", "slm_judge", "job", ROOT / "recipes/tiny.yaml"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--flavor", "cpu-basic"], stdout=file, stderr=file, env=dict(os.environ)
        )
    until(lambda: "hello" in log.read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130
    (left,) = [one for one in logged_in.jobs.values() if one.listener.is_alive()]
    said = " ".join(log.read_text().split())
    assert "error: Interrupted. The job goes on by itself: until it ends, the same command" in said
    assert said.endswith(f"`hf jobs cancel me/{left.identity}`.")
    left.end()


TAKING_UP = {"branch": "POST .*/branch/.*", **PULL}


@pytest.mark.parametrize("request_", TAKING_UP)
def test_what_is_kept_is_gone_on_with_or_left_alone(impatient, monkeypatch, tmp_path, request_):
    """A fault of the Hub never looks like a run that was not begun, which would replace it."""
    hub, api, found = impatient, HfApi(), list[set[str]]()
    kept = {
        f"runs/tiny/{name}": name.encode() * 100 for name in ("recipe.json", "checkpoints/a/b.pt")
    }

    def step(command, check):
        found.append({path.as_posix() for path in Path("runs").rglob("*") if path.is_file()})
        Path("runs/tiny").mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(on_hub, "subprocess", SimpleNamespace(run=step))
    api.create_repo("other/up-job", private=True, exist_ok=True)
    api.upload_file(path_or_fileobj=b"job", path_in_repo="job.py", repo_id="other/up-job")
    api.create_branch("other/up-job", branch=BRANCH, exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in kept.items()]
    api.create_commit("other/up-job", operations, commit_message="kept", revision=BRANCH)
    recipe = bundle(Recipe.from_file(ROOT / "recipes/tiny.yaml"))[RECIPE]
    for number, (name, hook) in enumerate(faults({request_: TAKING_UP[request_]})):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()
        Path(RECIPE).write_bytes(recipe)
        hub.fail, found[:] = hook, []
        told = attempt(lambda: on_hub.main("other/up-job", "other"))
        assert told is None or not (found or name.endswith("once")), (name, told)
        assert told is not None or kept.keys() <= found[0], name
        assert kept.keys() <= hub.repo("other/up-job").history(BRANCH)[0]["files"].keys(), name


@pytest.mark.slow
def test_a_job_trains_and_pushes_and_goes_on_where_it_ended(logged_in, tmp_path):
    loose = VerifyConfig(min_agreement=0, min_alpha_between=-1, max_alpha_loss=2)
    exports = ExportConfig(dtype="float32", gguf=["Q8_0"])
    changes = {"verify": loose, "export": exports, "training": {"epochs": 1}}
    recipe = small_recipe(tmp_path / "run", name="jobbed", **changes)
    said, error = told(recipe, "cpu-basic", "1h", private=True)
    assert error is None, said
    assert logged_in.repo("me/jobbed").meta["private"]
    with Judge.from_pretrained("me/jobbed-GGUF", quantization="Q8_0") as judge:
        assert judge.annotate(["hello"])[0].labels.keys() == {"urgency", "topic", "refund"}
    kept = logged_in.repo("me/jobbed-job").history(BRANCH)[0]["files"]
    assert "runs/jobbed/adapter/adapter_model.safetensors" in kept
    again, error = told(recipe, "cpu-basic", "1h", private=True)
    assert error is None, again
    assert "is trained already" in again
