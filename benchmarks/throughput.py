"""Rows a second: both engines of slm-judge, beside what one would use without it.

    python benchmarks/throughput.py --model 0.6b --data goemotions
    python benchmarks/throughput.py --model 1.7b --device cuda --dtype bfloat16 nf4   # GPU

Random weights of the named shape, the same rows for all. Peers: llama-cpp-python's
`create_completion` row by row with the rubric first (it keeps the rubric in its cache), stock
`pipeline("decision")`, and batched `pipeline("text-generation")` with one new token. The ceiling of
llama.cpp is `llama_decode` of 512 fresh tokens on an empty context, in the same process. Ours is
measured without the second look at near ties, nearly all rows on random weights: a trained
judge gives a few percent of its rows to what is called exact here (benchmarks/determinism.py).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import DATA, MODELS, judge_folder, judge_gguf, make_items, rubric_of

from slm_judge import Judge
from slm_judge.backends.gguf import GgufBackend
from slm_judge.prompt.readers import DecisionReader
from slm_judge.text import MARK

_LONG_ROWS = 1 / 16  # rows of the long shape for each of the short one


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median over repeats, after one warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def unique_tokens(judge: Judge, states: list[dict[str, str]]) -> int:
    """Tokens of the rows alone, without the rubric."""
    prompts = judge.backend.reader.encode(states)
    return sum(len(prompt.input_ids) - len(judge.backend.reader.prefix) for prompt in prompts)


def llama_ceiling(backend: GgufBackend, repeats: int) -> float:
    """Tokens a second of `llama_decode` with 512 fresh tokens and one output."""
    import llama_cpp

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = backend._n_threads
    context = llama_cpp.llama_init_from_model(backend._model, params)
    memory = llama_cpp.llama_get_memory(context)
    rng = np.random.default_rng(0)
    tokens = (llama_cpp.llama_token * 512)(*rng.integers(100, 50_000, 512).tolist())

    def decode() -> None:
        llama_cpp.llama_memory_clear(memory, True)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, 512)) == 0

    seconds = median_seconds(decode, repeats)
    llama_cpp.llama_free(context)
    return 512 / seconds


def run_judge(judge: Judge, states: list[dict[str, str]], repeats: int) -> dict[str, float]:
    """Ours."""
    seconds = median_seconds(lambda: judge.annotate(states), repeats)
    tokens = unique_tokens(judge, states)
    return {"rows_per_second": len(states) / seconds, "tokens_per_second": tokens / seconds}


def run_llama_cpp_python(
    path: Path, prompts: list[str], repeats: int, keep: bool = True
) -> dict[str, float]:
    """`create_completion`, one prompt after the other.

    By itself it keeps what a prompt shares with the one before, so also the rubric; `keep=False`
    clears that, which is what one pays where calls alternate between rubrics.
    """
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=4096, n_batch=512, verbose=False)

    def complete() -> None:
        for prompt in prompts:
            if not keep:
                model.reset()
            model.create_completion(prompt, max_tokens=1, temperature=0)

    return {"rows_per_second": len(prompts) / median_seconds(complete, repeats)}


def run_decision(folder: Path, states: list[Any], options: Any, repeats: int) -> dict[str, float]:
    """Stock `pipeline("decision")`."""
    from transformers import pipeline

    from slm_judge.artefact.judge_files import Contract

    judge = pipeline("decision", model=str(folder), **options)
    questions = Contract.load(folder).rubric.questions()
    requests = [{"state": state, "questions": questions} for state in states]
    return {"rows_per_second": len(states) / median_seconds(lambda: judge(requests), repeats)}


def run_generation(
    folder: Path, prompts: list[str], options: Any, batch_size: int, repeats: int
) -> dict[str, float]:
    """Stock `pipeline("text-generation")`, batched."""
    from transformers import pipeline

    generate = pipeline("text-generation", model=str(folder), **options)
    generate.tokenizer.padding_side = "left"

    def work() -> None:
        generate(
            prompts, batch_size=batch_size, max_new_tokens=1, do_sample=False,
            return_full_text=False,
        )  # fmt: skip

    return {"rows_per_second": len(prompts) / median_seconds(work, repeats)}


def model_options(dtype: str, device: str) -> dict[str, Any]:
    """Arguments of `pipeline` for a dtype."""
    import torch
    from transformers import BitsAndBytesConfig

    if dtype != "nf4":
        return {"dtype": getattr(torch, dtype), "device": device}
    compute = torch.bfloat16 if device == "cuda" else torch.float32
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )
    return {"dtype": compute, "device_map": {"": device},
            "model_kwargs": {"quantization_config": config}}  # fmt: skip


def transformers_judge(folder: Path, dtype: str, device: str) -> Judge:
    """Our engine on the same weights and dtype as the pipelines."""
    from transformers import AutoModelForCausalLM

    from slm_judge.artefact.base import in_float32, load_tokenizer
    from slm_judge.artefact.judge_files import Contract
    from slm_judge.backends.transformers import TransformersBackend

    options = model_options(dtype, device)
    options = {"dtype": options["dtype"], **options.get("model_kwargs", {})}
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, **options)
    if device == "cpu" and dtype == "nf4":
        model = in_float32(model)
    return Judge(TransformersBackend(model, load_tokenizer(folder), Contract.load(folder), folder))


def measure(arguments: argparse.Namespace, data: str) -> dict[str, dict[str, float]]:
    """All methods on one data shape."""
    rubric = rubric_of(data)
    share = 1 if data == "goemotions" else _LONG_ROWS
    states = [item.state for item in make_items(data, max(2, round(share * arguments.rows)))]
    few = states[: max(2, round(share * arguments.peer_rows))]  # else one row is all cached
    folder = judge_folder(arguments.model, data)
    results: dict[str, dict[str, float]] = {}

    def note(name: str, figures: dict[str, float]) -> None:
        results[name] = figures
        print(f"{data}: {name}: {figures}", flush=True)

    if "gguf" in arguments.engines:
        path = judge_gguf(arguments.model, data)
        with Judge.from_pretrained(path) as judge:
            note("llama.cpp ceiling",
                 {"tokens_per_second": llama_ceiling(judge.backend, arguments.repeats)})  # type: ignore[arg-type] # fmt: skip
            judge.backend.near_tie = 0.0  # on random weights, all rows are near ties
            note("slm-judge, gguf", run_judge(judge, states, arguments.repeats))
            judge.exact = True
            note("slm-judge, gguf, exact", run_judge(judge, states, arguments.repeats))
            contract = judge.backend.contract
            prompts = [judge.backend.reader.render(state) for state in few]  # type: ignore[attr-defined]
            if len(rubric.dimensions) > 1:  # a completion answers one line
                prompts = [p for state in few for p in (
                    judge.backend.reader.render(state, d.name)  # type: ignore[attr-defined]
                    for d in rubric.dimensions)]  # fmt: skip
        for keep in (True, False):
            figures = run_llama_cpp_python(path, prompts, arguments.repeats, keep)
            figures["rows_per_second"] /= len(prompts) / len(few)
            name = "llama-cpp-python create_completion"
            note(name if keep else f"{name}, nothing kept", figures)
    if "transformers" in arguments.engines:
        for dtype in arguments.dtype:
            with transformers_judge(folder, dtype, arguments.device) as judge:
                judge.backend.near_tie = 0.0
                note(
                    f"slm-judge, transformers {dtype}", run_judge(judge, states, arguments.repeats)
                )
                contract = judge.backend.contract
            options = model_options(dtype, arguments.device)
            figures = run_decision(folder, few, options, arguments.repeats)
            note(f'pipeline("decision") {dtype}', figures)
            reader = DecisionReader(
                judge.backend.reader.tokenizer, contract.decision_template, rubric, contract.labels
            )  # type: ignore[attr-defined]
            prompts = [reader.render(state).split(MARK)[0] for state in few]
            figures = run_generation(folder, prompts, options, 32, arguments.repeats)
            note(f'pipeline("text-generation") {dtype}, first dimension only', figures)
    return results


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown; ratios to our engine of the same kind."""
    lines = ["| data | method | rows/s | unique tokens/s |", "| --- | --- | ---: | ---: |"]
    for data, methods in results.items():
        for name, figures in methods.items():
            rows = f"{figures['rows_per_second']:.2f}" if "rows_per_second" in figures else ""
            tokens = f"{figures['tokens_per_second']:.0f}" if "tokens_per_second" in figures else ""
            lines.append(f"| {data} | {name} | {rows} | {tokens} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="0.6b")
    parser.add_argument("--data", choices=DATA, nargs="+", default=["goemotions"])
    parser.add_argument("--engines", nargs="+", default=["gguf", "transformers"])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16, nf4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--peer-rows", type=int, default=16, help="rows for the slower peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = {data: measure(arguments, data) for data in arguments.data}
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
