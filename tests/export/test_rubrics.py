"""Long codebooks, sixty options, and rubrics in Chinese and Arabic, asked by both engines."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from slm_judge.model_card import figures
from slm_judge.model_card.page import write

from benchmarks.small_judges import Gguf
from slm_judge import Judge, Rubric
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import AnnotateOptions
from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.judge_files import QUESTION_TYPES, Contract
from slm_judge.artefact.preview import token_cost
from slm_judge.backends.gguf import CALIBRATION_KEY, RUBRIC_KEY, TEMPLATE_NAME
from slm_judge.data.tables import read_table
from slm_judge.data.text import item_state
from slm_judge.evaluation.evaluate import evaluate, of_files

RULE = (
    "the annotator marks a message if its author clearly refers to an order that never came or "
    "to a bill that was wrong unless another rule above applies"
)
RULES = RULE.split()
CODES = {f"code {k:02d}, of «{RULES[k % 20]}»": " ".join(RULES[(k + n) % 20] for n in range(45))
         for k in range(60)}  # fmt: skip
SCRIPTS = [
    {"name": "mood", "type": "choice", "instructions": "作者的情绪是什么？",
     "options": {"高兴": "作者感到满意", "愤怒": "作者在抱怨", "悲伤": ""}},
    {"name": "shuur", "type": "choice", "instructions": "ما هو شعور الكاتب؟",
     "options": {"فرح": "الكاتب راض", "غضب": "الكاتب يشتكي (بشدة)", "محايد": ""}},
]  # fmt: skip
CODEBOOK = Rubric.parse(
    {
        "name": "codebook", "instructions": f"请阅读这条消息。 اقرأ الرسالة. {RULE}", "fields": ["text"],
        "dimensions": [
            {"name": "topic", "type": "choice", "instructions": "Which code?", "options": CODES},
            {"name": "heat", "type": "score", "instructions": "How heated is it?",
             "options": list(range(5, 100, 10)), "range": [0, 100]},
            *SCRIPTS,
        ],
    },
    "test",
)  # fmt: skip
TEXTS = ["包裹没有到，我很生气！", "لم يصل الطرد وأنا غاضب جدا.", "شكرا 谢谢 thanks 🙂", "cafe\u0301 ١٢٣ １２３",
         "The bill was wrong."]  # fmt: skip


@pytest.fixture(scope="module")
def judges(run, tmp_path_factory):
    """A folder of transformers and a GGUF file, both of the run's weights, of another rubric."""
    root, exported = tmp_path_factory.mktemp("rubrics"), Gguf.read(run.gguf_file("BF16"))
    contract, folder = Contract.build(CODEBOOK, load_tokenizer(run.merged)), root / "codebook"
    folder.mkdir()
    for file in run.merged.iterdir():
        if file.name.startswith(("model", "token", "chat_template")):
            (folder / file.name).symlink_to(file)
    config = json.loads((run.merged / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    contract.save(folder)
    named = exported.architecture
    keys = {
        RUBRIC_KEY: CODEBOOK.to_json(),
        CALIBRATION_KEY: "{}",
        f"tokenizer.chat_template.{TEMPLATE_NAME}": contract.systemone_template,
        f"{named}.context_length": 8192,
        **{f"{named}.decision.temperature.{kind}": 1.0 for kind in QUESTION_TYPES},
    }
    return folder, exported.write(root / "codebook.gguf", keys)


def test_both_engines_answer_alike(judges):
    answers, prompts = [], []
    states = [item_state(CODEBOOK, text) for text in TEXTS]
    for path in judges:
        with Judge.from_pretrained(path) as judge:
            assert judge.rubric == CODEBOOK
            prompts.append(judge.backend.reader.encode(states))
            answers.append(judge.annotate(TEXTS))
    assert prompts[0] == prompts[1]
    for one, other in zip(*answers, strict=True):
        for dimension, shares in one.probabilities.items():
            found = other.probabilities[dimension]
            assert [*shares.values()] == pytest.approx([*found.values()], abs=0.05)
            two, best = sorted(shares.values())[-2:]
            assert one.labels[dimension] == other.labels[dimension] or best - two < 0.1
    assert len({str(answer.probabilities) for answer in answers[0]}) == len(TEXTS)


def test_a_slider_has_its_expected_level_in_the_table(judges, tmp_path):
    """Ten levels from 5 to 95 on a range of 100."""
    pd.DataFrame({"text": TEXTS}).to_csv(tmp_path / "t.csv", index=False)
    with Judge.from_pretrained(judges[1]) as judge:
        annotate_table(judge, str(tmp_path / "t.csv"), str(tmp_path / "o.jsonl"), AnnotateOptions())
        answers = judge.annotate(TEXTS)
    rows = read_table(str(tmp_path / "o.jsonl")).rows
    for row, answer in zip(rows, answers, strict=True):
        shares = answer.probabilities["heat"]
        mean = np.dot([*shares], [*shares.values()])
        assert answer.expected(CODEBOOK.dimension("heat")) == pytest.approx(mean)
        assert row["heat_expected"] == round(row["heat_expected"]) == pytest.approx(mean, abs=0.6)
        assert row["heat"] == answer.labels["heat"]
    assert "topic_expected" not in rows[0]


def test_what_a_rubric_costs_is_what_the_engine_reads(judges):
    cost, share = token_cost(CODEBOOK, str(judges[0]))
    with Judge.from_pretrained(judges[0]) as judge:
        reader = judge.backend.reader
        whole = len(reader.encode([{"text": ""}])[0].input_ids)
    shared, row = re.search(r": ([\d,]+) of the rubric, .*, and (\d+) of a row", cost).groups()
    assert int(shared.replace(",", "")) == pytest.approx(len(reader.prefix), abs=1)
    assert int(shared.replace(",", "")) + int(row) == pytest.approx(whole, abs=1)
    assert f"{whole / 8192:.1%} of the 8,192 tokens" in share
    assert whole > 3000
    each = re.findall(r"(\w+) ([\d,]+)(?:, |$)", cost.partition("of each question: ")[2])
    assert [name for name, _ in each] == [d.name for d in CODEBOOK.dimensions]
    assert "about, 4 bytes each" in token_cost(CODEBOOK)[0]


def test_a_report_of_other_scripts(tmp_path):
    """Letters that the figures' font lacks become numbers; whichever way a script runs."""
    rows = [{"item_id": k, "text": TEXTS[k % 5], "who": who, "mood": ("高兴", "愤怒")[k % 2],
             "shuur": ("فرح", "غضب")[k // 2 % 2]}
            for k in range(12) for who in "ab"]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "h.csv", index=False)
    pd.DataFrame(rows[::2]).to_csv(tmp_path / "p.csv", index=False)
    rubric = Rubric.parse(CODEBOOK.model_dump() | {"dimensions": SCRIPTS}, "test")
    evaluation = of_files(
        {"j": str(tmp_path / "p.csv")},
        str(tmp_path / "h.csv"),
        rubric,
        "item_id",
        "who",
    )
    report = evaluate(evaluation)
    drawn = figures.draw(report)
    ticks = {name: [text.get_text() for text in drawn[f"confusion-{name}"].axes[0].get_yticklabels()]
             for name in ("mood", "shuur")}  # fmt: skip
    assert ticks == {"mood": ["option 1", "option 2", "option 3"], "shuur": ["فرح", "غضب", "محايد"]}
    page = write(report, tmp_path / "report").read_text(encoding="utf-8")
    assert '<span dir="auto"><bdi>فرح</bdi></span>' in page
    assert "<bdi>高兴</bdi>" in page
