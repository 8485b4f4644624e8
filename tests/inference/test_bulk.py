"""Bulk annotation: outcomes, resuming, formats, and one answer for one text."""

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llama_cpp import llama_model_size

from slm_judge import Judge
from slm_judge.annotate.job import annotate_table, here
from slm_judge.annotate.rows import AnnotateOptions, PieceAnnotator, truncate
from slm_judge.annotate.store import ShardStore, digest_of
from slm_judge.data.tables import Overview, TableStream, read_table
from slm_judge.data.write import write_tables
from slm_judge.errors import DataError, ModelError
from tests.conftest import LIMIT, ROOT, kill_until_done


@pytest.fixture(scope="module")
def judge(run):
    with Judge.from_pretrained(run.gguf) as loaded:
        yield loaded


def messages(n, seed=0):
    """Rows of different lengths, with repeats."""
    rng = random.Random(seed)
    words = [
        "parcel",
        "refund",
        "lamp",
        "late",
        "please",
        "now",
        "money",
        "back",
        "thank",
        "you",
        "invoice",
        "broken",
        "urgent",
    ]
    texts = [" ".join(rng.choices(words, k=rng.randrange(3, 30))) for _ in range(n)]
    return [texts[rng.randrange(n)] if rng.random() < 0.3 else text for text in texts]


def write(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


def test_texts_that_were_annotated_are_not_tokenized_again(judge, tmp_path):
    source = write(tmp_path / "in.csv", [{"text": text} for text in messages(40)])
    (piece,) = TableStream(source).pieces(40)
    annotator = PieceAnnotator(judge, AnnotateOptions())
    whole, n = annotator.annotate(annotator.prepare(piece, 0)), annotator.computed
    again = annotator.prepare(piece, 0)
    assert (again.prompts, len(again.known)) == ({}, n)
    assert annotator.annotate(again).equals(whole)
    assert annotator.computed == n
    annotator.forget()  # as when more texts came in between than are remembered
    assert annotator.annotate(again).equals(whole)
    assert annotator.computed == 2 * n


# --- streams ---


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".jsonl.xz", ".parquet"])
def test_streams_of_every_format_in_pieces(tmp_path, suffix):
    rows = [
        {"id": f"00{i}", "text": f'line one\nline "two", {i} 漢字 \u2028', "n": i}
        for i in range(25)
    ]
    path = tmp_path / f"t{suffix}"
    tables = iter([pa.Table.from_pylist(rows[:20]), pa.Table.from_pylist(rows[20:])])
    assert write_tables(tables, path, Overview(["id", "text", "n"])) == 25
    stream = TableStream(str(path))
    assert (stream.overview().columns, stream.overview().n_rows) == (["id", "text", "n"], 25)
    pieces = list(stream.pieces(10))
    assert [piece.table.num_rows for piece in pieces] == [10, 10, 5]
    got = [row for piece in pieces for row in piece.rows()]
    typed = suffix.startswith((".jsonl", ".parquet"))
    assert got == (rows if typed else [row | {"n": str(row["n"])} for row in rows])
    assert read_table(str(path)).rows[3] == got[3]


def test_pieces_of_mixed_types_have_one_schema(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [{"text": "a", "n": 1}, {"text": "b"}, {"text": "c", "n": 2.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_table(str(path)).rows == lines


def test_an_error_in_the_middle_names_the_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(DataError, match="line 2: expected an object"):
        read_table(str(tmp_path / "t.jsonl"))
    (tmp_path / "t.csv").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match="line 3 has 3 fields, the header has 2"):
        read_table(str(tmp_path / "t.csv"))


def test_digests_are_those_of_the_rows():
    table = pa.table({"a": [1, 2, 3, 4]})
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert digest_of(parts) == digest_of(table)
    assert digest_of(table.slice(1)) != digest_of(table)


# --- annotation ---


def test_bulk_labels_are_those_of_annotate(judge, tmp_path):
    texts = messages(150)
    source = write(tmp_path / "in.csv", {"id": range(150), "text": texts})
    options = AnnotateOptions(rows_per_piece=40)
    summary = annotate_table(judge, source, tmp_path / "out.parquet", options, show_progress=False)
    assert (summary.rows, summary.not_annotated) == (150, 0)
    assert summary.computed == len(set(texts)) < 150  # equal texts are computed once
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table.text) == texts
    expected = judge.annotate(texts)
    assert list(table.urgency) == [a.labels["urgency"] for a in expected]
    assert list(table.refund) == [a.labels["refund"] for a in expected]
    assert set(table.outcome) == {"annotated"}
    assert (table.topic_confidence - [a.confidence["topic"] for a in expected]).abs().max() < 0.02
    assert not (tmp_path / "out.parquet.parts").exists()


def test_every_row_has_an_outcome(judge, tmp_path):
    long = "word " * 6000
    rows = [
        {"text": "hello"},
        {"text": ""},
        {"text": None},
        {"other": 1},
        {"text": long},
        {"text": " \n"},
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = annotate_table(judge, str(source), tmp_path / "out.jsonl", show_progress=False)
    got = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    outcomes = [row["outcome"] for row in got]
    assert outcomes[:4] == [
        "annotated",
        "empty field: text",
        "missing field: text",
        "missing field: text",
    ]
    assert outcomes[4].startswith("too long: 6")
    assert outcomes[4].endswith("room for 4096")
    assert outcomes[5] == "empty field: text"
    assert all((row["topic"] is None) == (row["outcome"] != "annotated") for row in got)
    assert dict(summary.outcomes) == {
        "annotated": 1, "empty field: text": 2, "missing field: text": 2, "too long": 1,
    }  # fmt: skip
    assert summary.not_annotated == 5


def test_truncation_keeps_the_rubric_and_the_slots(judge, tmp_path):
    long = "start " + "word " * 6000
    source = write(tmp_path / "in.csv", {"text": ["hello", long]})
    options = AnnotateOptions(on_too_long="truncate")
    summary = annotate_table(judge, source, tmp_path / "out.csv", options, show_progress=False)
    assert dict(summary.outcomes) == {"annotated": 1, "truncated": 1}
    (piece,) = TableStream(source).pieces(2)
    annotator = PieceAnnotator(judge, options)
    whole, again = annotator.annotate(annotator.prepare(piece, 0)), annotator.prepare(piece, 0)
    annotator.forget()
    assert annotator.annotate(again).equals(whole)
    prompt = truncate(judge.backend, judge.rubric, {"text": long})
    assert judge.backend.max_tokens - 3 <= len(prompt.input_ids) <= judge.backend.max_tokens
    short = judge.backend.reader.encode([{"text": "start word"}])[0]
    prefix = len(judge.backend.reader.prefix)
    assert prompt.input_ids[:prefix] == short.input_ids[:prefix]
    tail = short.input_ids[short.slots[0] - 3 :]
    assert prompt.input_ids[-len(tail) :] == tail


def test_truncation_cuts_the_longest_field_first(run, tokenizer):
    from slm_judge import Rubric
    from slm_judge.artefact.judge_files import Contract
    from slm_judge.prompt.readers import DecisionReader

    rubric = Rubric.from_file(ROOT / "rubrics/answer-quality.yaml")
    contract = Contract.build(rubric, tokenizer)
    reader = DecisionReader(tokenizer, contract.decision_template, rubric, contract.labels)
    backend = type("Engine", (), {"reader": reader, "max_tokens": 700})()
    state = {"context": "c " * 900, "question": "why? " * 20, "answer": "a " * 200}
    text = tokenizer.decode(truncate(backend, rubric, state).input_ids)
    assert "why? " * 19 in text
    assert "a " * 199 in text
    assert text.count("c c") < 450
    state["answer"] = "a " * 900  # cutting the context alone is not enough
    prompt = truncate(backend, rubric, state)
    assert 690 < len(prompt.input_ids) <= 700
    backend.max_tokens = 50
    with pytest.raises(DataError, match="leaves no room"):
        truncate(backend, rubric, state)


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ({"text": ["a", ""]}, {"on_empty": "fail"}, "Line 3: empty field: text"),
        ({"text": ["word " * 6000]}, {"on_too_long": "fail"}, "Line 2 is too long: 6"),
        ({"body": ["a"]}, {}, "has no columns text"),
        ({"text": ["a"], "topic": ["b"]}, {}, "already has the columns topic"),
    ],
)
def test_what_fails_leaves_no_output(judge, tmp_path, rows, options, complaint):
    source = write(tmp_path / "in.csv", rows)
    with pytest.raises(DataError, match=complaint):
        annotate_table(
            judge, source, tmp_path / "out.csv", AnnotateOptions(**options), show_progress=False
        )
    assert not (tmp_path / "out.csv").exists()


def test_rows_to_review(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"id": range(60), "text": messages(60)})
    options = AnnotateOptions(review_below=0.45)
    summary = annotate_table(judge, source, tmp_path / "out.csv", options, show_progress=False)
    out, review = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "out.review.csv")
    confidences = out[[c for c in out if c.endswith("_confidence")]]
    unsure = out[(confidences < 0.45).any(axis=1)]
    assert summary.reviewed == len(review) == len(unsure) > 0
    assert list(review.id) == list(unsure.id)


def test_a_random_share_of_the_sure_rows_goes_to_review_with_its_probability(judge, tmp_path):
    """So that what people say about them speaks for all rows: `slm-judge estimate --probability`."""
    source = write(tmp_path / "in.csv", {"id": range(81), "text": [*messages(80), ""]})

    def reviewed(name, below, pieces):
        options = AnnotateOptions(review_below=below, review_share=0.2, rows_per_piece=pieces)
        annotate_table(judge, source, tmp_path / f"{name}.csv", options, show_progress=False)
        return pd.read_csv(tmp_path / f"{name}.review.csv")

    alone, out = reviewed("alone", None, 81), pd.read_csv(tmp_path / "alone.csv")
    assert "review_probability" not in out
    assert set(alone.review_probability) == {0.2}
    assert abs(len(alone) - 0.2 * 80) < 4 * (0.8 * 0.2 * 80) ** 0.5
    least = out[[c for c in out if c.endswith("_confidence")]].min(axis=1)
    unsure = set(out.id[least < least.median()])
    assert 0 < len(unsure) < 60
    review = reviewed("a", float(least.median()), 81)
    assert set(review.id[review.review_probability == 1]) == unsure
    assert set(review.id) == unsure | set(alone.id)
    assert set(review.review_probability) == {0.2, 1.0}
    assert 80 not in set(review.id)  # it has no labels
    # The same rows are drawn whatever the pieces.
    assert list(reviewed("b", None, 16).id) == list(alone.id)


def test_a_share_that_is_none_and_a_column_that_is_taken(judge, tmp_path):
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(DataError, match="--review-share is between 0 and 1"):
            AnnotateOptions(review_share=share)
        with pytest.raises(DataError, match="--review-below is between 0 and 1"):
            AnnotateOptions(review_below=share)
    source = write(tmp_path / "in.csv", {"review_probability": range(5), "text": messages(5)})
    options = AnnotateOptions(review_share=0.5)
    with pytest.raises(DataError, match="already has the columns review_probability"):
        annotate_table(judge, source, tmp_path / "o.csv", options, show_progress=False)


# --- resuming ---


def test_an_interrupted_job_goes_on(judge, tmp_path, monkeypatch):
    source = write(tmp_path / "in.csv", {"id": range(100), "text": messages(100)})
    options = AnnotateOptions(rows_per_piece=16)
    annotate_table(judge, source, tmp_path / "whole.csv", options, show_progress=False)
    written = []
    keep = ShardStore.write

    def breaking(self, index, table, digest):
        if index == 3:
            raise KeyboardInterrupt
        written.append(index)
        keep(self, index, table, digest)

    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "write", breaking)
        with pytest.raises(KeyboardInterrupt):
            annotate_table(judge, source, tmp_path / "out.csv", options, show_progress=False)
    assert written == [0, 1, 2]
    assert len(list((tmp_path / "out.csv.parts").glob("part-*"))) == 3
    # Another model, other settings or other rows: refused, and nothing is lost.
    other = AnnotateOptions(rows_per_piece=16, on_empty="fail")
    with pytest.raises(DataError, match="a job with another settings"):
        annotate_table(judge, source, tmp_path / "out.csv", other, show_progress=False)
    changed = write(tmp_path / "changed.csv", {"id": range(100), "text": ["x", *messages(100)[1:]]})
    with pytest.raises(DataError, match="The input changed since"):
        annotate_table(judge, changed, tmp_path / "out.csv", options, show_progress=False)
    summary = annotate_table(judge, source, tmp_path / "out.csv", options, show_progress=False)
    assert summary.rows == 100
    assert summary.computed < len(set(messages(100)))
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_job_goes_on_with_as_much_room_for_a_row_alone(run, tmp_path, monkeypatch):
    """Rows that are too long for less memory would stand beside longer ones."""
    source = write(tmp_path / "in.csv", {"id": range(3), "text": messages(3)})
    options, output = AnnotateOptions(rows_per_piece=1), tmp_path / "out.csv"

    def job(memory):
        with Judge.from_pretrained(run.gguf, max_memory=memory) as one:
            return annotate_table(one, source, output, options, show_progress=False)

    keep = ShardStore.write

    def breaking(self, index, table, digest):
        if index == 1:
            raise KeyboardInterrupt
        keep(self, index, table, digest)

    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "write", breaking)
        with pytest.raises(KeyboardInterrupt):
            job(None)
    with Judge.from_pretrained(run.gguf) as one:
        engine, weights = one.backend, llama_model_size(one.backend._model)
        less = (weights + (engine.max_tokens - 10) * engine._cell_size) / 2**30
    with pytest.raises(DataError, match=r"another room for a row \(--max-memory\)"):
        job(less)
    assert job(4.0).rows == 3  # room for as long a row
    for memory in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ModelError, match="max_memory is a number of GiB above 0"):
            job(memory)


def test_what_json_cannot_hold_is_null_and_said(judge, tmp_path):
    source, output = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    numbers = [float("nan"), float("inf"), 1.5]
    pq.write_table(pa.table({"text": messages(3), "score": numbers}), source)
    summary = annotate_table(judge, str(source), output, show_progress=False)
    assert any("no finite number in score is written as null" in note for note in summary.notes)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in output.open()]
    assert [row["score"] for row in rows] == [None, None, 1.5]


def test_overwrite_starts_over(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["a", "b"]})
    parts = tmp_path / "out.csv.parts"
    ShardStore(parts, {"model": "another"}).write(0, pa.table({"text": ["a"]}), "digest")
    with pytest.raises(DataError, match="a job with another"):
        annotate_table(judge, source, tmp_path / "out.csv", show_progress=False)
    annotate_table(judge, source, tmp_path / "out.csv", overwrite=True, show_progress=False)
    assert len(pd.read_csv(tmp_path / "out.csv")) == 2


def test_killed_at_random_points(run, tmp_path):
    """SIGKILL 20 times; the result is byte for byte that of an uninterrupted job."""
    source = write(tmp_path / "in.csv", {"id": range(3000), "text": messages(3000)})
    code = (
        "import sys; from pathlib import Path; from slm_judge import Judge;"
        "from slm_judge.annotate.job import annotate_table;"
        "from slm_judge.annotate.rows import AnnotateOptions;"
        "judge = Judge.from_pretrained(sys.argv[1]);"
        "annotate_table(judge, sys.argv[2], Path(sys.argv[3]), AnnotateOptions(rows_per_piece=64),"
        " show_progress=False)"
    )

    log = tmp_path / "log"

    def start(output):
        command = [sys.executable, "-c", code, str(run.gguf), source, str(output)]
        with log.open("w") as file:
            return subprocess.Popen(command, stdout=file, stderr=file)

    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    assert start(whole).wait(LIMIT) == 0, log.read_text()
    parts = tmp_path / "out.parquet.parts"
    kills = kill_until_done(
        lambda: start(output), output, lambda: parts.glob("part-*"), 20,
        delay=0.1, poll=0.002, log=log,
    )  # fmt: skip
    assert kills == 20
    assert output.read_bytes() == whole.read_bytes()
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [str(i) for i in range(3000)]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_crash_while_the_pieces_are_put_together(judge, tmp_path, monkeypatch):
    from slm_judge.annotate import job

    source = write(tmp_path / "in.csv", {"text": messages(30)})
    output = tmp_path / "out.csv.gz"
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_tables", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            annotate_table(judge, source, output, show_progress=False)
    assert not output.exists()
    summary = annotate_table(judge, source, output, show_progress=False)
    assert (summary.rows, summary.computed) == (30, 0)
    with gzip.open(output, "rt", newline="") as file:
        assert len(list(csv.DictReader(file))) == 30


# --- one answer for one text ---


def test_labels_depend_on_nothing_but_the_text(run, tmp_path):
    """Orders, pieces, sequences and threads differ; labels do not, and exact files are equal."""
    from slm_judge.artefact.locate import locate
    from slm_judge.backends.gguf import GgufBackend

    texts = sorted(set(messages(400, seed=1)))
    rng = random.Random(1)
    found, exact = [], []
    for n_sequences, n_threads, rows_per_piece in ((32, 2, 2048), (5, 1, 64), (48, 2, 7)):
        order = rng.sample(texts, len(texts))
        source = write(tmp_path / "in.csv", {"text": order})
        options = AnnotateOptions(rows_per_piece=rows_per_piece)
        for into, alone in ((found, False), (exact, True)):
            path = locate(run.gguf, None, None)
            backend = GgufBackend(path, n_sequences=n_sequences, n_threads=n_threads)
            with Judge(backend, exact=alone) as judge:
                annotate_table(judge, source, tmp_path / "o.parquet", options, True, False)
            rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
            into.append({row["text"]: row for row in rows})
    labels = [{t: (r["urgency"], r["topic"], r["refund"]) for t, r in f.items()} for f in found]
    assert labels[0] == labels[1] == labels[2]
    assert exact[0] == exact[1] == exact[2]


# --- folders ---


def test_a_folder_of_parquet_on_another_filesystem(judge, tmp_path):
    import fsspec

    source = tmp_path / "texts"
    source.mkdir()
    for k in range(3):
        table = pa.table({"id": [f"{k}-{i}" for i in range(10)], "text": messages(10, seed=k)})
        pq.write_table(table, source / f"{k}.parquet")
    (source / "_notes.parquet").write_bytes(b"not a table")  # hidden by its name
    options = AnnotateOptions(rows_per_piece=8, columns={"text": "text"})
    summary = annotate_table(judge, str(source), "memory://out/", options, show_progress=False)
    assert summary.rows == 30
    memory = fsspec.filesystem("memory")
    names = [path.rpartition("/")[2] for path in memory.ls("/out", detail=False)]
    assert sum(name.startswith("part-") for name in names) == 4
    rows = read_table("memory://out/").rows
    assert [row["id"] for row in rows] == [f"{k}-{i}" for k in range(3) for i in range(10)]
    # Again: everything is there, and nothing is computed.
    again = annotate_table(judge, str(source), "memory://out/", options, show_progress=False)
    assert (again.rows, again.computed) == (30, 0)
    with pytest.raises(DataError, match="files are written on this machine alone"):
        annotate_table(judge, str(source), "memory://out.parquet", options, show_progress=False)
    with pytest.raises(DataError, match="Name the file for the rows to review"):
        annotate_table(
            judge,
            str(source),
            "memory://x/",
            AnnotateOptions(review_below=0.5),
            show_progress=False,
        )


def test_a_folder_that_is_not_a_job_s(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["a"]})
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-00000000.parquet").write_bytes(b"somebody's")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="a job without its record"):
        annotate_table(judge, source, f"{out}/", show_progress=False)
    annotate_table(judge, source, f"{out}/", overwrite=True, show_progress=False)
    assert (out / "notes.txt").read_text() == "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="without Parquet files"):
        TableStream(str(empty))


# --- what people's files hold, and where things go ---


def test_rows_of_json_keep_what_they_hold(judge, tmp_path):
    """A row without text takes no other row's; keys, numbers and nested values come back."""
    rows = [{"id": k, "text": f"Where is my order, {k}?", "meta": {"k": k}} for k in range(9)]
    del rows[3]["text"]
    rows[4]["big"] = 2**70
    rows[5]["meta"] = {}
    rows[6]["text"] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    rows[7]["text"] = ["no", "chat"]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = AnnotateOptions(rows_per_piece=3)
    annotate_table(judge, str(source), tmp_path / "o.jsonl", options, show_progress=False)
    out = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k in rows[n]} for n, row in enumerate(out)] == rows
    outcomes = [row["outcome"] for row in out]
    assert outcomes[3] == "missing field: text"
    assert outcomes[7] == "no text in field: text holds a list"
    assert [n for n, outcome in enumerate(outcomes) if outcome != "annotated"] == [3, 7]
    assert set(out[3]) == {"id", "meta", *out[0]} - {"text"}
    summary = annotate_table(judge, str(source), tmp_path / "o.parquet", options, False, False)
    assert "big, meta, text hold lists, objects or mixed types" in " ".join(
        ", ".join(sorted(note.partition(": ")[2].partition(" hold")[0].split(", "))) + " hold" +
        note.partition(" hold")[2] for note in summary.notes
    )  # fmt: skip
    table = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row["id"] for row in table] == list(range(9))
    assert json.loads(table[0]["meta"]) == {"k": 0}
    # In a folder, each piece has the columns of the whole table.
    annotate_table(judge, str(source), f"{tmp_path}/folder/", options, show_progress=False)
    schemas = {
        str(pq.read_schema(p).remove_metadata()) for p in (tmp_path / "folder").glob("part-*")
    }
    assert len(schemas) == 1


def test_the_header_of_the_review_stands_once(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"id": range(40), "text": messages(40)})
    # A row a piece both times: a confidence's last digit depends on the other rows.
    alone = AnnotateOptions(rows_per_piece=1)
    annotate_table(judge, source, tmp_path / "all.csv", alone, show_progress=False)
    table = pd.read_csv(tmp_path / "all.csv")
    least = table[[c for c in table if c.endswith("_confidence")]].min(axis=1)
    options = AnnotateOptions(review_below=float(least.max()), rows_per_piece=1)
    summary = annotate_table(judge, source, tmp_path / "o.csv.gz", options, show_progress=False)
    with gzip.open(tmp_path / "o.review.csv.gz", "rt") as file:
        review = list(csv.reader(file))
    assert review[0][:2] == ["id", "text"]
    assert 0 < summary.reviewed == len(review) - 1 == (least < least.max()).sum() < 40
    nobody = AnnotateOptions(review_below=0.0)
    annotate_table(judge, source, tmp_path / "n.csv", nobody, show_progress=False)
    assert (tmp_path / "n.review.csv").read_text().count("\n") == 1


def test_a_column_of_no_field_is_refused(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["a"]})
    options = AnnotateOptions(columns={"txt": "text"})
    with pytest.raises(DataError, match="the judge reads no field txt; it reads text"):
        annotate_table(judge, source, tmp_path / "o.csv", options, show_progress=False)


def test_no_output_is_lost_to_another(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["a", "b"]})
    output = tmp_path / "o.csv"
    annotate_table(judge, source, output, show_progress=False)
    with pytest.raises(DataError, match=r"o\.csv exists"):
        annotate_table(judge, source, output, AnnotateOptions(prefix="x_"), show_progress=False)
    annotate_table(judge, source, output, AnnotateOptions(prefix="x_"), True, False)
    assert "x_topic" in output.read_text()
    for place, review in ((source, None), (str(output), source), (str(output), str(output))):
        options = AnnotateOptions(review_below=0.5, review=review) if review else None
        with pytest.raises(DataError, match="name another file"):
            annotate_table(judge, source, place, options, True, False)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        annotate_table(judge, source, tmp_path / "folder.csv", show_progress=False)


def test_a_file_that_is_not_the_job_s_own_outlives_it(judge, tmp_path, monkeypatch):
    """Put there after the job was killed, or while it ran; what a killed job wrote it replaces."""
    source, output = write(tmp_path / "in.csv", {"text": messages(6)}), tmp_path / "o.csv"
    options = AnnotateOptions(rows_per_piece=2)

    def stopped(stream, annotator, store):
        yield next(here(stream, annotator, store))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        annotate_table(judge, source, output, options, show_progress=False, engine=stopped)
    output.write_text("mine")
    with pytest.raises(DataError, match=r"o\.csv exists"):
        annotate_table(judge, source, output, options, show_progress=False)
    output.unlink()

    def meanwhile(stream, annotator, store):
        yield from here(stream, annotator, store)
        output.write_text("mine")

    with pytest.raises(DataError, match=r"o\.csv exists"):
        annotate_table(judge, source, output, options, show_progress=False, engine=meanwhile)
    assert output.read_text() == "mine"
    output.unlink()

    def killed(store):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # when the output was there, and its pieces too
        patch.setattr(ShardStore, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            annotate_table(judge, source, output, options, show_progress=False)
    written = output.read_text()
    assert annotate_table(judge, source, output, options, show_progress=False).computed == 0
    assert output.read_text() == written
    assert not Path(f"{output}.parts").exists()


def test_pieces_of_a_longer_input_are_not_taken_along(judge, tmp_path):
    options = AnnotateOptions(rows_per_piece=2)
    source = write(tmp_path / "in.csv", {"text": messages(8)})
    folder = f"{tmp_path}/out/"
    annotate_table(judge, source, folder, options, show_progress=False)
    write(tmp_path / "in.csv", {"text": messages(8)[:4]})
    with pytest.raises(DataError, match="holds 2 pieces more than the input has"):
        annotate_table(judge, source, folder, options, show_progress=False)
    summary = annotate_table(judge, source, folder, options, True, False)
    assert (summary.rows, summary.computed) == (4, 0)
    assert len(read_table(folder).rows) == 4


def test_what_fails_before_the_first_piece_leaves_nothing(judge, tmp_path):
    source = write(tmp_path / "in.csv", {"text": ["a", "", "b"]})
    options = AnnotateOptions(on_empty="fail")
    with pytest.raises(DataError, match="Line 3: empty field"):
        annotate_table(judge, source, tmp_path / "o.csv", options, show_progress=False)
    assert not (tmp_path / "o.csv.parts").exists()
    annotate_table(judge, source, tmp_path / "o.csv", show_progress=False)
