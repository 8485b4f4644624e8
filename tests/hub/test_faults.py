"""Every fault of the Hub at every request: a sentence, or success; then the same again ends well."""

import io
import shutil

import pandas as pd
import pytest
from huggingface_hub import HfApi, HfFileSystem, _tree_cache
from slm_judge.export import push as stage

from slm_judge.artefact import locate
from slm_judge.data.tables import read_table
from tests.hub.conftest import attempt
from tests.hub.faults import DATA, PULL, PUSH, faults

BRANCH = "next"
LINE = ("500", "502", "503", "cut before", "hang", "cut in the middle")


@pytest.mark.parametrize("request_", PUSH)
def test_pushing(light, impatient, monkeypatch, capsys, request_):
    hub, told = impatient, {}
    wanted = stage.plan(light, "other", stage.check_verified(light))[0]
    monkeypatch.setattr(stage, "plan", lambda *given: [wanted])  # the others go the same way
    repo = hub.repo(wanted.name)
    for name, hook in faults({request_: PUSH[request_]}):
        shutil.rmtree(repo.folder, ignore_errors=True)
        hub.fail = hook
        told[name] = attempt(lambda: stage.push(light, revision=BRANCH))
        assert not name.endswith("once") or told[name] is None, name
        hub.fail = None
        there = {path.name for path in repo.folder.glob("blobs/*")}
        hub.stored.clear()
        assert attempt(lambda: stage.push(light, revision=BRANCH)) is None, name
        assert not there & set(hub.stored), name
        commit, initial = repo.history(BRANCH)
        assert initial["message"] == "initial commit", name
        for path, source in wanted.files.items():
            content = source if isinstance(source, bytes) else source.read_bytes()
            assert repo.blob(commit["files"][path]).read_bytes() == content, (name, path)
    assert "hf_other" not in str((told, capsys.readouterr()))
    # A file that is there needs no second confirmation: those of "verify" may end well.
    statuses = [told[f"{request_}, {status}"] for status in (401, 403, 404, 429, 500)]
    statuses = [message for message in statuses if message]
    assert len(set(statuses)) == len(statuses) >= 3


def made(hub, name, files, kind="model"):
    """A repository with these files; its commit."""
    shutil.rmtree(hub.repo(name, kind).folder, ignore_errors=True)
    api = HfApi()
    api.create_repo(name, repo_type=kind)
    for path, content in files.items():
        api.upload_file(
            path_or_fileobj=content, path_in_repo=path, repo_id=name, repo_type=kind
        )  # fmt: skip
    return hub.repo(name, kind).refs()["main"]


@pytest.mark.parametrize("weights", ["model.safetensors", "judge-Q4_K_M.gguf"])
@pytest.mark.parametrize("request_", PULL)
def test_pulling(impatient, monkeypatch, tmp_path, capsys, request_, weights):
    hub = impatient
    files = {"config.json": b'{"a": 1}', weights: bytes(range(256)) * 40}
    commit = made(hub, "other/pulled", files)
    told = {}

    def pull():
        path = locate.locate("other/pulled", None, None)
        folder = path if path.is_dir() else path.parent
        assert folder.name == commit
        assert {name: (folder / name).read_bytes() for name in files} == files

    for number, (name, hook) in enumerate(faults({request_: PULL[request_]})):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / str(number)))
        locate.tell_once.cache_clear()
        hub.fail = hook
        told[name] = attempt(pull)
        assert not name.endswith("once") or told[name] is None, name
        hub.fail = None
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()  # as in a new process
        assert attempt(pull) is None, name
        hub.fail = hook
        capsys.readouterr()
        again = attempt(pull)
        assert again is None or name.split(", ")[1] not in LINE, (name, again)
        if request_ == "info" and name in ("info, 503", "info, cut before"):
            assert commit in " ".join(capsys.readouterr().err.split())
    assert "hf_other" not in str(told)


@pytest.mark.parametrize("request_", DATA)
def test_reading_a_dataset(impatient, request_):
    hub, content = impatient, io.BytesIO()
    pd.DataFrame({"text": ["a", "b"]}).to_parquet(content)
    made(hub, "other/data", {"data/train.parquet": content.getvalue()}, "dataset")

    def read():
        HfFileSystem.clear_instance_cache()
        assert [row["text"] for row in read_table("other/data").rows] == ["a", "b"]

    for name, hook in faults({request_: DATA[request_]}):
        hub.fail = hook
        told = attempt(read)
        assert "hf_other" not in str(told), name
        assert not name.endswith("once") or told is None, name
        hub.fail = None
        assert attempt(read) is None, name
