"""The wheel: what is in it, and whether it works alone, far from the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from slm_judge import __version__
from tests.bare import bare
from tests.conftest import LIMIT, ROOT

# The folders of the package and their places in it; pyproject.toml says the same to setuptools.
PLACES = {
    "inference/slm_judge": "slm_judge",
    "training": "slm_judge/training",
    "export": "slm_judge/export",
    "model_card": "slm_judge/model_card",
}
SHIPPED = {".py", ".typed", ".jinja", ".md", ".txt", ".css", ".html", ".js"}

# The command as pip installed it, then a list of the files from which it was imported.
RECORDED = """
import atexit, json, runpy, sys
command, record, *arguments = sys.argv[1:]

@atexit.register
def write():
    files = {n: m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "slm_judge"}
    open(record, "w").write(json.dumps(files))

sys.argv = [command, *arguments]
runpy.run_path(command, run_name="__main__")
"""


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree without anything that tools left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    left = ("build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(".*", *left))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "tree")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs the installed command in a fresh environment with what `slm-judge[gguf]` says it needs."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "env"
    python = bare(environment, "gguf")
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*arguments, without=()):
        for name in without:
            (packages / name).rename(packages / f"{name}.away")
        try:
            return ended(*arguments)
        finally:
            for name in without:
                (packages / f"{name}.away").rename(packages / name)

    def ended(*arguments):
        record = folder / "record.json"
        code = ["-c", RECORDED, environment / "bin/slm-judge", record]
        result = subprocess.run(
            [python, *code, *map(str, arguments)],
            cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        files = json.loads(record.read_text())
        assert files["slm_judge.cli"] == str(packages / "slm_judge/cli.py")
        assert all(Path(file).is_relative_to(packages) for file in files.values()), files
        return result.stdout

    return run


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    expected = {
        f"{place}/{path.relative_to(ROOT / folder)}"
        for folder, place in PLACES.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = archive.read(f"slm_judge-{__version__}.dist-info/METADATA").decode()
    assert re.search(r"Requires-Dist: peft.*extra == .transformers.", metadata)  # loads adapters
    about = {name for name in found if name.startswith(f"slm_judge-{__version__}.dist-info/")}
    assert found - about == expected
    for name in (
        "slm_judge/py.typed",
        "slm_judge/model_card/card.md.jinja",
        "slm_judge/evaluation/metrics/krippendorff_alpha/README.md",
        "slm_judge/evaluation/metrics/krippendorff_alpha/requirements.txt",
    ):
        assert name in found
    assert any(name.endswith("/LICENSE") for name in about)


def test_the_installed_command_works_away_from_the_tree(installed, run, tmp_path):
    assert installed("--version").strip() == __version__
    checked = installed("rubric", "check", ROOT / "rubrics/support-messages.yaml")
    assert "urgency: score, 4 options, ordinal" in checked
    (tmp_path / "in.csv").write_text("text\nMy card was charged twice. Please refund me.\n")
    output = tmp_path / "out.csv"
    said = installed(
        "annotate", tmp_path / "in.csv", "--model", run.gguf, "--output", output,
        without=("datasets", "pandas"),
    )  # fmt: skip
    assert "1 of 1 rows annotated" in said
    assert set(pd.read_csv(output)["outcome"]) == {"annotated"}
