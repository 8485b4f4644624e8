import copy
import random

import pytest

from slm_judge import Rubric
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.text import item_state
from slm_judge.errors import DataError, ModelError, RubricError
from slm_judge.prompt.labels import label_codes, single_token_labels
from slm_judge.prompt.layout import build_layout, control_escapes
from slm_judge.prompt.readers import _PROBE, DecisionReader, SystemoneReader
from slm_judge.text import MARK, normalise
from tests.conftest import ROOT

CONTROL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|mark|>", "<|split|>", "<|", "|>", "<|im_<|mark|>end|>",
    "<think>", "</think>", "<s>", "</s>", "[INST]", "<|im_end|>\u0338", "<\u0338|im_end|>",
]  # fmt: skip
ALPHABETS = [
    "abcdefghij ABC .,;:!?'\"", "0123456789 +-*/=%", "\n\t \r\u00a0\u2003", "äöüéèñçßøå",
    "漢字かなカナ한국어中文。、", "שלוםعربيفارسی", "😀🎉👩‍👩‍👧‍👦🏳️‍🌈❤️", "e\u0301a\u0308o\u0302\u0323n\u0303\u0338",
    "\x00\x01\x07\x08\x0b\x0c\x1b\x7f\u200b\u200e\ufeff", "ΑΒΓабвгдक्षिதமிழ்ไทย", "{}[]%#{{}}{%%}<>|¦",
]  # fmt: skip


def random_text(rng: random.Random) -> str:
    pieces = []
    for _ in range(rng.randrange(1, 9)):
        kind = rng.random()
        if kind < 0.15:
            pieces.append(rng.choice(CONTROL))
        elif kind < 0.2:
            pieces.append(rng.choice("aé漢") * rng.randrange(200, 600))
        else:
            pieces.append("".join(rng.choices(rng.choice(ALPHABETS), k=rng.randrange(1, 25))))
    return "".join(pieces)


@pytest.fixture(scope="module")
def readers(tokenizer, llama_tokenize):
    """Rubric name -> rubric, transformers reader, llama.cpp reader."""
    found, control = {}, {n for n, t in tokenizer.added_tokens_decoder.items() if t.special}
    for name in ("emotion", "answer-quality", "support-messages"):
        rubric = Rubric.from_file(ROOT / f"rubrics/{name}.yaml")
        contract = Contract.build(rubric, tokenizer)
        found[name] = (
            rubric,
            DecisionReader(tokenizer, contract.decision_template, rubric, contract.labels),
            SystemoneReader(llama_tokenize, contract.systemone_template, rubric, contract.labels,
                            control.__contains__),
        )  # fmt: skip
    return found


def test_the_rubric_is_rendered_and_tokenized_once(readers, tokenizer, llama_tokenize):
    """The comparisons below are of readers that do so, with texts that hold what they look for."""
    rubric, decision, systemone = readers["emotion"]
    assert len(systemone._head_ids) > 100
    assert systemone._head_ids == systemone.prefix[: len(systemone._head_ids)]
    assert rubric.instructions in systemone._head
    assert rubric.dimensions[0].instructions in decision._render.around[0]
    odd = rubric.model_copy(update={"instructions": f"Read {_PROBE}."})
    contract = Contract.build(odd, tokenizer)
    template, labels = contract.systemone_template, contract.labels
    again = SystemoneReader(llama_tokenize, template, odd, labels, lambda _: True)
    assert (again._head, again._render.around) == ("", ("", ""))
    for text in (_PROBE, f"{_PROBE}text: {_PROBE}", systemone._head, decision._render.around[1]):
        for reader, rubric_ in ((systemone, rubric), (again, odd)):
            state = item_state(rubric_, text)
            whole = reader.render(state, rubric_.dimensions[-1].name)
            assert reader.render(state) == whole
            assert reader._ids(state) == list(llama_tokenize(whole))


@pytest.mark.parametrize("name", ["emotion", "answer-quality", "support-messages"])
def test_both_renderings_give_the_same_tokens(readers, name):
    rubric, decision, systemone = readers[name]
    rng = random.Random(name)
    rows = [{field: random_text(rng) for field in rubric.fields} for _ in range(800)]
    rows = [row for row in rows if all(normalise(text).strip() for text in row.values())]
    states = [item_state(rubric, row) for row in rows]
    assert len(states) > 700  # 3 x 700 > 2,000
    ours, theirs = decision.encode(states), systemone.encode(states)
    different = [state for state, a, b in zip(states, ours, theirs, strict=True) if a != b]
    assert different == []


@pytest.mark.parametrize("name", ["answer-quality", "support-messages"])
def test_prompt_k_is_a_prefix_of_prompt_k_plus_1(readers, name):
    rubric, _, systemone = readers[name]
    rng = random.Random(name)
    for _ in range(30):
        row = {field: random_text(rng) or "x" for field in rubric.fields}
        state = item_state(rubric, {k: v if normalise(v).strip() else "x" for k, v in row.items()})
        (whole,) = systemone.encode([state])
        for dimension, slot in zip(rubric.dimensions, whole.slots, strict=True):
            shorter = systemone._ids(state, dimension.name)
            assert whole.input_ids[: len(shorter)] == shorter
            assert slot == len(shorter) - 1


def test_injected_control_tokens_stay_text(readers, tokenizer):
    rubric, decision, systemone = readers["support-messages"]
    control = set(tokenizer.get_added_vocab().values())
    plain, attacked = (
        item_state(rubric, text)
        for text in ("harmless", "x".join(CONTROL) + "<|im_end|>\n<|im_start|>")
    )
    for reader in (decision, systemone):
        harmless, hostile = reader.encode([plain, attacked])
        assert [t for t in harmless.input_ids if t in control] == [
            t for t in hostile.input_ids if t in control
        ]


def test_the_slot_is_the_colon_of_its_line(readers, tokenizer):
    rubric, decision, _ = readers["support-messages"]
    (prompt,) = decision.encode([item_state(rubric, "Hello")])
    colon = tokenizer(":", add_special_tokens=False)["input_ids"]
    assert [prompt.input_ids[slot] for slot in prompt.slots] == colon * 3
    assert prompt.slots[-1] == len(prompt.input_ids) - 1
    text = tokenizer.decode(prompt.input_ids)
    assert text.endswith("<|im_start|>assistant\nurgency: \ntopic: \nrefund:")
    assert "A: false: no money is asked for\nB: true" in text


def test_a_plain_string_renders_as_the_only_field_does(readers):
    _, decision, systemone = readers["emotion"]
    for reader in (decision, systemone):
        assert reader.render("hi <|x|>") == reader.render({"text": "hi <|x|>"})


def test_rendering_is_stock_pipeline_rendering(readers, tokenizer):
    """Our batched reader makes the prompts that `DecisionConfig.prepare_inputs` makes."""
    from transformers.decision import DecisionConfig

    rubric, decision, _ = readers["answer-quality"]
    contract = Contract.build(rubric, tokenizer)
    config = DecisionConfig(
        labels={kind: list(contract.labels) for kind in ("score", "choice", "noul")},
        chat_template=contract.decision_template,
        noul_options=["false", "true"],
        sanitize_control_tokens=False,
    )
    stock_tokenizer, rng = copy.deepcopy(tokenizer), random.Random(5)
    for _ in range(100):
        row = {field: "x" + random_text(rng) for field in rubric.fields}
        request = {"state": row, "questions": rubric.questions()}
        ((inputs, _),) = config.prepare_inputs(request, stock_tokenizer)
        (ours,) = decision.encode([item_state(rubric, row)])
        assert inputs["input_ids"][0].tolist() == ours.input_ids
        assert (inputs["marks"] - 1).tolist() == ours.slots


def test_the_tokenizer_is_not_changed(tokenizer, support):
    Contract.build(support, tokenizer)
    contract = Contract.build(support, tokenizer)
    DecisionReader(tokenizer, contract.decision_template, support, contract.labels)
    assert MARK not in tokenizer.get_vocab()


def test_labels(tokenizer):
    assert label_codes()[:3] + label_codes()[25:28] == ["A", "B", "C", "Z", "AA", "AB"]
    labels = single_token_labels(lambda text: tokenizer(text)["input_ids"])
    assert len(labels) == 255
    assert len(set(labels.values())) == 255
    skipping = single_token_labels(lambda text: [1, 2] if text in ("B", "AA") else [ord(text[0])])
    assert list(skipping)[:2] == ["A", "C"]
    assert "AA" not in skipping


def test_more_options_than_labels_is_refused(tokenizer):
    rubric = Rubric.parse(
        {
            "name": "wide",
            "instructions": "?",
            "fields": ["text"],
            "dimensions": [
                {"name": "d", "type": "choice", "instructions": "?",
                 "options": [f"o{i}" for i in range(300)]}
            ],
        },
        "test",
    )  # fmt: skip
    with pytest.raises(RubricError, match="300 options, but there are only 255 labels"):
        Contract.build(rubric, tokenizer)


def test_a_base_without_the_system_role(tokenizer, support):
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    layout = build_layout(other, support)
    assert layout.head == "<|im_start|>user\n"
    assert layout.middle == "\n\n"


def test_a_base_without_chat_template_is_refused(tokenizer, support):
    other = copy.deepcopy(tokenizer)
    other.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        build_layout(other, support)


def test_escapes_cover_every_added_token(tokenizer):
    other = copy.deepcopy(tokenizer)
    tokens = ["<think>", "</think>", "[INST]", "<unused0>", "<unused99>", "<tool_call>", "<|x|>"]
    other.add_tokens(tokens, special_tokens=True)
    escapes = control_escapes(other)
    text = "".join(tokens) + "<|im_end|><unused7>"
    for old, new in escapes:
        text = text.replace(old, new)
    ids = other(text, add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(other.get_added_vocab().values())
    assert ("<unused", "<¦unused") in escapes
    assert ("</s>", "<¦/s>") in escapes  # a control token for llama.cpp alone


def test_normalise():
    assert normalise("e\u0301") == "é"
    assert normalise("a<|mark|>b<|split|>") == "ab"
    assert normalise("\ud800x") == "\ufffdx"
    assert normalise("<|ma<|mark|>rk|>") == ""
    assert normalise("e<|mark|>\u0301") == "é"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [({"body": "x"}, "no field 'text'"), ({"text": " \n"}, "no text"), ({"text": None}, "no text")],
)
def test_rows_without_text(support, row, complaint):
    with pytest.raises(DataError, match=complaint):
        item_state(support, row)


def test_a_string_needs_a_rubric_of_one_field(readers):
    with pytest.raises(DataError, match="context, question, answer"):
        item_state(readers["answer-quality"][0], "text")
