"""Training steps on a CPU: attention in parts, adapters in place, oneDNN's products, or without.

    python benchmarks/cpu_training.py --repeats 7
    python benchmarks/cpu_training.py --settings          # tokens of a pack, bfloat16, threads

SmolLM2-135M-Instruct, LoRA (r = 16) on all linear layers, float32, one batch of each shape. The
ways take turns on the same batch, so that what else the machine does meets all of them; ratios are
medians over the turns. Losses and the norms of the gradients stand beside them: they are the same.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
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

WAYS = {
    "dense mask, PEFT's layers": (False, False, False),
    "rows in parts": (True, False, False),
    "rows in parts, adapters in place": (True, True, False),
    "and oneDNN where MKL is slower": (True, True, True),
}


SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes: 1,024 tokens a pack": {},
    **{f"{n:,} tokens a pack": {"tokens_per_pack": n} for n in (512, 2048, 4096)},
    "bfloat16": {"dtype": "bfloat16"},
    "one thread": {},
}


def trainer_of(
    data: str, batch: int, layers: float, **settings: Any
) -> tuple[SlotTrainer, list[dict[str, Any]]]:
    """A trainer, and the packs of one batch."""
    recipe = Recipe(
        name="benchmark", base="smollm2", rubric="-", quantization="none",
        data=DataConfig(train="-"),
        lora=LoraConfig(dropout=0.0, layers=layers),
        training=TrainingConfig(batch_size=batch, device="cpu", **settings),
    )  # fmt: skip
    tokenizer, items = load_tokenizer(recipe.base), make_items(data, batch)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    contract = Contract.build(rubric_of(data), tokenizer)
    learner = Learner(
        recipe, Run(Path(tempfile.mkdtemp())), base_settings(recipe), contract, tokenizer,
        {"train": items, "validation": items}, Targets(items, contract.rubric, "soft"),
    )  # fmt: skip
    packs = learner.collator(list(learner.train))["packs"]
    trainer = learner.trainer(evaluate=False)
    trainer.model.train()
    return trainer, packs


def step(trainer: SlotTrainer, packs: list[dict[str, Any]], way: str) -> tuple[float, float, float]:
    """Seconds, loss and the gradients' norm of one batch."""
    trainer._by_rows, in_place, wide = WAYS[way]
    vars(training)["full_width"] = products = full_width if wide else nullcontext
    plain, lora._in_place = lora._in_place, lora._in_place if in_place else lambda *_: False
    with products("cpu"):
        found = usual_step(trainer, packs)
    lora._in_place = plain
    return found


def usual_step(trainer: SlotTrainer, packs: list[dict[str, Any]]) -> tuple[float, float, float]:
    """As `step`, as the trainer is."""
    trainer.model.zero_grad()
    started, total = time.perf_counter(), 0.0
    for pack in packs:
        with trainer.compute_loss_context_manager():
            loss = trainer._pack_loss(trainer.model, pack, trainer._loss)[0]
        loss.backward()
        total += loss.item()
    seconds = time.perf_counter() - started
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return seconds, total, float(torch.nn.utils.get_total_norm(gradients))


def with_threads(name: str, trainer: SlotTrainer, packs: Any) -> tuple[float, float, float]:
    """`usual_step` with the threads of one of `SETTINGS`."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1 if name == "one thread" else usual)
    try:
        with full_width("cpu"):
            return usual_step(trainer, packs)
    finally:
        torch.set_num_threads(usual)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["goemotions", "popquorn"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=float, default=1.0, help="lora.layers")
    parser.add_argument("--settings", action="store_true", help="compare settings, not ways")
    arguments = parser.parse_args()
    print("| data | way | rows/s | times | loss | gradients |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for data in arguments.data:
        tried: dict[str, Callable[[], tuple[float, float, float]]]
        if arguments.settings:
            tried = {
                name: partial(
                    with_threads,
                    name,
                    *trainer_of(data, arguments.batch, arguments.layers, **given),
                )
                for name, given in SETTINGS.items()
            }
        else:
            trainer, packs = trainer_of(data, arguments.batch, arguments.layers)
            tried = {way: partial(step, trainer, packs, way) for way in WAYS}
        first = next(iter(tried))
        for measure in tried.values():  # the first turn is not counted
            measure()
        turns = [
            {name: measure() for name, measure in tried.items()} for _ in range(arguments.repeats)
        ]
        for name in tried:
            seconds = statistics.median(turn[name][0] for turn in turns)
            times = statistics.median(turn[first][0] / turn[name][0] for turn in turns)
            _, loss, norm = turns[0][name]
            print(
                f"| {data} | {name} | {arguments.batch / seconds:.2f} | {times:.2f} | "
                f"{loss / arguments.batch:.4f} | {norm:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
