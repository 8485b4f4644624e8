"""Training steps on a CPU: attention in parts, adapters in place, oneDNN's products, or without.

    python benchmarks/cpu_training.py --repeats 7

SmolLM2-135M-Instruct, LoRA (r = 16) on all linear layers, float32, one batch of each shape. The
ways take turns on the same batch, so that what else the machine does meets all of them; ratios are
medians over the turns. Losses and the norms of the gradients stand beside them: they are the same.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from shapes import make_items, rubric_of
from slm_judge.training import lora
from slm_judge.training import trainer as training
from slm_judge.training.facts import base_settings
from slm_judge.training.model import Learner
from slm_judge.training.targets import Targets
from slm_judge.training.trainer import SlotTrainer

from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.device import full_width
from slm_judge.artefact.judge_files import Contract
from slm_judge.recipe import DataConfig, LoraConfig, Recipe, TrainingConfig
from slm_judge.run import Run

BEFORE, AFTER = "dense mask, PEFT's layers", "and oneDNN where MKL is slower"
WAYS = {
    BEFORE: (False, False, False),
    "rows in parts": (True, False, False),
    "rows in parts, adapters in place": (True, True, False),
    AFTER: (True, True, True),
}


def trainer_of(data: str, batch: int, layers: float) -> tuple[SlotTrainer, list[dict[str, Any]]]:
    """A trainer, and the packs of one batch."""
    recipe = Recipe(
        name="benchmark", base="smollm2", rubric="-", quantization="none",
        data=DataConfig(train="-"),
        lora=LoraConfig(dropout=0.0, layers=layers),
        training=TrainingConfig(batch_size=batch, device="cpu"),
    )  # fmt: skip
    tokenizer, items = load_tokenizer(recipe.base), make_items(data, batch)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    contract = Contract.build(rubric_of(data), tokenizer)
    learner = Learner(
        recipe, Run(Path(tempfile.mkdtemp())), base_settings(recipe), contract, tokenizer,
        {"train": items, "validation": items}, Targets(items, contract.rubric, "soft"),
    )  # fmt: skip
    packs = learner.collator(list(learner.train))["packs"]
    return learner.trainer(evaluate=False), packs


def step(trainer: SlotTrainer, packs: list[dict[str, Any]], way: str) -> tuple[float, float, float]:
    """Seconds, loss and the gradients' norm of one batch."""
    trainer._by_rows, in_place, wide = WAYS[way]
    vars(training)["full_width"] = products = full_width if wide else nullcontext
    plain, lora._in_place = lora._in_place, lora._in_place if in_place else lambda *_: False
    trainer.model.zero_grad()
    started, total = time.perf_counter(), 0.0
    with products("cpu"):
        for pack in packs:
            loss = trainer._pack_loss(trainer.model, pack, trainer._loss)[0]
            loss.backward()
            total += loss.item()
    seconds = time.perf_counter() - started
    lora._in_place = plain
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return seconds, total, float(torch.nn.utils.get_total_norm(gradients))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["goemotions", "popquorn"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=float, default=1.0, help="lora.layers")
    arguments = parser.parse_args()
    print("| data | way | rows/s | times | loss | gradients |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for data in arguments.data:
        trainer, packs = trainer_of(data, arguments.batch, arguments.layers)
        trainer.model.train()
        for way in WAYS:  # the first turn is not counted
            step(trainer, packs, way)
        turns = [{way: step(trainer, packs, way) for way in WAYS} for _ in range(arguments.repeats)]
        for way in WAYS:
            seconds = statistics.median(turn[way][0] for turn in turns)
            times = statistics.median(turn[BEFORE][0] / turn[way][0] for turn in turns)
            _, loss, norm = turns[0][way]
            print(
                f"| {data} | {way} | {arguments.batch / seconds:.2f} | {times:.2f} | "
                f"{loss / arguments.batch:.4f} | {norm:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
