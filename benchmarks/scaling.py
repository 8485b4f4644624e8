"""How the time of a row grows with the number of rows, the rubric's length and the item's length.

    python benchmarks/scaling.py --model 0.6b

Random weights. Each figure is seconds a row, median of repeats; beside it, the tokens that had to
be computed a row, so that what is not explained by tokens shows.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shapes import _WORDS, MODELS, judge_folder, judge_gguf, rubric_of

from slm_judge import Judge
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends.transformers import TransformersBackend
from slm_judge.rubric import Rubric


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median over repeats, after one warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def items(n: int, words: int) -> list[dict[str, str]]:
    """Different items of a length."""
    return [{"text": f"{i} " + " ".join(_WORDS[(i + k) % 80] for k in range(words))}
            for i in range(n)]  # fmt: skip


def measure(judge: Judge, states: list[dict[str, str]], repeats: int) -> dict[str, Any]:
    """Without the near ties, which on random weights are most rows."""
    judge.backend.near_tie = 0.0
    prompts = judge.backend.reader.encode(states)
    own = sum(len(p.input_ids) for p in prompts) / len(prompts) - len(judge.backend.reader.prefix)
    seconds = median_seconds(lambda: list(judge.decide(prompts)), repeats)
    return {
        "rows": len(states), "rubric_tokens": len(judge.backend.reader.prefix),
        "item_tokens": round(own, 1),
        "milliseconds_per_row": round(1000 * seconds / len(states), 1),
        "tokens_per_second": round(own * len(states) / seconds, 1),
    }  # fmt: skip


def with_rubric(judge: Judge, sentences: int) -> Judge:
    """The same model asked a longer rubric."""
    backend: Any = judge.backend
    raw = rubric_of("goemotions").model_dump()
    raw["instructions"] += " Take the words as they stand, and judge the text alone." * sentences
    contract = Contract.build(Rubric.model_validate(raw), backend._tokenizer)
    return Judge(TransformersBackend(backend.model, backend._tokenizer, contract, backend.path))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="0.6b")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}

    def note(name: str, figures: dict[str, Any]) -> None:
        results.setdefault(name, []).append(figures)
        print(name, figures, flush=True)

    with Judge.from_pretrained(judge_gguf(arguments.model, "goemotions")) as judge:
        for n in (16, 64, 256):
            note("gguf, rows", measure(judge, items(n, 18), arguments.repeats))
        for words, n in ((10, 96), (40, 48), (160, 16), (640, 4)):
            note("gguf, item length", measure(judge, items(n, words), arguments.repeats))
    with Judge.from_pretrained(judge_folder(arguments.model, "goemotions")) as judge:
        for sentences in (0, 15, 60, 120):
            longer = with_rubric(judge, sentences)
            found = measure(longer, items(64, 18), arguments.repeats)
            note("transformers, rubric length", found)
    keys = ("rows", "rubric_tokens", "item_tokens", "milliseconds_per_row", "tokens_per_second")
    print(f"\n| | {' | '.join(keys)} |\n| --- |{' ---: |' * len(keys)}")
    for name, rows in results.items():
        for row in rows:
            print(f"| {name} | {' | '.join(str(row[key]) for key in keys)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
