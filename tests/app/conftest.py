"""The page in a real browser: Chromium of the system, driven by Playwright."""

import os
import re
import shutil
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from slm_judge.app.judging import Judges
from slm_judge.app.server import Page, application
from slm_judge.app.store import Store, Task
from tests.conftest import LIMIT, served

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; without it, or without Playwright, the tests skip."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install '.[dev]'"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield started
        started.close()


def is_complaint(said):
    """Chromium counts requests that were answered by an error as errors, whatever the page makes of it."""
    return said.type == "error" and not re.search(
        r"status of 422|ERR_CONNECTION_REFUSED", said.text
    )


@pytest.fixture
def visit(browser):
    """Opens an address in a browser of somebody's own; what the page complains of fails the test."""
    contexts, complaints = [], []

    def open_page(address, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda said: complaints.append(said.text) if is_complaint(said) else None
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def photograph(tmp_path):
    """Takes a screenshot of a page, to be looked at: into `$SLM_JUDGE_SCREENSHOTS`, if that is set."""
    folder = Path(os.environ.get("SLM_JUDGE_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", full_page=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until_served(process, log):
    """Wait until `slm-judge app`, which writes to `log`, says the page's address."""
    deadline = time.monotonic() + LIMIT
    while "The page: " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return process


@contextmanager
def serving(rubric, store=None, named=(), password=None, hosts=("127.0.0.1",), **more):
    """The page on a port of its own, in a thread; gives its address."""
    page = Page(rubric, Judges(list(named), rubric), store, **more)
    page.judges.close = lambda: None  # the judges of a session serve several tests
    with served(application(page, list(hosts), password)) as address:
        yield address


@pytest.fixture
def make_store(tmp_path, support):
    """A store of so many short items, or of the given ones."""

    def make(items=24, rubric=support, name="annotations.db", **task):
        if isinstance(items, int):
            items = {
                f"item {n:02}": {"text": f"Message {n}: please answer today."} for n in range(items)
            }
        store = Store(tmp_path / name, rubric, Task(**task))
        store.add_items(items, {})
        return store

    return make
