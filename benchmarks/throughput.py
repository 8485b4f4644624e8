"""Rows a second of slm-judge and of what one would use in its place: one judge, one run.

    python benchmarks/throughput.py --judge runs/demo/merged runs/demo/gguf/demo-Q4_0.gguf \
        --data goemotions convabuse answer-quality --threads 1
    python benchmarks/throughput.py --model 0.6b                  # random weights of a shape
    python benchmarks/throughput.py --model 1.7b --engines transformers --device cuda \
        --dtype bfloat16 nf4

The judge's weights are asked the rubric of each shape of data. Before a peer is timed it answers
some rows, and is not timed where it answers otherwise than `Judge` does on the same file, but for
labels that are nearer to a tie than engines agree with themselves (`near_tie`). Two peers ask in
words of their own, so that nothing is to be compared: `typed-gguf`, here with llama-cpp-python's
libraries, and `sysone`, whose own head is trained on two rows for this. They, xllamacpp and vLLM
are timed where they are installed. A server's clients wait for an answer before they ask again.

A row's seconds are split by measuring parts in the same engine: the products of its tokens
(rows of 16 tokens, which attend to next to nothing), attention (batches of as many rows as fill 512
tokens behind the rubric, with one output, less the products: together the ceiling of these rows),
output rows, and what is left. The rubric is computed once, when the judge is loaded.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from serving import ask, judge_server, llama_server, rate, shares, transformers_server
from shapes import DATA, MODELS, asked, judge_folder, judge_gguf, make_items, rubric_of

from slm_judge import Judge
from slm_judge.backends import Logits
from slm_judge.backends.gguf import _Part
from slm_judge.backends.packing import split_into_packs
from slm_judge.judge.answer import gap
from slm_judge.prompt.readers import DecisionReader
from slm_judge.text import MARK

State = dict[str, str]
Options = list[list[int]]
"""A row's labels, as the numbers of options."""
Ask = Callable[[Sequence[State]], Options]
_LONGEST = 60  # seconds that a round of all clients may take


def best(rows: Sequence[Sequence[float]]) -> list[int]:
    """The likeliest option of each question."""
    return [int(np.argmax(row)) for row in rows]


def rows_per_second(answer: Ask, states: Sequence[State], seconds: float) -> float:
    """Median of three runs, of a third of `seconds` each, on rows not asked just before."""
    rows, n = cycle(states), 1

    def run(n: int) -> float:
        chosen = list(islice(rows, n))
        started = time.perf_counter()
        answer(chosen)
        return time.perf_counter() - started

    run(2)
    while run(n) < seconds / 6 and 2 * n <= len(states):
        n *= 2
    return statistics.median(n / run(n) for _ in range(3))


# --- ours ---


@contextmanager
def ours(load: Callable[[], Judge], second_look: bool = True, exact: bool = False) -> Iterator[Ask]:
    """`Judge.annotate`."""
    with load() as judge:
        judge.exact = exact
        if not second_look:
            judge.backend.near_tie = 0.0
        yield lambda states: [
            best([list(of.values()) for of in row.probabilities.values()])
            for row in judge.annotate(states)
        ]


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


def parts_of_a_row(judge: Judge, states: Sequence[State]) -> dict[str, float]:
    """Shares of a row's seconds without a second look, and the ceiling of rows of this length.

    What is timed takes turns, so that what else the machine does meets all of it.
    """
    backend: Any = judge.backend
    prompts, behind = judge.encode(states[:64]), len(backend.reader.prefix)
    rows = [prompt.input_ids[behind:] for prompt in prompts]
    n = int(np.searchsorted(np.cumsum([len(row) for row in rows]), 2048)) + 1
    n = min(max(n, 4), len(rows))
    states, rows = states[:n], rows[:n]
    own = sum(map(len, rows)) / len(rows)

    def decode(rows: Sequence[Sequence[int]], behind: int, outputs: int) -> Callable[[], object]:
        parts = [
            _Part(s, behind, list(row), [*range(len(row))][len(row) - max(outputs, s == 1) :])
            for s, row in enumerate(rows, start=1)
        ]

        def work() -> None:
            for part in parts:
                backend._llama.llama_memory_seq_cp(backend._memory, 0, part.sequence, 0, behind)
            backend._decode(parts)
            for part in parts:
                backend._llama.llama_memory_seq_rm(backend._memory, part.sequence, -1, -1)

        return work

    short = [(row * 16)[:16] for row in (rows * 32)[:32]]
    together = [decode([rows[i] for i in batch], behind, 0)
                for batch in split_into_packs(prompts[:n], behind, behind + 512)]  # fmt: skip
    works: dict[str, Callable[[], object]] = {
        "all": lambda: dict(judge.logits(states)), "products": decode(short, 0, 0),
        "heads": decode(short, 0, 8), "together": lambda: [work() for work in together],
    }  # fmt: skip
    turns: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(4):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            turns[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(found[1:]) for name, found in turns.items()}
    rate, products = len(states) / seconds["all"], seconds["products"] / 512
    ceiling = own * len(rows) / seconds["together"]
    output = (seconds["heads"] - seconds["products"]) / 256
    found = {"own tokens": own, "rows/s": rate, "ceiling, tokens/s": ceiling}
    found |= {"products": products * own * rate, "attention": (1 / ceiling - products) * own * rate}
    found["output rows"] = output * len(judge.rubric.dimensions) * rate
    found["left"] = 1 - sum(found[key] for key in ("products", "attention", "output rows"))
    return found | {"of the ceiling": rate * own / ceiling, "rubric tokens": behind}


# --- peers ---


@contextmanager
def llama_cpp_python(path: Path, judge: Judge, threads: int) -> Iterator[Ask]:
    """`create_completion`, a prompt a question, one after the other.

    What a prompt shares with the one before is kept, so also the rubric.
    """
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=4096, n_batch=512, n_threads=threads,
                            n_threads_batch=threads, verbose=False)  # fmt: skip
    reader: Any = judge.backend.reader
    labels = judge.backend.contract.labels
    ids = {label: model.tokenize(label.encode(), False)[-1] for label in labels}

    def one(state: State, dimension: Any) -> int:
        allowed = labels[: len(dimension.options)]
        text = model.create_completion(
            reader.render(state, dimension.name), max_tokens=1, temperature=0,
            logit_bias={ids[label]: 100.0 for label in allowed},
        )["choices"][0]["text"]  # fmt: skip
        return allowed.index(text.strip())

    yield lambda states: [[one(state, d) for d in judge.rubric.dimensions] for state in states]
    model.close()


@contextmanager
def decision_pipeline(folder: Path, options: Any) -> Iterator[Ask]:
    """Stock `pipeline("decision")`."""
    from transformers import pipeline

    from slm_judge.artefact.judge_files import Contract

    judge = pipeline("decision", model=str(folder), **options)
    questions = Contract.load(folder).rubric.questions()
    yield lambda states: [
        best([shares(answer) for answer in row.values()])
        for row in judge([{"state": state, "questions": questions} for state in states])
    ]


@contextmanager
def generation(folder: Path, judge: Judge, options: Any) -> Iterator[Ask]:
    """Stock `pipeline("text-generation")` in batches of 32, the first question alone."""
    from transformers import pipeline

    backend: Any = judge.backend
    contract, rubric = backend.contract, judge.rubric
    reader = DecisionReader(backend._tokenizer, contract.decision_template, rubric, contract.labels)
    allowed = contract.labels[: len(rubric.dimensions[0].options)]
    bias = {(token,): 100.0 for token in backend._label_ids[: len(allowed)]}
    generate = pipeline("text-generation", model=str(folder), **options)
    generate.tokenizer.padding_side = "left"
    generate.tokenizer.pad_token = generate.tokenizer.pad_token or generate.tokenizer.eos_token

    def answer(states: Sequence[State]) -> Options:
        found = generate(
            [reader.render(state).split(MARK)[0] for state in states], batch_size=32,
            max_new_tokens=1, do_sample=False, return_full_text=False, sequence_bias=bias,
        )  # fmt: skip
        return [[allowed.index(said[0]["generated_text"].strip())] for said in found]

    yield answer


@contextmanager
def vllm(folder: Path, judge: Judge) -> Iterator[Ask]:
    """Of vLLM with its prefix cache, the first question alone; bfloat16."""
    import vllm

    backend: Any = judge.backend
    allowed = backend._label_ids[: len(judge.rubric.dimensions[0].options)]
    model = vllm.LLM(str(folder), dtype="bfloat16", enable_prefix_caching=True)
    settings = vllm.SamplingParams(max_tokens=1, temperature=0, allowed_token_ids=allowed)

    def answer(states: Sequence[State]) -> Options:
        prompts = [
            {"prompt_token_ids": prompt.input_ids[: prompt.slots[0] + 1]}
            for prompt in backend.reader.encode(states)
        ]
        found = model.generate(prompts, settings, use_tqdm=False)
        return [[allowed.index(one.outputs[0].token_ids[0])] for one in found]

    yield answer


@contextmanager
def typed_gguf(path: Path, questions: Any, threads: int) -> Iterator[Ask]:
    """`typed-gguf`, the model loaded once, which opens a session a request."""
    import llama_cpp
    from typed_gguf.engine.decide import DecisionEngine, plan_context
    from typed_gguf.engine.session import ModelSession, open_model
    from typed_gguf.schema import parse_request

    libraries, worded = Path(llama_cpp.__file__).parent / "lib", dict[str, Any]()
    for name, question in questions.items():  # it refuses options without a description
        given = question["criteria"]
        filled = {k: v or k for k, v in given.items()} if isinstance(given, dict) else given
        worded[name] = question | {"criteria": filled}

    def one(state: State) -> list[int]:
        asked = {"state": state, "questions": worded, "options": {"threads": threads}}
        request = parse_request(asked)
        plan = plan_context(request, model)
        with ModelSession(model, plan) as session:
            DecisionEngine(session).decide(request, plan=plan)
        return []

    with open_model(path, runtime_dir=libraries, fit_disabled=True) as model:
        yield lambda states: [one(state) for state in states]


@contextmanager
def sysone(folder: Path, judge: Judge, device: str) -> Iterator[Ask]:
    """`sysone`, its compact head on the frozen judge."""
    from sysone import SystemOneModel

    questions, texts = judge.rubric.questions(), dict.fromkeys(judge.rubric.fields, "one")
    said: dict[str, Any] = {}
    for d in judge.rubric.dimensions:
        said[d.name] = {"noul": True, "score": 0}.get(d.type, str(d.values[0]))
    rows = [{"state": texts, "questions": questions, "expected": said} for _ in range(2)]
    model = SystemOneModel(
        str(folder), tuning="head", epochs=1, calibrate=False, early_stopping=False, verbose=0,
        cache_features=False, device=device,
    )  # fmt: skip
    model.fit(rows)

    def answer(states: Sequence[State]) -> Options:
        model.predict([{"state": state, "questions": questions} for state in states])
        return [[] for _ in states]

    yield answer


@contextmanager
def server(url_of: Any, questions: Any) -> Iterator[tuple[Ask, str]]:
    """A server of `/v1/systemone`, and its address."""

    def one(url: str, state: State) -> list[int]:
        status, said = ask(url, state, questions)
        assert status == 200, said
        return best([shares(answer) for answer in said["answers"].values()])

    with url_of as url:
        yield (lambda states: [one(url, state) for state in states]), url


# --- the run ---


class Measurement:
    """One shape of data: its rows, what our judge says of the first, and the table."""

    def __init__(self, given: argparse.Namespace, data: str, folder: Path, gguf: Path) -> None:
        self.given, self.data, self.folder, self.gguf = given, data, folder, gguf
        self.states = [item.state for item in make_items(data, 512)]
        self.check = self.states[-given.check :]
        self.questions = rubric_of(data).questions()
        self.rows: list[dict[str, Any]] = []
        self.reference: list[Logits] = []
        self.near_tie = 0.0

    def compare_with(self, judge: Judge) -> None:
        """Our answers to the rows of the check, from now on."""
        found = dict(judge.logits(self.check))
        self.reference = [found[index] for index in range(len(self.check))]
        self.near_tie = max(judge.backend.noise, 0.01)

    def equal(self, name: str, answer: Ask) -> str:
        """How many labels are ours; nothing where one is another, and not for a tie."""
        same = total = 0
        for ours, theirs in zip(self.reference, answer(self.check), strict=True):
            for logits, option in zip(ours, theirs, strict=False):
                same, total = same + (option == best([logits])[0]), total + 1
                if option != best([logits])[0] and gap(logits) >= self.near_tie:
                    print(f"{self.data}: {name} says {option}, we say {logits}: not timed")
                    return ""
        return f"{same} of {total}" if total else "other words"

    def note(self, name: str, rate: float, equal: str) -> None:
        """Keep a row of the table."""
        row = {"data": self.data, "method": name, "rows/s": rate, "equal labels": equal}
        self.rows.append(row)
        print(row, flush=True)

    def time(self, name: str, opened: Any) -> None:
        """A method that is asked many rows at once."""
        with opened as answer:
            if equal := self.equal(name, answer):
                rows = self.states[: -self.given.check]
                self.note(name, rows_per_second(answer, rows, self.given.seconds), equal)

    def serve(self, name: str, url_of: Callable[[int], Any], clients: Sequence[int]) -> None:
        """A server, for each number of clients."""
        slowest = 0.0
        for n in clients:
            if n * slowest > _LONGEST:
                continue
            with server(url_of(n), self.questions) as (answer, url):
                if not (equal := self.equal(name, answer)):
                    return
                states, third = self.states[: -self.given.check], self.given.seconds / 3
                rate(url, self.questions, states, n, 0.01)  # each slot reads the rubric once
                rates = [rate(url, self.questions, states[k::3], n, third) for k in range(3)]
            self.note(f"{name}, {n} clients", statistics.median(rates), equal)
            slowest = slowest or 3 / statistics.median(rates)


def installed(package: str) -> bool:
    """Whether a peer can be timed; a line says so where not."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed: left out", flush=True)
    return found


def measure_gguf(one: Measurement) -> dict[str, float]:
    """All methods on the GGUF file; the parts of a row of ours."""
    given, path, parts = one.given, one.gguf, dict[str, float]()
    load = partial(Judge.from_pretrained, path, n_threads=given.threads, trust=True)
    trained, fast = bool(given.judge), "slm-judge, llama.cpp, no second look"
    with load() as judge:
        one.compare_with(judge)
        if not given.servers:
            if trained:
                one.time("slm-judge, llama.cpp", ours(load))
            one.time(fast, ours(load, second_look=False))
            one.time("slm-judge, llama.cpp, --exact", ours(load, exact=True))
            judge.backend.near_tie = 0.0
            parts = parts_of_a_row(judge, one.states)
            name = "llama-cpp-python, create_completion"
            one.time(name, llama_cpp_python(path, judge, given.threads))
        room = len(judge.backend.reader.prefix) + 1024  # tokens a slot
    if trained:
        own = lambda _: judge_server(path, given.threads)  # noqa: E731
        one.serve("slm-judge serve, llama.cpp", own, given.clients)
    if installed("xllamacpp"):
        slots = lambda n: llama_server(path, n, n * room, given.threads)  # noqa: E731
        if not given.servers:
            one.serve("llama.cpp's server, as many slots", slots, given.clients)
        one.serve("llama.cpp's server, one slot", lambda _: slots(1), given.clients)
    if not given.servers and installed("typed_gguf"):
        one.time("typed-gguf", typed_gguf(path, one.questions, given.threads))
    return parts


def measure_transformers(one: Measurement, dtype: str) -> None:
    """All methods on the folder."""
    given, options = one.given, model_options(dtype, one.given.device)
    load = partial(transformers_judge, one.folder, dtype, given.device)
    with load() as judge:
        one.compare_with(judge)
    if given.servers:
        measure_servers(one, dtype)
        return
    with load() as judge:
        if given.judge:
            one.time(f"slm-judge, transformers {dtype}", ours(load))
        one.time(f"slm-judge, transformers {dtype}, no second look", ours(load, second_look=False))
        one.time(f'pipeline("decision") {dtype}', decision_pipeline(one.folder, options))
        name = f'pipeline("text-generation") {dtype}, first question alone'
        one.time(name, generation(one.folder, judge, options))
        if dtype in ("float32", "bfloat16") and installed("sysone"):
            one.time("sysone", sysone(one.folder, judge, given.device))
        if dtype == "bfloat16" and given.device == "cuda" and installed("vllm"):
            one.time("vLLM bfloat16, first question alone", vllm(one.folder, judge))
    measure_servers(one, dtype)


def measure_servers(one: Measurement, dtype: str) -> None:
    """Ours and transformers' own on the folder."""
    given = one.given
    if dtype != "float32" or not installed("fastapi"):
        return
    if given.judge and given.device == "cpu":
        own = lambda _: judge_server(one.folder, given.threads)  # noqa: E731
        one.serve("slm-judge serve, transformers", own, given.clients)
    start = lambda _: transformers_server(one.folder, given.device, dtype)  # noqa: E731
    one.serve(f"transformers serve {dtype}", start, given.clients)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    for row in rows:
        shown = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def versions() -> str:
    """Of everything that is timed."""
    found = []
    for name in ("slm-judge", "llama-cpp-python", "xllamacpp", "typed-gguf", "sysone", "torch",
                 "transformers", "bitsandbytes", "vllm"):  # fmt: skip
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="0.6b", help="random weights")
    parser.add_argument("--judge", type=Path, nargs=2, metavar=("FOLDER", "GGUF"),
                        help="instead: the weights of a judge")  # fmt: skip
    parser.add_argument("--data", choices=DATA, nargs="+", default=["goemotions"])
    parser.add_argument("--engines", nargs="+", default=["gguf", "transformers"])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16, nf4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of llama.cpp")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--check", type=int, default=4, help="rows that peers answer first")
    parser.add_argument("--servers", action="store_true", help="servers alone")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    print(versions(), flush=True)
    rows, parts = list[dict[str, Any]](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as work:
        for data in given.data:
            if given.judge:
                folder, path = asked(*given.judge, data, Path(work))
            else:
                folder = judge_folder(given.model, data)
                path = judge_gguf(given.model, data) if "gguf" in given.engines else folder
            one = Measurement(given, data, folder, path)
            if "gguf" in given.engines:
                parts.append({"data": data, **measure_gguf(one)})
                print(parts[-1], flush=True)
            for dtype in given.dtype if "transformers" in given.engines else ():
                measure_transformers(one, dtype)
            rows += one.rows
    print(f"\n{table(rows)}\n" + (f"\n{table(parts)}\n" if parts else ""))
    if given.json:
        given.json.write_text(json.dumps({"versions": versions(), "rows": rows, "parts": parts}))


if __name__ == "__main__":
    main()
