"""All that a GPU should show, in one command: ceilings, tests, annotation, determinism, training.

    python benchmarks/gpu.py runs/gpu --minutes 8      # as much as fits, the most wanted first
    python benchmarks/gpu.py runs/gpu --only annotation --models 0.6b

Shapes of Qwen3-0.6B and Qwen3-1.7B with random weights, in one process, so that starting costs no
time of the GPU. Each figure lands in the folder (figures.jsonl) as soon as it is there; a part that
fails or runs out of time does not stop the others. Answers of random weights are near ties, so
rows a second are those without a second look at them, and a peer's labels are compared but for
near ties. Of the peak means: products of the rows' own tokens with the model's layers, by the rate
of a large product of the same type.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from determinism import answers, compare
from shapes import MODELS, judge_folder, make_items
from throughput import model_options, versions

import training
from slm_judge import Judge
from slm_judge.artefact.base import load_tokenizer
from slm_judge.artefact.judge_files import Contract
from slm_judge.backends.transformers import TransformersBackend
from slm_judge.judge.answer import gap

HERE, DATA = Path(__file__).parent, ("goemotions", "answer-quality")
Figures = Iterator[dict[str, Any]]
Clock = Callable[[], float]
"""Seconds that are left."""


def seconds(work: Callable[[], object], least: float = 1.0) -> float:
    """Median of a call, after one that is not counted."""
    work()
    found = list[float]()
    while len(found) < 3 or sum(found) < least:
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def peak(dtype: torch.dtype = torch.bfloat16) -> float:
    """TFLOP a second of a large product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * 8192**3 / seconds(lambda: a @ b) / 1e12


def layers_of(model: Any) -> int:
    """Weights that every token is multiplied with: those of the layers."""
    shape = model.config
    head = shape.head_dim * (2 * shape.num_attention_heads + 2 * shape.num_key_value_heads)
    wide = shape.hidden_size * (head + 3 * shape.intermediate_size)
    return int(wide * shape.num_hidden_layers)


def ceilings(given: argparse.Namespace, left: Clock) -> Figures:
    """What the card does at best."""
    x = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    y = torch.empty_like(x)
    copied = 2 * x.numel() / seconds(lambda: y.copy_(x)) / 1e12
    yield {"bfloat16, TFLOP/s": peak(), "float16, TFLOP/s": peak(torch.float16), "TB/s": copied}


def tests(given: argparse.Namespace, left: Clock) -> Figures:
    """`make test-gpu`."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/gpu"]
    with (given.folder / "tests.log").open("w") as log:
        code = subprocess.run(
            [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, check=False,
            timeout=left(), cwd=HERE.parent,
        ).returncode  # fmt: skip
    said = (given.folder / "tests.log").read_text().strip().splitlines()
    yield {"exit code": code, "said": said[-1] if said else ""}


def load(size: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer, on the GPU."""
    from transformers import AutoModelForCausalLM

    folder, options = judge_folder(size, DATA[0]), model_options(dtype, "cuda")
    model = AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": "cuda"}, attn_implementation="sdpa",
        **{"dtype": options["dtype"], **options.get("model_kwargs", {})},
    )  # fmt: skip
    return model.eval(), load_tokenizer(folder)


def judge_of(model: Any, tokenizer: Any, folder: Path, compiled: bool = False) -> Judge:
    """Without a second look."""
    model.set_attn_implementation("sdpa")
    contract = Contract.load(folder)
    judge = Judge(TransformersBackend(model, tokenizer, contract, folder, compile=compiled))
    judge.backend.near_tie = 0.0
    return judge


def annotation(given: argparse.Namespace, left: Clock) -> Figures:
    """Rows a second of ours, by rows and by the mask, and of pipelines."""
    ceiling = peak()
    for size in given.models:
        for dtype in ("bfloat16", "nf4") if size == given.models[0] else ("bfloat16",):
            model, tokenizer = load(size, dtype)
            for data in DATA:
                if left() < 15:
                    return
                yield from _annotation(given, model, tokenizer, size, dtype, data, ceiling)
            del model
            free()


def _annotation(
    given: argparse.Namespace, model: Any, tokenizer: Any, size: str, dtype: str, data: str,
    ceiling: float,
) -> Figures:  # fmt: skip
    folder = judge_folder(size, data)
    states = [item.state for item in make_items(data, given.items[DATA.index(data)])]
    known = {"model": size, "dtype": dtype, "data": data}
    reference: dict[int, Any] = {}

    def noted(method: str, rate: float, tokens: float, **more: Any) -> dict[str, Any]:
        share = rate * tokens * 2 * layers_of(model) / 1e12 / ceiling
        return {**known, "method": method, "rows/s": rate, "own tokens/s": rate * tokens,
                "of the peak": share, **more}  # fmt: skip

    for method in ("by rows", "by the mask", "by rows, compiled"):
        started = time.perf_counter()
        judge = judge_of(model, tokenizer, folder, compiled=method.endswith("compiled"))
        backend: Any = judge.backend
        loaded = time.perf_counter() - started
        if method != "by the mask" and not backend._by_rows:
            yield {**known, "method": method, "failed": "not to be had"}
            continue
        yield {**known, "method": method, "sizes of passes": backend._sizes, "seconds": loaded}
        if method == "by the mask":
            model.set_attn_implementation("sdpa")
            backend._by_rows, backend._sizes = False, []
            backend.expect(backend.reader)  # which is cached in another way
        behind = len(backend.reader.prefix)
        prompts = judge.encode(states)
        own = statistics.mean(len(prompt.input_ids) - behind for prompt in prompts)
        usual = backend.tokens_per_pack
        for tokens in (usual, 2048):
            backend.tokens_per_pack = tokens
            torch.cuda.reset_peak_memory_stats()
            took = seconds(partial(answers, judge, prompts), given.seconds)
            top = torch.cuda.max_memory_allocated() / 2**30
            yield noted(f"slm-judge {method}, {tokens} tokens", len(states) / took, own,
                        **{"peak GiB": top, "rubric tokens": behind})  # fmt: skip
        backend.tokens_per_pack = usual
        if method != "by the mask":
            took = seconds(partial(judge.annotate, states), given.seconds)
            yield noted(f"slm-judge {method}, texts to labels", len(states) / took, own)
        if method == "by rows":
            reference = dict(judge.logits(states[:256]))
        else:
            found = dict(judge.logits(states[:256]))
            flips = sum(
                a.argmax() != b.argmax() and gap(a) > 0.5
                for i in found for a, b in zip(reference.get(i, ()), found[i], strict=False)
            )  # fmt: skip
            said = f"labels by rows and {method} that differ, but near ties"
            yield {**known, said: int(flips)}
    for layer in model.modules():
        layer._compiled_call_impl = None
    yield from _pipelines(given, model, tokenizer, folder, states, noted)


def _pipelines(
    given: argparse.Namespace, model: Any, tokenizer: Any, folder: Path, states: list[Any],
    noted: Callable[..., dict[str, Any]],
) -> Figures:  # fmt: skip
    from transformers import pipeline

    model.set_attn_implementation("sdpa")
    questions = Contract.load(folder).rubric.questions()
    decide = pipeline("decision", model=model, tokenizer=tokenizer, decision_config=str(folder))
    asked = [{"state": state, "questions": questions} for state in states[:4]]  # one at a time
    took = seconds(lambda: decide(asked), given.seconds / 2)
    yield noted('pipeline("decision")', len(asked) / took, 0.0)


def determinism(given: argparse.Namespace, left: Clock) -> Figures:
    """How far answers move with what is computed beside them, and with packs of one length."""
    size = given.models[-1]
    for dtype in ("bfloat16", "float16"):
        model, tokenizer = load(size, dtype)
        for data in DATA if dtype == "bfloat16" else DATA[:1]:
            states = [
                i.state
                for i in make_items(data, given.rows if data == DATA[0] else given.rows // 10)
            ]
            folder = judge_folder(size, data)
            judge = judge_of(model, tokenizer, folder)
            backend: Any = judge.backend
            prompts = judge.encode(states)
            order = list(range(len(prompts)))
            random.Random(0).shuffle(order)  # noqa: S311
            inverse = np.argsort(order)
            shuffled = [prompts[i] for i in order]
            n = max(len(prompts) // 50, 1)
            for sizes in ([backend._sizes] if backend._sizes else []) + [[]]:
                if not sizes and left() < 20:
                    return
                backend._sizes = sizes
                known = {"model": size, "dtype": dtype, "data": data, "rows": len(prompts),
                         "filled to": sizes}  # fmt: skip
                reference, _ = answers(judge, prompts)

                def noted(name: str, found: Any, n: int | None = None, known: Any = known,
                          reference: Any = reference) -> dict[str, Any]:  # fmt: skip
                    return {**known, "setting": name, **compare(reference[:n], found[:n], 0.5)}

                yield noted("the same again", answers(judge, prompts)[0])
                other = answers(judge, shuffled)[0]
                yield noted("shuffled", [other[i] for i in inverse])
                usual = backend.tokens_per_pack
                for tokens in (512, 2048):
                    backend.tokens_per_pack = tokens
                    yield noted(f"packs of {tokens} tokens", answers(judge, prompts)[0])
                backend.tokens_per_pack = usual
                yield noted("alone", answers(judge, prompts[:n], alone=True)[0], n)
        del model, judge, backend
        free()


def training_speed(given: argparse.Namespace, left: Clock) -> Figures:
    """Ours beside SFTTrainer's, by default and at its best."""
    small = [(DATA[1], "nf4", "slm-judge", tokens) for tokens in (512, 1024)]  # within 8 GiB?
    plan = small + [
        (data, quantization, method, None)
        for data in DATA[::-1]
        for quantization in ("nf4", "none")
        for method in training.METHODS
    ]
    for size in given.models:
        for data, quantization, method, tokens in plan:
            if left() < 15:
                return
            settings = SimpleNamespace(
                model=size, quantization=quantization, batch=32, steps=4, tokens_per_pack=tokens,
                gradient_checkpointing=False,
            )  # fmt: skip
            torch.cuda.reset_peak_memory_stats()
            known = {"model": size, "data": data, "quantization": quantization, "method": method,
                     "tokens a pack": tokens}  # fmt: skip
            try:
                yield known | training.measure(settings, method, data)
            except Exception as error:
                traceback.print_exc()
                yield known | {"failed": f"{type(error).__name__}: {error}"[:300]}
            free()


def free() -> None:
    """Of what the last figure held."""
    gc.collect()
    torch.cuda.empty_cache()


PARTS = {"ceilings": ceilings, "annotation": annotation, "determinism": determinism,
         "training": training_speed, "tests": tests}  # fmt: skip


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="for all parts together")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--items", nargs=2, type=int, default=[4096, 512], help="short, long ones")
    parser.add_argument("--rows", type=int, default=10_000, help="of determinism")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["1.7b", "0.6b"])
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here.")
    given.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    with (given.folder / "figures.jsonl").open("a") as file:

        def keep(part: str, figure: dict[str, Any]) -> None:
            said = json.dumps({"part": part, **figure}, default=float)
            print(said, file=file, flush=True)
            print(said, flush=True)

        about = {"device": torch.cuda.get_device_name(), "versions": versions()}
        keep("about", about | {"torch": torch.__version__})
        for part in given.only:
            started = time.monotonic()
            try:
                for figure in PARTS[part](given, lambda: end - time.monotonic()):
                    keep(part, figure)
            except Exception as error:
                traceback.print_exc()
                keep(part, {"failed": f"{type(error).__name__}: {error}"[:500]})
            free()
            keep(part, {"seconds": time.monotonic() - started})


if __name__ == "__main__":
    main()
