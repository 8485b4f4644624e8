"""Hostile texts: one form for every reader, in time, and a bound that is an outcome."""

import json
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_judge import Judge, Rubric
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import AnnotateOptions
from slm_judge.data.read import Columns, Findings, read_items
from slm_judge.data.tables import read_table
from slm_judge.data.text import MOST_CHARACTERS, item_state, read_text
from slm_judge.errors import DataError
from slm_judge.offline.llama_source import llama_cpp_source
from slm_judge.text import MARK, SPLIT, nfc, normalise, to_utf8
from tests.conftest import LIMIT

NEWER = "\U00013460"  # a hieroglyph of Unicode 16
MARKS = [chr(p) for p in range(0x110000) if unicodedata.combining(chr(p))]
PIECES = st.one_of(
    st.characters(), st.sampled_from(MARKS), st.sampled_from("aé\u0344\u0f73\u1e69\u1100\u1161\u11a8\uac00"),
    st.sampled_from([MARK, SPLIT, "<|ma", "rk|>", "<|sp", "lit|>", "\ud800", "\udc00"]),
)  # fmt: skip


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES, max_size=16).map("".join))
def test_the_form_is_what_the_plain_way_gives(text):
    plain = to_utf8(text)
    while MARK in plain or SPLIT in plain:
        plain = plain.replace(MARK, "").replace(SPLIT, "")
    plain = "".join("\ufffd" if normalise(letter) == "\ufffd" else letter for letter in plain)
    assert normalise(text) == unicodedata.normalize("NFC", plain)
    assert normalise(normalise(text)) == normalise(text)


ATTACKS = [
    "'a' + '\\u0301\\u0323' * 500_000",
    "'\\u0f73\\u0323' * 500_000",  # vowels of Tibetan, which decompose into marks of two classes
    "'a' + ''.join(sorted(MARKS, key=unicodedata.combining, reverse=True)) * 1000",
    "'<|ma' * 100_000 + '<|mark|>' + 'rk|>' * 100_000",
    "'\\ufb2c\\u1100\\u1161\\u11a8\\ud800' * 200_000",
]


def test_a_million_characters_end():
    """In the square of their number they would take hours."""
    code = (
        "import unicodedata\nfrom slm_judge.text import normalise\n"
        "MARKS = [chr(p) for p in range(0x110000) if unicodedata.combining(chr(p))]\n"
        f"for text in ({', '.join(ATTACKS)}):\n    assert normalise(text + 'end').endswith('end')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT)


def test_a_word_without_end_does_not_end_the_process(tmp_path):
    """Where words are parted as for Mistral's models, llama.cpp needs stack for each letter."""
    given, made = llama_cpp_source() / "models" / "ggml-vocab-qwen2.gguf", tmp_path / "v.gguf"
    rewrite = ["gguf.scripts.gguf_new_metadata", "--force", "--pre-tokenizer", "tekken"]
    subprocess.run(
        [sys.executable, "-m", *rewrite, str(given), str(made)], check=True, timeout=LIMIT
    )
    code = (
        "import llama_cpp\nfrom slm_judge.prompt.readers import on_deep_stack\n"
        f"vocabulary = llama_cpp.Llama({str(made)!r}, vocab_only=True, verbose=False)\n"
        "found = on_deep_stack(lambda text: vocabulary.tokenize(text.encode()), 'a' * 200_000, 200_000)\n"
        "assert len(found) > 10_000"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT)


# A genitive and line breaks apart tell what an engine takes for a letter from what it does not.
@pytest.mark.parametrize("context", ["{}'s\n \n|", " {}{}'ll 1{}\u0323\u0301|"])
def test_every_character_gives_the_same_tokens(tokenizer, llama_tokenize, context):
    assigned = [p for p in range(0x40000) if not 0xD800 <= p < 0xE000]
    points = [*assigned, *range(0xE0000, 0xE0200), *range(0x40000, 0x110000, 64)]
    encode = tokenizer.backend_tokenizer.encode

    def differs(points, read):
        text = "".join(read(context.replace("{}", chr(point))) for point in points)
        return encode(text, add_special_tokens=False).ids != llama_tokenize(text)

    parts = [points[i : i + 4000] for i in range(0, len(points), 4000)]
    different = [part for part in parts if differs(part, normalise)]
    assert [hex(p) for part in different for p in part if differs([p], normalise)] == []
    assert different == []
    assert differs([ord(NEWER)], nfc)  # without the replacement


def test_a_text_that_is_too_long_is_not_read():
    assert read_text("a" * MOST_CHARACTERS) == ("a" * MOST_CHARACTERS, "")
    problem = f"too long: {MOST_CHARACTERS + 1} characters in {{}}, room for {MOST_CHARACTERS}"
    assert read_text("a" * (MOST_CHARACTERS + 1)) == ("", problem)
    chat = [{"role": "user", "content": "a" * MOST_CHARACTERS}]
    assert read_text(chat)[1].startswith("too long: 1000006 characters")


def test_one_rule_for_every_way_in(support, tmp_path):
    long = "a" * (MOST_CHARACTERS + 1)
    with pytest.raises(
        DataError, match=r"Row 7 has no text .* too long: 1000001 characters in text"
    ):
        item_state(support, long, "Row 7")
    rows = [{"item_id": i, "text": text, "topic": "billing"} for i, text in
            enumerate(("plain", NEWER, [{"role": "user", "content": NEWER}], long))]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    findings = Findings()
    items = read_items(read_table(str(path)), Columns(), support, findings).items
    assert [item.state.get("text") for item in items[:3]] == ["plain", "\ufffd", "user: \ufffd"]
    assert "2 rows have characters that the engines do not all read alike" in findings.notes[0]
    assert list(findings.counts) == [
        "rows with too long: 1000001 characters in text, room for 1000000"
    ]


@pytest.fixture(scope="module")
def judge(run):
    with Judge.from_pretrained(run.gguf) as loaded:
        yield loaded


def annotate(judge, source, output, **options):
    return annotate_table(
        judge, str(source), output, AnnotateOptions(**options), show_progress=False
    )


def test_what_was_done_to_a_text_is_its_outcome(judge, tmp_path):
    texts = [
        "lamp",
        f"lamp {NEWER}",
        "lamp \ufffd",
        " " * MOST_CHARACTERS + "lamp",
        "lamp " * 200_001,
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    summary = annotate(judge, source, tmp_path / "skip.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "skip.jsonl").open()]
    outcomes = [row["outcome"] for row in rows]
    assert outcomes[:3] == ["annotated", "replaced", "annotated"]
    assert outcomes[3:] == [
        f"too long: {n} characters in text, room for 1000000" for n in (1_000_004, 1_000_005)
    ]
    assert (summary.not_annotated, summary.outcomes["too long"]) == (2, 2)
    assert rows[1]["topic"] == rows[2]["topic"]  # of the same prompt
    assert rows[1]["text"] == texts[1]  # the input comes back as it was
    annotate(judge, source, tmp_path / "cut.jsonl", on_too_long="truncate")
    outcomes = [json.loads(line)["outcome"] for line in (tmp_path / "cut.jsonl").open()]
    assert outcomes[3:] == ["empty field: text", "truncated"]
    with pytest.raises(DataError, match=r"Line 4: too long: .* in text, .* --on-too-long"):
        annotate(judge, source, tmp_path / "fail.jsonl", on_too_long="fail")


def test_a_rubric_is_read_as_an_item_is(tokenizer, llama_tokenize, tmp_path):
    """A rubric as macOS writes it, with sentinels, halves of pairs and letters of Unicode 16."""
    from slm_judge.artefact.judge_files import Contract
    from slm_judge.prompt.readers import DecisionReader, SystemoneReader

    def decomposed(text):
        return unicodedata.normalize("NFD", text)

    odd = f"<|ma{MARK}rk|>\ud800{SPLIT}{NEWER}'s"
    raw = {
        "name": "r", "instructions": decomposed("Wie höflich? ") + odd, "fields": ["text"],
        "paraphrases": [decomposed("Wie nett ist es, Ångström?")],
        "dimensions": [
            {"name": "ton", "type": "choice", "instructions": decomposed("Größe?") + odd,
             "options": {decomposed("schön"): decomposed("größer ệ ṩ 각 שּׁ"), "a" + odd: odd, "b": None}},
            {"name": "grad", "type": "score", "instructions": "?", "options": {1: decomposed("für"), 2: odd}},
            {"name": "ja", "type": "noul", "instructions": "?", "options": {True: decomposed("één"), False: odd}},
        ],
    }  # fmt: skip
    rubric = Rubric.parse(raw, "test")
    Contract.build(rubric, tokenizer).save(tmp_path)
    contract = Contract.load(tmp_path)
    kept = contract.rubric.to_json()
    assert (normalise(kept), kept) == (kept, rubric.to_json())
    assert contract.rubric.dimensions[0].values == ["schön", "a\ufffd\ufffd's", "b"]
    args = (contract.rubric, contract.labels)
    decision = DecisionReader(tokenizer, contract.decision_template, *args)
    systemone = SystemoneReader(llama_tokenize, contract.systemone_template, *args)
    states = [item_state(rubric, text) for text in ("hi", decomposed("é") + odd)]
    assert decision.encode(states) == systemone.encode(states)
    said = rubric.warnings()
    assert len(said) == 4  # each text once; what NFC alone changed is not worth a word
    assert (
        f"'b{MARK}' is read as 'b'"
        in Rubric.parse(raw | {"instructions": f"b{MARK}"}, "t").warnings()[0]
    )
