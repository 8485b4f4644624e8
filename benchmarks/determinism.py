"""How much a row's answer depends on what is computed beside it, and what the remedy costs.

    python benchmarks/determinism.py --model runs/goemotions/gguf \
        --rows ../shared/data/goemotions_dev.csv
    python benchmarks/determinism.py --shape 0.6b --limit 300      # random weights

The reference computes each row alone. Every other setting is compared with it: how far the
difference between the two best labels moves (the noise, in logits), how many labels flip, and how
many still flip when rows nearer to a tie than the engine's bound are computed alone.
"""

import argparse
import json
import random
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from shapes import judge_folder, judge_gguf, make_items

from slm_judge import Judge
from slm_judge.artefact.device import full_width
from slm_judge.backends import transformers
from slm_judge.data.tables import read_table
from slm_judge.data.text import item_state
from slm_judge.judge.answer import gap
from slm_judge.prompt.readers import EncodedPrompt

Answers = list[list[np.ndarray[Any, Any]]]


def answers(judge: Judge, prompts: list[EncodedPrompt], **options: Any) -> tuple[Answers, float]:
    """Logits in order, and seconds."""
    found: list[Any] = [None] * len(prompts)
    started = time.perf_counter()
    for index, logits in judge.backend.run(prompts, **options):
        found[index] = logits
    return found, time.perf_counter() - started


def compare(reference: Answers, other: Answers, bound: float) -> dict[str, float]:
    """Noise and flips of `other`."""
    moves, flips, missed, close, probability = [], 0, 0, 0, []
    for ours, theirs in zip(reference, other, strict=True):
        near = any(gap(row) < bound for row in theirs)
        close += near
        for a, b in zip(ours, theirs, strict=True):
            first, second = np.argsort(a)[[-1, -2]]
            moves.append(abs((a[first] - a[second]) - (b[first] - b[second])))
            p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (a, b))
            probability.append(np.abs(p - q).max())
            flipped = int(np.argmax(a) != np.argmax(b))
            flips += flipped
            missed += flipped and not near
    return {
        "noise_mean": float(np.mean(moves)), "noise_max": float(np.max(moves)),
        "probability_max": float(np.max(probability)), "flips": flips,
        "near_ties": close / len(reference), "flips_left": missed,
    }  # fmt: skip


def settings(path: Path, kind: str) -> dict[str, dict[str, Any]]:
    """What is compared with rows alone."""
    if kind == "gguf":
        return {
            "alone, shuffled": {"alone": True, "shuffle": True},
            "alone, 1 thread": {"alone": True, "n_threads": 1},
            **{f"{n} rows at a time": {"n_sequences": n} for n in (8, 32, 64)},
            "32 rows, shuffled": {"n_sequences": 32, "shuffle": True},
            "32 rows, 1 thread": {"n_sequences": 32, "n_threads": 1},
            "32 rows, no flash attention": {"n_sequences": 32, "flash_attention": False},
        }
    return {
        "alone, shuffled": {"alone": True, "shuffle": True},
        **{f"packs of {n} tokens": {"tokens": n} for n in (256, 1024, 4096)},
        "packs of 1024, shuffled": {"tokens": 1024, "shuffle": True},
        "packs of 1024, MKL's products": {"tokens": 1024, "narrow": True},
    }


def load(path: Path, kind: str, options: dict[str, Any]) -> Judge:
    """The judge with an engine's options."""
    if kind == "gguf":
        from slm_judge.backends.gguf import GgufBackend

        names = ("n_sequences", "n_threads", "flash_attention")
        return Judge(GgufBackend(path, **{k: options[k] for k in names if k in options}))
    vars(transformers)["full_width"] = nullcontext if options.get("narrow") else full_width
    judge = Judge.from_pretrained(path, dtype=options.get("dtype"))
    judge.backend.tokens_per_pack = options.get("tokens", 1024)  # type: ignore[attr-defined]
    return judge


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a judge's folder or .gguf file")
    parser.add_argument("--shape", help="instead: random weights of this shape")
    parser.add_argument("--engine", choices=["gguf", "transformers"], default="gguf")
    parser.add_argument("--rows", help="table with the rubric's fields")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="transformers")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.shape:
        make = judge_gguf if arguments.engine == "gguf" else judge_folder
        path = make(arguments.shape, "goemotions")
    else:
        path = arguments.model
    given = {"dtype": arguments.dtype}
    with load(path, arguments.engine, given) as judge:
        if arguments.rows:
            rows = read_table(arguments.rows).rows[: arguments.limit]
            states = [item_state(judge.rubric, row) for row in rows]
        else:
            states = [item.state for item in make_items("goemotions", arguments.limit)]
        prompts = judge.backend.reader.encode(states)
        reference, alone = answers(judge, prompts, alone=True)
        bound = judge.backend.noise
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)  # noqa: S311
    results: dict[str, dict[str, float]] = {"alone": {"seconds": alone}}
    print(f"{path}: {len(prompts)} rows, bound {bound} logits, alone {alone:.1f} s\n")
    names = ("setting", "noise mean", "noise max", "probability max", "flips", "near ties",
             "flips left", "time")  # fmt: skip
    print(f"| {' | '.join(names)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, options in settings(path, arguments.engine).items():
        chosen = order if options.get("shuffle") else list(range(len(prompts)))
        with load(path, arguments.engine, options | given) as judge:
            found, seconds = answers(
                judge, [prompts[i] for i in chosen], alone=options.get("alone", False)
            )
        inverse = np.argsort(chosen)
        row = compare(reference, [found[i] for i in inverse], bound) | {"seconds": seconds}
        results[name] = row
        print(f"| {name} | {row['noise_mean']:.2g} | {row['noise_max']:.2g} | "
              f"{row['probability_max']:.2g} | {row['flips']:.0f} | {row['near_ties']:.3f} | "
              f"{row['flips_left']:.0f} | {seconds / alone:.2f} |", flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
