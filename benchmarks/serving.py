"""Servers of a judge, ours and stock ones, and what they answer: for tests and throughput.py.

Each server runs in a process of its own and answers `POST /v1/systemone`; each request asks all
questions of the rubric about one text, as `Judge` does.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from slm_judge import Judge
from slm_judge.data.text import item_state

LIMIT = 300  # seconds for an answer, or for a server to start
_LLAMA = """
import sys, xllamacpp
params, (path, slots, context, threads) = xllamacpp.CommonParams(), sys.argv[1:]
params.model.path, params.port, params.warmup = path, 0, False
params.n_parallel, params.n_ctx, params.cpuparams.n_threads = int(slots), int(context), int(threads)
server = xllamacpp.Server(params)
# In one piece, so that a line of the log does not fall between.
print(f"running on {server.listening_address}\\n", end="", flush=True)
sys.stdin.read()
"""
_JUDGE = """
import sys
from slm_judge.serve.serve import Settings, serve
model, threads = sys.argv[1:]
options = {"n_threads": int(threads), "trust": True} if model.endswith(".gguf") else {}
serve(Settings(model, options=options, port=0))
"""
_TRANSFORMERS = """
import sys
from transformers.cli.serve import Serve
folder, settings, device, dtype = sys.argv[1:]
Serve(folder, decision_config=settings, device=device, dtype=dtype, host="127.0.0.1", port=0)
"""


@contextmanager
def served(code: str, *arguments: object) -> Iterator[str]:
    """The address of a server in a process of its own, which ends with the block."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout
    limit = threading.Timer(LIMIT, process.kill)
    limit.start()
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"(?:running on|answers POST) (http://[\w.:]+)", line):
                break
        else:
            raise SystemExit(f"The server ended:\n{''.join(said)[-3000:]}")
        limit.cancel()
        threading.Thread(
            target=process.stdout.read, daemon=True
        ).start()  # a full pipe would stop it
        yield found[1]
    finally:
        limit.cancel()
        process.kill()
        process.wait(LIMIT)


def llama_server(path: Path, slots: int = 1, context: int = 4096, threads: int = 1) -> Any:
    """llama.cpp's own server, of the wheel xllamacpp, as `served`."""
    return served(_LLAMA, path, slots, context, threads)


def judge_server(path: Path, threads: int = 1) -> Any:
    """`slm-judge serve`, as `served`."""
    return served(_JUDGE, path, threads)


def transformers_server(folder: Path, device: str = "cpu", dtype: str = "auto") -> Any:
    """`transformers serve` with the judge's own settings, as `served`."""
    return served(_TRANSFORMERS, folder, folder / "decision.json", device, dtype)


def ask(url: str, state: Any, questions: Any) -> tuple[int, dict[str, Any]]:
    """The status and the answer of `POST /v1/systemone`."""
    body = json.dumps({"state": state, "questions": questions}).encode()
    request = Request(f"{url}/v1/systemone", body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urlopen(request, timeout=LIMIT) as response:  # noqa: S310
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.loads(error.read())


def shares(answer: dict[str, Any]) -> list[float]:
    """The probabilities of a question's options, in order."""
    if answer.get("type") == "noul":
        return [1 - answer["noul"], answer["noul"]]
    return [*answer["probabilities"].values()]


def largest_difference(judge: Judge, url: str, texts: Sequence[str], whole: bool = True) -> float:
    """Of the differences between the logits of two options, between `judge` and a server.

    Also that both read as many tokens, and answer the same questions in the same order.

    Args:
        judge: the same one.
        url: of the server.
        texts: each is asked as all fields of an item.
        whole: the server has a prompt a question, whose tokens it counts, as llama.cpp's.
    """
    rubric, contract, worst = judge.rubric, judge.backend.contract, 0.0
    rows = [item_state(rubric, dict.fromkeys(rubric.fields, text)) for text in texts]
    prompts = judge.backend.reader.encode(rows)
    for row, prompt, ours in zip(rows, prompts, judge.annotate(rows), strict=True):
        status, said = ask(url, row, rubric.questions())
        assert status == 200, said
        tokens = sum(slot + 1 for slot in prompt.slots) if whole else len(prompt.input_ids)
        assert said["usage"]["input_tokens"] == tokens, (said["usage"], tokens)
        assert list(said["answers"]) == list(ours.labels)
        for d in rubric.dimensions:
            own = list(ours.probabilities[d.name].values())
            apart = np.log(shares(said["answers"][d.name])) - np.log(own)
            worst = max(worst, float(np.ptp(apart)) * contract.temperature(d.type))
    return worst


def rate(url: str, questions: Any, texts: Sequence[Any], clients: int, seconds: float) -> float:
    """Requests a second that `clients` get answered, each asking again when it has its answer."""
    numbers, done = count(), []
    start = time.monotonic()

    def client() -> None:
        while time.monotonic() < start + seconds:
            status, answer = ask(url, texts[next(numbers) % len(texts)], questions)
            if status != 200:
                raise SystemExit(f"The server answers {status}: {answer}")
            done.append(time.monotonic())

    with ThreadPoolExecutor(clients) as executor:
        for future in [executor.submit(client) for _ in range(clients)]:
            future.result()
    return len(done) / (max(done) - start)
