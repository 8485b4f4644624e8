"""Verified runs, to push, and a client that does not wait for the Hub."""

import json
import shutil
import struct

import pytest
from huggingface_hub import close_session
from huggingface_hub.utils import disable_progress_bars
from slm_judge.export.artefacts import artefacts, parts
from slm_judge.export.verify import REPORT, read_report, verify

from slm_judge import hub as rules
from slm_judge.errors import JudgeError
from slm_judge.files import content_hash, write_text
from slm_judge.run import Run
from tests.hub.faults import HANG

disable_progress_bars()


@pytest.fixture
def impatient(hub, monkeypatch):
    """The loopback Hub, with "other" logged in, and a client that waits for nothing."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setattr(rules, "TIMEOUT", HANG / 2)
    monkeypatch.setattr(rules, "TRIES", 3)
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    close_session()
    yield hub
    hub.fail = None
    close_session()
    assert max(waits) <= rules.LONGEST_WAIT + 1  # of which huggingface_hub adds one
    assert waits.count(7) + waits.count(8) > 0  # as the Hub asked for


def attempt(work):
    """What went wrong, as the command line prints it; None where nothing did."""
    try:
        work()
    except JudgeError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def verified(run):
    """The run with a verification that holds, whatever two epochs are worth."""
    report = verify(run)
    report["failures"] = []
    write_text(run.report / REPORT, json.dumps(report))
    return run


@pytest.fixture(scope="session")
def light(verified, tmp_path_factory):
    """A light copy of the verified run."""
    return lighten(verified, Run(tmp_path_factory.mktemp("light") / "demo"))


def lighten(run: Run, copy: Run) -> Run:
    """Copy a verified run with a few bytes in place of its large files, quick to push."""
    large = (".safetensors", ".gguf")
    unneeded = shutil.ignore_patterns("checkpoints", "tokenizer.json", *(f"*{e}" for e in large))
    shutil.copytree(run.folder, copy.folder, ignore=unneeded)
    for path in run.folder.rglob("*"):
        if "checkpoints" not in path.parts and path.name.endswith((*large, "tokenizer.json")):
            inside = path.relative_to(run.folder)
            content = f"{inside}".encode() * 100
            if path.suffix == ".gguf":  # of one tensor, which the card tells
                content = struct.pack("<4sIQQQIQIQ", b"GGUF", 3, 1, 0, 0, 1, 32, 0, 0) + content
            (copy.folder / inside).write_bytes(content)
    return rehashed(copy)


def rehashed(run: Run) -> Run:
    """The run, whose report holds for its files as they are now."""
    report = read_report(run)
    report["sha256"] = {n: content_hash(p, parts(p)) for n, p in artefacts(run).items()}
    write_text(run.report / REPORT, json.dumps(report))
    return run
