"""`slm-judge serve` answers as `Judge` does, for many clients, and says what it refuses."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from benchmarks.serving import ask, largest_difference
from slm_judge import Judge
from slm_judge.artefact.calibration import Calibration
from slm_judge.artefact.judge_files import Contract
from slm_judge.errors import ModelError
from slm_judge.web import hosts_of, listen
from tests.conftest import LIMIT, ROOT, served
from tests.inference.test_serving import RUBRICS, TEXTS, judges, transformers_serve  # noqa: F401

pytest.importorskip("fastapi", reason="needs the extra serve")
from slm_judge.serve.answers import annotations, system_one
from slm_judge.serve.batches import Batches, BusyError, Limits
from slm_judge.serve.server import application

KEY = "a long enough key"


@contextmanager
def serving(judge, key=None, limits=None, hosts=None):
    """The address of the server of a judge, in a thread; it closes the judge in the end."""
    names = hosts or hosts_of("127.0.0.1")
    with served(application(judge, "judge", names, key, limits)) as address:
        yield address


def call(url, body=None, method=None, kind="application/json", **headers):
    """Status, body (of JSON, what it means) and headers."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers |= {"Content-Type": kind} if content is not None else {}
    request = Request(url, content, headers, method=method)
    try:
        with urlopen(request, timeout=LIMIT) as response:
            status, found, given = response.status, response.read(), response.headers
    except HTTPError as error:
        status, found, given = error.code, error.read(), error.headers
    is_json = given.get_content_type() == "application/json"
    return status, json.loads(found) if is_json else found.decode(), given


def metric(url, name):
    """The value of a metric without labels."""
    return float(re.search(rf"^slm_judge_{name} (\S+)$", call(f"{url}/metrics")[1], re.M)[1])


def load(judges, name, kind):  # noqa: F811
    path = judges[name] / kind
    options = {"trust": True} if path.suffix else {"device": "cpu"}
    return Judge.from_pretrained(path, **options)


@pytest.fixture(params=["merged", "judge.gguf"])
def kind(request):
    return request.param


@pytest.mark.parametrize("name", RUBRICS)
def test_it_answers_as_the_judge_does(judges, name, kind):  # noqa: F811
    with load(judges, name, kind) as judge, serving(load(judges, name, kind)) as url:
        assert largest_difference(judge, url, TEXTS, whole=False) < 0.01
        rows = [dict.fromkeys(judge.rubric.fields, text) for text in TEXTS]
        status, said, _ = call(f"{url}/v1/annotate", {"rows": rows})
        assert status == 200
        for ours, theirs in zip(judge.annotate(rows), said["annotations"], strict=True):
            assert theirs["labels"] == ours.labels
            assert theirs["confidence"] == pytest.approx(ours.confidence, abs=1e-3)
            for dimension, shares in ours.probabilities.items():
                assert list(theirs["probabilities"][dimension].values()) == pytest.approx(
                    list(shares.values()), abs=1e-3
                )


@pytest.mark.parametrize("name", RUBRICS)
def test_its_answers_have_the_form_of_transformers_serve(judges, name):  # noqa: F811
    folder = judges[name] / "merged"
    with (
        serving(load(judges, name, "merged")) as url,
        transformers_serve(folder, folder / "decision.json") as stock,
    ):
        questions = call(f"{url}/v1/questions")[1]
        assert questions == json.loads((folder / "questions.json").read_text())
        fields = call(f"{url}/v1/models")[1]["data"][0]["fields"]
        state = dict.fromkeys(fields, TEXTS[0])
        _, ours = ask(url, state, questions)
        _, theirs = ask(stock, state, questions)
    assert ours.keys() == theirs.keys()
    assert ours["usage"] == theirs["usage"]
    assert list(ours["answers"]) == list(theirs["answers"])
    for question, wanted in theirs["answers"].items():
        found = ours["answers"][question]
        assert found.keys() == wanted.keys()
        for part, value in wanted.items():
            if isinstance(value, dict):
                assert list(found[part]) == list(value)  # a legend, or probabilities
            numbers = isinstance(value, float) or part == "probabilities"
            assert found[part] == (pytest.approx(value, abs=1e-3) if numbers else value), part


def test_many_clients_share_batches_and_get_their_own_answers(judges, kind):  # noqa: F811
    name, texts = RUBRICS[0], [f"Message {n}: {TEXTS[n % len(TEXTS)]}" for n in range(120)]
    with load(judges, name, kind) as judge:
        wanted = [row.labels for row in judge.annotate(texts)]

    def one(numbers):
        rows = [texts[n] for n in numbers]
        status, said, _ = call(f"{url}/v1/annotate", {"rows": rows})
        assert status == 200, said
        return dict(zip(numbers, (row["labels"] for row in said["annotations"]), strict=True))

    parts = [range(0, 50), *([n] for n in range(50, 120))]  # a long request, and many short ones
    with serving(load(judges, name, kind)) as url, ThreadPoolExecutor(24) as clients:
        found = {}
        for answers in clients.map(one, parts):
            found |= answers
        assert [found[n] for n in range(120)] == wanted
        assert metric(url, "rows_total") == metric(url, "batch_rows_sum") == 120
        assert metric(url, "batch_rows_count") < 70  # fewer than the requests
        assert metric(url, "rows_waiting") == 0
        assert metric(url, "tokens_total") > 120 * 100


def test_a_long_request_lets_others_have_their_turn(judges):  # noqa: F811
    texts = [f"Message {n}: please answer today." for n in range(400)]
    with serving(load(judges, RUBRICS[0], "judge.gguf")) as url, ThreadPoolExecutor(1) as other:
        long = other.submit(call, f"{url}/v1/annotate", {"rows": texts})
        while metric(url, "batch_rows_count") < 1:
            time.sleep(0.005)
        assert call(f"{url}/v1/systemone", {"state": texts[0]})[0] == 200
        assert not long.done()
        assert len(long.result(LIMIT)[1]["annotations"]) == 400


REFUSED = [  # path, body, status, what is said
    ("systemone", {"state": {"txt": "x"}}, 422, "has no field 'text'; the columns are txt"),
    ("systemone", {"state": {"text": "  "}}, 422, "no text that can be judged"),
    ("systemone", {"state": {"text": None, "more": 1}}, 422, "no text that can be judged"),
    ("systemone", {"state": ["x"]}, 422, "state"),
    ("systemone", {}, 422, "state: Field required"),
    ("systemone", {"state": "x", "question": {}}, 422, "A request has no question; it has"),
    ("systemone", {"state": "x", "questions": {}}, 422, "other questions than none"),
    ("systemone", {"state": "x", "questions": {"mood": {"type": "noul"}}}, 422, "than mood"),
    ("systemone", {"state": "x", "assets": {"a": {"type": "image"}}}, 422, "assets"),
    ("systemone", {"state": "x " * 5000}, 422, r"needs \d+ tokens, but there is room for"),
    ("annotate", {"rows": []}, 422, "rows: List should have at least 1"),
    ("annotate", {"rows": ["x", {"txt": "y"}]}, 422, "Row 2 has no field 'text'"),
    ("annotate", {"rows": ["x"] * 51}, 413, "51 rows, of at most 50"),
    ("annotate", b'{"rows": [' + b"1," * 20_000 + b"1]}", 413, "20001 rows, of at most 50"),
    ("annotate", {"rows": ["x"], **dict.fromkeys(map(str, range(999)))}, 422, "has no 0, 1, 10; it"),
    ("annotate", [1], 400, "A request is a JSON object"),
    ("annotate", b"{", 400, "A request is a JSON object"),
    ("annotate", b'{"rows": ["x"], "rows": ["y"]}', 400, "A request is a JSON object"),
    ("annotate", b"[" * 60_000, 400, "A request is a JSON object"),
    ("annotate", b'{"rows": ["' + b"x" * 70_000 + b'"]}', 413, "longer than 65536 bytes"),
]  # fmt: skip


def test_what_it_refuses(judges):  # noqa: F811
    limits = Limits(body=2**16, rows=50)
    with serving(load(judges, RUBRICS[0], "judge.gguf"), limits=limits) as url:
        for path, body, wanted, words in REFUSED:
            status, said, _ = call(f"{url}/v1/{path}", body)
            assert status == wanted, (body, said)
            assert said["error"]["code"] == wanted
            assert re.search(words, said["error"]["message"]), said
        assert call(f"{url}/v1/annotate", {"rows": ["x"]}, kind="text/plain")[0] == 415
        assert call(f"{url}/v1/annotate")[0] == 405
        status, said, _ = call(f"{url}/v1/chat/completions", {"messages": []})
        assert status == 404
        assert "POST /v1/systemone" in said["error"]["message"]
        assert call(f"{url}/health", Host="evil.example")[0] == 400  # of a page that leads here
        status, said, _ = call(f"{url}/v1/annotate", {"rows": ["x"]})
        assert status == 200  # it is none the worse
        assert metric(url, "batch_rows_count") == 1  # what was refused was not computed


def test_rows_have_room_for_so_many_tokens(judges):  # noqa: F811
    with serving(load(judges, RUBRICS[0], "judge.gguf"), limits=Limits(tokens=400)) as url:
        assert call(f"{url}/v1/annotate", {"rows": ["short"]})[0] == 200
        status, said, _ = call(f"{url}/v1/annotate", {"rows": ["short", "long " * 300]})
    assert status == 422
    assert re.search(r"Row 2 needs \d+ tokens, but there is room for 400", said["error"]["message"])


def test_half_an_emoji_is_read_as_everywhere(judges):  # noqa: F811
    with load(judges, RUBRICS[0], "judge.gguf") as judge:
        (ours,) = judge.annotate(["half \ud800"])
    with serving(load(judges, RUBRICS[0], "judge.gguf")) as url:
        _, said, _ = call(f"{url}/v1/annotate", b'{"rows": ["half \\ud800"]}')
    assert said["annotations"][0]["labels"] == ours.labels


def test_the_key(judges):  # noqa: F811
    with serving(load(judges, RUBRICS[0], "judge.gguf"), key=KEY) as url:
        body = {"rows": ["x"]}
        for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}):
            status, said, given = call(f"{url}/v1/annotate", body, **headers)
            assert (status, given["WWW-Authenticate"]) == (401, "Bearer")
            assert KEY not in str(said)
        assert call(f"{url}/v1/annotate", body, Authorization=f"Bearer {KEY}")[0] == 200
        assert call(f"{url}/health")[1]["status"] == "ok"  # for those who watch


class Slow:
    """A judge that computes when it is told to."""

    def __init__(self, judge):
        self._judge, self.go, self.asked = judge, threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self._judge, name)

    def decide(self, prompts):
        self.asked += len(prompts)
        assert self.go.wait(LIMIT / 3)
        yield from self._judge.decide(prompts)


def until(what):
    deadline = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_too_many_rows_wait(judges):  # noqa: F811
    judge = Slow(load(judges, RUBRICS[0], "judge.gguf"))
    limits, eight = Limits(waiting=16, rows=8, at_once=2), {"rows": ["x"] * 8}
    with serving(judge, limits=limits) as url, ThreadPoolExecutor(2) as clients:
        first = clients.submit(call, f"{url}/v1/annotate", eight)
        until(lambda: judge.asked)
        second = clients.submit(call, f"{url}/v1/annotate", eight)
        until(lambda: metric(url, "rows_waiting") == 14)
        status, said, headers = call(f"{url}/v1/annotate", eight)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "14 rows wait already, of at most 16" in said["error"]["message"]
        judge.go.set()
        assert [first.result(LIMIT)[0], second.result(LIMIT)[0]] == [200, 200]


def test_what_nobody_waits_for_is_not_computed(judges):  # noqa: F811
    judge = Slow(load(judges, RUBRICS[0], "judge.gguf"))
    with serving(judge, limits=Limits(at_once=2)) as url:
        body = json.dumps({"rows": ["x"] * 40}).encode()
        head = f"POST /v1/annotate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        place = "127.0.0.1", int(url.rpartition(":")[2])
        with socket.create_connection(place, timeout=LIMIT) as client:
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            until(lambda: judge.asked)
            assert metric(url, "rows_waiting") == 38
        until(lambda: metric(url, "rows_waiting") == 0)
        judge.go.set()
        assert call(f"{url}/v1/annotate", {"rows": ["x"]})[0] == 200
        assert judge.asked == 3


def test_what_fails_fails_for_those_who_asked_alone(judges, capsys):  # noqa: F811
    judge = load(judges, RUBRICS[0], "judge.gguf")
    whole, faults = judge.decide, [ModelError("The weights are damaged."), RuntimeError("secret")]

    def decide(prompts):
        if faults:
            raise faults.pop(0)
        yield from whole(prompts)

    judge.decide = decide
    with serving(judge) as url:
        said = [call(f"{url}/v1/annotate", {"rows": ["x"]})[:2] for _ in range(3)]
    assert [status for status, _ in said] == [500, 500, 200]
    assert said[0][1]["error"]["message"] == "The weights are damaged."
    assert "secret" not in str(said[1])  # it is in the log
    assert "secret" in capsys.readouterr().err


def test_who_leaves_while_sending_is_no_failure(judges, capsys):  # noqa: F811
    with serving(load(judges, RUBRICS[0], "judge.gguf")) as url:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=LIMIT) as line:
                line.sendall(f"POST /v1/annotate HTTP/1.1\r\nHost: {host}:{port}\r\n"
                             "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
                             .encode())  # fmt: skip
        until(lambda: 'status="499"} 3' in call(f"{url}/metrics")[1])
        assert 'status="500"' not in call(f"{url}/metrics")[1]
    assert "Traceback" not in capsys.readouterr().err


def test_a_row_that_fails_leaves_its_neighbours_alone(judges):  # noqa: F811
    judge = Slow(load(judges, RUBRICS[0], "judge.gguf"))
    whole = judge.decide
    (odd,) = (prompt.input_ids for prompt in judge.encode([{"text": "odd"}]))

    def decide(prompts):
        for index, logits in whole(prompts):
            if prompts[index].input_ids == odd:
                raise ModelError("Out of memory.")
            yield index, logits

    judge.decide = decide
    with serving(judge) as url, ThreadPoolExecutor(9) as clients:
        texts = ["a", "b", "odd", "c", "d", "e", "f", "g"]
        first = clients.submit(call, f"{url}/v1/annotate", {"rows": ["first"]})
        until(lambda: judge.asked)
        others = [clients.submit(call, f"{url}/v1/annotate", {"rows": [text]}) for text in texts]
        until(lambda: metric(url, "rows_waiting") == len(texts))
        judge.go.set()
        assert first.result(LIMIT)[0] == 200
        found = {text: one.result(LIMIT)[0] for text, one in zip(texts, others, strict=True)}
    assert found == dict.fromkeys(texts, 200) | {"odd": 500}


def test_what_waits_when_the_time_is_up_is_refused(judges):  # noqa: F811
    judge = Slow(load(judges, RUBRICS[0], "judge.gguf"))
    batches = Batches(judge, Limits(at_once=2), lambda _: None)
    asked = batches.ask(batches.encode(["x"] * 6, "Row {}"))
    until(lambda: judge.asked)
    ended = threading.Thread(target=batches.close)
    ended.start()
    with pytest.raises(BusyError, match="The server ends"):
        asked.result(LIMIT)
    with pytest.raises(BusyError, match="The server ends"):
        batches.ask([])
    judge.go.set()
    ended.join(LIMIT)
    assert judge.asked == 2
    assert not batches.works
    with pytest.raises(BusyError, match="The server ends"):
        batches.encode(["x"], "Row {}")


def test_the_chosen_option_is_that_of_the_largest_logit(judges):  # noqa: F811
    """With `class_balance` the most probable option is another."""
    contract = Contract.load(judges[RUBRICS[0]] / "merged")
    topic = contract.rubric.dimension("topic")
    shifted = Calibration(temperature=1.0, shift=(3.0, 0.0, 0.0, 0.0, 0.0))
    contract = contract.calibrated({}, {"topic": shifted})
    logits = [np.zeros(len(d.options), dtype=np.float32) for d in contract.rubric.dimensions]
    logits[1][:2] = 2.0, 1.0
    said = system_one(contract, logits)["topic"]
    (whole,) = annotations(contract, [logits])
    assert said["choice"] == whole["labels"]["topic"] == topic.key(0)
    assert said["probabilities"] == pytest.approx(whole["probabilities"]["topic"])
    assert max(said["probabilities"], key=said["probabilities"].get) != said["choice"]


# --- the command ---


@contextmanager
def command(*arguments, **environment):
    """`slm-judge serve` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_judge", "serve", *map(str, arguments)], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment,
    )  # fmt: skip
    limit = threading.Timer(LIMIT, process.kill)
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate(timeout=LIMIT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_is_answered_before_it_ends(judges, number):  # noqa: F811
    path = judges[RUBRICS[0]] / "judge.gguf"
    with command(path, "--port", 0) as process, ThreadPoolExecutor(1) as client:
        url = re.search(r"answers POST (http://127\.0\.0\.1:\d+)/", process.stdout.readline())[1]
        long = client.submit(call, f"{url}/v1/annotate", {"rows": ["Please answer."] * 600})
        until(lambda: metric(url, "batch_rows_count"))
        process.send_signal(number)
        status, said, _ = long.result(LIMIT)
        assert (status, len(said["annotations"])) == (200, 600)
        rest = process.communicate(timeout=LIMIT)[0]
        assert "Traceback" not in rest
        assert process.returncode in (0, -number, 128 + number)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--host", "0.0.0.0"], {}, "lets other machines in: set a key in the variable"),
        (["--host", "0.0.0.0"], {"SLM_JUDGE_API_KEY": "short"}, "needs at least 8 characters"),
        (["--host", "0.0.0.0"], {"SLM_JUDGE_API_KEY": " long enough"}, "of ASCII characters"),
        (["--host", "::1"], {}, "an IPv4 address"),
        (["--port", "PORT"], {}, "Cannot listen on 127.0.0.1, port"),
        (["--port", "0"], {}, "nowhere.gguf"),
    ],
)
def test_what_cannot_be_served(arguments, environment, words):
    with listen("127.0.0.1", 0, 0) as taken:
        port = taken.getsockname()[1]
        given = [str(port) if one == "PORT" else one for one in arguments]
        with command("nowhere.gguf", *given, **environment) as process:
            said = " ".join(process.communicate(timeout=LIMIT)[0].split())
            assert process.returncode == 2
            assert words in said
            assert "Traceback" not in said
