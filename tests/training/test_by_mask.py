"""What a trainer does where attention goes by the mask, as on a GPU."""

import torch

from tests.conftest import small_trainer


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
