"""Augmented prompts: labels keep their meaning, and nothing but the item loses tokens."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slm_judge.training.augment import VariantReader, draw_variant, identity

from slm_judge import Rubric
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.text import item_state
from slm_judge.prompt.readers import DecisionReader
from slm_judge.recipe import AugmentationConfig
from slm_judge.text import MARK
from tests.conftest import ROOT
from tests.inference.test_prompt import random_text

RUBRICS = ("emotion", "answer-quality", "support-messages")
EVERYTHING = AugmentationConfig(
    paraphrase=True, permute_fields=True, shuffle_options="all", token_dropout=0.3
)


@pytest.fixture(scope="module")
def readers(tokenizer):
    found = {}
    for name in RUBRICS:
        raw = Rubric.from_file(ROOT / f"rubrics/{name}.yaml").model_dump()
        raw["paraphrases"] = ["Read it.", "Judge it <|im_end|>."]
        for dimension in raw["dimensions"]:
            dimension["paraphrases"] = [f"Another way to ask for {dimension['name']}?"]
        rubric = Rubric.parse(raw, "test")
        contract = Contract.build(rubric, tokenizer)
        plain = DecisionReader(tokenizer, contract.decision_template, rubric, contract.labels)
        found[name] = rubric, contract, plain, VariantReader(contract, tokenizer)
    return found


def rows(rubric, rng, n=4):
    return [
        item_state(rubric, {f: "x" + random_text(rng) for f in rubric.fields}) for _ in range(n)
    ]


@pytest.mark.parametrize("name", RUBRICS)
def test_the_identity_is_what_inference_sees(readers, name):
    rubric, _, plain, reader = readers[name]
    rng = random.Random(name)
    nothing = AugmentationConfig()
    assert draw_variant(rubric, nothing, rng) == identity(rubric)
    states = rows(rubric, rng, 50)
    assert reader.encode(identity(rubric), states) == plain.encode(states)
    kept = reader.encode(identity(rubric), states, token_dropout=1e-12, rng=rng)
    assert kept == plain.encode(states)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(RUBRICS))
def test_labels_name_the_option_they_stand_for(readers, seed, name):
    rubric, contract, _, reader = readers[name]
    rng = random.Random(seed)
    variant = draw_variant(rubric, EVERYTHING, rng)
    state = rows(rubric, rng, 1)[0]
    text = reader._reader(variant)[0].render(state)
    for k, dimension in enumerate(rubric.dimensions):
        asked = [dimension.instructions, *dimension.paraphrases]
        start = next(
            at for words in asked if (at := text.find(f"\n\n{dimension.name}: {words}\n")) >= 0
        )
        lines = text[start:].strip().split("\n")[1:]
        assert sorted(variant.positions[k]) == list(range(len(dimension.options)))
        for option, position in enumerate(variant.positions[k]):
            original = dimension.options[option]
            key = dimension.key(option)
            shown = f"{key}: {original.description}" if original.description else key
            assert (
                lines[position].removesuffix("<|im_end|>")
                == f"{contract.labels[position]}: {shown}"
            )
    assert text.count(MARK) == len(rubric.dimensions)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(RUBRICS), share=st.floats(0.05, 0.99))
def test_dropout_leaves_everything_but_the_item_alone(readers, tokenizer, seed, name, share):
    rubric, _, _, reader = readers[name]
    rng = random.Random(seed)
    variant = draw_variant(rubric, EVERYTHING, rng)
    state = rows(rubric, rng, 1)[0]
    (whole,) = reader.encode(variant, [state])
    (empty,) = reader.encode(variant, [dict.fromkeys(rubric.fields, "")])
    (dropped,) = reader.encode(variant, [state], token_dropout=share, rng=rng)
    # A subsequence of the whole prompt ...
    remaining = iter(whole.input_ids)
    assert all(token in remaining for token in dropped.input_ids)
    # ... that keeps the rubric, the answer lines and their slots.
    n_slots_part = len(whole.input_ids) - whole.slots[0]
    assert dropped.input_ids[dropped.slots[0] :] == whole.input_ids[-n_slots_part:]
    assert [s - dropped.slots[0] for s in dropped.slots] == [
        s - whole.slots[0] for s in whole.slots
    ]
    common = 0
    while whole.input_ids[common] == empty.input_ids[common]:
        common += 1
    assert dropped.input_ids[: common - 1] == whole.input_ids[: common - 1]
    text = tokenizer.decode(dropped.input_ids)
    for field in rubric.fields:
        assert f"{field}:" in text


def test_dropout_takes_about_its_share(readers):
    rubric, _, _, reader = readers["emotion"]
    state = {"text": "one two three four five six seven eight nine ten " * 40}
    (whole,) = reader.encode(identity(rubric), [state])
    (dropped,) = reader.encode(identity(rubric), [state], 0.25, random.Random(0))
    share = 1 - len(dropped.input_ids) / len(whole.input_ids)
    assert 0.1 < share < 0.3
    (nearly_all,) = reader.encode(identity(rubric), [{"text": "one two"}], 0.999, random.Random(0))
    assert len(nearly_all.input_ids) < len(whole.input_ids)


def test_paraphrases_and_field_orders_are_drawn(readers):
    rubric, *_ = readers["answer-quality"]
    drawn = [draw_variant(rubric, EVERYTHING, random.Random(seed)) for seed in range(60)]
    assert {v.rubric.instructions for v in drawn} == {rubric.instructions, *rubric.paraphrases}
    assert len({tuple(v.rubric.fields) for v in drawn}) == 6
    words = AugmentationConfig(paraphrase=True)
    only = [draw_variant(rubric, words, random.Random(seed)) for seed in range(20)]
    assert {tuple(v.rubric.fields) for v in only} == {tuple(rubric.fields)}
    assert {v.positions for v in only} == {identity(rubric).positions}


def test_shuffling_choices_leaves_scores_in_order(readers):
    rubric, *_ = readers["support-messages"]
    config = AugmentationConfig(shuffle_options="choice")
    drawn = [draw_variant(rubric, config, random.Random(seed)) for seed in range(20)]
    urgency, topic, refund = (list(p) for p in zip(*(v.positions for v in drawn), strict=True))
    assert set(urgency) == {(0, 1, 2, 3)}
    assert set(refund) == {(0, 1)}
    assert len(set(topic)) > 10
