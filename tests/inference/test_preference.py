"""Dimensions of the type `preference`: two texts, read in both orders."""

import csv
import json
import random
import shutil
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from slm_judge.export.answers import ask, flip_rate
from slm_judge.export.bnb import quantize_bnb
from slm_judge.export.gptq import Unrounded
from slm_judge.export.merge import merge
from slm_judge.export.verify import agreement_table, read_report, verify
from slm_judge.model_card.card import render_card
from slm_judge.model_card.page import NUMBERS, PAGE
from slm_judge.training.augment import draw_variant
from slm_judge.training.calibration import fit_calibration
from slm_judge.training.slots import IGNORE, TrainingCollator, label_token_ids, make_dataset
from slm_judge.training.targets import Targets, exchanged, option_weights
from slm_judge.training.train import train

from benchmarks.serving import ask as ask_server
from benchmarks.serving import llama_server
from benchmarks.small_judges import small_folders, small_gguf
from slm_judge import Judge, Rubric
from slm_judge.annotate.job import annotate_table
from slm_judge.annotate.rows import AnnotateOptions, truncate
from slm_judge.app.judging import Judges, Named
from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.judge_files import Contract
from slm_judge.artefact.preview import preview, token_cost
from slm_judge.data.item import Item, load_split
from slm_judge.data.predictions import Answers, read_predictions
from slm_judge.data.read import read_annotations
from slm_judge.errors import DataError, RubricError
from slm_judge.evaluation.baselines import baselines
from slm_judge.evaluation.zero_shot import zero_shot
from slm_judge.judge.answer import averaged, gap, probabilities, softmax
from slm_judge.prompt.readers import DecisionReader, encode_readings
from slm_judge.recipe import AugmentationConfig, ExportConfig
from tests.conftest import ROOT, annotation_from_logits, small_recipe

FILE = ROOT / "rubrics" / "preference.yaml"
BETTER = {"name": "better", "type": "preference", "instructions": "Which?", "between": ["a", "b"]}
LENGTH = {"name": "long", "type": "score", "instructions": "How long is a?", "options": [1, 2, 3]}


def rubric(*dimensions, **changes):
    raw = {"name": "r", "instructions": "Read.", "fields": ["q", "a", "b"]}
    return Rubric.parse(raw | {"dimensions": list(dimensions) or [BETTER | changes]}, "test")


def mirrored(state, names=("a", "b")):
    return state | {names[0]: state[names[1]], names[1]: state[names[0]]}


# --- the rubric ---


def test_engines_are_asked_a_choice_that_says_which_text_is_meant():
    read = rubric()
    assert read.questions()["better"] == {
        "type": "choice", "instructions": "Which?", "criteria": {"A": "a", "B": "b", "tie": None},
    }  # fmt: skip
    assert "A: A: a\nB: B: b\nC: tie\n" in preview(read)
    assert Rubric.from_json(read.to_json()) == read
    assert rubric(options=["a", "b"]).dimensions[0].question()["criteria"] == {"a": None, "b": None}
    assert rubric(not_applicable=["both are bad"]).dimensions[0].n_levels == 3
    assert any("engines other than slm-judge read it once" in said for said in read.warnings())
    assert "each item is read twice" in token_cost(read)[0]
    assert "twice" not in token_cost(rubric(LENGTH))[0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"between": ["a", "c"]}, "between names c, which is no field; the fields are q, a, b"),
        ({"between": ["a", "a"]}, "between names two different fields"),
        ({"between": ["a"]}, "between"),
        ({"options": [1, 2, 3, 4]}, "degrees of preference are a score"),
        ({"options": ["a"]}, "needs at least two options"),
        ({"level_of_measurement": "ordinal"}, "Input should be 'nominal'"),
        ({"name": "a"}, "distinct names"),
    ],
)
def test_bad_preferences_say_what_is_wrong(changes, complaint):
    with pytest.raises(RubricError) as error:
        rubric(**changes)
    assert complaint in str(error.value)


def test_preferences_of_a_rubric_are_between_the_same_two_texts():
    assert rubric(BETTER, BETTER | {"name": "kinder", "between": ["b", "a"]}).pair == ("a", "b")
    with pytest.raises(RubricError, match="the same two fields, here a and b"):
        rubric(BETTER, BETTER | {"name": "kinder", "between": ["q", "a"]})


def test_labels_are_read_as_people_have_them(tmp_path):
    said = ["A", "1", "first", "Model_A", "b", 2, "second", "tie", "Draw", "0"]
    rows = [{"item_id": str(n), "q": "q", "a": "x", "b": "y", "better": label}
            for n, label in enumerate(said)]  # fmt: skip
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_annotations(str(path), rubric())
    labels = [item.votes.get("better", {}).get("") for item in found.items]
    assert labels == [0, 0, 0, 0, 1, 1, 1, 2, 2, None]
    assert any("'1' as A" in note and "'Model_A' as A" in note for note in found.notes)
    assert any("left out 1 x labels of better outside" in note for note in found.notes)
    numbers = rubric(options=[0, 1]).dimensions[0]
    assert [numbers.index(label) for label in ("0", 1, "2", "A")] == [0, 1, 1, 0]
    turned = rubric(between=["b", "a"], options=["x", "y"]).dimensions[0]
    assert [turned.index(label) for label in ("a", "b")] == [None, None]  # a field, and the first?


# --- the mean of two readings ---


def test_the_mean_of_two_readings_is_of_probabilities():
    first, second = np.array([2.0, 0.0, 1.0]), np.array([0.5, 1.5, -1.0])  # the second turned
    how = Calibration(temperature=1.7, shift=(0.3, 0.3, -0.6))
    expected = (probabilities(first, how) + probabilities(second, how)[[1, 0, 2]]) / 2
    assert probabilities(averaged([first, second], how), how) == pytest.approx(expected, abs=1e-15)
    said = annotation_from_logits(rubric(), [[first, second]], lambda _: how)
    assert (said.labels, said.flipped) == ({"better": "A"}, {"better": False})
    assert annotation_from_logits(rubric(), [[first, first]], lambda _: how).flipped["better"]


def test_the_flip_rate_is_of_items_that_were_asked():
    labels, flipped = np.array([0, 1, -1, 2]), np.array([True, False, True, False])
    found = flip_rate(Answers(labels, None, flipped))
    assert (found["estimate"], found["low"] < 1 / 3 < found["high"]) == (pytest.approx(1 / 3), True)
    together = flip_rate(Answers(labels, None, flipped), ["x", "x", "y", "x"])
    assert together["high"] > found["high"]  # items of a group are worth less
    assert np.isnan(flip_rate(Answers(np.array([-1]), None, np.array([True])))["estimate"])


WORDS = ("This", " one", " is", " better", ".", " No", "\n\n", " 42", " \u6f22", "!")


def pairs(n, seed=0):
    rng = random.Random(seed)
    return [
        {field: "x" + "".join(rng.choices(WORDS, k=rng.randrange(1, 12))) for field in "qab"}
        for _ in range(n)
    ]


def unbiased(folder, strength=10):
    """Make random weights look at the texts, and say no label more often than another."""
    import torch
    from transformers import AutoModelForCausalLM

    model, contract = AutoModelForCausalLM.from_pretrained(folder), Contract.load(folder)
    tokenizer = load_tokenizer(folder)
    reader = DecisionReader(tokenizer, contract.decision_template, contract.rubric, contract.labels)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= strength
        read = [
            model.model(input_ids=torch.tensor([prompt.input_ids])).last_hidden_state[
                0, prompt.slots
            ]
            for prompt in reader.encode(pairs(20))
        ]
        usual = torch.stack(read).mean(dim=0)[0]
        for token in label_token_ids(contract, tokenizer):
            row = model.lm_head.weight[token]
            row -= (row @ usual) / (usual @ usual) * usual
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def small(tokenizer, tmp_path_factory):
    """`base`, `merged` and `judge.gguf` of small judges with random weights."""
    folder = tmp_path_factory.mktemp("preference")
    tokenizer.save_pretrained(folder / "whole")
    both = Rubric.from_file(FILE).dimensions[0].model_copy(update={"between": ("a", "b")})
    asked = rubric(both.model_dump(), LENGTH)
    small_folders(SimpleNamespace(merged=folder / "whole", rubric=lambda: asked), folder)
    unbiased(folder / "merged")
    contract = Contract.load(folder / "merged")
    contract.calibrated({"score": 1.3, "choice": 0.05}, {}).save(folder / "merged")  # far from even
    small_gguf(folder / "merged", folder / "judge.gguf")
    return folder


@pytest.fixture(scope="module", params=["merged", "judge.gguf"])
def judge(small, request):
    with Judge.from_pretrained(small / request.param, exact=True, n_threads=1) as loaded:
        yield loaded


def one_reading(judge, states):
    """The first reading alone, without anything that is tested here."""
    contract = judge.backend.contract
    found = dict(judge.backend.run(judge.backend.reader.encode(states), True))
    return [[softmax(row, contract.calibration(d).temperature)
             for d, row in zip(contract.rubric.dimensions, found[i], strict=True)]
            for i in range(len(states))]  # fmt: skip


def test_a_judge_averages_both_orders_and_turns_the_second_back(judge):
    states = pairs(12)
    first, second = one_reading(judge, states), one_reading(judge, [*map(mirrored, states)])
    for said, one, two in zip(judge.annotate(states), first, second, strict=True):
        better = [*said.probabilities["preferred"].values()]
        turned = two[0][[1, 0, 2]]
        assert better == pytest.approx(((one[0] + turned) / 2).tolist(), abs=1e-12)
        assert said.labels["preferred"] == ("A", "B", "tie")[int(np.argmax(better))]
        assert said.flipped == {"preferred": one[0].argmax() != turned.argmax()}
        assert [*said.probabilities["long"].values()] == pytest.approx(one[1].tolist(), abs=1e-12)


def test_mirrored_pairs_get_mirrored_answers_to_the_last_bit(judge):
    states = [*pairs(12), {"q": "q", "a": "same", "b": "same"}]
    turn = {"A": "B", "B": "A", "tie": "tie"}
    for one, two in zip(judge.annotate(states), judge.annotate([*map(mirrored, states)])):  # noqa: B905
        shares = two.probabilities["preferred"]
        assert one.probabilities["preferred"] == {k: shares[turn[k]] for k in turn}
        assert one.flipped == two.flipped
        if shares["A"] != shares["B"]:
            assert one.labels["preferred"] == turn[two.labels["preferred"]]
    assert shares["A"] == shares["B"]


def test_labels_and_flips_do_not_depend_on_the_batch(judge):
    states = pairs(40, seed=1)
    exact = judge.annotate(states)
    judge.exact = False
    try:
        for size in (40, 7):
            batched = [a for n in range(0, 40, size) for a in judge.annotate(states[n : n + size])]
            assert [(a.labels, a.flipped) for a in batched] == [
                (a.labels, a.flipped) for a in exact
            ]
    finally:
        judge.exact = True
    assert 0 < sum(a.flipped["preferred"] for a in exact) < 40


def test_near_ties_of_options_in_reverse_are_found_in_the_rubrics_order(judge):
    """The second look of the probe that lists options the other way round."""
    backend, dimensions = judge.backend, judge.rubric.dimensions
    reader = backend.reader_of(judge.rubric.reversed())
    near_tie, plain, alone = backend.near_tie, backend.run, []

    def run_and_note(prompts, by_itself=False):
        alone.extend(prompts if by_itself else ())
        return plain(prompts, by_itself)

    try:
        backend.expect(reader)
        prompts = judge.encode(pairs(20), reader)
        both = [one for prompt in prompts for one in (prompt, prompt.exchanged)]
        raw = dict(plain(both, True))
        exact = dict(judge.decide(prompts, reverse=True))
        for index, (preferred, long) in exact.items():
            for reading in (0, 1):
                assert np.array_equal(preferred[reading], raw[2 * index + reading][0][::-1])
            assert np.array_equal(long, raw[2 * index][1][::-1])
        how = backend.contract.calibration(dimensions[0])
        gaps = [
            min(*map(gap, preferred), gap(averaged(preferred, how)) / 2, gap(long))
            for preferred, long in (exact[index] for index in range(20))
        ]
        judge.exact, backend.run = False, run_and_note
        ordered = sorted(gaps)
        low, high = max(pairwise(ordered[5:15]), key=lambda pair: pair[1] - pair[0])
        assert high - low > 1e-5  # more than the batch moves so small a model's logits by
        backend.near_tie = (low + high) / 2
        dict(judge.decide(prompts, reverse=True))
        near = [found < backend.near_tie or backend.fills(prompt)
                for found, prompt in zip(gaps, prompts, strict=True)]  # fmt: skip
        assert 0 < sum(near) < 20
        expected = [one for k, one in enumerate(both) if near[k // 2]]
        assert sorted(one.input_ids for one in alone) == sorted(one.input_ids for one in expected)
    finally:
        judge.exact, backend.near_tie, backend.run = True, near_tie, plain
        backend.expect(backend.reader)


def test_a_stock_engine_answers_the_order_that_it_is_given(small):
    state = pairs(1)[0]
    with Judge.from_pretrained(small / "judge.gguf", trust=True, n_threads=1) as judge:
        questions = judge.rubric.questions()
        ours = one_reading(judge, [state, mirrored(state)])
        with llama_server(small / "judge.gguf") as url:
            for row, expected in zip((state, mirrored(state)), ours, strict=True):
                status, said = ask_server(url, row, questions)
                assert status == 200
                shares = [*said["answers"]["preferred"]["probabilities"].values()]
                assert shares == pytest.approx(expected[0].tolist(), abs=0.02)


def test_a_pair_that_is_too_long_in_one_order_is_too_long(small):
    with Judge.from_pretrained(small / "judge.gguf", trust=True, n_threads=1) as judge:
        state = {"q": "q", "a": "one", "b": "word " * 20}
        most = judge.backend.max_tokens = judge.encode([state])[0].n_tokens - 8
        with pytest.raises(DataError, match=f"there is room for {most}"):
            judge.annotate([state])
        cut, other = (truncate(judge.backend, judge.rubric, s) for s in (state, mirrored(state)))
        assert cut.n_tokens <= most
        assert cut.exchanged
        assert (cut.input_ids, cut.exchanged.input_ids) == (
            other.exchanged.input_ids, other.input_ids,
        )  # fmt: skip


def test_a_table_has_the_flips_and_goes_on_where_it_stopped(small, tmp_path):
    states = [*pairs(40, seed=2), {"q": "q", "a": "", "b": "y"}]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, "qab")
        writer.writeheader()
        writer.writerows(states)
    options = AnnotateOptions(rows_per_piece=16, prefix="j_")
    with Judge.from_pretrained(small / "judge.gguf", trust=True, n_threads=1) as judge:
        said = judge.annotate(states[:40])
        folder = f"{tmp_path}/out/"
        whole = annotate_table(
            judge, str(tmp_path / "in.csv"), folder, options, show_progress=False
        )
        before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("part-*")}
        (tmp_path / "out" / sorted(before)[1]).unlink()
        again = annotate_table(
            judge, str(tmp_path / "in.csv"), folder, options, show_progress=False
        )
        annotate_table(
            judge, str(tmp_path / "in.csv"), tmp_path / "o.csv", options, show_progress=False
        )
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("part-*")} == before
    expected = Counter(a.flipped["preferred"] for a in said)
    assert again.computed == 16
    assert whole.flips == again.flips == {"preferred": expected}
    share = f"{expected[True]} of 40 rows get another label when their texts change places"
    assert share in whole.flip_rates()[0]
    with (tmp_path / "o.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [(r["j_preferred"], r["j_preferred_flipped"]) for r in rows[:40]] == [
        (a.labels["preferred"], str(a.flipped["preferred"]).lower()) for a in said
    ]
    assert (rows[40]["j_preferred_flipped"], rows[40]["j_outcome"]) == ("", "empty field: a")


def test_the_page_and_the_yardstick_without_training_read_both_orders(small):
    states = pairs(6)
    items = [Item(str(n), state, {}, str(n)) for n, state in enumerate(states)]
    with Judge.from_pretrained(small / "merged", exact=True) as judge:
        expected = judge.annotate(states)
        shown = Judges([Named("j", "k", judge)], judge.rubric).try_out(states[0])[0]["dimensions"]
        options = judge.rubric.dimensions[0].values
    assert shown["preferred"]["probabilities"] == expected[0].probabilities["preferred"]
    found = zero_shot(str(small / "merged"), judge.rubric, items)["preferred"]
    assert [options[k] for k in found] == [a.labels["preferred"] for a in expected]


# --- training ---


@pytest.fixture(scope="module")
def learned(small):
    """Items with votes of both dimensions, their contract and the pieces of a collator."""
    tokenizer = load_tokenizer(small / "merged")
    contract = Contract.load(small / "merged")
    votes = [{"preferred": {"x": 0, "y": 2}, "long": {"x": 1}}, {"preferred": {"x": 1}},
             {"long": {"x": 2}}, {"preferred": {"x": 2}}] * 5  # fmt: skip
    items = [Item(str(n), state, given, str(n))
             for n, (state, given) in enumerate(zip(pairs(20, seed=3), votes, strict=True))]  # fmt: skip
    return items, contract, tokenizer, Targets(items, contract.rubric, "soft")


def test_training_shows_the_other_order_in_the_next_epoch_and_turns_the_target(learned):
    items, contract, tokenizer, targets = learned
    reader = DecisionReader(tokenizer, contract.decision_template, contract.rubric, contract.labels)
    prompts = encode_readings(reader.encode, contract.rubric, [item.state for item in items])
    rows = [*make_dataset(prompts, targets, label_token_ids(contract, tokenizer))]
    orders = []
    for epoch in (0, 1, 2):
        collator = TrainingCollator(
            items, contract, tokenizer, targets, 10**6, AugmentationConfig(), 7, reader
        )
        collator.epoch, turned = epoch, []
        together = collator(rows)
        assert len(together["packs"]) == 1
        for n, row in enumerate(rows):
            (pack,), labels = (batch := collator([row]))["packs"], batch["labels"][0]
            ids = pack["inputs"]["input_ids"][0].tolist()
            turned.append(ids == prompts[n].exchanged.input_ids)
            assert turned[-1] or ids == prompts[n].input_ids
            plain = targets.fixed[n]
            wanted = exchanged(plain, contract.rubric) if turned[-1] else plain
            assert np.allclose(pack["targets"][0].numpy(), wanted)
            assert (labels != IGNORE).tolist() == wanted.any(axis=-1).tolist()
            assert (together["packs"][0]["targets"][n] == pack["targets"][0]).all()
        orders.append(turned)
    voted = [bool(item.votes.get("preferred")) for item in items]
    assert [a != b for a, b in zip(orders[0], orders[1], strict=True)] == voted
    assert orders[0] == orders[2]
    assert 0 < sum(orders[0]) < sum(voted)


def test_both_texts_weigh_alike_and_calibration_is_of_the_mean(learned):
    _, contract, _, targets = learned
    turned = exchanged(targets.fixed, contract.rubric)
    assert (exchanged(turned, contract.rubric)[:, 0] == targets.fixed[:, 0]).all()
    assert not turned[:, 1].any()
    weights = option_weights(targets.fixed + turned, 1.0)
    assert weights[0, 0] == weights[0, 1] != weights[0, 2]
    plain = option_weights(targets.fixed, 1.0)
    assert (weights[1] == plain[1]).all()
    many = [Item(str(n), {}, {"preferred": {"x": n % 3}}, str(n)) for n in range(60)]
    rng = np.random.default_rng(0)
    truth = 4 * np.eye(3)[np.arange(60) % 3] + rng.normal(size=(60, 3))
    bias = np.array([3.0, 0, 0])  # towards what is read first
    logits = np.stack([truth + bias, truth[:, [1, 0, 2]] + bias], axis=1)
    only = contract.rubric.model_copy(update={"dimensions": contract.rubric.dimensions[:1]})
    stock, own = fit_calibration(only, many, [logits])
    losses = {}
    for t in (0.5, own["preferred"].temperature, stock["choice"], 3.0):
        how = Calibration(temperature=t)
        likely = probabilities(averaged(logits, how), how)[np.arange(60), np.arange(60) % 3]
        losses[t] = -np.log(likely).mean()
    assert min(losses, key=losses.__getitem__) == own["preferred"].temperature
    assert stock["choice"] > own["preferred"].temperature  # one reading is surer than it may be


def test_its_options_are_shuffled_as_those_of_a_choice(learned):
    contract = learned[1]
    drawn = [draw_variant(contract.rubric, AugmentationConfig(shuffle_options="choice"),
                          random.Random(seed)).positions for seed in range(8)]  # fmt: skip
    assert len({one[0] for one in drawn}) > 1
    assert {one[1] for one in drawn} == {(0, 1, 2)}


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A verified run of the small base, in which the good answer is preferred."""
    folder, rng = tmp_path_factory.mktemp("pairs"), random.Random(0)
    with (folder / "d.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["item_id", "annotator_id", "question", "answer_a", "answer_b", "preferred"])
        for n in range(60):
            a, b = rng.choice(["good", "bad"]), rng.choice(["good", "bad"])
            label = "tie" if a == b else "1" if a == "good" else "answer_b"
            for who in "xy":
                table.writerow([n, who, f"Number {n}?", f"{a}: {n}", f"{b}: {n}", label])
    recipe = small_recipe(folder / "run", export=ExportConfig(dtype="float32", gguf=["BF16"]),
                          training={"epochs": 2, "class_balance": 0.5})  # fmt: skip
    data = {"train": str(folder / "d.csv"), "gold": None, "limit": None}
    shares = {"test_share": 0.2, "validation_share": 0.2}
    data = recipe.data.model_copy(update=data | shares)
    recipe = recipe.model_copy(
        update={"data": data, "rubric": str(FILE), "base": str(small / "base")}
    )
    run = train(recipe)
    merge(run)
    quantize_bnb(run, Console(quiet=True), Unrounded())
    run.gguf.mkdir()
    small_gguf(run.merged, run.gguf_file("BF16"))  # the converter takes no part of a vocabulary
    verify(run)
    return run


def test_every_stage_knows_pairs(trained):
    verified = read_report(trained)
    flips = verified["dimensions"]["preferred"]["flips"]
    assert list(flips) == ["adapter", "merged", "bnb-4bit", "BF16"]
    assert all(one["low"] <= one["estimate"] <= one["high"] for one in flips.values())
    assert not verified["different_prompts"]
    lines = "\n".join(line for line, _ in agreement_table(verified).lines(100))
    assert "flips" in lines
    report = json.loads((trained.report / NUMBERS).read_text())
    assert report["probes"]["flips"] == {"preferred": flips}
    assert report["probes"]["option_order"]["preferred"]["consistency"]["estimate"] is not None
    page = (trained.report / PAGE).read_text()
    assert "Order of the two texts" in page
    facts = json.loads((trained.adapter / "training.json").read_text())
    card = render_card("", "me", trained.recipe(), trained.rubric(), facts, verified, report, {})
    assert "Flips, the share of items that get another label" in card
    assert "takes the mean of both orders" in card
    contract = Contract.load(trained.adapter)
    shift = contract.calibration(contract.rubric.dimensions[0]).shift
    assert not shift or shift[0] == shift[1]
    scored = baselines(trained.recipe(), n_resamples=20)
    assert {"majority label", "judge (adapter)"} <= set(scored["preferred"])


def test_validation_is_of_both_orders(trained):
    items = load_split(trained.data, "validation")
    kept = read_predictions(str(trained.validation), trained.rubric(), [i.item_id for i in items])
    with Judge.from_pretrained(trained.adapter) as judge:
        said = ask(judge, items).answers["preferred"]
    assert kept.answers["preferred"].labels.tolist() == said.labels.tolist()
    assert kept.answers["preferred"].probabilities == pytest.approx(said.probabilities, abs=1e-4)


def test_the_pipeline_of_transformers_reads_one_order(trained):
    from transformers import pipeline

    contract = Contract.load(trained.merged)
    stock = pipeline("decision", model=str(trained.merged), device="cpu")
    state = {"question": "Number 5?", "answer_a": "good: 5", "answer_b": "bad: 5"}
    with Judge.from_pretrained(trained.merged) as judge:
        both = next(iter(judge.logits([state])))[1][0]
    for row, item in zip(both, (state, mirrored(state, ("answer_a", "answer_b"))), strict=True):
        answer = stock({"state": item, "questions": contract.rubric.questions()})
        shares = softmax(row, contract.temperature("choice"))
        assert [*answer["preferred"]["probabilities"].values()] == pytest.approx(
            shares.tolist(), abs=1e-4
        )


def test_without_a_preference_nothing_is_read_twice(small, tmp_path):
    shutil.copytree(small / "merged", tmp_path / "plain")
    Contract.build(rubric(LENGTH), load_tokenizer(small / "merged")).save(tmp_path / "plain")
    with Judge.from_pretrained(tmp_path / "plain") as judge:
        prompts = judge.encode(pairs(3))
        assert [p.exchanged for p in prompts] == [None] * 3
        assert prompts == judge.backend.reader.encode(pairs(3))
        assert judge.annotate(pairs(3))[0].flipped == {}
