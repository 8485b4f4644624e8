"""Verified runs, to push."""

import json
import shutil
import struct

import pytest
from huggingface_hub.utils import disable_progress_bars
from slm_judge.export.artefacts import artefacts, parts
from slm_judge.export.verify import REPORT, read_report, verify

from slm_judge.files import content_hash, write_text
from slm_judge.run import Run

disable_progress_bars()


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
