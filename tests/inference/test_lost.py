"""Nothing is lost: writers side by side, damaged pieces, limits of the machine, signals."""

import datetime
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slm_judge import Judge
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import AnnotateOptions
from slm_judge.annotate.store import ShardStore
from slm_judge.data.tables import Overview, read_table
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError, JudgeError
from slm_judge.files import TEMPORARY, atomic_file, atomic_folder, locked, sweep
from tests.conftest import LIMIT
from tests.inference.test_bulk import messages

PIECES = AnnotateOptions(rows_per_piece=8)


@pytest.fixture(scope="module")
def judge(run):
    with Judge.from_pretrained(run.gguf) as loaded:
        yield loaded


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.csv"
    pd.DataFrame({"id": range(40), "text": messages(40)}).to_csv(path, index=False)
    return str(path)


def quietly(judge, source, output, **options):
    return annotate_table(judge, source, output, PIECES, show_progress=False, **options)


def stopped_before_the_end(judge, source, output, monkeypatch):
    """A job whose pieces are all there, but not put together."""
    from slm_judge.annotate import job

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_tables", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quietly(judge, source, output)
    return Path(f"{output}.parts")


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "slm_judge", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


# --- two at once ---


def test_one_writer_at_a_time(run, tmp_path):
    """Of six processes on one output each either makes it as a whole or is told to wait."""
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"text": messages(1500)}).to_csv(source, index=False)
    arguments = ("annotate", source, "--model", run.gguf_file("Q4_K_M"), "--output", output)
    arguments += ("--rows-per-piece", "50", "--overwrite")
    processes = [start(*arguments) for _ in range(6)]
    said = [process.communicate(timeout=LIMIT)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    for code, text in zip(codes, said, strict=True):
        assert "Traceback" not in text
        assert code == 0 or "Another process is working on" in text.replace("\n", " ")
    assert len(pd.read_csv(output)) == 1500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from slm_judge.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    place = tmp_path / "new" / "out.csv"
    process = subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(JudgeError, match="Another process is working on"), locked(place):
            pass
    finally:
        process.kill()
        process.wait(LIMIT)
    with locked(place), pytest.raises(JudgeError), locked(place):
        pass
    assert not list(place.parent.iterdir())


def test_stages_of_a_run_wait_for_each_other(run, tmp_path):
    from slm_judge.export.export import export
    from slm_judge.export.verify import verify
    from slm_judge.training.train import train

    with run.alone():
        for stage in (export, verify, lambda run: train(run.recipe(), resume=True)):
            with pytest.raises(JudgeError, match="Another process is working on"):
                stage(run)


def test_pieces_that_vanish_are_missed(judge, source, tmp_path, monkeypatch):
    """Whatever removes or changes them: the output is whole, or there is none."""
    write = ShardStore.write

    def removing(self, index, table, digest):
        write(self, index, table, digest)
        if index == 2:
            self._files.rm_file(self.path(1))

    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "write", removing)
        with pytest.raises(DataError, match="1 of the 5 pieces are gone"):
            quietly(judge, source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert quietly(judge, source, tmp_path / "out.csv").rows == 40
    assert len(pd.read_csv(tmp_path / "out.csv")) == 40
    with pytest.raises(DataError, match="would have 1 rows in place of 2"):
        write_tables(iter([pa.table({"a": ["x"]})]), tmp_path / "o.csv", Overview(["a"]), 2)
    assert not (tmp_path / "o.csv").exists()


# --- damage ---


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-9], lambda whole: b"", lambda whole: b"PAR1"]
)
def test_a_damaged_piece_is_made_again(judge, source, tmp_path, monkeypatch, damage):
    quietly(judge, source, tmp_path / "whole.csv")
    parts = stopped_before_the_end(judge, source, tmp_path / "out.csv", monkeypatch)
    piece = parts / "part-00000002.parquet"
    piece.write_bytes(damage(piece.read_bytes()))
    summary = quietly(judge, source, tmp_path / "out.csv")
    assert 0 < summary.computed <= 8
    assert [note for note in summary.notes if "part-00000002.parquet is damaged" in note]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("record", [b"", b"{", b"[1]", b"\xff", None])
def test_pieces_outlive_the_record_of_their_job(judge, source, tmp_path, monkeypatch, record):
    parts = stopped_before_the_end(judge, source, tmp_path / "out.csv", monkeypatch)
    (parts / "_job.json").unlink()
    if record is not None:
        (parts / "_job.json").write_bytes(record)
    summary = quietly(judge, source, tmp_path / "out.csv")
    assert (summary.rows, summary.computed) == (40, 0)
    assert any("_job.json is damaged" in note for note in summary.notes) == (record is not None)


def test_pieces_of_another_job_are_not_taken_without_its_record(
    judge, source, tmp_path, monkeypatch
):
    parts = stopped_before_the_end(judge, source, tmp_path / "out.csv", monkeypatch)
    (parts / "_job.json").write_bytes(b"")
    other = AnnotateOptions(rows_per_piece=8, prefix="j_")
    with pytest.raises(DataError, match="of a job without its record"):
        annotate_table(judge, source, tmp_path / "out.csv", other, show_progress=False)
    assert len(list(parts.glob("part-*"))) == 5


def test_what_a_killed_process_left_half_written_goes(judge, source, tmp_path):
    for place in (tmp_path / "out.csv", tmp_path / "other.csv"):
        with atomic_file(place) as half:
            half.write_text("")
        place.unlink()
        half.write_text("half")  # as a SIGKILL leaves it
    assert len(list(tmp_path.glob(f"{TEMPORARY}*"))) == 2
    quietly(judge, source, tmp_path / "out.csv")
    (left,) = tmp_path.glob(f"{TEMPORARY}*")
    assert left.name.endswith("other.csv")  # which may be written right now


def test_a_folder_that_was_moved_aside_comes_back(tmp_path):
    """A process killed between the two renames leaves the earlier folder under another name."""
    place = tmp_path / "adapter"
    with atomic_folder(place) as work:
        (work / "weights").write_text("earlier")
        name = work.name
    place.rename(tmp_path / f"{name}-old")
    (tmp_path / name).mkdir()
    sweep(place)
    assert (place / "weights").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# --- what comes in goes out ---


def test_times_that_python_does_not_know(judge, tmp_path):
    """After the year 9999, to the nanosecond, in time zones of Mars: carried, and readable."""
    days = pa.array([2_932_896 + 400, None], pa.int32()).cast(pa.date32())
    columns = {
        "text": ["refund please", "where is it"],
        "day": days,
        "fine": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
        "mars": pa.array([1_700_000_000, None], pa.timestamp("s", tz="Mars/Olympus")),
        "big": pa.array([2**63 - 1, -(2**63)]),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
    }
    table = pa.table(columns).replace_schema_metadata({"pandas": "{}", "source": "survey 7"})
    pq.write_table(table, tmp_path / "in.parquet")
    for suffix in ("parquet", "csv", "jsonl"):
        quietly(judge, str(tmp_path / "in.parquet"), tmp_path / f"out.{suffix}")
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.select(table.column_names).equals(pq.read_table(tmp_path / "in.parquet"))
    assert back.schema.metadata[b"source"] == b"survey 7"
    assert not [key for key in back.schema.metadata if key.startswith(b"slm_judge")]
    row = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert row["fine"] == "2023-11-14 22:13:20.123456789"
    assert row["mars"] == "2023-11-14 22:13:20.000Z"
    assert row["day"].startswith("10001-")
    assert (row["big"], row["kind"]) == (2**63 - 1, "a")
    assert read_table(str(tmp_path / "out.csv")).rows[0]["fine"] == row["fine"]
    assert read_table(str(tmp_path / "out.csv")).rows[1]["mars"] == ""
    nested = pa.table({"text": ["x"], "days": pa.array([[days[0]]], pa.list_(pa.date32()))})
    pq.write_table(nested, tmp_path / "nested.parquet")
    with pytest.raises(DataError, match="Make it a column of its own"):
        quietly(judge, str(tmp_path / "nested.parquet"), tmp_path / "nested.csv")


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl.bz2", ".csv.xz", ".parquet"])
def test_equal_output_is_equal_to_the_byte(judge, source, tmp_path, suffix):
    made = []
    for name in ("a", "another"):
        path = tmp_path / f"{name}{suffix}"
        quietly(judge, source, path)
        made.append(path.read_bytes())
        time.sleep(1.1 if suffix.endswith(".gz") else 0)  # its header has the time, in seconds
    assert made[0] == made[1]
    if suffix == ".csv.gz":
        assert gzip.decompress(made[0]).startswith(b"id,text,")


# --- limits and signals ---


def limited():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_limits_of_the_machine_are_said(run, tmp_path):
    source = tmp_path / "in.csv"
    pd.DataFrame({"text": messages(200), "more": "m" * 200}).to_csv(source, index=False)
    arguments = ("annotate", source, "--model", run.gguf_file("Q4_K_M"))
    process = start(*arguments, "--output", tmp_path / "out.csv", preexec_fn=limited)
    said = process.communicate(timeout=LIMIT)[0].replace("\n", " ")
    assert process.returncode == 2
    assert "larger than this system allows" in said
    assert not (tmp_path / "out.csv").exists()
    process = start(*arguments, "--output", tmp_path / f"{'n' * 300}.csv")
    said = process.communicate(timeout=LIMIT)[0].replace("\n", " ")
    assert process.returncode == 2
    assert "File name too long" in said
    assert "Traceback" not in said
    long = tmp_path / f"{'n' * 230}.csv"
    process = start(*arguments, "--output", long)
    assert process.wait(LIMIT) == 0
    assert long.exists()


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")]
)
def test_signals_end_in_a_sentence(run, tmp_path, number, word):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"text": sorted(set(messages(20_000)))}).to_csv(source, index=False)
    arguments = ("annotate", source, "--model", run.gguf_file("Q4_K_M"), "--output", output)
    for again in (False, True):
        before = set(tmp_path.glob("out.csv.parts/part-*"))
        process = start(*arguments, "--rows-per-piece", "16")
        deadline = time.monotonic() + LIMIT
        while set(tmp_path.glob("out.csv.parts/part-*")) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        if again:
            time.sleep(0.05)
            process.send_signal(number)
        said = process.communicate(timeout=LIMIT)[0]
        assert process.returncode == 128 + number
        assert again or f"{word}. The same command goes on" in said.replace("\n", " ")
        assert "Traceback" not in said
        assert "terminate called" not in said
    assert not output.exists()


def test_many_columns_cost_no_more_than_few(judge, tmp_path):
    """Ten thousand columns end; their price beside ten is in benchmarks/faults.py."""
    names = [f"c{i}" for i in range(10_000)]
    table = pa.table({"text": ["refund", "thanks"], **{name: ["1", "2"] for name in names}})
    write_tables(iter([table]), tmp_path / "in.csv", Overview(table.column_names))
    quietly(judge, str(tmp_path / "in.csv"), tmp_path / "out.csv")
    rows = read_table(str(tmp_path / "out.csv")).rows
    assert [rows[1][name] for name in names] == ["2"] * 10_000


def test_a_date_is_a_date_in_json(judge, tmp_path):
    table = pa.table({"text": ["refund"], "day": [datetime.date(2024, 2, 29)]})
    pq.write_table(table, tmp_path / "in.parquet")
    quietly(judge, str(tmp_path / "in.parquet"), tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text())["day"] == "2024-02-29"


def test_bytes_go_into_parquet_alone(judge, tmp_path):
    kind = pa.struct([("path", pa.string()), ("bytes", pa.list_(pa.large_binary()))])
    images = pa.array([{"path": "a.png", "bytes": [b"\xff"]}], kind)
    pq.write_table(pa.table({"text": ["refund"], "image": images}), tmp_path / "in.parquet")
    for output in ("out.csv", "out.jsonl"):
        with pytest.raises(DataError, match="the columns image hold bytes"):
            quietly(judge, str(tmp_path / "in.parquet"), tmp_path / output)
        assert not (tmp_path / output).exists()
    quietly(judge, str(tmp_path / "in.parquet"), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["image"].to_pylist() == images.to_pylist()


# --- what is read stays ---


def test_an_output_never_takes_the_place_of_its_input(judge, tmp_path):
    """Also where either is written as an address, or the input lies in the folder to write."""
    folder, table = tmp_path / "f", pa.table({"text": messages(5)})
    folder.mkdir()
    for number in (0, 1):
        pq.write_table(table, folder / f"part-{number:08d}.parquet")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    one = folder / "part-00000000.parquet"
    alone = tmp_path / "in.csv"
    alone.write_text("text\nhello\n")
    for source, output in (
        (one, f"{folder}/"),
        (f"file://{folder}", f"{folder}/"),
        (folder, f"file://{folder}/"),
        (f"file://{alone}", alone),
    ):
        with pytest.raises(DataError, match="name another"):
            quietly(judge, str(source), output, overwrite=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert alone.read_text() == "text\nhello\n"
    reviewed = AnnotateOptions(review_below=0.9, review=f"{folder}/out/review.parquet")
    with pytest.raises(DataError, match=r"the file to review, lies in .*/out/"):
        annotate_table(judge, str(alone), f"{folder}/out/", reviewed, show_progress=False)


def test_home_is_where_a_tilde_says(judge, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert quietly(judge, source, "~/out.csv").rows == 40
    assert (tmp_path / "home" / "out.csv").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("place", ["nosuch://bucket/x.csv", "nosuch://bucket/x/"])
def test_addresses_that_nothing_opens_are_a_sentence(judge, source, place):
    with pytest.raises(DataError, match=r"nosuch://bucket/x.* cannot be opened: Protocol"):
        quietly(judge, source, place)
    with pytest.raises(DataError, match="cannot be opened"):
        quietly(judge, place, "out.csv")


def test_names_that_are_no_utf8_can_be_written(judge, source, tmp_path):
    output = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv")
    assert quietly(judge, source, output).rows == 40
    assert len(pd.read_csv(output)) == 40


def test_parquet_is_not_compressed_again(judge, source, tmp_path):
    with pytest.raises(DataError, match="Parquet is compressed by itself"):
        quietly(judge, source, tmp_path / "x.parquet.gz")


# --- folders of files that differ ---


def test_pieces_of_a_folder_have_the_columns_of_all_files(judge, tmp_path):
    folder, output = tmp_path / "mixed", f"{tmp_path / 'out'}/"
    folder.mkdir()
    texts = messages(4)
    pq.write_table(pa.table({"text": texts[:2], "n": [1, 2]}), folder / "a.parquet")
    more = pa.table({"n": [0.5, 1.5], "text": texts[2:], "extra": ["x", "y"]})
    pq.write_table(more, folder / "b.parquet")
    two = AnnotateOptions(rows_per_piece=2)
    assert annotate_table(judge, str(folder), output, two, show_progress=False).rows == 4
    found = pd.read_parquet(output)
    assert found["extra"].fillna("").tolist() == ["", "", "x", "y"]
    assert found["n"].tolist() == [1, 2, 0.5, 1.5]
    # 2**53 + 1 is no float: said before a row is computed.
    pq.write_table(pa.table({"text": texts[:2], "n": [2**53 + 1, 2]}), folder / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: n has values that double cannot hold"):
        annotate_table(judge, str(folder), tmp_path / "out.csv", two, show_progress=False)
    assert not (tmp_path / "out.csv.parts").exists()


def test_bytes_are_no_texts_however_a_column_holds_them(judge, tmp_path):
    path = tmp_path / "bytes.parquet"
    cells = pa.array([b"\xff\xfe", b"x"]).dictionary_encode()
    pq.write_table(pa.table({"text": messages(2), "raw": cells}), path)
    with pytest.raises(DataError, match="the columns raw hold bytes"):
        quietly(judge, str(path), tmp_path / "out.csv")
