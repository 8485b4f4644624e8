"""Packing, batches and the loss, on the real tiny base."""

import pytest
import torch
from slm_judge.training.lora import add_in_place
from slm_judge.training.loss import SlotLoss
from slm_judge.training.model import _adapted as adapted_layers
from slm_judge.training.slots import (
    IGNORE,
    SlotCollator,
    TrainingCollator,
    check_lengths,
    label_token_ids,
    make_dataset,
)
from slm_judge.training.targets import Targets
from torch.utils._python_dispatch import TorchDispatchMode

from slm_judge.artefact import device
from slm_judge.artefact.base import Base, load_base
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends import row_attention
from slm_judge.backends.packing import pack
from slm_judge.backends.row_attention import pack_tensors
from slm_judge.backends.transformers import as_scores
from slm_judge.data.item import Item
from slm_judge.errors import DataError
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.recipe import AugmentationConfig


@pytest.fixture(scope="module")
def items():
    texts = [
        "Short.",
        "A somewhat longer message, with a parcel.",
        "漢字 😀",
        "I want my money back!",
    ]
    votes = [
        {"urgency": {"a": 0, "b": 0, "c": 1}, "topic": {"a": 2}},
        {"refund": {"a": 1, "b": 1}},
        {"urgency": {"a": 3}},
        {"topic": {"a": 0, "b": 4}},
    ]
    return [
        Item(str(i), {"text": t}, v, str(i))
        for i, (t, v) in enumerate(zip(texts, votes, strict=True))
    ]


@pytest.fixture(scope="module")
def contract(support, tokenizer):
    return Contract.build(support, tokenizer)


@pytest.fixture(scope="module")
def targets(items, support):
    return Targets(items, support, "soft")


@pytest.fixture(scope="module")
def dataset(items, contract, tokenizer, targets):
    prompts = encoded(items, contract, tokenizer)
    return make_dataset(prompts, targets, label_token_ids(contract, tokenizer))


def encoded(items, contract, tokenizer):
    reader = DecisionReader(tokenizer, contract.decision_template, contract.rubric, contract.labels)
    return reader.encode([item.state for item in items])


def adapted(quantization, in_place=False, dtype=None):
    from peft import LoraConfig, get_peft_model

    base = Base("tiny", quantization=quantization)
    config = LoraConfig(r=4, target_modules="all-linear")
    if in_place:
        add_in_place(config)
    torch.manual_seed(0)
    model = get_peft_model(load_base(base, "cpu", dtype), config)
    with torch.no_grad():  # B starts at zero, which would hide half of the gradients
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    return model


def loss_and_gradients(model, packs, loss):
    model.zero_grad()
    total = 0.0
    for one in packs:
        rows = {"rows": one["rows"]} if "rows" in one else {}
        logits = model(**one["inputs"], **rows, use_cache=False).logits[0]
        value = loss(
            logits.unflatten(0, one["targets"].shape[:2]), one["targets"], one["positions"]
        )
        value.backward()
        total += value.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["by the mask", "in parts", "in parts and in place"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_packed_loss_and_gradients_are_those_of_whole_prompts(
    dataset, targets, contract, tokenizer, quantization, how
):
    loss = SlotLoss(contract.rubric, label_token_ids(contract, tokenizer), ordinal_weight=0.5)
    packs = SlotCollator(targets, 1024)(list(dataset))["packs"]
    assert len(packs) == 1
    whole = []
    for index, row in enumerate(dataset):
        length = len(row["input_ids"])
        # Nothing is shared: a plain causal forward pass of the whole prompt.
        alone = pack_tensors(pack([EncodedPrompt(row["input_ids"], row["slots"])], 0), "cpu")
        mask = alone.pop("attention_mask")[0, 0]
        assert torch.equal(mask, torch.ones(length, length, dtype=torch.bool).tril())
        own = {"targets": packs[0]["targets"][[index]], "positions": packs[0]["positions"]}
        whole.append(own | {"inputs": alone})
    model = adapted(quantization)
    plain_loss, plain = loss_and_gradients(model, whole, loss)
    if how != "by the mask":
        if how.endswith("place"):
            model = adapted(quantization, in_place=True)
            names = {type(module).__module__ for module in model.modules()}
            assert "slm_judge.training.lora" in names
        row_attention.use(model)
        packs[0]["inputs"].pop("attention_mask")  # it is not looked at
    else:
        assert packs[0].pop("rows").groups
    packed_loss, packed = loss_and_gradients(model, packs, loss)
    assert packed_loss == pytest.approx(plain_loss, rel=1e-5)
    for name, gradient in plain.items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert ((packed[name] - gradient).abs().max() / scale) < 1e-3, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_kept_for_the_backward_pass_once(dataset, targets, contract, tokenizer, dtype):
    """SDPA keeps one of its own in each layer, unless it is given what it adds to the scores."""
    model = adapted("none", dtype=str(dtype).removeprefix("torch."))
    inputs = SlotCollator(targets, 1024)(list(dataset))["packs"][0]["inputs"]
    mask, found = inputs["attention_mask"], {}
    for given in (mask, as_scores(mask, dtype)):
        kept = set()

        def keep(tensor, kept=kept):
            if tensor.shape[-2:] == mask.shape[-2:]:
                kept.add(tensor.untyped_storage().data_ptr())
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            logits = model(**inputs | {"attention_mask": given}, use_cache=False).logits
        found[len(kept)] = logits.detach()
    assert model.config.num_hidden_layers > 1
    assert [*found] == [model.config.num_hidden_layers, 1]
    assert torch.equal(*found.values())
    assert given.dtype == dtype
    assert all(stride % 8 == 0 for stride in given.stride()[:-1])


def test_in_16_bits_the_adapter_is_added_as_well_as_by_peft(dataset, targets, contract, tokenizer):
    loss = SlotLoss(contract.rubric, label_token_ids(contract, tokenizer))
    packs = SlotCollator(targets, 1024)(list(dataset))["packs"]
    packs[0].pop("rows")
    _, exact = loss_and_gradients(adapted("none"), packs, loss)
    errors = {}
    for in_place in (False, True):
        model = adapted("none", in_place, "bfloat16")
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as the trainer does on a GPU
            _, found = loss_and_gradients(model, packs, loss)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        missed = [(found[name] - exact[name]).norm() / exact[name].norm() for name in exact]
        errors[in_place] = torch.stack(missed)
    assert errors[True].median() < 1.1 * errors[False].median()
    assert errors[True].max() < 1.5 * errors[False].max()
    assert errors[True].median() > 0  # it did compute in 16 bits


def test_rows_of_about_one_length_are_a_group():
    rows = row_attention.Rows(10, [30, 5, 6, 20, 21, 7])
    assert [group.shape for group in rows.groups] == [(3, 7), (2, 21), (1, 30)]
    found = torch.cat([group.positions for group in rows.groups]).sort().values
    assert found.tolist() == list(range(10, 99))


def test_attention_that_is_not_told_the_rows_keeps_to_the_mask(dataset, targets):
    (one,) = SlotCollator(targets, 4096)(list(dataset))["packs"]
    model = adapted("none")
    with torch.no_grad():
        expected = model(**one["inputs"]).logits
        row_attention.use(model)
        assert torch.equal(model(**one["inputs"]).logits, expected)


def test_dataset_columns(dataset, contract, tokenizer):
    row = dataset[0]
    label_ids = label_token_ids(contract, tokenizer)
    first, second, third = row["slots"]
    assert row["index"] == 0
    assert row["labels"][first] == label_ids[0]
    assert row["labels"][second] == label_ids[2]
    assert row["labels"][third] == IGNORE  # nobody answered
    assert sum(label != IGNORE for label in row["labels"]) == 2
    assert tokenizer.convert_ids_to_tokens(label_ids) == list("ABCDE")


def test_batches_hold_the_targets_of_their_rows(dataset, targets):
    batch = SlotCollator(targets, 4096)([dataset[1], dataset[0]])
    assert batch["labels"].shape == (2, 3)
    (one,) = batch["packs"]
    assert one["targets"].shape == (2, 3, 5)
    assert one["targets"][1, 0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])
    assert one["targets"][0, 2].tolist() == [0, 1, 0, 0, 0]
    assert one["positions"].tolist() == [list(range(5))] * 3


def test_collator_splits_long_batches_into_packs(dataset, targets):
    one, many = SlotCollator(targets, 4096)(list(dataset)), SlotCollator(targets, 10)(list(dataset))
    assert (len(one["packs"]), len(many["packs"])) == (1, 4)
    assert torch.equal(one["labels"], many["labels"])
    assert torch.equal(one["packs"][0]["targets"], torch.cat([p["targets"] for p in many["packs"]]))


def collator(items, contract, tokenizer, seed=0, **settings):
    return TrainingCollator(
        items, contract, tokenizer, Targets(items, contract.rubric, "sampled"), 4096,
        AugmentationConfig(**settings), seed,
    )  # fmt: skip


def drawn(batch):
    return [
        (one["inputs"]["input_ids"].tolist(), one["targets"].tolist(), one["positions"].tolist())
        for one in batch["packs"]
    ]


def test_draws_are_those_of_seed_and_epoch(items, dataset, contract, tokenizer):
    settings = {"shuffle_options": "all", "token_dropout": 0.3, "variants": 2}
    rows = list(dataset)
    first = collator(items, contract, tokenizer, **settings)
    again = collator(items, contract, tokenizer, **settings)
    assert drawn(first(rows)) == drawn(again(rows))
    epoch_0 = drawn(first(rows))
    assert len(epoch_0) == 2  # variants
    first.epoch = 1
    assert drawn(first(rows)) != epoch_0
    again.epoch = 1
    assert drawn(first(rows)) == drawn(again(rows))
    other = collator(items, contract, tokenizer, seed=1, **settings)
    assert drawn(other(rows)) != epoch_0


def test_without_augmentation_a_batch_is_what_inference_sees(items, dataset, contract, tokenizer):
    rows = list(dataset)
    plain = SlotCollator(Targets(items, contract.rubric, "soft"), 4096)(rows)["packs"]
    trained = collator(items, contract, tokenizer)(rows)["packs"]
    for a, b in zip(plain, trained, strict=True):
        for key, tensor in a["inputs"].items():
            assert torch.equal(tensor, b["inputs"][key])


def test_too_long_items_of_every_split_are_reported(items, contract, tokenizer):
    splits = {"train": items[:2], "test": items[2:]}
    prompts = {name: encoded(part, contract, tokenizer) for name, part in splits.items()}
    size = max(len(prompt.input_ids) for part in prompts.values() for prompt in part)
    check_lengths(splits, prompts, size, size)
    with pytest.raises(DataError, match=r"4 of 4 prompts .* training\.max_length .* of test"):
        check_lengths(splits, prompts, 64, 4096)
    with pytest.raises(DataError, match=r"the base can read \(64 tokens\)"):
        check_lengths(splits, prompts, 4096, 64)


def seen(prefix, lengths):
    """Which token attends to which: L x L."""
    owner = torch.tensor([-1] * prefix + [r for r, n in enumerate(lengths) for _ in range(n)])
    return ((owner == -1) | (owner[:, None] == owner)).tril()


def test_padding_never_spoils_gradients():
    """Padding looks from other rows: far scores there must not become gradients."""
    torch.manual_seed(0)
    lengths, prefix = [30, 5, 6, 20, 21, 7] * 3, 20
    total = prefix + sum(lengths)
    inputs = [8 * torch.randn(1, 2, total, 64) for _ in range(3)]
    mask = seen(prefix, lengths)
    found = []
    for rows in (None, row_attention.Rows(prefix, lengths)):
        tensors = [x.clone().requires_grad_() for x in inputs]
        output, _ = row_attention._attention(
            torch.nn.Module(), *tensors, mask[None, None], rows=rows
        )
        output.sin().sum().backward()
        found.append([output, *(x.grad for x in tensors)])
    for by_mask, in_parts in zip(*found, strict=True):
        assert torch.isfinite(in_parts).all()
        assert (by_mask - in_parts).abs().max() < 1e-3 * by_mask.abs().max()


@pytest.mark.parametrize("ahead", [0, 20])
def test_answers_by_rows_are_those_by_the_mask_also_behind_a_cache(ahead):
    torch.manual_seed(0)
    lengths, prefix = [30, 5, 6, 20, 21, 7], 20
    total = prefix + sum(lengths)
    query, key, value = (torch.randn(1, heads, total, 64) for heads in (6, 2, 2))
    mask = seen(prefix, lengths)[None, None, ahead:]
    module, found, before = torch.nn.Module(), [], row_attention._calls.count
    module.num_key_value_groups = 3
    for rows in (None, row_attention.Rows(prefix, lengths)):
        with torch.no_grad():
            found.append(row_attention._attention(
                module, query[:, :, ahead:], key, value, mask, rows=rows, is_causal=False
            )[0])  # fmt: skip
    assert row_attention._calls.count == before + 1
    assert found[0].shape == (1, total - ahead, 6, 64)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_small_blocks_of_attention_are_multiplied_by_pytorchs_own_products(monkeypatch):
    """Where oneDNN's are faster, it is not for blocks of a few rows: 3 to 5 times slower."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        pytest.skip("this PyTorch has no choice of products")
    monkeypatch.setattr(device, "_onednn_is_wider", lambda: True)
    usual, seen = matmul.fp32_precision, {}

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "flash_attention_for_cpu" in str(function):
                seen.setdefault(args[0].shape[2], set()).add(matmul.fp32_precision)
            return function(*args, **(kwargs or {}))

    rows = row_attention.Rows(20, [30, 31, 800])
    tensors = [torch.randn(1, 2, 881, 16, requires_grad=True) for _ in range(3)]
    with device.full_width("cpu"), Listening():
        output, _ = row_attention._attention(torch.nn.Module(), *tensors, None, rows=rows)
        output.sum().backward()
        assert matmul.fp32_precision == "bf16"
    assert seen == {20: {usual}, 31: {usual}, 800: {"bf16"}, 861: {"bf16"}}


def test_what_is_not_known_of_an_architecture_goes_by_the_mask():
    rows, mask = row_attention.Rows(2, [3, 4]), torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    query, key, value = torch.randn(3, 1, 2, 9, 16)
    narrow = value[..., :8]  # e.g. multi-head latent attention
    output, _ = row_attention._attention(torch.nn.Module(), query, key, narrow, mask, rows=rows)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, narrow, attn_mask=mask)
    assert torch.allclose(output, expected.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_the_last_layers_alone_are_adapted(share):
    model = load_base(Base("tiny"), "cpu")
    layers = model.config.num_hidden_layers
    found = {int(path.split(".")[2]) for path in adapted_layers(model, share)}
    assert found == set(range(min(round((1 - share) * layers), layers - 1), layers))
    assert not any("lm_head" in path for path in adapted_layers(model, share))
