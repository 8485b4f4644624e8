"""Requests a second of stock servers, at 1, 8 and 32 clients, on the same judge.

    python benchmarks/serving.py FOLDER FILE.gguf --clients 1 8 32 --seconds 20

Each server runs in a process of its own and answers `POST /v1/systemone`; each request asks all
questions of the rubric about one text, as `Judge` does. `Judge` itself, on the same file and in one
batch, is the yardstick. What is printed is the table of docs/serving.md.
"""

import argparse
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
_TRANSFORMERS = """
import sys
from transformers.cli.serve import Serve
folder, settings, device = sys.argv[1:]
Serve(folder, decision_config=settings, device=device, host="127.0.0.1", port=0)
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
            if found := re.search(r"running on (http://\S+)", line):
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


def transformers_server(folder: Path, device: str = "cpu") -> Any:
    """`transformers serve` with the judge's own settings, as `served`."""
    return served(_TRANSFORMERS, folder, folder / "decision.json", device)


def ask(url: str, state: Any, questions: Any) -> tuple[int, dict[str, Any]]:
    """The status and the answer of `POST /v1/systemone`."""
    body = json.dumps({"state": state, "questions": questions}).encode()
    request = Request(f"{url}/v1/systemone", body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urlopen(request, timeout=LIMIT) as response:  # noqa: S310
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.loads(error.read())


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
            answer, shares = said["answers"][d.name], list(ours.probabilities[d.name].values())
            noul = d.type == "noul"
            theirs = (
                [1 - answer["noul"], answer["noul"]]
                if noul
                else [*answer["probabilities"].values()]
            )
            apart = np.log(theirs) - np.log(shares)
            worst = max(worst, float(np.ptp(apart)) * contract.temperature(d.type))
    return worst


def rate(url: str, questions: Any, texts: Sequence[Any], clients: int, seconds: float) -> float:
    """Requests a second that `clients` get answered, each asking again when it has its answer."""
    numbers, done = count(), []
    ask(url, texts[0], questions)  # the model is loaded at the first request
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


def main() -> None:
    """Print a row a server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a judge for transformers, e.g. runs/demo/merged")
    parser.add_argument("gguf", type=Path, help="the same judge for llama.cpp")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="of transformers")
    given = parser.parse_args()
    with Judge.from_pretrained(given.gguf, n_threads=given.threads) as judge:
        rubric = judge.rubric
        texts = [dict.fromkeys(rubric.fields, f"Message {i}: please help me.") for i in range(256)]
        start = time.monotonic()
        judge.annotate(texts)
        alone = len(texts) / (time.monotonic() - start)
        room = 2 * len(judge.backend.reader.prefix) + 512  # tokens a slot
    print("| requests a second |", " | ".join(f"{n} clients" for n in given.clients), "|")
    print("| --- |", " | ".join("---:" for _ in given.clients), "|")
    questions, most = rubric.questions(), max(given.clients)
    servers = {
        "llama.cpp's server": llama_server(given.gguf, most, most * room, given.threads),
        "transformers serve": transformers_server(given.folder, given.device),
    }
    for name, server in servers.items():
        with server as url:
            rates = [rate(url, questions, texts, n, given.seconds) for n in given.clients]
        print(f"| {name} |", " | ".join(f"{value:.1f}" for value in rates), "|", flush=True)
    print(f"\nJudge, the same file, {len(texts)} texts at once: {alone:.1f} a second")


if __name__ == "__main__":
    main()
