"""Weights are moved to what the 4-bit files can hold, where it costs the judge least."""

from collections import Counter
from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from slm_judge.export import gptq
from slm_judge.export.bnb import quantize_bnb
from slm_judge.export.gguf import VALUES, VALUES_GRID, VALUES_TYPE, convert, quantize
from slm_judge.export.gptq import (
    ITEMS,
    NF4,
    Q4_0,
    Q5_0,
    _Asked,
    _holding,
    catch_up,
    importance,
    round_columns,
    save_moved,
)
from slm_judge.export.importance import in_gguf
from slm_judge.export.refit import _fit, _ridge, label_logits, refit_labels, states
from slm_judge.training.slots import label_token_ids

from slm_judge.artefact.base import load_model, load_tokenizer
from slm_judge.artefact.judge_files import ADAPTER_FOLDER, Contract
from slm_judge.backends.packing import pack, shared_prefix
from slm_judge.backends.row_attention import pack_tensors
from slm_judge.data.item import load_split
from slm_judge.prompt.readers import DecisionReader, EncodedPrompt
from slm_judge.run import Run

GRIDS = {"nf4": NF4, "q4_0": Q4_0, "q5_0": Q5_0}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens, channels, rank, seed=1):
    """Inputs of a layer, most of which lie in few directions, whatever the seed of the tokens."""
    inside = drawn(tokens, rank, seed=seed) @ drawn(rank, channels, seed=2)
    return inside + 0.1 * drawn(tokens, channels, seed=100 + seed)


def requantized(weight, name):
    """What the engine's own quantizer makes of a weight."""
    if name != "nf4":
        kind = gguf.GGMLQuantizationType[name.upper()]
        return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    # The files keep the scales in 8 bits besides, which leaves the levels as they are.
    return dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type="nf4"))


@pytest.mark.parametrize("name", GRIDS)
def test_the_engines_round_to_what_was_chosen(name):
    x = correlated(300, 192, 16)
    for weight in (0.05 * drawn(40, 192), drawn(40, 192) ** 5, torch.zeros(4, 192)):
        moved = round_columns(weight, x.T @ x, GRIDS[name])
        # The file is made from 16 bits, in which a level times a scale is not exact.
        found = requantized(moved.bfloat16().float(), name)
        torch.testing.assert_close(found, moved, rtol=1e-6, atol=1e-30)
        assert not torch.equal(moved, weight) or not weight.any()


@pytest.mark.parametrize("name", GRIDS)
def test_outputs_change_less_than_by_rounding_to_the_nearest(name):
    x, weight = correlated(2000, 192, 16), 0.05 * drawn(64, 192)
    moved = round_columns(weight, x.T @ x, GRIDS[name])
    plain = requantized(weight, name)
    for x_ in (x, correlated(2000, 192, 16, seed=7)):
        assert (x_ @ (moved - weight).T).norm() < 0.165 * (x_ @ (plain - weight).T).norm()


@pytest.mark.parametrize("name", GRIDS)
def test_a_scale_that_clips_its_blocks_largest_weight_is_taken_where_that_costs_less(
    name, monkeypatch
):
    weight, counts = drawn(50, 192), drawn(192, seed=8).square()
    costs = []
    for shares in ((1.0,), gptq.SHARES):
        monkeypatch.setattr(gptq, "SHARES", shares)
        scales, held = gptq._scales(weight, counts, GRIDS[name])
        columns = gptq._Columns(scales, held, GRIDS[name])
        rounded = torch.stack([columns.nearest(k, row) for k, row in enumerate(weight)])
        costs.append((counts * (weight - rounded).square()).unflatten(1, (-1, 32)).sum(dim=2))
        assert (~held.isnan()).unflatten(1, (-1, GRIDS[name].block)).sum(dim=2).eq(1).all()
    blocks = [cost.unflatten(1, (-1, GRIDS[name].block // 32)).sum(dim=2) for cost in costs]
    assert (blocks[1] <= blocks[0]).all()
    assert blocks[1].sum() < 0.97 * blocks[0].sum()


def test_columns_are_chosen_again_to_the_layers_gain():
    x, weight = correlated(2000, 192, 16), 0.05 * drawn(64, 192)
    hessian = x.T @ x + 0.01 * (x.T @ x).diagonal().mean() * torch.eye(192)
    scales, held = (each.T for each in gptq._scales(weight, hessian.diagonal(), Q4_0))
    columns, weight = gptq._Columns(scales, held, Q4_0), weight.T
    rounded = torch.stack([columns.nearest(k, row) for k, row in enumerate(weight)])

    def cost():
        return ((weight - rounded).T @ hessian @ (weight - rounded)).diagonal()

    costs = [cost()]
    for _ in range(3):
        gptq._choose_again(weight, rounded, columns, hessian)
        costs.append(cost())
    assert all((later <= earlier * 1.0001).all() for earlier, later in pairwise(costs))
    assert costs[1].sum() < 0.5 * costs[0].sum()


def test_a_layer_catches_up_with_what_it_said_before_its_inputs_changed():
    x, weight = correlated(2000, 192, 16), drawn(64, 192)
    z = x + 0.3 * x @ drawn(192, 192, seed=4) / 192**0.5  # a change that a layer can undo
    caught = catch_up(weight, z.T @ z, (x - z).T @ z)
    before, after = ((z @ one.T - x @ weight.T).norm() for one in (weight, caught))
    assert 0.65 * before < after < 0.75 * before  # CATCHING_UP of the way
    assert torch.equal(catch_up(weight, x.T @ x, torch.zeros(192, 192)), weight)


def test_rows_without_whole_blocks_stay():
    weight = drawn(4, 48)
    assert torch.equal(round_columns(weight, torch.eye(48), NF4), weight)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_channels_that_are_never_used_cost_the_others_nothing(size):
    x, weight, costs = size * correlated(100, 64, 8), drawn(64, 64), []
    x[:, 10:40] = 0
    for _ in range(2):
        moved = round_columns(weight, x.T @ x, NF4)
        costs.append((x @ (moved - weight).T).norm())
        weight[:, 10:40] = 0
    assert costs[0] < 1.15 * costs[1]


def test_a_layer_that_reads_nothing_is_no_error():
    assert torch.isfinite(round_columns(drawn(8, 64), torch.zeros(64, 64), NF4)).all()


def test_ridge_finds_a_linear_loss_and_leaves_noise():
    x, w = drawn(400, 50), drawn(50, seed=5)
    found = _ridge(x, x @ w + 0.01 * drawn(400, seed=6))
    torch.testing.assert_close(found.float(), w, rtol=0, atol=0.01)
    few = drawn(20, 50)  # fewer states than channels: predicted, though not identified
    assert ((few @ _ridge(few, few @ w).float() - few @ w).norm() / (few @ w).norm()) < 0.5
    noise = _ridge(x, drawn(400, seed=7))
    assert noise.norm() < 0.3


@pytest.fixture(scope="module")
def judge(run):
    """The merged model of the tiny run, packs of its training items, and its labels."""
    tokenizer, contract = load_tokenizer(run.merged), Contract.load(run.merged)
    reader = DecisionReader(tokenizer, contract.decision_template, contract.rubric, contract.labels)
    prompts = reader.encode([item.state for item in load_split(run.data, "train")[:40]])
    packs = [pack_tensors(pack([prompt], 0), "cpu") for prompt in prompts]
    ids = label_token_ids(contract, tokenizer)
    return load_model(run.merged, "cpu", "float32"), packs, ids, contract.rubric


def test_labels_get_back_the_logits_that_rounding_took(judge):
    model, packs, ids, rubric = judge
    rows = model.get_output_embeddings().weight
    with torch.no_grad():
        hidden = states(model, packs)
        wanted = label_logits(model, hidden, ids, rubric)
        assert wanted.shape[:2] == (40, 3)
        assert wanted[:, 2, 2:].abs().max() == 0  # refund has two options
        torch.testing.assert_close(wanted[:, 0, :4].sum(dim=1), torch.zeros(40), atol=1e-3, rtol=0)
        before = rows.clone()
        hidden = hidden + 0.2 * hidden.std() * drawn(hidden.shape[1])  # a shift of all states
        missing = wanted - label_logits(model, hidden, ids, rubric)
        lost = missing.square().mean()
        _fit(model, hidden, missing, ids, rubric)
        left = (wanted - label_logits(model, hidden, ids, rubric)).square().mean()
    assert left < 0.05 * lost
    changed = (rows != before).any(dim=1).nonzero().flatten().tolist()
    assert set(changed) <= set(ids)
    with torch.no_grad():
        rows.copy_(before)


def test_labels_are_fitted_to_a_rounded_model_or_left(judge):
    model, packs, ids, rubric = judge
    rows = model.get_output_embeddings().weight
    rounded = model.get_decoder().layers[-1].mlp.down_proj.weight
    with torch.no_grad():
        wanted = label_logits(model, states(model, packs), ids, rubric)
        before, exact = rows.clone(), rounded.clone()
        refit_labels(model, packs, wanted, ids, rubric)
        assert torch.equal(rows, before)  # nothing was lost
        rounded += 0.3 * rounded.std() * drawn(*rounded.shape)
        lost = (wanted - label_logits(model, states(model, packs), ids, rubric)).square().mean()
        refit_labels(model, packs, wanted, ids, rubric)
        left = (wanted - label_logits(model, states(model, packs), ids, rubric)).square().mean()
        rows.copy_(before)
        rounded.copy_(exact)
    assert left < 0.5 * lost


def test_short_items_are_taken_until_they_have_enough_tokens(run):
    rubric, own = [1, 2, 3], (2, 3, 4, 5)
    prompts = [EncodedPrompt(rubric + [10 + n] * n, [2 + n]) for n in own]
    assert [_holding(n, prompts) for n in (0, 1, 2, 4, 5, 13, 14, 99)] == [0, 0, 1, 1, 2, 3, 4, 4]
    assert _holding(99, []) == 0
    asked, enough = _Asked(run), run.recipe().export.rounding_tokens
    own = [prompt.n_tokens - shared_prefix(asked.prompts) for prompt in asked.movers]
    everything = len(own) == len(load_split(run.data, "train"))
    assert everything or (len(own) >= ITEMS and sum(own) + max(own) > enough)


def test_files_hold_what_was_moved(run, tmp_path):
    save_moved(run, tmp_path / "moved", Q4_0, Console(quiet=True), {VALUES: VALUES_GRID})
    converted = convert(tmp_path / "moved", tmp_path / "a.gguf", "bf16", "a")
    quantize(converted, tmp_path / "q.gguf", "Q4_0", values=VALUES_TYPE)
    moved = {t.name: t for t in gguf.GGUFReader(converted).tensors}
    held: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors:
        if tensor.tensor_type.name not in ("Q4_0", "Q5_0") or "blk" not in tensor.name:
            continue
        wide = moved[tensor.name]
        expected = gguf.dequantize(wide.data, wide.tensor_type)
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(found, expected, rtol=2**-8, atol=1e-12)
        held[tensor.tensor_type.name] += 1
        assert (tensor.tensor_type.name == "Q5_0") == ("attn_v" in tensor.name)
    assert held == {"Q4_0": 6 * 2, "Q5_0": 2}  # linear layers of the tiny base


def test_a_merged_bitsandbytes_file_keeps_what_the_recipe_says(run, tmp_path):
    recipe, mine = run.recipe(), Run(tmp_path / "mine")
    mine.folder.mkdir()
    export = recipe.export.model_copy(update={"bnb": "merged"})
    mine.recipe_file.write_text(recipe.model_copy(update={"export": export}).model_dump_json())
    for name in ("merged", "adapter", "data"):
        (mine.folder / name).symlink_to(run.folder / name)
    quantize_bnb(mine, Console(quiet=True))
    assert not Contract.load(mine.bnb).adapter
    assert not (mine.bnb / ADAPTER_FOLDER).exists()
    with safe_open(mine.bnb / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for name in names:
            if name.endswith("v_proj.weight"):
                assert file.get_slice(name).get_dtype() == "BF16"
    quantized = {name.split(".quant_state")[0] for name in names if "quant_state" in name}
    assert any(name.endswith("k_proj.weight") for name in quantized)
    assert not any(name.endswith(("v_proj.weight", "lm_head.weight")) for name in quantized)


def test_weights_that_count_are_rounded_more_closely(run, tmp_path):
    """Weighed by the inputs' mean squares, the error of a type that heeds them is smaller."""
    found = in_gguf(importance(run), "qwen3")
    assert len(found) == 7 * 2  # linear layers of the tiny base
    converted = convert(run.merged, tmp_path / "a.gguf", "f32", "a")
    quantize(converted, tmp_path / "0.gguf", "IQ4_NL")
    quantize(converted, tmp_path / "1.gguf", "IQ4_NL", importance(run))
    exact, plain, weighed = (
        {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
        for path in (converted, tmp_path / "0.gguf", tmp_path / "1.gguf")
    )
    for name, counts in found.items():
        before, after = (
            ((one[name] - exact[name]) ** 2 @ counts).sum() for one in (plain, weighed)
        )
        assert after < 0.97 * before, name
