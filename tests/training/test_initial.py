"""The adapter's first directions, on the real tiny base."""

import pytest
import torch
from slm_judge.training import initial
from slm_judge.training.initial import start_at_activations

from tests.conftest import small_trainer


def started(folder, items=None, r=8):
    trainer = small_trainer(folder, items, r)
    before = factors(trainer.model)
    start_at_activations(trainer)
    return trainer, before, factors(trainer.model)


def factors(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def inputs_at(trainer, layer, where):
    """What a layer reads at the slots, or at the items' tokens, of all training items."""
    seen = []
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    for pack in trainer.data_collator(rows)["packs"]:
        slots = pack["inputs"]["logits_to_keep"].flatten()
        at = slots if where == "slots" else initial._items(pack)
        hook = layer.register_forward_pre_hook(lambda _, given, at=at: seen.append(given[0][0, at]))
        with torch.no_grad():
            trainer.logits_of(trainer.model.eval(), pack)
        hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize(
    ("name", "where"), [("mlp.up_proj", "slots"), ("self_attn.v_proj", "items")]
)
def test_they_are_the_principal_components_of_what_differs(tmp_path, monkeypatch, name, where):
    monkeypatch.setattr(initial, "ITEMS", 10**6)
    monkeypatch.setattr(initial, "TOKENS", 10**6)
    trainer, before, after = started(tmp_path / "run")
    for key, factor in after.items():
        same = "lora_B" in key or ".0.self_attn.q_proj." in key  # see below
        assert torch.equal(factor, before[key]) == same, key
    (path, layer), *_ = [(n, m) for n, m in trainer.model.named_modules()
                         if n.endswith(name) and ".1." in n]  # fmt: skip
    a = after[f"{path}.lora_A.default.weight"]
    lengths = a.norm(dim=1)
    torch.testing.assert_close(lengths, before[f"{path}.lora_A.default.weight"]
                               .norm(dim=1).mean().expand(8), rtol=1e-4, atol=0)  # fmt: skip
    inputs = inputs_at(trainer, layer, where)
    mean = inputs.mean(dim=0)
    assert (a @ mean).abs().max() < 1e-3 * mean.norm()
    centred = inputs - mean
    centred -= (centred @ mean)[:, None] * mean / mean.square().sum()
    spread = (centred @ (a / lengths[:, None]).T).square().sum(dim=0)
    values = torch.linalg.svdvals(centred)[:8].square()
    torch.testing.assert_close(spread, values, rtol=1e-2, atol=1e-4 * values[0].item())


def test_they_are_the_same_again_and_where_there_are_few_items(tmp_path):
    _, _, first = started(tmp_path / "one")
    _, before, again = started(tmp_path / "two")
    assert all(torch.equal(first[key], again[key]) for key in first)
    # In the first layer, all slots are one token: there is nothing to tell apart.
    key = next(key for key in first if ".0.self_attn.q_proj.lora_A" in key)
    assert torch.equal(first[key], before[key])
    # Three items have nine slots, so fewer than 16 directions: the others stay random.
    _, before, few = started(tmp_path / "few", items=3, r=16)
    key = next(key for key in few if "up_proj.lora_A" in key)
    assert not torch.equal(few[key][:8], before[key][:8])
    assert torch.equal(few[key][9:], before[key][9:])
    assert all(torch.isfinite(value).all() for value in few.values())
