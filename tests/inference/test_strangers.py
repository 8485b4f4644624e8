"""Files of strangers: each is loaded, or refused in one sentence that says where the fault is."""

import copy
import gc
import json
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.small_judges import Gguf, small_gguf, small_judges
from slm_judge import Judge, Rubric
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends import probe
from slm_judge.backends.gguf import GgufBackend
from slm_judge.child import ChildDied, ask_child
from slm_judge.errors import JudgeError, ModelError, RubricError
from slm_judge.judge.answer import softmax
from slm_judge.prompt import chat_template
from slm_judge.prompt.layout import Layout, _split_chat_template
from slm_judge.prompt.templates import (
    compile_template,
    decision_head,
    decision_questions,
    decision_template,
    systemone_template,
)
from tests.conftest import LIMIT, ROOT

NAN, INF = float("nan"), float("inf")
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def judges(run, tmp_path_factory):
    """Judges with a small vocabulary, which load in a tenth of a second."""
    return small_judges(run, tmp_path_factory.mktemp("judges") / "small")


@pytest.fixture(scope="module")
def gguf(judges):
    return Gguf.read(judges / "judge.gguf")


def changed(source, target, name, change):
    """A copy of a judge's folder with one file changed: bytes, new values of JSON, or a function."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != name:
            (target / file.name).symlink_to(file)
    old = (source / name).read_bytes() if (source / name).exists() else b""
    if isinstance(change, dict):
        change = json.dumps(json.loads(old) | change).encode()
    elif callable(change):
        change = change(old)
    if change is not None:
        (target / name).write_bytes(change)
    return target


def refusal(path, **options):
    with pytest.raises(JudgeError) as caught, Judge.from_pretrained(path, **options) as judge:
        judge.annotate(["hello", "I want my money back!"])
    return str(caught.value)


# --- templates ---

# As version 0.1.0 wrote them; files with them are on people's disks.
FIRST = """{%- macro t(x) -%}{{- (x if x is string else x|tojson)|replace("</s>", "<¦/s>")|replace("<|", "<¦|") -}}{%- endmacro -%}{{- "<|im_start|>system\\nRate it.\\n\\nAnswer each line with the letter of one option." -}}{%- for q in questions -%}{{- "\\n\\n" ~ t(q.name) ~ ": " ~ t(q.instructions) -}}{%- for label in q.labels -%}{%- if q.type == "score" -%}{{- "\\n" ~ label ~ ": " ~ t(q.descriptions[loop.index0]) -}}{%- elif q.descriptions[loop.index0] -%}{{- "\\n" ~ label ~ ": " ~ t(q.options[loop.index0]) ~ ": " ~ t(q.descriptions[loop.index0]) -}}{%- else -%}{{- "\\n" ~ label ~ ": " ~ t(q.options[loop.index0]) -}}{%- endif -%}{%- endfor -%}{%- endfor -%}{{- "<|im_end|>\\n<|im_start|>user\\n" -}}{%- if state is string -%}{{- "text: " ~ t(state) -}}{%- else -%}{{- "text: " ~ t(state["text"]) -}}{%- endif -%}{{- "<|im_end|>\\n<|im_start|>assistant\\n" -}}{%- for q in questions -%}{%- if not loop.first -%}{{- " \\n" -}}{%- endif -%}{{- t(q.name) ~ ":<|mark|>" -}}{%- endfor -%}"""
FIRST_GGUF = """{%- macro t(x) -%}{{- (x if x is string else x|tojson)|replace("<|mark|>", "")|replace("<|split|>", "")|replace("<|", "<¦|") -}}{%- endmacro -%}{{- "<|im_start|>system\\nRate it.\\n\\nAnswer each line with the letter of one option." -}}{%- for q in questions -%}{{- "\\n\\n" ~ t(q.id) ~ ": " ~ t(q.instructions) -}}{%- for o in q.options -%}{%- if q.type == "score" -%}{{- "\\n" ~ o.label ~ ": " ~ t(o.description) -}}{%- elif o.description -%}{{- "\\n" ~ o.label ~ ": " ~ t(o.key) ~ ": " ~ t(o.description) -}}{%- else -%}{{- "\\n" ~ o.label ~ ": " ~ t(o.key) -}}{%- endif -%}{%- endfor -%}{%- endfor -%}{{- "<|im_end|>\\n<|im_start|>user\\n" -}}{{- "question: " ~ t(state["question"]) ~ "\\n" ~ "answer: " ~ t(state["answer"]) -}}{{- "<|im_end|>\\n<|im_start|>assistant\\n" -}}{%- set ns = namespace(open=true) -%}{%- for q in questions -%}{%- if ns.open -%}{%- if not loop.first -%}{{- " \\n" -}}{%- endif -%}{{- t(q.id) ~ ":" -}}{%- if q.id == id -%}{%- set ns.open = false -%}{%- endif -%}{%- endif -%}{%- endfor -%}"""


@pytest.mark.parametrize("name", ["emotion", "answer-quality", "support-messages"])
def test_every_template_of_ours_is_accepted(name):
    rubric = Rubric.from_file(ROOT / f"rubrics/{name}.yaml")
    odd = 'a"b\\c\n{{ x }}{% for %}\t¦ß'
    escapes = (("<|", "<¦|"), ("</s>", "<¦/s>"), ('""', '"¦"'), ("\\\n", "\\¦\n"))
    for layout in (Layout("", "", "", "\n", ()), Layout(odd, odd, odd, "; ", escapes)):
        for build in (decision_template, systemone_template, decision_head):
            compile_template(build(rubric, layout))
    compile_template(FIRST)
    compile_template(FIRST_GGUF)


LOOP = "{%- for i in range(99999) -%}{%- for j in range(99999) -%}a{%- endfor -%}{%- endfor -%}"
HOSTILE = [
    "", "x", "{{ 1/0 }}", "{{ nothing.at.all }}", "{% if", "{{", "{% raw %}" + "a" * 2**21, LOOP,
    "{{ 'a' * 10**9 }}", "{{ 10 ** 10 ** 10 }}", "{{ '%0999999999d' % 1 }}", "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'|center(10**9) }}", "{{ 'a'|indent(10**9) }}", "{{ lipsum(n=9999) }}", "{{ cycler('a') }}",
    "{{ joiner() }}", "{{ dict(a=1) }}", "{{ range(10**5)|list }}", "{{ x.__class__.__mro__ }}",
    "{{ ''['__class__'] }}", "{{ self._TemplateReference__context }}", "{{ t.__globals__ }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{% import 'a' as b %}", "{% include '/etc/passwd' %}",
    "{% extends 'a' %}", "{% from 'a' import b %}", "{% block a %}{% endblock %}", "{% call t(1) %}a{% endcall %}",
    "{% filter upper %}a{% endfilter %}", "{% set a = 'a' %}{% set a = a ~ a %}", "{% with a = 1 %}{{ a }}{% endwith %}",
    "{{ questions|map('upper')|list }}", "{{ questions|batch(1) }}", "{{ 'a'|nothing }}", "{{ 1 is nothing }}",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{{ " + "-" * 100_000 + "1 }}", "{{ " + "9" * 10_000 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{# " * 100_000, "{{ '\\N{DIGIT ONE}\\ud800' }}", "\x00\ud800",
    FIRST + " ", FIRST + LOOP, FIRST.replace("q.name", "q.__class__"), FIRST.replace("questions", "range(9)", 1),
    FIRST.replace('" \\n"', '"' + " " * 9 + '"'), FIRST.replace("Rate it.", 'R" ~ lipsum() ~ "'),
    FIRST.replace('|replace("<|", "<¦|")', '|replace("e", "ee")' * 60),
    FIRST.replace('|replace("<|", "<¦|")', '|replace("ab", "a¦b")' * 65),
    FIRST.replace('"<|", "<¦|"', '"¦¦", "¦¦¦"'), FIRST.replace('"<|", "<¦|"', '"<|", t(state)'),
    FIRST_GGUF.replace('state["answer"]', 'state["question"]'), FIRST.replace("state is string", "t(state)"),
    FIRST_GGUF.replace("ns.open = false", "ns.open = ns.open ~ ns.open"), FIRST.replace("Rate", "\\x41"),
    FIRST.replace("Rate it.", "a" * 2**20), FIRST[:-1], FIRST[1:], FIRST.replace("-%}", "%}", 1),
]  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE, ids=lambda source: ascii(source[:40]))
def test_no_other_template_is_accepted(source):
    assert len(HOSTILE) >= 40
    with pytest.raises(
        ModelError, match="The prompt's template is no template that slm-judge writes"
    ):
        compile_template(source)


def test_a_prompt_is_no_longer_than_twice_what_is_in_it(support):
    """With the escapes that lengthen a text most."""
    escapes = [*(("a" * n, f"a¦{'a' * (n - 1)}") for n in range(2, 34)), *[("aa", "a¦a")] * 32]
    template = compile_template(decision_template(support, Layout("", "", "", "\n", escapes)))
    questions = decision_questions(support, list("ABCDE"))
    short, long = (
        len(template.render(state={"text": text}, questions=questions))
        for text in ("", "a" * 10**6)
    )
    assert 10**6 < long - short <= 2 * 10**6


def test_a_template_of_another_rubric_is_a_sentence(support):
    template = compile_template(FIRST.replace('"text', '"body'))
    with pytest.raises(ModelError, match=r"does not fit the rubric: .*body"):
        template.render(state={"text": "a"}, questions=decision_questions(support, list("ABCDE")))


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (LOOP, "cannot be rendered: it has not ended after 5 s"),
        ("{{ 'a' * 10**11 }}", "too much memory"),
        ("{{ 'a' * 3000000 }}", "a text of 3000000 characters"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{{ messages[0].content.nothing.at_all }}{{ 1/0 }}", "UndefinedError"),
        ("{% if", "TemplateSyntaxError"),
    ],
)
def test_a_hostile_chat_template_of_a_base(tokenizer, monkeypatch, template, complaint):
    base = copy.copy(tokenizer)
    base.chat_template = template
    if template == LOOP:
        monkeypatch.setattr(chat_template, "_SECONDS", 5)
    with pytest.raises(ModelError, match=complaint):
        _split_chat_template(base)


def test_the_child_renders_what_transformers_renders(tokenizer):
    chat = [{"role": "system", "content": "é [x]"}, {"role": "user", "content": "{{ y }}\n"}]
    ((text, said),) = chat_template.render_chats(tokenizer, [chat])
    assert text == tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert said == ""


# --- the contract ---


def swap(old, new):
    return lambda data: data.replace(old, new)


def temperature(value):
    return {"temperature": {"score": 1.0, "choice": value, "noul": 1.0}}


def labels(*given):
    return {"labels": {"score": list(given), "choice": list(given), "noul": list(given[:2])}}


CONTRACT = [
    *[("decision.json", temperature(v), "temperature.choice") for v in
      (0, -1, NAN, INF, -INF, 1e9, 1e-9, "1", "a", None, [], True)],
    ("decision.json", {"temperature": {"other": 1.0}}, "temperature.other"),
    ("decision.json", {"temperature": 1}, "temperature"),
    *[("decision.json", {"slm_judge_calibration": given}, complaint) for given, complaint in (
        ([], "calibration cannot be used"), ({"topic": 1}, "topic"), ({"other": {}}, "other does not fit the rubric"),
        ({"topic": {"shift": [1.0]}}, "expected 5 shifts"), ({"topic": {"shift": [0.0, NAN] * 2}}, "topic.shift.1"),
        ({"topic": {"temperature": 0.0}}, "topic.temperature"), ({"topic": {"temperature": "1"}}, "topic.temperature"),
        ({"topic": {"shift": [1e9] * 5}}, "topic.shift.0"), ({"topic": {"bias": 1}}, "topic.bias"))],
    ("decision.json", labels("A", "A", "B", "C", "D"), "distinct labels"),
    ("decision.json", labels("A", 1, None), "labels.choice.1"),
    ("decision.json", labels("A", "<|im_end|>"), "labels.choice.1"),
    ("decision.json", labels("A", "B"), "options, but there are only 2 labels"),
    ("decision.json", labels("A", "B", "C", "D", "QX"), "labels QX of decision.json are not one token"),
    ("decision.json", labels(), "distinct labels"),
    ("decision.json", {"labels": {"choice": list("ABCDE"), "noul": ["B", "A"]}}, "not the first of choice"),
    ("decision.json", {"labels": ["A"]}, "labels: "),
    ("decision.json", b"[]", "decision.json cannot be read"),
    ("decision.json", b"", "decision.json cannot be read"),
    ("decision.json", DEEP, "decision.json cannot be read"),
    ("rubric.json", None, "it has no rubric.json"),
    ("rubric.json", b"{}", "rubric.json is not a valid rubric"),
    ("rubric.json", b"\xff\xfe", "rubric.json cannot be read"),
    ("rubric.json", DEEP, "rubric.json is not valid JSON"),
    ("rubric.json", b" " * 2**25, "rubric.json has 33554432 bytes"),
    ("rubric.json", swap(b'"text"', b'"body"'), "does not fit"),
    ("decision_template.jinja", LOOP.encode(), "decision_template.jinja is no template"),
    ("systemone_template.jinja", b"\xff", "systemone_template.jinja cannot be read"),
    ("systemone_template.jinja", LOOP.encode(), "systemone_template.jinja is no template"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "complaint"), CONTRACT, ids=range(len(CONTRACT)))
def test_a_damaged_contract(judges, tmp_path, name, change, complaint):
    folder = changed(judges / "merged", tmp_path / "judge", name, change)
    assert complaint in refusal(folder)


# --- folders for transformers ---


def with_header(change):
    """Change the header of a safetensors file."""

    def damage(data):
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return damage


def renamed(header):
    header["other"] = header.pop("model.layers.0.mlp.up_proj.weight")


def filled(value):
    """Weights in the middle of a safetensors file replaced."""

    def damage(data):
        (size,) = struct.unpack("<Q", data[:8])
        numbers = np.frombuffer(data[8 + size :], np.float32).copy()
        numbers[len(numbers) // 2 :][:5000] = value
        return data[: 8 + size] + numbers.tobytes()

    return damage


def config(**values):
    return "merged", "config.json", values


def lora(**values):
    return "adapter", "adapter_config.json", values


FOLDERS = [
    (*("merged", "config.json", b""), "cannot be loaded"),
    (*("merged", "config.json", b"[]"), "config.json holds no settings"),
    (*("merged", "config.json", DEEP), "recursion depth"),
    (*("merged", "config.json", b"\xff"), "utf-8"),
    (*("merged", "config.json", None), "config.json"),
    (config(model_type="nothing"), "nothing"),
    (config(model_type=[1]), "cannot be loaded"),
    (config(model_type="t5"), "cannot be loaded"),
    (config(num_hidden_layers=0), "cannot be loaded"),
    (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    (config(hidden_size=10**12), "cannot be loaded"),
    (config(hidden_size=-1), "cannot be loaded"),
    (config(num_attention_heads=0), "cannot be loaded"),
    (config(num_key_value_heads=0), "cannot be loaded"),
    (config(vocab_size=10), "cannot be loaded"),
    (config(max_position_embeddings=0), "max_position_embeddings is 0"),
    (config(max_position_embeddings=-1), "max_position_embeddings is -1"),
    (config(max_position_embeddings=10**12), "max_position_embeddings is 1000000000000"),
    (config(max_position_embeddings="x"), "max_position_embeddings"),
    (config(dtype="floatX"), "floatX"),
    (config(rms_norm_eps=NAN), "not finite"),
    (config(rope_parameters={"rope_type": "x"}), "cannot be loaded"),
    (config(hidden_act="x"), "KeyError('x')"),
    (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized with 'gptq'"),
    (config(quantization_config=5), "cannot be loaded"),
    (("merged", "tokenizer.json", None), "cannot be loaded"),
    (("merged", "tokenizer.json", b"{}"), "cannot be loaded"),
    (("merged", "tokenizer.json", DEEP), "recursion depth"),
    (("merged", "tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}), "not one token"),
    (("merged", "tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}}), "parenthesis"),
    (("merged", "tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}), "charsmap"),
    (("merged", "tokenizer.json", swap(b'"A": 32', b'"A": 3200')), "more tokens than the model"),
    (("merged", "tokenizer_config.json", {"model_max_length": "x"}), "cannot be loaded"),
    (("merged", "tokenizer_config.json", b"[]"), "cannot be loaded"),
    (("merged", "model.safetensors", None), "no file named model.safetensors"),
    (("merged", "model.safetensors", b""), "header too small"),
    (("merged", "model.safetensors", lambda data: data[: len(data) // 2]), "incomplete"),
    (("merged", "model.safetensors", swap(b"\x00\x00\x00", b"\xff\xff\xff")), "header too large"),
    (("merged", "model.safetensors", with_header(renamed)), "has no weights model.layers.0.mlp.up_proj.weight"),
    (("merged", "model.safetensors", filled(NAN)), "not finite"),
    (("merged", "model.safetensors", filled(INF)), "not finite"),
    (("adapter", "adapter_config.json", b"{}"), "adapter_config.json is not that of an adapter"),
    (lora(r=0), "cannot be loaded"),
    (lora(r=10**9), "ut of memory"),
    (lora(lora_alpha=NAN), "not finite"),
    (lora(target_modules="([a-z._0-9]+)+X"), "is not that of an adapter"),
    (lora(rank_pattern={"([a-z._0-9]+)+X": 3}), "is not that of an adapter"),
    (lora(exclude_modules="(.*.*)*X"), "exclude_modules"),
    (lora(megatron_config={"a": 1}), "megatron_config"),
    (lora(peft_type="PREFIX_TUNING"), "peft_type"),
    (("adapter", "base.json", {"base": "/nowhere"}), "/nowhere"),
    (("adapter", "base.json", b"[]"), "base.json says what the adapter was trained on"),
]  # fmt: skip
FOLDERS = [case if len(case) == 2 else (case[:3], case[3]) for case in FOLDERS]


@pytest.mark.parametrize(("damage", "complaint"), FOLDERS, ids=range(len(FOLDERS)))
def test_a_damaged_folder(hub, judges, tmp_path, damage, complaint):
    kind, name, change = damage
    folder = changed(judges / kind, tmp_path / "judge", name, change)
    assert complaint in refusal(folder)


def test_the_small_judges_are_judges(judges):
    texts = ["hello", "I want my money back!"]
    said = {}
    for name in ("merged", "bnb-4bit", "adapter", "judge.gguf"):
        with Judge.from_pretrained(judges / name) as judge:
            said[name] = [a.probabilities["topic"] for a in judge.annotate(texts)]
    for ours, theirs in zip(said["merged"], said["judge.gguf"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.01)


def test_both_engines_calibrate_a_dimension_alike_and_stock_ones_keep_its_labels(judges, tmp_path):
    """Temperatures of dimensions and the priors of `class_balance`, in files that stock engines read."""
    from transformers import pipeline

    contract, shift = Contract.load(judges / "merged"), (1.0, -0.5, 0.0, 0.3, -1.2)
    own = {
        "topic": Calibration(temperature=3.0, shift=shift),
        "urgency": Calibration(temperature=0.7),
    }
    shutil.copytree(judges / "merged", tmp_path / "merged")
    contract.calibrated({"score": 2.0, "noul": 0.9}, own).save(tmp_path / "merged")
    paths = tmp_path / "merged", small_gguf(tmp_path / "merged", tmp_path / "judge.gguf")
    texts = [
        f"{word} {n}" for n in range(10) for word in ("hello", "I want my money back!", "when")
    ]
    said = []
    for path in paths:
        with Judge.from_pretrained(path) as judge:
            assert judge.backend.contract.calibrations == own
            said.append(judge.annotate(texts))
            raw = dict(judge.logits(texts))
    for n, (ours, theirs) in enumerate(zip(*said, strict=True)):
        assert ours.labels == theirs.labels
        for k, dimension in enumerate(contract.rubric.dimensions):
            name, logits = dimension.name, raw[n][k]
            shares = list(ours.probabilities[name].values())
            assert shares == pytest.approx(list(theirs.probabilities[name].values()), abs=0.01)
            scaled = logits / {"topic": 3.0, "urgency": 0.7, "refund": 0.9}[name]
            expected = softmax(scaled - np.array(shift) if name == "topic" else scaled)
            assert shares == pytest.approx(expected, abs=0.01)
            assert ours.labels[name] == dimension.values[int(np.argmax(logits))]
            assert ours.confidence[name] == ours.probabilities[name][ours.labels[name]]
    assert any(
        one.confidence["topic"] < max(one.probabilities["topic"].values()) for one in said[0]
    )
    stock = pipeline("decision", model=str(tmp_path / "merged"), device="cpu")
    for text, ours in zip(texts[:3], said[0], strict=False):
        answer = stock({"state": text, "questions": contract.rubric.questions()})["topic"]
        assert max(answer["probabilities"], key=answer["probabilities"].get) == ours.labels["topic"]


# --- GGUF ---

NOT_LOADED = "is not a GGUF file that llama.cpp can load ("
GGUF = [
    ({"qwen3.block_count": 0}, "stops llama.cpp.* GGML_ASSERT"),
    ({"qwen3.attention.layer_norm_rms_epsilon": NAN}, "stops llama.cpp.* GGML_ASSERT"),
    ({"tokenizer.ggml.model": "llama"}, "stops llama.cpp.* unordered_map"),
    ({"tokenizer.ggml.tokens": ["a"] * 1503}, "stops llama.cpp.* GGML_ASSERT"),
    ({"tokenizer.ggml.model": "rwkv"}, "could not decode"),
    ({"qwen3.attention.head_count": 0}, "is not a GGUF file .*wrong shape"),
    ({"qwen3.attention.head_count_kv": 0}, "is not a GGUF file .*wrong shape"),
    ({"qwen3.context_length": 0}, r"can read 0 tokens \(its context_length\)"),
    ({"qwen3.rope.freq_base": NAN}, "not finite"),
    ({"qwen3.decision.temperature.score": 0.0}, "temperature.*\n.*score"),
    ({"qwen3.decision.temperature.noul": NAN}, "temperature.*\n.*noul"),
    ({"slm_judge.calibration": '{"topic": {"temperature": -1}}'}, "calibration.*\n.*topic"),
    ({"slm_judge.calibration": "[" * 100_000}, "slm_judge.calibration cannot be used"),
    ({"slm_judge.rubric": "[" * 100_000}, "slm_judge.rubric is not valid JSON"),
    ({"slm_judge.rubric": None}, "it is a language model, not a judge"),
    ({"tokenizer.chat_template.systemone": LOOP}, "systemone is no template that slm-judge writes"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "complaint"), GGUF, ids=[next(iter(c)) for c, _ in GGUF])
def test_a_damaged_gguf(gguf, tmp_path, changes, complaint):
    path = gguf.write(tmp_path / "judge.gguf", changes)
    said = refusal(path)
    assert said.startswith(str(path))
    assert re.search(complaint, said), said


def test_a_gguf_that_is_cut_off_or_no_text(gguf, judges, tmp_path):
    whole = (judges / "judge.gguf").read_bytes()
    path = tmp_path / "judge.gguf"
    for data, complaint in (
        (whole[: len(whole) // 2], "not within the file bounds"),
        (b"PK" + whole[2:], "is not a GGUF file"),
        (whole.replace(b'{"name":', b'{"nam\xff":'), "slm_judge.rubric is not UTF-8"),
    ):
        path.write_bytes(data)
        assert complaint in refusal(path)


def test_a_file_is_tried_in_a_child_once(gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_JUDGE_CACHE", str(tmp_path / "cache"))
    path, tried = gguf.write(tmp_path / "judge.gguf"), []
    monkeypatch.setattr(probe, "ask_child", lambda *request: tried.append(request))
    for _ in range(2):
        Judge.from_pretrained(path).close()
    assert len(tried) == 1
    shutil.copy(path, tmp_path / "other")
    (tmp_path / "other").rename(path)  # another file of the same name, size and bytes
    Judge.from_pretrained(path, trust=True).close()
    assert len(tried) == 1
    Judge.from_pretrained(path).close()
    assert len(tried) == 2


def test_a_child_that_does_not_end(judges, monkeypatch):
    with pytest.raises(ChildDied, match="has not ended after 0 s"):
        ask_child("backends.probe", {"path": str(judges / "judge.gguf")}, 0.01)

    def dies(*request):
        raise ChildDied("it has not ended after 120 s")

    monkeypatch.setattr(probe, "ask_child", dies)
    monkeypatch.setattr(probe, "_identity", lambda path: "unknown")
    assert "stops llama.cpp, or the memory is too small" in refusal(judges / "judge.gguf")


def test_a_context_that_the_memory_cannot_hold(judges, monkeypatch):
    from slm_judge.backends import gguf as engine

    monkeypatch.setattr(engine, "_free_memory", lambda llama: 10**6)
    with pytest.raises(ModelError, match="Out of memory for a context of 4096 tokens"):
        GgufBackend(judges / "judge.gguf")


def test_a_backend_that_failed_to_load_leaves_nothing(gguf, tmp_path, monkeypatch):
    path = gguf.write(tmp_path / "judge.gguf", {"slm_judge.rubric": "{}"})
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(RubricError):
        GgufBackend(path)
    gc.collect()
    assert said == []


# --- the command line ---


def test_the_command_line_says_it_in_one_sentence(gguf, judges, tmp_path):
    broken = changed(judges / "merged", tmp_path / "judge", "decision.json", temperature(0))
    killer = gguf.write(tmp_path / "judge.gguf", {"qwen3.block_count": 0})
    (tmp_path / "in.csv").write_text("text\nhello\n")
    for model, complaint in ((broken, "temperature"), (killer, "stops llama.cpp")):
        command = [sys.executable, "-m", "slm_judge", "annotate", str(tmp_path / "in.csv")]
        command += ["--model", str(model), "--output", str(tmp_path / "out.csv")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert complaint in " ".join(done.stderr.split())
        assert not (tmp_path / "out.csv").exists()


# --- damage by chance: benchmarks/strangers.py tries thousands ---


def test_damage_by_chance(run, judges, tmp_path):
    from benchmarks.strangers import Reader

    reader, refused = Reader(run.folder, judges, tmp_path / "work"), 0
    for kind, count in {"rubric": 30, "recipe": 30, "run": 20, "table": 40, "predictions": 20,
                        "contract": 40, "folder": 20}.items():  # fmt: skip
        for number in range(10_000, 10_000 + count):
            try:
                reader.read(kind, number)
            except JudgeError:
                refused += 1
    assert 50 < refused < 200
