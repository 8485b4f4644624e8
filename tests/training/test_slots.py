"""Packing and the loss, on the real tiny base."""

import pytest
import torch
from slm_judge.training.slots import (
    IGNORE,
    SlotCollator,
    label_token_ids,
    make_dataset,
    slot_loss,
    vote_shares,
)

from slm_judge.backends.transformers import load_base, pack_budget, pack_tensors
from slm_judge.contract import Contract
from slm_judge.errors import DataError
from slm_judge.items import Item
from slm_judge.packing import pack
from slm_judge.prompt import EncodedPrompt


@pytest.fixture(scope="module")
def items():
    texts = [
        "Short.",
        "A somewhat longer message, with a parcel.",
        "漢字 😀",
        "I want my money back!",
    ]
    votes = [
        {"urgency": [0, 0, 1], "topic": [2]},
        {"refund": [1, 1]},
        {"urgency": [3]},
        {"topic": [0, 4]},
    ]
    return [
        Item(str(i), {"text": t}, v, str(i))
        for i, (t, v) in enumerate(zip(texts, votes, strict=True))
    ]


@pytest.fixture(scope="module")
def contract(support, tokenizer):
    return Contract.build(support, tokenizer)


def adapted(quantization):
    from peft import LoraConfig, get_peft_model

    base = {"base": "tiny", "revision": None, "quantization": quantization, "dtype": "float32"}
    model = get_peft_model(load_base(base, "cpu"), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():  # B starts at zero, which would hide half of the gradients
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    return model


def loss_and_gradients(model, batches, label_ids):
    model.zero_grad()
    total = 0.0
    for packs, targets in batches:
        logits = torch.cat([model(**p, use_cache=False).logits[0] for p in packs])
        loss = slot_loss(logits.unflatten(0, targets.shape[:2]), targets, label_ids)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_packed_loss_and_gradients_are_those_of_whole_prompts(
    items, contract, tokenizer, quantization
):
    dataset = make_dataset(items, contract, tokenizer, 512)
    label_ids = torch.tensor(label_token_ids(contract, tokenizer))
    batch = SlotCollator(pack_budget("cpu"))(list(dataset))
    assert len(batch["packs"]) == 1
    whole = []
    for row in dataset:
        alone = pack([EncodedPrompt(row["input_ids"], row["slots"])], 0)  # nothing is shared
        inputs = pack_tensors(alone, "cpu")
        assert torch.equal(inputs.pop("attention_mask")[0, 0], torch.ones(len(row["input_ids"]),
                           len(row["input_ids"]), dtype=torch.bool).tril())  # fmt: skip
        whole.append(([inputs], torch.tensor([row["targets"]])))
    model = adapted(quantization)
    packed_loss, packed = loss_and_gradients(model, [(batch["packs"], batch["targets"])], label_ids)
    plain_loss, plain = loss_and_gradients(model, whole, label_ids)
    assert packed_loss == pytest.approx(plain_loss, rel=1e-5)
    for name, gradient in plain.items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert ((packed[name] - gradient).abs().max() / scale) < 1e-3, name


def test_dataset_columns(items, contract, tokenizer):
    row = make_dataset(items, contract, tokenizer, 512)[0]
    label_ids = label_token_ids(contract, tokenizer)
    first, second, third = row["slots"]
    assert row["labels"][first] == label_ids[0]
    assert row["labels"][second] == label_ids[2]
    assert row["labels"][third] == IGNORE  # nobody answered
    assert sum(label != IGNORE for label in row["labels"]) == 2
    assert row["targets"][0] == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert tokenizer.convert_ids_to_tokens(label_ids) == list("ABCDE")


def test_loss_is_the_cross_entropy_of_answered_slots():
    logits = torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 1.0]]])
    label_ids = torch.tensor([5, 2])
    expected = -(
        logits[0, 0].log_softmax(0)[5]
        + logits[0, 1].log_softmax(0)[[5, 2]].mean()
        + logits[1, 1].log_softmax(0)[2]
    )
    assert slot_loss(logits, targets, label_ids).item() == pytest.approx(expected.item(), rel=1e-6)


def test_collator_splits_long_batches_into_packs(items, contract, tokenizer):
    dataset = list(make_dataset(items, contract, tokenizer, 512))
    one, many = SlotCollator(4096)(dataset), SlotCollator(10)(dataset)
    assert (len(one["packs"]), len(many["packs"])) == (1, 4)
    assert torch.equal(one["labels"], many["labels"])


def test_too_long_items_are_reported(items, contract, tokenizer):
    with pytest.raises(DataError, match=r"4 of 4 prompts .* \(item 1\)"):
        make_dataset(items, contract, tokenizer, 64)


def test_vote_shares():
    assert vote_shares([0, 2, 2, 2], 3) == [0.25, 0.0, 0.75]
    assert vote_shares([], 2) == [0.0, 0.0]
