"""The suite itself: every wait has a limit, and what is opt-in runs when it is asked for."""

import ast
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import LIMIT, ROOT, kill_until_done

# Keeps three files, half a second apart, goes on from those that it finds, and makes its output.
JOB = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
for step in range(3):
    if not (folder / f"step-{step}").exists():
        time.sleep(0.2)
        (folder / f"step-{step}").touch()
        time.sleep(0.3)
(folder / "output").touch()
"""


def killed(folder, code, **options):
    """Runs `code` as the job of `kill_until_done`, killed twice at most."""
    log = folder / "log"

    def start():
        with log.open("w") as file:
            command = [sys.executable, "-c", code, str(folder)]
            return subprocess.Popen(command, stdout=file, stderr=file)

    return kill_until_done(
        start, folder / "output", lambda: folder.glob("step-*"), 2,
        **{"delay": 0.1, "poll": 0.01, "log": log, **options},
    )  # fmt: skip


def test_a_job_is_killed_after_each_step_and_comes_to_its_end(tmp_path):
    assert killed(tmp_path, JOB) == 2
    assert (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import nowhere", "exit code 1, .*No module named 'nowhere'"),
        ("print('too early')", "exit code 0, .*too early"),
        (JOB.replace('(folder / "output").touch()', "sys.exit('lost')"), "After 2 kills .*lost"),
        ("import os; os.kill(os.getpid(), 9)", "After 0 kills .* exit code -9"),
    ],
)
def test_a_job_that_fails_fails_the_test(tmp_path, code, complaint):
    with pytest.raises(pytest.fail.Exception, match=f"(?s){complaint}"):
        killed(tmp_path, code)


def test_a_job_without_end_is_ended(tmp_path):
    code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="had not ended after 2 s"):
        killed(tmp_path, code, seconds=2)
    assert time.monotonic() - started < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "log").read_text()), 0)


def test_opt_in_and_time_limit(tmp_path):
    """pytest in a process of its own, with the suite's settings."""
    (tmp_path / "test_it.py").write_text(
        "import time, pytest\n"
        "@pytest.mark.slow\ndef test_slow(): pass\n"
        "@pytest.mark.gpu\ndef test_gpu(): pass\n"
        "@pytest.mark.network\ndef test_network(): pass\n"
        "@pytest.mark.timeout(1)\ndef test_endless(): time.sleep(600)\n"
    )

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
        settings = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, tmp_path]
        return subprocess.run(
            [*command, *settings, *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=LIMIT,
        ).stdout  # fmt: skip

    usual = run()
    assert "1 failed, 3 skipped" in usual
    assert "Timeout (>1.0s)" in usual
    for reason in ("takes many minutes: pytest -m slow", "needs a CUDA device: pytest -m gpu"):
        assert reason in usual
    assert "1 passed, 3 deselected" in run("-m", "slow")
    assert "timeout: 1200.0s" in usual


def unbounded(tree: ast.AST):
    """Lines of calls that may wait for ever: without `timeout`, or `wait()` and `join()` bare."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        waits = name.startswith("subprocess.") and name != "subprocess.Popen"
        if waits or name.endswith((".communicate", "urlopen", "create_connection")):
            if "timeout" not in keywords:
                yield node.lineno
        elif name.endswith((".wait", ".join")) and not node.args and not keywords:
            yield node.lineno


def test_every_wait_has_a_limit():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in unbounded(ast.parse(path.read_text()))
    ]
    assert not found
