"""Training speed and memory: packed behind one rubric, against TRL's SFTTrainer.

    python benchmarks/training.py --model 0.6b --data goemotions          # on a CPU
    python benchmarks/training.py --model 1.7b --data goemotions answer-quality --steps 10   # GPU

Both train the same LoRA on the same base (random weights of the named shape), NF4 where
`--quantization nf4`, on the same rows, each in a process of its own so that peaks of memory do not
mix. SFTTrainer gets prompt-completion data, the usual way to fine-tune a judge, with the loss on
the completion alone: as it comes, which recomputes activations in the backward pass, and without
that (`kept`), which is faster where memory lasts: padded, without padding, and with its own packing
into 1024 tokens, where a step takes about as many rows. Quote the first and the best of the others.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shapes import DATA, MODELS, base_of, make_items, rubric_of
from transformers import TrainerCallback

from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item
from slm_judge.prompt.readers import DecisionReader
from slm_judge.recipe import DataConfig, LoraConfig, Recipe, TrainingConfig
from slm_judge.run import Run
from slm_judge.text import MARK

THEIRS = "SFTTrainer"
METHODS = ("slm-judge", THEIRS, *(f"{THEIRS}, kept{more}" for more in
           ("", ", padding_free", ", packing")))  # fmt: skip


class StepTimes(TrainerCallback):
    """Seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)


def recipe_of(arguments: argparse.Namespace, data: str) -> Recipe:
    """The paper's setting."""
    return Recipe(
        name="benchmark",
        base=str(base_of(arguments.model)),
        rubric="-",
        quantization=arguments.quantization,
        data=DataConfig(train="-"),
        lora=LoraConfig(),
        training=TrainingConfig(
            batch_size=arguments.batch,
            epochs=1,
            warmup_share=0,
            tokens_per_pack=arguments.tokens_per_pack,
            gradient_checkpointing=arguments.gradient_checkpointing,
        ),
    )


def ours(recipe: Recipe, run: Run, data: str, items: list[Item]) -> tuple[Any, float, float]:
    """Our trainer, tokens processed a row, and rows a step."""
    from slm_judge.training.facts import base_settings
    from slm_judge.training.model import Learner
    from slm_judge.training.targets import Targets

    base, contract, tokenizer = base_settings(recipe), *contract_of(recipe, data)
    targets = Targets(items, contract.rubric, "soft")
    splits = {"train": items, "validation": items[: recipe.training.batch_size]}
    learner = Learner(recipe, run, base, contract, tokenizer, splits, targets)
    trainer = learner.trainer(evaluate=False)  # which sizes the packs
    batch = learner.collator([learner.train[i] for i in range(recipe.training.batch_size)])
    tokens = sum(pack["inputs"]["input_ids"].numel() for pack in batch["packs"])
    n = recipe.training.batch_size
    return trainer, tokens / n, n


def theirs(
    recipe: Recipe, run: Run, data: str, items: list[Item], method: str
) -> tuple[Any, float, float]:
    """SFTTrainer on prompt-completion pairs, tokens a row (with padding), and rows a step."""
    from datasets import Dataset
    from peft import LoraConfig as PeftLora
    from peft import get_peft_model
    from slm_judge.training.arguments import training_arguments
    from slm_judge.training.facts import base_settings
    from trl import SFTTrainer

    from slm_judge.artefact.base import load_base

    base, contract, tokenizer = base_settings(recipe), *contract_of(recipe, data)
    rubric = contract.rubric
    reader = DecisionReader(tokenizer, contract.decision_template, rubric, contract.labels)
    rows = []
    for item in items:
        prompt, *slots = reader.render(item.state).split(MARK)[:-1]
        answers = [f" {contract.labels[next(iter(item.votes[d.name].values()))]}"
                   for d in rubric.dimensions]  # fmt: skip
        completion = answers[0] + "".join(
            slot + answer for slot, answer in zip(slots, answers[1:], strict=True)
        )
        rows.append({"prompt": prompt, "completion": completion})
    arguments = training_arguments(recipe, run, base, evaluate=False)
    arguments.dataset_kwargs = None
    # The first is what the trainer reads; TRL asks for the older name.
    arguments.activation_checkpointing = arguments.gradient_checkpointing = method == THEIRS
    arguments.padding_free = method.endswith("padding_free")
    if method.endswith("packing"):
        arguments.packing, arguments.max_length = True, 1024
        sizes = [len(ids) for ids in tokenizer([r["prompt"] for r in rows])["input_ids"]]
        steps = recipe.training.batch_size * statistics.mean(sizes) / 1024
        arguments.per_device_train_batch_size = max(round(steps), 1)
    model = load_base(base, base.device, base.dtype)
    lora = PeftLora(r=recipe.lora.r, lora_alpha=recipe.lora.alpha,
                    lora_dropout=recipe.lora.dropout, target_modules="all-linear",
                    task_type="CAUSAL_LM")  # fmt: skip
    arguments.label_names = None
    arguments.remove_unused_columns = True
    trainer = SFTTrainer(
        model=get_peft_model(model, lora),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batches = list(trainer.get_train_dataloader())
    starts = [
        b["position_ids"] == 0 if "position_ids" in b else b["input_ids"][:, 0] for b in batches
    ]
    n = sum(int(b.sum()) if b.dtype == torch.bool else len(b) for b in starts) / len(batches)
    tokens = sum(batch["input_ids"].numel() for batch in batches) / len(batches)
    return trainer, tokens / n, n


def contract_of(recipe: Recipe, data: str) -> tuple[Contract, Any]:
    """Contract and tokenizer."""
    from slm_judge.artefact.base import load_tokenizer

    tokenizer = load_tokenizer(recipe.base)
    return Contract.build(rubric_of(data), tokenizer), tokenizer


def measure(arguments: argparse.Namespace, method: str, data: str) -> dict[str, Any]:
    """Train a few steps."""
    recipe = recipe_of(arguments, data)
    items = make_items(data, arguments.batch * (arguments.steps + 1))
    with tempfile.TemporaryDirectory() as folder:
        make = ours if method == "slm-judge" else partial(theirs, method=method)
        trainer, tokens, n = make(recipe, Run(Path(folder)), data, items)
        trainer.args.max_steps = arguments.steps + 1
        trainer.args.save_strategy = "no"
        times = StepTimes()
        trainer.add_callback(times)
        trainer.train()
        recomputes = trainer.accelerator.unwrap_model(trainer.model).is_activation_checkpointing
        told = arguments.gradient_checkpointing if method == METHODS[0] else method == THEIRS
        assert recomputes == told, method
    step = statistics.median(times.seconds[1:])
    on_gpu = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "method": method, "model": arguments.model, "data": data, "batch": round(n, 1),
        "quantization": arguments.quantization, "tokens_per_row": round(tokens, 1),
        "seconds_per_step": round(step, 4), "rows_per_second": round(n / step, 3),
        "tokens_per_second": round(n * tokens / step, 1),
        "peak_gib": round(peak / 2**30, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown, ours beside theirs."""
    lines = [
        "| model | data | method | tokens/row | rows/s | tokens/s | peak GiB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} {row['quantization']} | {row['data']} | {row['method']} | "
            f"{row['tokens_per_row']:.0f} | {row['rows_per_second']:.2f} | "
            f"{row['tokens_per_second']:.0f} | {row['peak_gib']:.1f} |"
        )
    for a in rows:
        for b in rows:
            if a["method"] == METHODS[0] != b["method"] and a["data"] == b["data"]:
                lines.append(
                    f"\n{a['data']}, beside {b['method']}: "
                    f"{b['tokens_per_row'] / a['tokens_per_row']:.1f} times fewer tokens, "
                    f"{a['rows_per_second'] / b['rows_per_second']:.1f} times the rows a second"
                )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="0.6b")
    parser.add_argument("--data", choices=DATA, nargs="+", default=["goemotions"])
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens-per-pack", type=int)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # method and data: this process
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments, *arguments.only)))
        return
    base_of(arguments.model)  # built before the measurements
    rows = []
    for data in arguments.data:
        for method in arguments.methods:
            command = [sys.executable, *sys.argv, "--only", method, data]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if result.returncode:
                print(f"{data}: {method} failed")  # its traceback stands above
                continue
            rows.append(json.loads(result.stdout.strip().splitlines()[-1]))
            print(rows[-1], flush=True)
    print(report(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
