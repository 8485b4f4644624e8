"""The command line: what it prints, and one clear message with exit code 2 for what is wrong."""

import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from slm_judge import __version__
from slm_judge.cli import main
from tests.conftest import LIMIT, ROOT, in_mount_namespace


@pytest.fixture
def slm_judge(monkeypatch, capsys):
    """Runs the command line: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["slm-judge", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        # Messages are wrapped at the width of the terminal.
        return code, " ".join(captured.out.split()), " ".join(captured.err.split())

    return run


def process(*arguments, before="", **options):
    """The command line in a process of its own, after the Python code `before`."""
    code = f"import sys; {before}; from slm_judge.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        **options,
    )


# --- what works ---


def test_version(slm_judge):
    assert slm_judge("--version")[:2] == (0, __version__)


def test_rubric_check_prints_the_prompt(slm_judge):
    code, out, _ = slm_judge("rubric", "check", ROOT / "rubrics/answer-quality.yaml")
    assert code == 0
    assert "clarity: score, 5 options, ordinal" in out
    assert "C: 0: acceptable" in out
    assert "question: (question of the item)" in out
    code, out, _ = slm_judge("rubric", "check", ROOT / "rubrics/emotion.yaml", "--base", "tiny")
    assert "<|im_start|>system Read the comment" in out
    assert "AB: neutral" in out


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz"])
def test_annotate_adds_columns_to_every_format(slm_judge, run, tmp_path, suffix):
    texts = ["Refund me now!", "I love the lamp, thanks", "NA"]
    table = pd.DataFrame({"item_id": ["007", "b", "c"], "body": texts})
    table.to_csv(tmp_path / "in.csv", index=False)
    output = tmp_path / f"out{suffix}"
    code, out, _ = slm_judge("annotate", tmp_path / "in.csv", "--model", run.gguf, "--output", output,
                             "--column", "text=body", "--prefix", "judge_")  # fmt: skip
    assert (code, "3 rows annotated" in out) == (0, True)
    readers = {".jsonl": "read_json", ".parquet": "read_parquet"}
    options = {".tsv": {"sep": "\t"}, ".jsonl": {"lines": True}}.get(suffix, {})
    if suffix not in readers:
        options |= {"dtype": {"item_id": str}, "keep_default_na": False}
    written = getattr(pd, readers.get(suffix, "read_csv"))(output, **options)
    assert list(written.body) == texts
    if suffix != ".jsonl":
        assert list(written.item_id) == ["007", "b", "c"]
    assert set(written.judge_urgency.astype(int)) <= {1, 2, 3, 4}
    assert written.judge_refund_confidence.between(0.5, 1).all()


# --- what does not ---


def wide_rubric(tmp_path):
    path = tmp_path / "wide.yaml"
    options = ", ".join(f"o{i}" for i in range(300))
    path.write_text(
        "{name: w, instructions: q, fields: [text], dimensions: "
        f"[{{name: d, type: choice, instructions: q, options: [{options}]}}]}}"
    )
    return path


def wrong_rubric(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("{name: x, instructions: q, field: [text]}")
    return path


def broken_csv(tmp_path):
    path = tmp_path / "broken.csv"
    path.write_text('text,more\n"an open quote,1\n')
    return path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (lambda t, run: ("rubric", "check", wrong_rubric(t)), "field: Extra inputs"),
        (lambda t, run: ("rubric", "check", t / "none.yaml"), "Cannot read"),
        (lambda t, run: ("rubric", "check", wide_rubric(t)), "300 options, but there are only 255"),
        (lambda t, run: ("rubric", "check", ROOT / "rubrics/emotion.yaml", "--base", "no/base"),
         "no repository no/base"),
        (lambda t, run: ("train", t / "none.yaml"), "Cannot read"),
        (lambda t, run: ("export", t), "is not a run"),
        (lambda t, run: ("annotate", "x.csv", "--model", "no/judge", "--output", t / "o.csv"),
         "no repository no/judge on the Hub"),
        (lambda t, run: ("annotate", "x.csv", "--model", run.gguf, "--output", t / "o.csv"),
         "There is no file x.csv"),
        (lambda t, run: ("annotate", broken_csv(t), "--model", run.gguf, "--output", t / "o.csv"),
         "cannot be read as csv"),
        (lambda t, run: ("annotate", "x.csv", "--model", run.gguf, "--output", t / "o.xls"),
         "the output is .csv"),
        (lambda t, run: ("annotate", "no/data", "--model", run.gguf, "--output", t / "o.csv"),
         "no repository no/data"),
        (lambda t, run: ("annotate", ROOT / "samples/support-messages.csv", "--model", run.gguf,
                         "--output", t / "o.csv"), "already has the columns urgency"),
        (lambda t, run: ("annotate", ROOT / "samples/new-messages.csv", "--model", run.gguf,
                         "--output", t / "o.csv", "--column", "text=body"), "has no columns body"),
        # Options that would do nothing.
        (lambda t, run: ("annotate", "x.csv", "--model", run.gguf_file("Q8_0"), "--output",
                         t / "o.csv", "--quantization", "Q4_0"), "quantization=Q4_0 chooses among"),
        (lambda t, run: ("annotate", "x.csv", "--model", run.gguf, "--output", t / "o.csv",
                         "--revision", "v2"), "revision=v2 is of Hub repositories"),
        (lambda t, run: ("annotate", "x.csv", "--model", run.gguf, "--output", t / "o.csv",
                         "--workers", "4"), "--workers and --gpus are of --engine ray"),
        (lambda t, run: ("annotate", "x.csv", "--model", run.gguf, "--output", t / "o.csv",
                         "--column", "text=a", "--column", "text=b"), "once a field"),
        (lambda t, run: ("serve", run.gguf, "--dtype", "float16"), "dtype= is for transformers"),
    ],
)  # fmt: skip
def test_bad_input_exits_with_2(slm_judge, hub, run, tmp_path, arguments, complaint):
    code, _, err = slm_judge(*arguments(tmp_path, run))
    assert code == 2
    assert complaint in err
    assert err.startswith("error: ")
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("trl", ("train", ROOT / "recipes/tiny.yaml"), "train"),
        ("peft", ("train", ROOT / "recipes/tiny.yaml"), "train"),
        ("gguf", ("export", "runs/none"), "export"),
        ("llama_cpp", ("annotate", "x.csv", "--model", "{gguf}", "--output", "o.csv"), "gguf"),
        (
            "torch",
            ("annotate", "x.csv", "--model", "{merged}", "--output", "o.csv"),
            "transformers",
        ),
    ],
)
def test_a_missing_extra_is_named(run, tmp_path, module, command, extra):
    arguments = [str(a).format(gguf=run.gguf, merged=run.merged) for a in command]
    result = process(*arguments, before=f"sys.modules[{module!r}] = None", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.split())
    assert f"the package {module!r}: pip install 'slm-judge[{extra}]'" in message
    if module == "llama_cpp":
        assert "install a C++ compiler and make first" in message


def test_annotating_never_imports_the_training_stack(run, tmp_path):
    (tmp_path / "in.csv").write_text("text\nhello\n")
    (tmp_path / "block.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name not in ('trl', 'peft', 'transformers', 'bitsandbytes'), name\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    result = process(
        *("annotate", tmp_path / "in.csv", "--model", run.gguf, "--output", tmp_path / "out.csv"),
        before=f"sys.path.insert(0, {str(tmp_path)!r}); import block",
    )
    assert result.returncode == 0, result.stderr


def test_a_full_disk_loses_nothing(run, tmp_path):
    """On a real file system of 64 KiB, mounted in a mount namespace of its own."""
    (tmp_path / "in.csv").write_text("text\n" + "".join(f"hello {i}\n" for i in range(3000)))
    folder = tmp_path / "small"
    folder.mkdir()
    command = f"""
        set -e
        mount -t tmpfs -o size=64k tmpfs {folder}
        echo old > {folder}/out.csv
        set +e
        {sys.executable} -m slm_judge annotate {tmp_path}/in.csv --model {run.gguf} --output {folder}/out.csv --overwrite
        echo "code $?, files $(ls -A {folder} | tr '\\n' ' '), content $(cat {folder}/out.csv)"
    """
    result = in_mount_namespace(command)
    assert "code 2, files out.csv out.csv.parts , content old" in result.stdout, result.stderr
    assert "No space left on the device" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        (
            "train push PUSH=--private HUB_USER=me",
            "job r.yaml --flavor a10g-large --user me --private",
        ),
        ("push", "job r.yaml --flavor a10g-large"),  # which trains first, as every push
        ("train push PUSH='--private --data'", 'A job takes PUSH="--private" alone, not --data'),
        ("push RUN=runs/other", "leave out RUN=runs/other, or JOB"),
    ],
)
def test_make_passes_a_job_what_it_takes_and_refuses_the_rest(asked, runs):
    result = subprocess.run(
        ["make", "--dry-run", "RECIPE=r.yaml", "JOB=a10g-large", *shlex.split(asked)],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    said = " ".join((result.stdout + result.stderr).split())
    assert (result.returncode == 0) == runs.startswith("job")
    assert said.count(runs) == 1
    assert "slm-judge push" not in said


def test_set_up_without_a_compiler_says_so(tmp_path):
    """With nothing on the PATH but what `make setup` itself needs."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "sh", "make", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = subprocess.run(
        [tools / "make", "setup", f"PYTHON={sys.executable}"],
        cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert result.returncode == 2
    assert (
        "llama.cpp needs a C++ compiler (Debian, Ubuntu: apt install build-essential"
        in result.stdout
    )
    assert not (tmp_path / ".venv").exists()
