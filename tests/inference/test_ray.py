"""`--engine ray`: two workers on this machine, the output of one process."""

import json

import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from slm_judge import Judge
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.ray import RayEngine
from slm_judge.annotate.rows import AnnotateOptions
from slm_judge.cli import app
from slm_judge.data.tables import read_table
from slm_judge.errors import DataError, JudgeError, ModelError
from tests.inference.test_bulk import messages, write

ray = pytest.importorskip("ray", reason="needs the extra `ray`")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def pool(run, exact=False):
    return RayEngine(str(run.gguf), {"n_threads": 1, "exact": exact}, workers=2)


def test_two_workers_do_what_one_process_does(run, tmp_path):
    texts = messages(300)
    texts[40], texts[41] = "", None
    source = write(tmp_path / "in.csv", {"id": range(300), "text": texts})
    options = AnnotateOptions(rows_per_piece=32)
    with Judge.from_pretrained(run.gguf, n_threads=1, exact=True) as judge:
        local, far = tmp_path / "local.parquet", tmp_path / "ray.parquet"
        annotate_table(judge, source, local, options, show_progress=False)
        summary = annotate_table(
            judge, source, far, options, show_progress=False, engine=pool(run, exact=True)
        )
        assert far.read_bytes() == local.read_bytes()
        assert summary.rows == 300
        assert summary.not_annotated == 2
        assert not far.with_name("ray.parquet.parts").exists()
        # Without --exact: the same labels; a folder of pieces, one of them lost, is finished.
    with Judge.from_pretrained(run.gguf, n_threads=1) as judge:
        folder = f"{tmp_path}/out/"
        annotate_table(judge, source, folder, options, show_progress=False, engine=pool(run))
        parts = sorted((tmp_path / "out").glob("part-*"))
        assert len(parts) == 10
        parts[3].unlink()
        parts[7].unlink()
        again = annotate_table(
            judge, source, folder, options, show_progress=False, engine=pool(run)
        )
        assert 0 < again.computed <= 64
    assert json.loads((tmp_path / "out" / "_summary.json").read_text())["rows"] == 300
    columns = ["id", "urgency", "topic", "refund", "outcome"]
    expected = pq.read_table(local).select(columns).to_pylist()
    assert [{c: row[c] for c in columns} for row in read_table(folder).rows] == expected
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] == "_") == [
        "_job.json",
        "_summary.json",
    ]


def test_what_a_worker_refuses_is_said(run, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["fine", "", "fine"]})
    options = AnnotateOptions(on_empty="fail")
    with (
        Judge.from_pretrained(run.gguf, n_threads=1) as judge,
        pytest.raises(DataError, match="Row 2: empty field"),
    ):
        annotate_table(
            judge, source, tmp_path / "o.csv", options, show_progress=False, engine=pool(run)
        )
    assert not (tmp_path / "o.csv").exists()


def test_what_every_worker_would_refuse_is_refused_before_one_starts(run, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["fine", "too"]})
    arguments = [str(source), "--output", str(tmp_path / "o.csv"), "--engine", "ray", "--compile"]
    for judge, said in (
        (run.gguf, "--compile is for transformers"),
        (run.adapter, r"Give each worker one \(--gpus 1\)"),
    ):
        with pytest.raises(ModelError, match=said):
            get_command(app).main(["annotate", *arguments, "--model", str(judge)],
                                  standalone_mode=False)  # fmt: skip
    assert not [*tmp_path.glob("o.csv*")]


@pytest.mark.parametrize(
    ("threads", "gpus", "complaint"),
    [(8, 0, r"to have 8 CPU, and all of Ray has 2\. Lower --threads"),
     (1, 1, r"to have 1 GPU, and all of Ray has 0\. Lower --gpus")],
)  # fmt: skip
def test_what_ray_never_has_is_not_waited_for(run, tmp_path, threads, gpus, complaint):
    engine = RayEngine(str(run.gguf), {"n_threads": threads}, 2, gpus)
    source = write(tmp_path / "in.csv", {"text": ["one", "two"]})
    with (
        Judge.from_pretrained(run.gguf, n_threads=1) as judge,
        pytest.raises(JudgeError, match=complaint),
    ):
        annotate_table(judge, source, tmp_path / "o.csv", show_progress=False, engine=engine)
    assert not (tmp_path / "o.csv.parts").exists()


def test_a_worker_that_dies_ends_in_a_sentence(run, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["fine", "too"]})
    elsewhere = RayEngine(str(tmp_path / "not-on-this-node.gguf"), {}, workers=1)
    with (
        Judge.from_pretrained(run.gguf, n_threads=1) as judge,
        pytest.raises(DataError, match=r"A worker of Ray failed: .*not-on-this-node"),
    ):
        annotate_table(judge, source, tmp_path / "o.csv", show_progress=False, engine=elsewhere)
    assert not (tmp_path / "o.csv").exists()
