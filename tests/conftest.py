"""Shared fixtures. The suite never leaves this machine: the Hub is `tests/hub/server.py`."""

import atexit
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hub.server import LoopbackHub

ROOT = Path(__file__).parents[1]
TOKEN = "hf_loopback"  # of the user "me"
LIMIT = 300  # seconds for a process that a test starts; pyproject.toml has that of a whole test

# Markers of tests that run when they are asked for, `pytest -m gpu`, and the reason to skip them.
OPT_IN = {
    "slow": "takes many minutes",
    "gpu": "needs a CUDA device",
    "network": "needs the real Hugging Face Hub",
}

# Workers side by side (`pytest -n 2`) and what they start keep to a core each: libraries take as many
# threads as there are cores, and two programs that do so at once are slower than one after the other.
_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
if _CORES and (_worker := os.environ.get("PYTEST_XDIST_WORKER")):
    os.sched_setaffinity(0, {_CORES[int(_worker.removeprefix("gw")) % len(_CORES)]})

# huggingface_hub reads its settings when it is imported, so they are set before anything else.
_HOME = Path(tempfile.mkdtemp(prefix="slm-judge-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
HUB = LoopbackHub(_HOME / "hub", {TOKEN: "me", "hf_other": "other"})
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
    os.environ.pop(_name, None)
os.environ |= {
    "HF_HOME": str(_HOME / "hf"),
    "HF_ENDPOINT": HUB.url,
    "HF_HUB_DISABLE_XET": "1",  # uploads over plain LFS, which the loopback Hub speaks
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is opt-in and was not asked for."""
    asked = set(re.findall(r"\w+", config.getoption("-m")))
    for item in items:
        for name in OPT_IN.keys() - asked:
            if item.get_closest_marker(name):
                reason = f"{OPT_IN[name]}: pytest -m {name}"
                item.add_marker(pytest.mark.skip(reason=reason))


@contextmanager
def served(application) -> Iterator[str]:
    """The address of an ASGI application on a port of its own, in a thread."""
    import uvicorn

    from slm_judge.web import listen

    listening = listen("127.0.0.1", 0, 0)
    server = uvicorn.Server(uvicorn.Config(application, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def hub() -> Iterator[LoopbackHub]:
    """The loopback Hub."""
    with HUB:
        yield HUB


@pytest.fixture
def logged_in(hub, monkeypatch) -> LoopbackHub:
    """The loopback Hub, with the token of "me" in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture(scope="session")
def tokenizer():
    """The real Qwen2 tokenizer."""
    from slm_judge.offline.tiny import qwen_tokenizer

    return qwen_tokenizer()


@pytest.fixture(scope="session")
def llama_tokenize():
    """llama.cpp's tokenizer on the same vocabulary, with control tokens parsed."""
    import llama_cpp

    from slm_judge.offline.llama_source import llama_cpp_source

    path = llama_cpp_source() / "models" / "ggml-vocab-qwen2.gguf"
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)

    def tokenize(text: str) -> list[int]:
        return vocabulary.tokenize(text.encode(), add_bos=False, special=True)

    return tokenize


@pytest.fixture(scope="session")
def support():
    """The rubric of the shipped sample."""
    from slm_judge import Rubric

    return Rubric.from_file(ROOT / "rubrics" / "support-messages.yaml")


def small_recipe(folder: Path, **changes):
    """The sample's recipe on the tiny base, with fewer items and epochs, in `folder`."""
    from slm_judge.recipe import Recipe

    recipe = Recipe.from_file(ROOT / "recipes" / "tiny.yaml")
    training = recipe.training.model_copy(update={"epochs": 2, **changes.pop("training", {})})
    data = recipe.data.model_copy(
        update={"limit": 96, "test_share": 0.08, "validation_share": 0.05}
    )
    return recipe.model_copy(
        update={
            "name": "demo",
            "output": str(folder),
            "training": training,
            "data": data,
            **changes,
        }
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A trained and exported run: little trained, but everything is real."""
    from slm_judge.export.export import export
    from slm_judge.training.train import train

    from slm_judge.recipe import ExportConfig

    folder = tmp_path_factory.mktemp("run") / "demo"
    exports = ExportConfig(dtype="float32", gguf=["Q4_K_M", "Q8_0", "BF16"], default="Q4_K_M")
    trained = train(small_recipe(folder, export=exports))
    export(trained)
    return trained


def in_mount_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """A shell script in which file systems can be mounted; skips the test where nobody may."""
    unshare = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, "true"], capture_output=True, timeout=LIMIT).returncode
    ):
        pytest.skip("this system lets nobody mount a small file system")
    return subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, timeout=LIMIT
    )


def kill_until_done(
    start, output: Path, steps, most: int, delay: float, poll: float,
    *, seconds: float = 480, log: Path | None = None,
) -> int:  # fmt: skip
    """Start a job again and again until `output` is there, and SIGKILL it `most` times.

    The test fails if the job ends in any other way without its output: there are at most `most` + 1
    starts.

    Args:
        start: starts the job; gives its `Popen`.
        output: what the job makes at its end.
        steps: the files that the job keeps on its way; it is killed after it kept a new one.
        most: number of kills.
        delay: seconds after the new file, at most; drawn.
        poll: seconds between looks.
        seconds: for all starts together.
        log: where the job writes what it says; otherwise pytest shows it, if it is captured.

    Returns:
        Number of kills.
    """
    rng, kills, deadline = random.Random(0), 0, time.monotonic() + seconds

    def fail(what: str) -> None:
        said = log.read_text(errors="replace")[-4000:] if log else "(not kept)"
        pytest.fail(f"After {kills} kills the job {what}, without {output}. It said:\n{said}")

    while not output.exists():
        process, killed, before = start(), False, set(steps())
        try:
            while process.poll() is None and kills < most and time.monotonic() < deadline:
                if set(steps()) - before:
                    time.sleep(rng.uniform(0, delay))
                    process.kill()
                    kills, killed = kills + 1, True
                    break
                time.sleep(poll)
            code = process.wait(max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            fail(f"had not ended after {seconds:g} s")
        finally:
            process.kill()
            process.wait(LIMIT)
        # A kill may come too late for a job that ends by itself.
        if not (code == 0 and output.exists()) and not (killed and code == -signal.SIGKILL):
            fail(f"ended with exit code {code}")
    return kills


def small_trainer(folder: Path, items: int | None = None, r: int = 8, **training: object):
    """The trainer of `small_recipe` with an unquantized base, and so many training items."""
    from accelerate import PartialState
    from slm_judge.training.train import _prepare

    from slm_judge.data.split import load_splits
    from slm_judge.recipe import LoraConfig
    from slm_judge.rubric import Rubric
    from slm_judge.run import Run

    lora = LoraConfig(r=r, dropout=0.0)
    recipe = small_recipe(folder, lora=lora, quantization="none", training=training)
    rubric = Rubric.from_file(recipe.rubric)
    splits = load_splits(recipe.data, rubric, 0)
    splits["train"] = splits["train"][:items]
    PartialState()
    return _prepare(recipe, Run(folder), rubric, splits, False).trainer(evaluate=False)


def annotation_from_logits(rubric, logits, calibration):
    """The annotation of one item, of whose logits there is no axis of items."""
    import numpy as np

    from slm_judge.judge.answer import annotations_from_logits

    rows = [np.asarray(row)[None] for row in logits]
    return annotations_from_logits(rubric, rows, calibration)[0]
