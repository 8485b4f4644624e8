"""The cases of files that once failed: each command does with them what it must.

What is read of them, `test_reading.py` tries; rubrics, `test_rubric.py`.
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from slm_judge.cli import main
from slm_judge.data.tables import read_table
from slm_judge.rubric import Rubric
from tests.conftest import ROOT

CASES = ROOT.parent / "shared/cases"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in a copy of the folder of cases: exit code, and what it said in one line."""
    if not CASES.exists():
        pytest.skip("the cases are not beside this checkout")
    shutil.copytree(CASES, tmp_path / "cases")
    monkeypatch.chdir(tmp_path / "cases")
    monkeypatch.setenv("COLUMNS", "1000")

    def run(text, *more):
        monkeypatch.setattr("sys.argv", ["slm-judge", *text.split(), *map(str, more)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        found = capsys.readouterr()
        return code, " ".join((found.out + found.err).split())

    return run


def test_annotate(command, run):
    def annotated(name, suffix="jsonl", *more):
        model = run.gguf_file("Q8_0")
        code, said = command(
            f"annotate {name} --output o.{suffix} --overwrite --model", model, *more
        )
        return code, said, read_table(f"o.{suffix}").rows

    code, _, rows = annotated("a_piece.jsonl", "csv", "--rows-per-piece", "3")
    assert (code, [row["outcome"] for row in rows]) == (
        3, ["annotated"] * 3 + ["missing field: text"] + ["annotated"] * 5
    )  # fmt: skip
    for name in ("a_empty_struct", "a_big", "a_meta", "a_text_dict"):
        code, _, rows = annotated(f"{name}.jsonl")
        given = read_table(f"{name}.jsonl").rows
        assert (code, {row["outcome"] for row in rows}) == (0, {"annotated"})
        assert [
            {key: row[key] for key in old} for row, old in zip(rows, given, strict=True)
        ] == given
        code, said, _ = annotated(f"{name}.jsonl", "parquet")
        assert code == 0
        assert "written as JSON texts" in said


def test_nothing_is_said_about_annotators_whom_nobody_named(command):
    code, said = command(
        "evaluate --rubric mood.yaml --predictions j=e_p.csv --annotations e_h_shuf.csv "
        "--resamples 100 --output report"
    )
    assert code == 0
    assert "nothing is said about annotators" in said
    report = json.loads(Path("report/report.json").read_text())
    assert not report["dimensions"]["mood"]["named"]
    assert " yes" not in said.partition("j: 39 items")[2]


def test_estimate(command):
    rest = "--annotations est_h_case.csv --rubric mood.yaml --annotator annotator_id"
    code, said = command(f"estimate est_corpus.csv {rest}")
    assert code == 0
    assert "mood: read 'Joy' as joy (45 times)" in said
    assert re.search(r"joy 0\.250 \[.* 0\.250 \[", said)
    _, said = command(f"estimate est_corpus_skip.csv {rest}")
    assert "20 of 200 rows do not count for mood: empty field: text (20)" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train t_outcome.yaml", "no dimension can be called outcome"),
        ("train t_interval.yaml", "at the interval level"),
        ("train mixed_jsonl.yaml", r"strength outside the rubric mixed_jsonl.jsonl, line 4: 'N/A'"),
        ("train pbin.yaml", "text holds a bytes"),
        ("train quote.yaml", "quote.csv cannot be read as csv: line 2"),
        ("train t_longitem.yaml", r"m0 of \w+ \(20094 tokens\)"),
        ("import quote.csv --output o.csv", "line 2"),
        ("import p_binary.parquet --output o.csv", "the columns text hold bytes"),
    ],
)
def test_what_is_refused_before_work(command, text, said):
    code, found = command(text)
    assert (code, bool(re.search(said, found))) == (2, True), found


def test_baselines(command):
    code, said = command("baselines sparse.yaml --resamples 100")
    assert code == 0
    assert "is left out: the training items have one label alone of strength" in said


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("e_h_case.csv", {"mood": ("choice", 4), "strength": ("score", 3)}),
        ("e_h_dup.csv", {"mood": ("choice", 4), "strength": ("score", 3)}),
        ("mixed_jsonl.jsonl", {"mood": ("choice", 4), "strength": ("score", 3)}),
        ("noid.csv", {"mood": ("choice", 4), "strength": ("score", 3)}),
        ("wide.csv", {"mood": ("choice", 4), "strength": ("score", 3)}),
        ("qualtrics.csv", {"Q1": ("choice", 4), "Q2": ("score", 3)}),
        ("prodigy.jsonl", {"choice": ("choice", 4)}),
        ("doccano2.jsonl", {"label": ("choice", 4)}),
    ],
)
def test_drafts(command, name, kinds):
    code, said = command(f"rubric draft {name} -o draft.yaml")
    assert code == 0, said
    rubric = Rubric.from_file("draft.yaml")
    assert {d.name: (d.type, len(d.options)) for d in rubric.dimensions} == kinds
    assert command("rubric check draft.yaml")[0] == 0
