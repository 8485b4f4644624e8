"""What the page's server lets in and out, asked over HTTP; and what `slm-judge app` refuses."""

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

import slm_judge.app
from slm_judge.app.app import Settings, check, load_judges
from slm_judge.app.judging import _shares
from slm_judge.app.server import LARGEST, LONGEST_COMMENT
from slm_judge.app.standing import check_names
from slm_judge.app.store import Judged, Store, Task
from slm_judge.cli import main
from slm_judge.errors import JudgeError
from slm_judge.judge.answer import Annotation
from slm_judge.rubric import Rubric
from tests.app.conftest import serving
from tests.app.test_store import ALL, answer, conditional
from tests.conftest import LIMIT, ROOT

ADA = {"annotator": "Ada"}


def fetch(address, body=None, **headers):
    """Status and content of an answer; a request says what the page says on its own."""
    if body is not None and not isinstance(body, bytes):
        body = {"version": version(address.partition("/api/")[0]), **body}
        body, headers = json.dumps(body).encode(), {"content-type": "application/json", **headers}
    request = urllib.request.Request(
        address, body, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def version(address):
    """Of the questions of a page."""
    return json.loads(fetch(f"{address}/api/start")[1])["version"]


def test_nothing_but_the_page_is_served(make_store, support):
    store = make_store(1)
    (store.path.parent / "secret.txt").write_text("secret")
    with serving(support, store) as address:
        assert fetch(f"{address}/")[0] == 200
        for path in ("/server.py", "/store.py", "/annotations.db", f"{store.path}", "/secret.txt", "/../secret.txt",
                     "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page.css/../server.py", "/static/page.js"):  # fmt: skip
            assert fetch(f"{address}{path}")[0] == 404, path


def test_a_stranger_s_page_gets_nothing(make_store, support):
    with serving(support, make_store(1)) as address:
        assert fetch(f"{address}/api/start", Host="evil.example")[0] == 400
        body = json.dumps(
            ADA | {"item": "item 00", "dimension": "topic", "option": "billing", "seconds": 1}
        ).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            status, said = fetch(f"{address}/api/answer", body, content_type=kind)
            assert (status, "application/json" in said) == (422, True)
        with urllib.request.urlopen(f"{address}/", timeout=LIMIT) as response:
            policy = response.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy


def test_who_saw_the_judge_s_answer_in_settle_is_kept(make_store, support):
    store = make_store(2)
    store.add_judged("judge", {"item 00": Judged({"topic": ("product", 0.6)})})
    answer(store, "item 00", "Ada")
    with serving(support, store) as address:
        for annotator, body in {"Mia": {}, "Bob": {"who": "Bob"}}.items():
            found = json.loads(fetch(f"{address}/api/settling", body)[1])
            assert [row["judge"] for row in found["items"]] == [["product", 0.6]]
            answer(store, "item 00", annotator)
    query = "SELECT annotator, seen FROM answer WHERE item = 'item 00' AND dimension = 'topic'"
    assert dict(map(tuple, store.rows(query))) == {"Ada": 0, "Mia": 0, "Bob": 1}
    store.reveal(["item 01"], "Eve")
    assert store.rows("SELECT 1 FROM claim WHERE item = 'item 01' AND at > ''") == []


def test_an_answer_is_kept_under_the_question_that_was_on_the_screen(make_store, support):
    """A page that outlived its server's rubric, or what it shows of the judge, is refused."""
    store = make_store(1)
    topic = support.dimension("topic").model_copy(
        update={"instructions": "What is it about, then?"}
    )
    others = [d for d in support.dimensions if d.name != "topic"]
    reworded = support.model_copy(update={"dimensions": [topic, *others]})
    body = ADA | {"item": "item 00", "dimension": "topic", "option": "billing", "seconds": 1}
    old = body | {"version": store.mark}
    for rubric, task in ((reworded, Task()), (support, Task(shown="after"))):
        again = Store(store.path, rubric, task)
        with serving(rubric, again) as address:
            for name in ("next", "answer", "undo", "settling", "settle", "standing"):
                status, said = fetch(f"{address}/api/{name}", old)
                assert (status, "Load the page again" in said) == (422, True), name
            assert fetch(f"{address}/api/answer", body)[0] == 200
    assert [row["rubric"] for row in store.rows("SELECT rubric FROM answer")] == [
        Store(store.path, reworded).version, store.version]  # fmt: skip


def test_what_was_shown_before_stays_known_where_the_setting_changes(make_store, support):
    store = make_store(1, shown="before")
    store.add_judged("judge", {"item 00": Judged({"topic": ("product", 0.6)})})
    assert store.next_item("Ada") == "item 00"
    answer(Store(store.path, support, Task()), "item 00", "Ada")
    query = "SELECT DISTINCT seen FROM answer WHERE dimension = 'topic'"
    assert [row["seen"] for row in store.rows(query)] == [1]


def test_try_shows_no_item_that_is_to_be_annotated(make_store, support):
    """And whoever asks about one all the same is known to have seen the judge's answer."""
    store = make_store(2)
    with serving(support, store) as address:
        start = json.loads(fetch(f"{address}/api/start")[1])
        assert start["examples"]
        assert store.state("item 00") not in start["examples"]
        for who, state in {"Ada": store.state("item 00"), "": store.state("item 01")}.items():
            assert fetch(f"{address}/api/try", {"state": state, "who": who})[0] == 200
    assert [tuple(row)[:2] for row in store.rows("SELECT * FROM claim")] == [("item 00", "Ada")]


def test_who_cannot_tell_stands_in_settle_and_a_decision_can_be_withdrawn(make_store, support):
    store = make_store(1)
    for who, topic in {"Ada": "billing", "Bob": "product", "Eve": None}.items():
        answer(store, "item 00", who, topic=topic)
    settled = {"item": "item 00", "dimension": "topic", "who": "Mia"}
    with serving(support, store) as address:

        def row():
            (found,) = json.loads(fetch(f"{address}/api/settling", {"settled": True})[1])["items"]
            return found

        assert row()["people"] == {"Ada": "billing", "Bob": "product", "Eve": None}
        for option, comment in (("billing", ""), (None, "both, rather")):
            change = settled | {"option": option, "comment": comment}
            assert fetch(f"{address}/api/settle", change)[0] == 200
            assert row()["closed"] == (option is not None)
        assert row()["settled"]["comment"] == "both, rather"
        long = settled | {"option": None, "comment": "x" * (LONGEST_COMMENT + 1)}
        assert fetch(f"{address}/api/settle", long)[0] == 422


def test_what_is_too_large_or_no_request_is_refused_in_words(make_store, support):
    store = make_store(1)
    with serving(support, store) as address:
        large = fetch(f"{address}/api/next", {"annotator": "A" * (LARGEST + 1)})
        assert large == (422, '{"error":"This is longer than 8 MiB. Shorten it."}')
        for body in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
            assert fetch(f"{address}/api/next", body, content_type="application/json")[0] == 422
        wrong = [
            {},
            {"annotator": 3},
            {"annotator": " "},
            {"annotator": "None"},
            {"annotator": "x" * 81},
        ]
        assert [fetch(f"{address}/api/next", body)[0] for body in wrong] == [422] * 5
        answered = ADA | {
            "item": "item 00",
            "dimension": "topic",
            "option": "billing",
            "seconds": 1,
        }
        for change in (
            {"seconds": -1},
            {"seconds": None},
            {"option": "x"},
            {"item": "x"},
            {"dimension": 1},
        ):
            assert fetch(f"{address}/api/answer", answered | change)[0] == 422
        assert fetch(f"{address}/api/answer", answered | {"annotator": "\ud800"})[0] == 200
        assert fetch(f"{address}/report")[0] == 422  # there is no judge to report on
        assert store.annotators() == ["\ufffd"]


def test_where_the_store_cannot_be_written_the_page_says_so(make_store, support):
    store = make_store(1)
    body = ADA | {"item": "item 00", "dimension": "topic", "option": "billing", "seconds": 1}
    with serving(support, store) as address:
        with store.writing() as db:
            db.execute("ALTER TABLE answer RENAME TO away")
        status, said = fetch(f"{address}/api/answer", body)
        assert (status, "cannot be used: no such table" in said) == (422, True)
        assert fetch(f"{address}/api/next", ADA)[0] == 422


def test_a_password(make_store, support):
    with serving(support, make_store(1), password="correct horse") as address:

        def knock(password):
            code = base64.b64encode(f"me:{password}".encode()).decode()
            return fetch(f"{address}/api/start", Authorization=f"Basic {code}")[0]

        assert [knock("correct horse"), knock("wrong"), knock("")] == [200, 401, 401]
        assert fetch(f"{address}/")[0] == fetch(f"{address}/export.csv")[0] == 401
        assert fetch(f"{address}/", Authorization="Basic %")[0] == 401


@pytest.mark.parametrize("shown", ["never", "after", "before"])
def test_the_judge_s_answer_leaves_the_machine_only_when_it_may(make_store, support, shown):
    store = make_store(1, shown=shown)
    store.add_judged("judge", {"item 00": Judged({"topic": ("praise", 0.75)})})
    with serving(support, store) as address:
        before = fetch(f"{address}/api/next", ADA)[1]
        answer(store, "item 00", "Ada", urgency="1", topic=None)
        last = ADA | {"item": "item 00", "dimension": "refund", "option": "true", "seconds": 2.5}
        after = fetch(f"{address}/api/answer", last)[1]
        assert ["0.75" in before, "0.75" in after] == {
            "never": [False, False], "after": [False, True], "before": [True, True]}[shown]  # fmt: skip
        assert "0.75" not in fetch(f"{address}/api/start")[1]


def test_tables_and_figures_to_take_away(make_store, support):
    """The report as well, which needs a judge and people."""
    two = support.model_copy(update={"dimensions": support.dimensions[:2]})
    store = make_store(6, two, overlap=2)
    for n in range(6):
        level = n % 4 + 1
        answer(store, f"item {n:02}", "Ada", urgency=str(level), topic="billing")
        answer(store, f"item {n:02}", "Bob", urgency=str(level - (n == 3)), topic="billing")
        said = Judged({"urgency": (str(level), 0.9), "topic": ("billing", 0.8)})
        store.add_judged("judge", {f"item {n:02}": said})
    with serving(two, store) as address:
        status, table = fetch(f"{address}/export.csv")
        assert (status, table.count("\n")) == (200, 13)
        assert fetch(f"{address}/export.csv?settled=1")[1] == table
        figures = {
            one["dimension"]: one
            for one in json.loads(fetch(f"{address}/api/standing", {"width": 0.1})[1])["dimensions"]
        }
        assert (
            figures["urgency"]["people"]["estimate"] < figures["urgency"]["judge"]["estimate"] < 1
        )
        assert [point["items"] for point in figures["urgency"]["curve"]] == [3, 4, 5, 6]
        assert figures["urgency"]["more"] > 0
        assert figures["topic"]["more"] is None
        assert "cannot be told from chance" in figures["topic"]["notes"][0]
        assert fetch(f"{address}/api/standing", {"width": 0})[0] == 422
        assert fetch(f"{address}/api/standing", {"width": 10**400})[0] == 422
        status, page = fetch(f"{address}/report")
        assert status == 200
        assert "Krippendorff" in page


def test_questions_that_are_not_always_asked(make_store, support):
    """The judge's view is not complete then, nor a reason to leave the item out of the report."""
    rubric = conditional(support)
    store = make_store(6, rubric, shown="before")
    for n in range(6):
        topic = "praise" if n % 2 else "billing"
        answers = {"urgency": str(n % 4 + 1), "topic": topic, "refund": None if n % 2 else "true"}
        answer(store, f"item {n:02}", "Ada", **answers)
        said = {name: (option, 0.9) for name, option in answers.items() if option}
        store.add_judged("judge", {f"item {n:02}": Judged(said)})
    with serving(rubric, store) as address:
        start = json.loads(fetch(f"{address}/api/start")[1])["rubric"]["dimensions"]
        assert [one["ask_if"] for one in start] == [{}, {}, {"topic": ["billing", "product"]}]
        note = json.loads(fetch(f"{address}/api/standing", {"width": 0.1})[1])["note"]
        assert note.startswith("Some answers were given with the judge's in view")
        assert fetch(f"{address}/report")[0] == 200


def test_what_a_judge_is_not_asked_has_no_label(support):
    said = Annotation({"refund": None}, {"refund": {False: 0.25, True: 0.75}}, {"refund": None})
    shares = {"label": None, "confidence": None, "probabilities": {"false": 0.25, "true": 0.75}}
    assert _shares(said) == {"refund": shares}


def test_which_files_of_a_judge_are_loaded(support, monkeypatch):
    """Revision and quantization are those of the judge, not of the one beside it."""
    from slm_judge.evaluation import zero_shot

    asked = []

    def load(model, rubric, revision=None, **options):
        asked.append((model, revision, {k: v for k, v in options.items() if v is not None}))
        return SimpleNamespace(rubric=rubric, backend=SimpleNamespace(path=Path(model)))

    monkeypatch.setattr(zero_shot, "load", load)
    rubric = ROOT / "rubrics/support-messages.yaml"
    options = {"quantization": "Q8_0", "n_threads": 2}
    load_judges(Settings("me/a", "me/b", rubric, revision="v1", options=options))
    assert asked == [("me/a", "v1", options), ("me/b", None, {"n_threads": 2})]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "Name a judge"),
        ({"rubric": Path("r.yaml")}, "there must be items"),
        ({"model": "m", "host": "0.0.0.0"}, "set a password in the variable SLM_JUDGE_PASSWORD"),
        ({"model": "m", "host": "0.0.0.0", "password": "short"}, "at least 8 characters"),
        ({"model": "m", "host": "::1"}, "--host is a name or an IPv4 address, got ::1"),
        ({"model": "m", "store": Path("nowhere.db")}, "There is no store nowhere.db"),
        ({"model": "m", "items": "i.csv", "draw": 3}, "--draw is the number of items"),
        (
            {"rubric": Path("r.yaml"), "items": "i.csv", "compare": "m"},
            "--compare stands beside a judge",
        ),
    ],
)
def test_what_contradicts_is_refused_before_a_model_is_loaded(settings, complaint):
    with pytest.raises(JudgeError, match=complaint):
        check(Settings(**settings))
    check(Settings("m", host="0.0.0.0", password="long enough"))


def test_names_that_the_page_writes_are_refused(support):
    raw = json.loads(support.to_json()) | {"fields": ["seconds"]}
    with pytest.raises(JudgeError, match="columns called seconds"):
        check_names(Rubric.parse(raw, "raw"))


def test_answers_as_a_table_from_the_command_line(make_store, tmp_path, monkeypatch, capsys):
    store, output = make_store(1), tmp_path / "long.jsonl"
    command = [
        "slm-judge",
        "app",
        "--rubric",
        ROOT / "rubrics/support-messages.yaml",
        "--store",
        store.path,
        "--export",
        output,
    ]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Nothing was answered yet" in capsys.readouterr().err.replace("\n", " ")
    answer(store, "item 00", "Ada")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    (row,) = map(json.loads, output.read_text().splitlines())
    assert {name: row[name] for name in ALL} == ALL
    assert (row["annotator_id"], row["seconds"], row["judge_shown"]) == ("Ada", 4.5, Task().shown)
    for more, said in ((["--items", output], "is --items and --export"), ([], "exists. Name")):
        monkeypatch.setattr("sys.argv", list(map(str, [*command, *more])))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setattr("sys.argv", list(map(str, [*command, "--overwrite"])))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_that_wcag_asks_for():
    """4.5 of text (criterion 1.4.3) and 3 of bars and focus (1.4.11), light and dark."""
    import re

    css = (Path(slm_judge.app.__file__).parent / "page.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        found = {name: colour if len(colour) == 7 else "#" + "".join(c * 2 for c in colour[1:])
                 for name, colour in re.findall(r"--([\w-]+): (#\w+)", theme)}  # fmt: skip
        light = {name: luminance(colour) for name, colour in found.items()}
        pairs = [(a, b, 4.5) for a in ("ink", "soft", "warn", "main") for b in ("page", "card")]
        pairs += [("on-main", "main", 4.5), ("bar", "page", 3), ("second", "page", 3)]
        for a, b, least in pairs:
            high, low = sorted([light[a], light[b]], reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (a, b)
