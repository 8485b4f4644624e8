"""The Space of `push --space`: what is in it, and that this is enough to start it elsewhere."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from huggingface_hub import HfApi
from slm_judge.export.push import push
from slm_judge.export.space import space_files

from slm_judge import Judge
from slm_judge.errors import JudgeError
from tests.app.conftest import free_port, until_served
from tests.app.test_page import fetch
from tests.bare import borrow
from tests.conftest import LIMIT


def test_push_makes_a_space(light, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    commits = push(light, user="other", space=True)
    assert [commit.split("/commit/")[0].rpartition("/")[2] for commit in commits][-1] == "demo-demo"
    assert len(commits) == 5
    files = hub.repo("other/demo-demo", "space").history()[0]["files"]
    assert {
        "README.md",
        "Dockerfile",
        "app.py",
        "requirements.txt",
        "slm_judge/app/page.html",
    } <= files.keys()
    assert not [
        name
        for name in files
        if re.search(r"^slm_judge/(training|model_card|export)/|\.gguf|\.pyc", name)
    ]
    read = {
        name: hub.repo("other/demo-demo", "space").blob(files[name]).read_text()
        for name in ("README.md", "app.py")
    }
    assert "\nsdk: docker\napp_port: 7860\nmodels: [other/demo-GGUF]\n" in read["README.md"]
    odd = light.recipe()
    odd = odd.model_copy(
        update={
            "name": "2024",
            "card": odd.card.model_copy(update={"license": "mit: see LICENSE\nsdk: static"}),
        }
    )
    header = yaml.safe_load(space_files(odd, "Q8_0", "me")["README.md"].split(b"---\n")[1])
    assert (header["title"], header["sdk"]) == ("2024", "docker")
    assert header["license"] == "mit: see LICENSE\nsdk: static"
    assert "'other/demo-GGUF'" in read["app.py"]
    assert push(light, user="other", space=True)[-1] == commits[-1]  # nothing is sent again
    push(light, user="other", space=True, private=False, revision="next")
    space = hub.repo("other/demo-demo", "space")  # which the Hub builds from main alone
    assert space.refs().keys() == {"main"}
    app = space.blob(space.history()[0]["files"]["app.py"]).read_text()
    assert "'revision': 'next'" in app.replace('"', "'")
    with pytest.raises(JudgeError, match="other/demo is public already"):
        push(light, user="other", space=True, private=True)
    capsys.readouterr()
    push(light, user="other", space=True, dry_run=True)
    assert "other/demo-demo" in capsys.readouterr().out
    push(light, user="other", dry_run=True)
    assert "other/demo-demo" not in capsys.readouterr().out


def test_a_space_starts_in_a_fresh_environment_with_what_is_pinned(run, logged_in, tmp_path):
    recipe = run.recipe().model_copy(update={"name": "spaced"})
    HfApi().create_repo("me/spaced-GGUF", exist_ok=True)
    HfApi().create_branch("me/spaced-GGUF", branch="next", exist_ok=True)
    HfApi().upload_file(
        path_or_fileobj=run.gguf_file("Q4_K_M"),
        repo_id="me/spaced-GGUF",
        revision="next",  # and there alone
        path_in_repo="spaced-Q4_K_M.gguf",
    )
    folder, environment, log = tmp_path / "space", tmp_path / "env", tmp_path / "log"
    for name, source in space_files(recipe, "Q4_K_M", "me", "next").items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    pins = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert pins == {name: version(name) for name in pins}
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=LIMIT
    )
    borrow(pins, environment)
    port = free_port()
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_TOKEN")}
    variables |= {"PORT": str(port), "HF_HOME": str(tmp_path / "hf")}
    with log.open("w") as file:
        process = subprocess.Popen(
            [environment / "bin/python", "app.py"],
            cwd=folder,
            env=variables,
            stdout=file,
            stderr=file,
        )
    try:
        until_served(process, log)
        address, text = f"http://127.0.0.1:{port}", "My card was charged twice. Please refund me."
        start = json.loads(fetch(f"{address}/api/start")[1])
        assert (start["judges"], start["task"]) == (["me/spaced-GGUF"], None)
        assert (
            fetch(f"{address}/api/next", {"annotator": "Ada"})[0]
            == fetch(f"{address}/export.csv")[0]
            == 404
        )
        (found,) = json.loads(fetch(f"{address}/api/try", {"state": {"text": text}})[1])["answers"]
        with Judge.from_pretrained(run.gguf_file("Q4_K_M")) as judge:
            (said,) = judge.annotate([text])
        assert found["dimensions"]["topic"]["label"] == said.labels["topic"]
        assert found["dimensions"]["topic"]["confidence"] == pytest.approx(
            said.confidence["topic"], abs=0.01
        )
    finally:
        process.kill()
        process.wait(LIMIT)
