"""The page as people use it, in Chromium; the screenshots are to be looked at."""

import re
import signal
import subprocess
import sys

import pytest

from slm_judge.app.app import Settings, load_judges
from slm_judge.app.store import Judged, Store
from slm_judge.data.text import MOST_CHARACTERS
from tests.app.conftest import free_port, serving, until_served
from tests.app.test_store import ALL, answer
from tests.conftest import LIMIT, ROOT

PHONE = {"color_scheme": "dark", "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
HOSTILE = {
    "html": {
        "text": "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&lt;b&gt;"
    },
    "right to left": {"text": "مرحبا، أريد استرداد أموالي من فضلكم."},
    "emoji": {"text": "Thanks 👩🏽‍🚀👨‍👩‍👧‍👦🏳️‍🌈!"},
    "long": {"text": "parcel " * 20_000},
    "one word": {"text": "x" * 3000},
    "empty": {"text": ""},
}


def begin(visit, address, name, **options):
    page = visit(f"{address}/#annotate", **options)
    page.fill("#annotator", name)
    page.keyboard.press("Enter")
    page.wait_for_selector("#item-id")
    return page


def next_item(page):
    from playwright.sync_api import expect

    before = page.text_content("#item-id")
    page.keyboard.press("Enter")
    expect(page.locator("#item-id")).not_to_have_text(before)


def wait_for(page, place, pattern):
    from playwright.sync_api import expect

    expect(page.locator(place)).to_have_text(re.compile(pattern), timeout=60_000)


def test_twenty_items_by_keyboard_by_two_annotators_at_once(visit, make_store, support, photograph):
    store = make_store(24, overlap=2)
    with serving(support, store) as address:
        people = {name: begin(visit, address, name) for name in ("Ada", "Bob")}
        people["Ada"].keyboard.press("9")
        wait_for(people["Ada"], "#annotate-said", "There is no option 9")
        said = {}
        for n in range(20):
            for name, page in people.items():
                keys = f"{n % 4 + 1}{(n + (name == 'Bob')) % 5 + 1}{'c' if n == 3 else n % 2 + 1}"
                item = page.text_content("#item-id")
                for key in keys:
                    page.keyboard.press(key)
                wait_for(page, "#annotate-said", "All answers are kept")
                said[name, item] = {
                    "urgency": str(n % 4 + 1),
                    "topic": ["billing", "delivery", "product", "account", "praise"][
                        int(keys[1]) - 1
                    ],
                    "refund": None if keys[2] == "c" else ["false", "true"][int(keys[2]) - 1],
                }
                if n < 19:
                    next_item(page)
        photograph(people["Ada"], "annotate")
        kept = {}
        for row in store.rows("SELECT * FROM answers"):
            kept.setdefault((row["annotator"], row["item"]), {})[row["dimension"]] = row["option"]
            assert 0 <= row["seconds"] < 600
        assert kept == said
        assert len(kept) == 40
        page = people["Ada"]
        page.keyboard.press("u")
        wait_for(page, "#annotate-said", "The last answer is taken back")
        assert page.get_attribute("fieldset.active", "data-dimension") == "refund"
        page.keyboard.press("Enter")
        wait_for(page, "#annotate-said", "This question is open")
        page.keyboard.press("ArrowDown")  # and screen readers: plain radio buttons
        page.reload()
        page.wait_for_selector("#item-id")
        assert page.locator("input:checked").count() == 2  # resumes in the midst of an item
        next_up = store.own(page.text_content("#item-id"), "Ada")
        assert set(next_up) == {"urgency", "topic"}


def test_a_key_that_is_held_answers_once_and_the_last_answer_can_be_taken_back(
    visit, make_store, support
):
    store = make_store(1)
    with serving(support, store) as address:
        page = begin(visit, address, "Ada", width=375)
        assert page.text_content("#task-text") == support.instructions
        for _ in range(3):  # without `up` between them: as the key repeats
            page.keyboard.down("2")
        wait_for(page, "#annotate-said", "Kept")
        assert store.own("item 00", "Ada") == {"urgency": "2"}
        page.keyboard.up("2")
        page.evaluate("document.querySelector('#annotate-said').textContent = 'lost '.repeat(40)")
        heights = [page.locator(f"#{name}").bounding_box()["height"] for name in ("undo", "next")]
        assert max(heights) < 60  # the words of a button stay on a line
        for key in ("1", "1", "Enter"):
            page.keyboard.press(key)
        wait_for(page, "#annotate-said", "nothing left for you")
        page.keyboard.press("u")
        wait_for(page, "#item-id", "item 00")
        assert len(store.own("item 00", "Ada")) == 2


def test_many_options_have_numbers_of_two_digits(visit, make_store):
    from slm_judge import Rubric

    store = make_store(
        {"1": {"text": "I love it"}, "2": {"text": "Why?"}},
        Rubric.from_file(ROOT / "rubrics/emotion.yaml"),
    )
    with serving(store.rubric, store) as address:
        page = begin(visit, address, "Ada")
        page.keyboard.press("1")
        wait_for(page, "#annotate-said", "one more digit")
        page.keyboard.press("2")
        wait_for(page, "#annotate-said", "All answers are kept")
        (row,) = store.rows("SELECT option FROM answers")
        assert row["option"] == store.rubric.dimensions[0].key(11)


@pytest.mark.parametrize("options", [{}, {"width": 375, **PHONE}], ids=["laptop", "phone"])
def test_texts_are_shown_as_texts(visit, make_store, support, options, photograph):
    store = make_store(HOSTILE)
    with serving(support, store, notes=["<b>a note</b>"]) as address:
        page = begin(visit, address, "<i>Ada</i>", **options)
        for _ in HOSTILE:
            name = page.text_content("#item-id")
            text = HOSTILE[name]["text"]
            shown = page.locator("#item .text")
            assert shown.text_content() == (text or "(empty)")
            if text:
                assert shown.evaluate("box => getComputedStyle(box).direction") == (
                    "rtl" if name == "right to left" else "ltr"
                )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert shown.evaluate("box => box.getBoundingClientRect().height < innerHeight")
            assert page.locator("#item img, #item script, #notes b, #who i").count() == 0
            assert page.title() == "slm-judge"
            if options or name == "long":
                photograph(page, f"text-{name.replace(' ', '-')}-{options.get('width', 1280)}")
            for key in "c1c":
                page.keyboard.press(key)
            wait_for(page, "#annotate-said", "All answers are kept")
            page.keyboard.press("Enter")
            wait_for(page, "#count", f"^{len(store.rows('SELECT 1 FROM answers')) // 3} of")
        wait_for(page, "#annotate-said", "nothing left for you")


def test_the_judge_is_shown_after_the_answer(visit, make_store, support, photograph):
    store = make_store(2, shown="after")
    for n in range(2):
        store.add_judged(
            "judge", {f"item {n:02}": Judged({"topic": ("praise", 0.75)}, "no answer")}
        )
    with serving(support, store) as address:
        page = begin(visit, address, "Ada")
        page.keyboard.press("1")
        page.keyboard.press("1")
        wait_for(page, "#annotate-said", "Kept")
        assert "The judge" not in page.text_content("#questions")
        page.keyboard.press("1")
        wait_for(page, "[data-dimension=topic] .judge", r"The judge: praise \(75 % sure\)")
        wait_for(page, "[data-dimension=refund] .judge", "The judge gave no answer")
        photograph(page, "annotate-judge-after")


def test_killed_and_resumed(visit, tmp_path, support):
    """The command itself: SIGKILL loses nothing that was kept, and the page says what is not."""
    port = free_port()
    log, store = tmp_path / "log", tmp_path / "a.db"
    rubric, items = ROOT / "rubrics/support-messages.yaml", ROOT / "samples/new-messages.csv"
    command = [sys.executable, "-m", "slm_judge", "app", "--rubric", rubric, "--items", items,
               "--store", store, "--port", str(port), "--no-browser"]  # fmt: skip

    def start():
        with log.open("w") as file:
            return until_served(subprocess.Popen(command, stdout=file, stderr=file), log)

    process = start()
    try:
        page = begin(visit, f"http://127.0.0.1:{port}", "Ada")
        item = page.text_content("#item-id")
        for key in "23":
            with page.expect_response("**/api/answer") as answered:
                page.keyboard.press(key)
            answered.value.finished()
        assert Store(store, support).own(item, "Ada") == {"urgency": "2", "topic": "product"}
        process.kill()
        process.wait(LIMIT)
        page.keyboard.press("1")
        wait_for(page, "#annotate-said", "may be lost, give it again: The server does not answer")
        assert page.locator("input:checked").count() == 2
        process = start()
        page.keyboard.press("1")
        wait_for(page, "#annotate-said", "All answers are kept")
        page.reload()
        page.wait_for_selector("#item-id")
        assert page.text_content("#item-id") != item
        page.keyboard.press("U")  # whatever Caps Lock is
        wait_for(page, "#item-id", item)
        wait_for(page, "#annotate-said", "taken back")
        assert page.locator("input:checked").count() == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
    assert "Answers are kept in" in log.read_text()


def test_settling_and_where_we_stand(visit, make_store, support, photograph):
    store = make_store(8, overlap=2)
    topics = ["billing", "delivery", "product", "account", "praise"]
    for n in range(8):
        for who in ("Ada", "Bob", "مريم"):
            odd = who == "Bob" and n % 3 == 0
            answer(
                store,
                f"item {n:02}",
                who,
                **{"urgency": str(1 if odd else n % 4 + 1), "topic": topics[(n + odd) % 5]},
            )
        store.add_judged(
            "judge",
            {
                f"item {n:02}": Judged(
                    {"urgency": (str(n % 4 + 1), 0.9), "topic": (topics[n % 5], 0.8)}
                )
            },
        )
    with serving(support, store) as address:
        page = visit(f"{address}/#settle")
        wait_for(page, "#settle-said", "disagreements, worst first")
        assert {page.text_content(f"article >> nth={n} >> h2").split(",")[0] for n in range(4)} == {
            "topic",
            "urgency",
        }
        page.select_option("#settle-dimension", "topic")
        wait_for(page, "#settle-said", "3 disagreements")
        page.select_option("#settle-annotator", "Bob")
        wait_for(page, "#settle-said", "3 disagreements")
        first = page.locator("article").first
        item = first.get_attribute("data-item")
        first.get_by_role("button", name="Settle").click()
        wait_for(page, "article >> nth=0 >> form > p >> nth=1", "Choose an answer")
        first.get_by_label("product").check()
        first.get_by_label("Comment").fill("It is the item itself.")
        first.get_by_role("button", name="Settle").click()
        wait_for(page, "article >> nth=0 >> form > p >> nth=1", "Give your name")
        page.fill("#settle-who", "Cy")
        first.get_by_role("button", name="Settle").click()
        wait_for(page, "article >> nth=0 >> form > p >> nth=1", "Settled as product by Cy")
        photograph(page, "settle")
        (row,) = store.rows("SELECT * FROM settlements")
        assert (row["item"], row["option"], row["comment"], row["who"]) == (
            item,
            "product",
            "It is the item itself.",
            "Cy",
        )
        for options in ({}, {"width": 375, **PHONE}):
            page = visit(f"{address}/#standing", **options)
            wait_for(page, "#standing-said", "1 is full agreement")
            urgency = page.locator("[data-dimension=urgency]")
            assert "on 8 items that several answered" in urgency.text_content()
            assert "more items with several answers" in urgency.text_content()
            assert (
                urgency.get_by_role("img")
                .get_attribute("aria-label")
                .startswith("Alpha of urgency")
            )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            photograph(page, f"standing-{options.get('width', 1280)}")
        page.goto(f"{address}/#settle")
        wait_for(page, "#settle-said", "disagreements, worst first")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        photograph(page, "settle-375")


def test_trying_two_judges(visit, run, make_store, support, photograph):
    """The judge in two files; and its answers about the items, in the background."""
    from playwright.sync_api import expect

    model = run.gguf_file("Q4_K_M")
    rubric, working = load_judges(
        Settings(str(model), str(run.gguf_file("BF16")), options={"n_threads": 1})
    )
    assert rubric == support
    judges = [named.judge for named in working.named]
    texts = HOSTILE | {"usual": {"text": "My card was charged twice. Please refund me."}}
    store = make_store(texts)
    working.judge_items(store)
    working.wait(LIMIT)
    assert working.problem == ""
    said = {
        row["item"]: row for row in store.rows("SELECT * FROM verdicts WHERE dimension = 'topic'")
    }
    assert said["empty"]["problem"] == "empty field: text"
    assert said["long"]["problem"].startswith("too long: ")
    expected = judges[0].annotate([texts["usual"]])[0]
    assert said["usual"]["option"] == expected.labels["topic"]
    with serving(support, None, working.named, review_below=0.9999) as address:
        for width, options in ((1280, {}), (375, PHONE)):
            page = visit(address, width, **options)
            expect(page.get_by_role("tab")).to_have_text(["Try"], timeout=60_000)
            page.get_by_role("button", name="Ask the judge").click()
            wait_for(page, "#try-said", "Q4_K_M.gguf cannot judge this: empty field: text")
            page.get_by_label("text").fill(texts["usual"]["text"])
            page.get_by_role("button", name="Ask the judge").click()
            wait_for(page, "#try-said", rf"Q4_K_M.gguf: \d+\.\d\d s, {working.named[1].name}: \d")
            other = judges[1].annotate([texts["usual"]])[0]
            for dimension in support.dimensions:
                card = page.locator(f"[data-dimension={dimension.name}]")
                shares = [
                    int(re.match(r"\d+", text)[0])
                    for text in card.locator(".share").all_text_contents()
                ]
                assert sum(shares) == pytest.approx(200, abs=len(shares))
                for judge, found in enumerate((expected, other)):
                    head = card.locator("thead th").nth(judge + 1).text_content()
                    key = dimension.key(dimension.index(found.labels[dimension.name]))
                    key = {"true": "yes", "false": "no"}.get(key, key)
                    assert (
                        f"{working.named[judge].name}: {key} ({100 * found.confidence[dimension.name]:.0f} % sure)"
                        in head
                    )
                    assert "a person should look" in head
                differ = expected.labels[dimension.name] != other.labels[dimension.name]
                assert ("they differ" in card.text_content()) == differ
                option = dimension.options[0]
                assert option.description in page.text_content("#rubric")
            assert page.evaluate("document.activeElement.textContent") == "Ask the judge"
            page.evaluate("document.querySelector('#try-example').add(new Option('W'.repeat(60)))")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            photograph(page, f"try-{width}")
    (found, _) = working.try_out({"text": "x" * (MOST_CHARACTERS + 1)})
    assert found["problem"].startswith("too long: 1000001 characters in text")
    working.close()


def test_every_control_has_a_name_and_a_place_in_the_order(visit, make_store, support):
    store = make_store(3, overlap=2)
    answer(store, "item 00", "Bob")
    answer(store, "item 00", "Cy", **ALL | {"topic": "praise"})
    with serving(support, store) as address:
        page = begin(visit, address, "Ada")
        for tab in ("try", "annotate", "settle", "standing"):
            if tab != "try":
                page.goto(f"{address}/#{tab}")
                page.wait_for_selector(f"#{tab}:visible")
            if tab == "settle":
                page.wait_for_selector("article")
            nameless = page.evaluate("""() => [...document.querySelectorAll(
                'input, select, textarea, button, [tabindex="0"]')].filter((e) => e.offsetParent
                && !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).map((e) => e.outerHTML)""")
            assert nameless == []
        page.goto(f"{address}/#annotate")
        page.locator("#tab-annotate").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "tab-settle"
        page.wait_for_selector("#settle:visible")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#annotate:visible")
        order = []
        for _ in range(7):
            page.keyboard.press("Tab")
            order.append(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.name || document.activeElement.className"
                )
            )
        assert order == [
            "rename",
            "task-title",
            "text",
            "urgency",
            "topic",
            "refund",
            "next",
        ]  # nothing to undo yet
