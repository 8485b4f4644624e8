"""What a trainer does as on a GPU: attention by the mask, 16 bits, packs by what memory is free."""

import torch
from slm_judge.training import model as module
from slm_judge.training.trainer import _Head

from tests.conftest import small_trainer


def first_batch(trainer):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(8)])


def test_the_trainer_gives_the_model_what_it_adds_to_the_scores(tmp_path):
    trainer = small_trainer(tmp_path)
    rows = [trainer.train_dataset[i] for i in range(8)]
    pack, given = trainer.data_collator(rows)["packs"][0], []
    model = trainer.model.eval()
    model.register_forward_pre_hook(
        lambda _, args, options: given.append(options["attention_mask"].dtype), with_kwargs=True
    )
    with torch.no_grad():
        by_rows = trainer.logits_of(model, pack)
        model.set_attn_implementation("sdpa")
        trainer._by_rows = False
        by_mask = trainer.logits_of(model, pack)
        with torch.autocast("cpu", torch.bfloat16):
            in_16_bits = trainer.logits_of(model, pack)
    torch.testing.assert_close(by_mask, by_rows, rtol=1e-4, atol=1e-4)
    assert given == [torch.bool, torch.float32, torch.bfloat16]
    assert 0 < (in_16_bits - by_mask).abs().max() < 0.5


def test_the_labels_logits_are_in_float32_where_the_model_computes_in_16_bits(tmp_path):
    trainer, seen = small_trainer(tmp_path, dtype="bfloat16"), []
    pack, model = first_batch(trainer)["packs"][0], trainer.model.eval()
    head, ids = model.get_output_embeddings(), trainer._plain_loss.label_ids
    head.register_forward_hook(lambda _, given, said: seen.append((given[0][0], said[0])))
    with trainer.compute_loss_context_manager():
        logits = trainer.logits_of(model, pack).flatten(0, 1)
    (hidden, said), others = seen[0], torch.ones(logits.shape[-1], dtype=torch.bool)
    others[ids] = False
    assert (hidden.dtype, said.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(logits[:, others], said[:, others].float())
    assert torch.equal(logits[:, ids], hidden.float() @ head.weight[ids].float().T)
    assert not torch.equal(logits[:, ids], said[:, ids].float())
    logits[:, ids].sum().backward()  # and they are learned by
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_logits_that_are_not_the_output_layer_s_stay_as_they_are():
    layer = torch.nn.Linear(4, 6).bfloat16()
    head, hidden = _Head(layer, torch.tensor([1, 2])), torch.randn(1, 3, 4).bfloat16()
    capped = 2 * torch.tanh(layer(hidden)[0] / 2)
    assert torch.equal(head.with_exact_labels(capped), capped)
    exact = _Head(layer, torch.tensor([1, 2])).with_exact_labels(layer(hidden)[0])
    wanted = torch.nn.functional.linear(hidden[0].float(), layer.weight.float(), layer.bias.float())
    assert torch.equal(exact[:, 1:3], wanted[:, 1:3])


def test_recomputed_activations_give_the_same_training(tmp_path):
    found = []
    for recomputed in (False, True):
        trainer = small_trainer(tmp_path / str(recomputed), gradient_checkpointing=recomputed)
        step, losses = trainer.training_step, []
        trainer.training_step = lambda *given, step=step, losses=losses: (
            losses.append(step(*given)) or losses[-1]
        )
        trainer.args.max_steps, trainer.args.save_strategy = 3, "no"
        trainer.train()
        assert trainer.model.is_activation_checkpointing == recomputed
        found.append(torch.stack(losses))
    assert len({*found[0].tolist()}) == 3
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)


def test_packs_are_sized_by_what_the_base_leaves(tmp_path, monkeypatch):
    sized = []

    def budget(device, config):
        sized.append(str(device))
        return 256

    monkeypatch.setattr(module, "pack_budget", budget)
    trainer = small_trainer(tmp_path / "default")
    assert (trainer.data_collator.budget, trainer._eval_collator.budget) == (256, 256)
    assert len(sized) == 2  # before there is a model, and then by it
    assert small_trainer(tmp_path / "set", tokens_per_pack=512).data_collator.budget == 512
    assert len(sized) == 2
